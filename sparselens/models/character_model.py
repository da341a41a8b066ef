"""A small GPT-2 over single characters, causal or bidirectional, as an ordinary transformers model.

A causal architecture becomes bidirectional when it is passed a four-dimensional mask of zeros. `attend_both_ways` adds
a hook that does so in every call, including those of a TransformerBridge; `is_causal: false` in config.json records
that the weights were trained bidirectionally.
"""

from typing import Any

import torch
from einops import repeat
from jaxtyping import Float, Int
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedModel, PreTrainedTokenizerFast

UNKNOWN = "[UNK]"


def character_model(
    alphabet: str,
    n_positions: int,
    n_layers: int = 4,
    n_heads: int = 4,
    d_model: int = 64,
    bidirectional: bool = False,
    seed: int = 0,
) -> GPT2LMHeadModel:
    """A freshly initialised GPT-2 whose vocabulary is `alphabet`. The same seed gives the same weights.

    A bidirectional model predicts each position's own character (`logits[:, i]` is about position i), a causal model
    the next one. The model has no dropout and is returned in evaluation mode.
    """
    options: dict[str, Any] = {
        "vocab_size": len(alphabet),
        "n_positions": n_positions,
        "n_layer": n_layers,
        "n_head": n_heads,
        "n_embd": d_model,
        **dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0),
        **dict.fromkeys(("bos_token_id", "eos_token_id")),
        "tie_word_embeddings": False,
        "activation_function": "gelu_pytorch_tanh",  # same as GPT-2's gelu_new, in one pass instead of eight
        "use_cache": not bidirectional,  # a later character changes the activations at every earlier position
        "is_causal": not bidirectional,
        "attn_implementation": "eager",  # gates and hooks need the pattern
    }
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = GPT2LMHeadModel(GPT2Config(**options))
    attend_both_ways(model)
    return model.eval()


def character_tokenizer(alphabet: str) -> PreTrainedTokenizerFast:
    """A tokenizer with one token per character, whose id is its index in `alphabet`. It adds no special tokens.

    Other characters become `[UNK]`. Its id is out of range for the model, which raises an error instead of computing
    nonsense.

    Raises:
        ValueError: a character occurs twice.
    """
    if len(set(alphabet)) < len(alphabet):
        raise ValueError(f"the alphabet {alphabet!r} names a character twice")
    vocabulary = {character: i for i, character in enumerate(alphabet)}
    tokenizer = Tokenizer(models.WordLevel({**vocabulary, UNKNOWN: len(alphabet)}, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token=UNKNOWN, clean_up_tokenization_spaces=False)


def attend_both_ways(model: PreTrainedModel) -> None:
    """Make every call of `model` bidirectional if its config says `is_causal: false`; otherwise change nothing.

    Padding given as a mask of ones and zeros stays hidden; a four-dimensional mask is used as it is. To be called once
    the model is loaded, before or after a TransformerBridge wraps it.
    """
    if getattr(model.config, "is_causal", True) or _open_mask in model._forward_pre_hooks.values():
        return
    model.register_forward_pre_hook(_open_mask, with_kwargs=True)


def _open_mask(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    shown = kwargs.get("attention_mask")
    if shown is None:
        shown = _all_ones(args[0] if args else kwargs.get("input_ids"), kwargs.get("inputs_embeds"))
    if shown.ndim == 2:
        kwargs = {**kwargs, "attention_mask": _additive(shown, next(model.parameters()).dtype)}
    return args, kwargs


def _all_ones(ids: Tensor | None, embeddings: Tensor | None) -> Int[Tensor, "batch pos"]:
    given = ids if ids is not None else embeddings
    if given is None:
        raise ValueError("the model was called without input_ids and without inputs_embeds")
    return torch.ones(given.shape[:2], dtype=torch.long, device=given.device)


def _additive(shown: Int[Tensor, "batch key_pos"], dtype: torch.dtype) -> Float[Tensor, "batch 1 query_pos key_pos"]:
    """The additive mask: zero for real keys, the most negative number for padding."""
    hidden = repeat(shown == 0, "batch key_pos -> batch 1 query_pos key_pos", query_pos=shown.shape[1])
    return torch.zeros(hidden.shape, dtype=dtype, device=shown.device).masked_fill(hidden, torch.finfo(dtype).min)
