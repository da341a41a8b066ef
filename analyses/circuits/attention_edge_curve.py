"""Faithfulness of each prompt's best attention edges: edges between positions, as the paper counts them.

1. An attention edge (layer, head, q, k) carries pattern[q, k] * value[k] to the output of its head at q.
2. Kept edges carry what they carry in this run, all others what they carry in the corrupted run (primed):
       z[q] = sum over kept k of pattern[q, k] value[k]  +  sum over other k of pattern'[q, k] value'[k]
   Embeddings and MLPs run unchanged. The ablated run is the one in which no edge is kept.
3. Every prompt keeps its own edges, those of the largest |score|. An edge that carries nothing in either run, such as
   one whose gate is closed in both, makes no difference.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sparselens.analyses.attribution.nodes import AttentionEdgeScores, pattern_and_value, refuse_other_outputs
from sparselens.analyses.circuits.circuit_runs import Faithfulness
from sparselens.analyses.circuits.faithfulness import FaithfulnessCurve
from sparselens.analyses.engine.batching import in_batches
from sparselens.analyses.engine.hidden_attention import showing_attention
from sparselens.analyses.engine.partial_runs import Activations, Hook, recording
from sparselens.analyses.engine.request import Request, open_request
from sparselens.analyses.engine.residual_stream import Layer
from sparselens.models.hooked_model import HookedModel
from sparselens.prompts.metrics import Metric, logit_difference
from sparselens.prompts.tokenized import TokenizedPairs

Ranks = Int[Tensor, "batch layer head query_pos key_pos"]


def attention_edge_curve(
    model: HookedModel,
    pairs: TokenizedPairs,
    scores: AttentionEdgeScores,
    metric: Metric | str = logit_difference,
    sizes: Sequence[int] | None = None,
    *,
    memory: int | None = None,
    batch_size: int | None = None,
    progress: bool = True,
) -> FaithfulnessCurve:
    """Faithfulness of each prompt's highest-scoring attention edges, over their number.

    >>> curve = attention_edge_curve(model, pairs, attribute_attention_edges(model, pairs))
    >>> curve.first_to_reach(0.8), curve[64].interval()

    Sign convention: as `faithfulness`.

    Scope: which attention edges matter if all MLPs and embeddings are left unchanged. A circuit of `faithfulness` also
    ablates those, and is one set of edges for all prompts.

    Args:
        sizes: numbers of edges, rising; default: 0, the powers of two, and the most that have a score on any prompt
        memory, batch_size: as in `attribute_edges`

    Raises:
        ValueError: sizes do not rise, the scores are of other prompts or means only, a head's output is not its pattern
            times its values, or as `attribute_edges`.
    """
    per_prompt = scores.per_prompt
    if per_prompt is None or len(per_prompt) != len(pairs):
        having = "means only" if per_prompt is None else f"{len(per_prompt)} prompts"
        raise ValueError(f"these are scores of {having}: want those of every edge on each of {len(pairs)} prompts")
    total = int((per_prompt != 0).flatten(1).sum(1).max())
    numbers = _default_sizes(total) if sizes is None else [*sizes]
    if not numbers or numbers != sorted(numbers) or numbers[0] < 0:
        raise ValueError(f"sizes must rise from 0 or more, not {numbers}")
    runs = torch.zeros(len(numbers) + 2, len(pairs))
    options: Any = {"memory": memory, "batch_size": batch_size, "progress": progress}
    with showing_attention(model), open_request(model, pairs, metric, **options) as request:
        for rows, (found,) in in_batches(request, partial(_metrics, per_prompt, numbers), "attention edges"):
            runs[:, rows] = found.float().cpu()
    *kept, clean, ablated = runs
    points = tuple(Faithfulness(circuit, clean, ablated, pairs.clean_prompt) for circuit in kept)
    return FaithfulnessCurve(tuple(numbers), total, points)


def _default_sizes(total: int) -> list[int]:
    return [0, *(2**power for power in range(total.bit_length()) if 2**power < total), total]


def _metrics(
    scores: Float[Tensor, "prompt layer head query_pos key_pos"], numbers: Sequence[int], batch: Request
) -> tuple[Float[Tensor, "run batch"]]:
    """The metric with each number of edges kept, then of the clean run, then with none kept."""
    ranks = _ranks(scores[batch.prompts.cpu()]).to(batch.opened.device)
    names = [layer.at(f"attn.{name}") for layer in batch.reading.layers for name in (*_READ, "hook_z")]
    corrupted = batch.record(names, corrupted=True).recorded
    refuse_other_outputs(batch.reading, corrupted)
    with torch.no_grad():
        kept = [batch.measure(_hooks(batch, corrupted, ranks, number)) for number in numbers]
        return (torch.stack([*kept, batch.measure(), batch.measure(_hooks(batch, corrupted, ranks, 0))]),)


def _ranks(scores: Float[Tensor, "batch layer head query_pos key_pos"]) -> Ranks:
    """The rank of each edge on its prompt, 0 for the largest |score|."""
    order = scores.flatten(1).abs().argsort(dim=1, descending=True, stable=True)
    ranks = torch.empty_like(order).scatter_(1, order, torch.arange(order.shape[1]).expand_as(order))
    return ranks.view(scores.shape)


_READ = ("hook_pattern", "hook_v")


def _hooks(batch: Request, corrupted: Activations, ranks: Ranks, number: int) -> list[Hook]:
    hooks: list[Hook] = []
    for layer in batch.reading.layers:
        here: Activations = {}
        hooks += recording(here, [layer.at(f"attn.{name}") for name in _READ])
        hooks.append((layer.at("attn.hook_z"), _mixture(layer, here, corrupted, ranks[:, layer.number] < number)))
    return hooks


def _mixture(layer: Layer, here: Activations, corrupted: Activations, kept: Tensor) -> Callable[[Tensor], Tensor]:
    """A hook that returns the outputs of a layer's heads, from this run's kept edges and the corrupted run's others."""

    def mixed(z: Tensor) -> Tensor:
        parts = ((kept, here), (~kept, corrupted))
        return sum(_carried(layer, recorded, edges) for edges, recorded in parts).to(z)  # type: ignore[union-attr]

    return mixed


def _carried(layer: Layer, recorded: Activations, edges: Tensor) -> Float[Tensor, "batch query_pos head d_head"]:
    pattern, value = pattern_and_value(layer, recorded)
    return torch.einsum("bhqk,bkhe->bqhe", pattern * edges, value)
