"""Transcoders for tests: random ones for any model, and exact ones for a model whose MLPs are ReLU layers."""

from typing import Any

import torch

from sparselens.analyses.features.transcoders import READS, Transcoders
from tests.tiny_models import tiny_bridge

KINDS: dict[str, dict[str, Any]] = {
    "cross-layer, top-k": {"top_k": 3},
    "per-layer, with skip connections": {"cross_layer": False, "skip": True, "reads": "ln2.hook_normalized"},
    "cross-layer, JumpReLU": {"threshold": 0.3, "reads": "hook_resid_mid", "first_pos": 1},
}


def random_transcoders(
    model: Any,
    n_features: int = 12,
    cross_layer: bool = True,
    skip: bool = False,
    threshold: float | None = None,
    **options: Any,
) -> Transcoders:
    """Transcoders with random numbers in every tensor."""
    random, n_layers, d_model = torch.Generator().manual_seed(1), model.cfg.n_layers, model.cfg.d_model

    def some(*shape: int, size: float = 0.3) -> torch.Tensor:
        return size * torch.randn(*shape, generator=random)

    return Transcoders(
        some(n_layers, n_features, d_model, size=1.0),
        some(n_layers, n_features),
        tuple(some(n_features, n_layers - layer if cross_layer else 1, d_model) for layer in range(n_layers)),
        some(n_layers, d_model),
        None if threshold is None else threshold + some(n_layers, n_features).abs(),
        skip=some(n_layers, d_model, d_model) if skip else None,
        **options,
    )


def relu_model() -> tuple[Any, Transcoders]:
    """A model whose neurons are the features of its transcoders, which therefore reconstruct its MLPs exactly."""
    model = tiny_bridge("gpt2", activation_function="relu")
    mlps = [block.mlp for block in model.blocks]
    encoder, bias, decoder, decoder_bias = (
        [getattr(mlp, name).detach() for mlp in mlps] for name in ("W_in", "b_in", "W_out", "b_out")
    )
    return model, Transcoders(
        torch.stack(encoder).mT,
        torch.stack(bias),
        tuple(values[:, None] for values in decoder),
        torch.stack(decoder_bias),
        reads=READS[0],
    )
