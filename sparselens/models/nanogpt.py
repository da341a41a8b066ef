"""Opens weights in nanoGPT's layout, such as the `final.pth` that the paper's authors released.

Such a file names its tensors as GPT-2 does, stores linear weights as (output, input), where GPT-2 stores (input,
output), and pads the vocabulary to 50304. It says nothing about gates: the authors evaluate with `scores > 0`, that is,
a gate bias of 0.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

from sparselens.gates.surgery import sparsify
from sparselens.models.folder import to_bridge

GPT2_VOCABULARY = 50257
_TRANSPOSED = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")
_BUFFERS = (".attn.bias", ".attn.masked_bias")  # causal masks that older versions stored
_PREFIXES = ("_orig_mod.", "module.")  # left by torch.compile and by data-parallel training


def load_nanogpt(
    path: str | Path,
    *,
    gate_bias: float = 0.0,
    n_heads: int | None = None,
    vocabulary: int = GPT2_VOCABULARY,
    tokenizer: Any = None,
) -> Any:
    """A gated TransformerBridge from a nanoGPT weight file.

    >>> model = sl.load_nanogpt("out/ckpt.pt", tokenizer=AutoTokenizer.from_pretrained("gpt2"))

    Args:
        n_heads: default: as the file says, else one head per 64 dimensions, as in every GPT-2
        vocabulary: number of tokens; further rows of the embedding are padding and are dropped

    Raises:
        ValueError: the file cannot be read safely, or is not in nanoGPT's layout.
    """
    return sparsify(to_bridge(read_nanogpt(path, n_heads=n_heads, vocabulary=vocabulary), tokenizer), gate_bias)


def read_nanogpt(path: str | Path, *, n_heads: int | None = None, vocabulary: int = GPT2_VOCABULARY) -> GPT2LMHeadModel:
    """The weights of a nanoGPT file as a plain, dense transformers model. Arguments as in `load_nanogpt`."""
    tensors, arguments = _read(Path(path))
    config = _config(tensors, n_heads or arguments.get("n_head"), vocabulary)
    model = GPT2LMHeadModel(config)
    state = {name: _as_gpt2(name, tensor, vocabulary) for name, tensor in tensors.items()}
    try:
        missing, unexpected = model.load_state_dict(state, strict=False)
    except RuntimeError as error:  # raised by torch if shapes differ
        raise ValueError(f"{path} is not in nanoGPT's layout: {error}") from error
    # GPT-2 has biases; a model trained without them lacks them in the file, which equals zero biases
    absent = [name for name in missing if not name.endswith(".bias")]
    if absent or unexpected:
        raise ValueError(f"{path} is not in nanoGPT's layout: missing {absent[:3]}, unknown {list(unexpected)[:3]}")
    for name in missing:
        torch.nn.init.zeros_(model.get_parameter(name))
    return model.eval()


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    try:
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:
        raise ValueError(f"{path} cannot be read as a file of tensors: {error}") from error
    arguments = content.get("model_args", {}) if isinstance(content, dict) else {}
    for key in ("model", "state_dict", "model_state_dict"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}, not a dictionary of tensors")
    tensors = {_bare(str(name)): value for name, value in content.items() if isinstance(value, Tensor)}
    tensors = {name: value for name, value in tensors.items() if not name.endswith(_BUFFERS)}
    for name in ("transformer.wte.weight", "transformer.wpe.weight"):
        if name not in tensors:
            raise ValueError(f"{path} is not in nanoGPT's layout: it has no {name}")
    tensors.setdefault("lm_head.weight", tensors["transformer.wte.weight"])
    return tensors, arguments


def _bare(name: str) -> str:
    while name.startswith(_PREFIXES):
        name = name.split(".", 1)[1]
    return name


def _config(tensors: dict[str, Tensor], n_heads: int | None, vocabulary: int) -> GPT2Config:
    positions, d_model = tensors["transformer.wpe.weight"].shape
    rows = len(tensors["transformer.wte.weight"])
    if rows < vocabulary:
        raise ValueError(f"the file has only {rows} token embeddings: pass vocabulary={rows} or less, not {vocabulary}")
    layers = {name.split(".")[2] for name in tensors if name.startswith("transformer.h.")}
    heads = n_heads or max(1, d_model // 64)
    if d_model % heads:
        raise ValueError(f"d_model = {d_model} cannot be split evenly into {heads} heads: pass n_heads")
    config = GPT2Config(
        vocab_size=vocabulary,
        n_positions=positions,
        n_embd=d_model,
        n_layer=len(layers),
        n_head=heads,
        activation_function="gelu",  # nanoGPT's exact GELU; OpenAI's weights use gelu_new
        tie_word_embeddings=torch.equal(tensors["lm_head.weight"], tensors["transformer.wte.weight"]),
    )
    config._attn_implementation = "eager"
    return config


def _as_gpt2(name: str, tensor: Tensor, vocabulary: int) -> Tensor:
    if name in ("transformer.wte.weight", "lm_head.weight"):
        return tensor[:vocabulary]
    return tensor.mT if name.endswith(_TRANSPOSED) else tensor
