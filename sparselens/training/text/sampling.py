"""Sample text from a model."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from sparselens.training.text.tokens import Tokens


@torch.no_grad()
def sample_tokens(
    model: nn.Module, n_tokens: int, start: int, length: int = 256, batch_size: int | None = None, seed: int = 0
) -> Tokens:
    """Sample rows of `length` tokens from a transformers model at temperature 1, starting from token `start`.

    Small corpora are soon memorised; samples are unlimited, and the model's own distribution is exact for them.

    Args:
        batch_size: rows sampled at once. Default: 256, or 1,024 on a GPU, which smaller batches do not keep busy

    Returns:
        All rows, concatenated and cut to `n_tokens`.
    """
    generate: Any = model.generate
    config: Any = model.config
    device = next(model.parameters()).device
    length = min(length, getattr(config, "max_position_embeddings", length))
    batch_size = min(batch_size or (256 if device.type == "cpu" else 1024), -(-n_tokens // length))
    pieces: list[Tensor] = []
    with torch.random.fork_rng(range(torch.cuda.device_count())), _fast_attention(model):
        torch.manual_seed(seed)
        while sum(piece.numel() for piece in pieces) < n_tokens:
            prompt = torch.full((batch_size, 1), start, device=device)
            pieces.append(_sample(generate, prompt, length))
    return torch.cat(pieces).flatten()[:n_tokens].cpu()


@contextmanager
def _fast_attention(model: Any) -> Iterator[None]:
    """Use torch's fused attention, which halves the time per token: the eager one copies keys and values."""
    before = model.config._attn_implementation
    if before != "eager" or not model._supports_sdpa:
        yield
        return
    model.set_attn_implementation("sdpa")
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def _sample(generate: Any, prompt: Tensor, length: int) -> Tensor:
    return generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=length - 1,
        min_new_tokens=length - 1,
        do_sample=True,
        top_k=0,
        top_p=1.0,
        temperature=1.0,
        pad_token_id=0,
    )
