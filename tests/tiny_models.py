"""Tiny random models of every supported family, without dropout, and a tokenizer for them, made on the spot."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers as tr
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor, nn

VOCABULARY = 31
LENGTH = 9  # longer than the sliding windows
_WINDOW = 5


def _modern(config: type, model: type, **options: Any) -> Callable[..., nn.Module]:
    """Families that share the names of Llama's config."""
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4}
    sizes |= {"max_position_embeddings": 32, "vocab_size": VOCABULARY, **_NO_SPECIAL, **options}
    return lambda **more: model(config(**(sizes | more)))


def _classic(config: type, model: type, **options: Any) -> Callable[..., nn.Module]:
    """Families with names of their own."""
    return lambda **more: model(config(**({"vocab_size": VOCABULARY, **_NO_SPECIAL} | options | more)))


_NO_SPECIAL = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
_GROUPED = {"num_key_value_heads": 2}
_GEMMA = {**_GROUPED, "head_dim": 4, "sliding_window": _WINDOW, "query_pre_attn_scalar": 4}
_GPT2 = {"n_positions": 32, "n_embd": 16, "n_layer": 2, "n_head": 4}
_GPT2 |= dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)

FAMILIES: dict[str, Callable[..., nn.Module]] = {
    "gpt2": _classic(tr.GPT2Config, tr.GPT2LMHeadModel, **_GPT2),
    "llama": _modern(tr.LlamaConfig, tr.LlamaForCausalLM, **_GROUPED),
    "mistral": _modern(tr.MistralConfig, tr.MistralForCausalLM, **_GROUPED, sliding_window=_WINDOW),
    "gemma2": _modern(tr.Gemma2Config, tr.Gemma2ForCausalLM, **_GEMMA, attn_logit_softcapping=2.0),
    "gemma3": _modern(tr.Gemma3TextConfig, tr.Gemma3ForCausalLM, **_GEMMA),
    "qwen2": _modern(tr.Qwen2Config, tr.Qwen2ForCausalLM, **_GROUPED),
    "qwen3": _modern(tr.Qwen3Config, tr.Qwen3ForCausalLM, **_GROUPED, head_dim=4),
    "neox": _modern(tr.GPTNeoXConfig, tr.GPTNeoXForCausalLM),
    "neo": _classic(
        tr.GPTNeoConfig,
        tr.GPTNeoForCausalLM,
        hidden_size=16,
        num_layers=2,
        num_heads=4,
        max_position_embeddings=32,
        attention_types=[[["global", "local"], 1]],
        window_size=_WINDOW,
    ),
    "gptj": _classic(tr.GPTJConfig, tr.GPTJForCausalLM, **_GPT2, rotary_dim=2),
    "opt": _classic(
        tr.OPTConfig,
        tr.OPTForCausalLM,
        hidden_size=16,
        ffn_dim=24,
        dropout=0.0,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=32,
        word_embed_proj_dim=16,
    ),
    "bloom": _classic(tr.BloomConfig, tr.BloomForCausalLM, hidden_size=16, n_layer=2, n_head=4),
    "falcon": _classic(
        tr.FalconConfig,
        tr.FalconForCausalLM,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=4,
        alibi=True,
        new_decoder_architecture=False,
        multi_query=False,
    ),
    "mpt": _classic(tr.MptConfig, tr.MptForCausalLM, d_model=16, n_layers=2, n_heads=4, max_seq_len=32),
    "phi": _modern(tr.PhiConfig, tr.PhiForCausalLM),
    "phi3": _modern(tr.Phi3Config, tr.Phi3ForCausalLM, **_GROUPED),
    "olmo2": _modern(tr.Olmo2Config, tr.Olmo2ForCausalLM, **_GROUPED),
    "gpt-oss": _modern(
        tr.GptOssConfig,
        tr.GptOssForCausalLM,
        **_GROUPED,
        head_dim=4,
        num_local_experts=2,
        num_experts_per_tok=1,
        sliding_window=_WINDOW,
    ),
    "bert": _modern(tr.BertConfig, tr.BertForMaskedLM, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0),
}

# One of each kind of block that analyses take apart in its own way; every family as a whole is for the tests of gates,
# of runs in parts, of edges and of circuits.
KINDS_OF_BLOCKS = (
    "gpt2",  # queries, keys and values in one weight, learned positions
    "llama",  # grouped queries, rotary positions, RMS norms
    "gemma2",  # norms behind attention and MLP, soft-caps
    "neox",  # attention and MLP beside each other
    "gptj",  # the same behind one norm
    "mpt",  # positions as biases of scores
    "gpt-oss",  # sinks, experts
)


def tiny_model(family: str, seed: int = 0, **options: Any) -> Any:
    """A random transformers model in evaluation mode; also its biases and norms are random, to be told apart."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = FAMILIES[family](**{"attn_implementation": "eager", **options})
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.3)
    return model.eval()


def tiny_bridge(family: str, seed: int = 0, **options: Any) -> Any:
    """The same model as a TransformerBridge, without a tokenizer."""
    return bridge_of(tiny_model(family, seed, **options))


def bridge_of(model: Any) -> Any:
    """A TransformerBridge around a transformers model, which it changes."""
    from transformer_lens.model_bridge.sources import build_bridge_from_module

    return build_bridge_from_module(model, type(model).__name__, hf_config=model.config)


def tiny_tokens(batch: int = 2, length: int = LENGTH, seed: int = 0) -> Tensor:
    """Random tokens, never 0."""
    return torch.randint(1, VOCABULARY, (batch, length), generator=torch.Generator().manual_seed(seed))


def logits(model: Any) -> Tensor:
    """Of `tiny_tokens`, in evaluation mode."""
    with torch.no_grad():
        out = model.eval()(tiny_tokens())
    return out if isinstance(out, Tensor) else out.logits


def tiny_tokenizer(folder: Path) -> Any:
    """Whole words `w1`, `w2`, ... with those ids; goes through `folder`, from which TransformerLens loads it again."""
    words = {"<|endoftext|>": 0} | {f"w{i}": i for i in range(1, VOCABULARY)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<|endoftext|>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = dict.fromkeys(("bos_token", "eos_token", "unk_token", "pad_token"), "<|endoftext|>")
    tr.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)
    return tr.AutoTokenizer.from_pretrained(folder)


def checkpoint_activations(model: Any, use_reentrant: bool) -> None:
    """Recompute activations in the backward pass; transformers renamed the method between 5.20 and 5.23."""
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": use_reentrant})
