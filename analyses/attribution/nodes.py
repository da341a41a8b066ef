"""Attribution of whole nodes, and of single attention edges, by the same gradients as that of edges between nodes.

    score(u)    = (write of u, clean - corrupted) . (dmetric / d residual stream where u writes)
    score(l, h, q, k) = (pattern v, clean - corrupted, of query q and key k) . (dmetric / d z of head h at q)
A node's score is the sum of its edges'; a head's is the sum over its attention edges. A closed edge of a sparse model
writes nothing, so only edges that are open in one of the two runs score.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sparselens.analyses.attribution.integration import Score, collect
from sparselens.analyses.engine.batching import MEMORY, refuse_several_lengths
from sparselens.analyses.engine.edge_products import differences, exact_dtype
from sparselens.analyses.engine.gradients import Gradients, Question, gradients_at
from sparselens.analyses.engine.residual_stream import TOLERANCE, Activations, Hook, Layer, Reading
from sparselens.prompts.metrics import Metric
from sparselens.prompts.tokenized import TokenizedPairs


@dataclass(frozen=True, eq=False)
class NodeScores:
    """How much each source matters for a metric; positive where corrupting it lowers the metric. In its unit."""

    sources: tuple[str, ...]
    mean: Float[Tensor, " source"]
    per_prompt: Float[Tensor, "batch source"]
    clean: Float[Tensor, " batch"]  # the metric of the clean runs
    corrupted: Float[Tensor, " batch"]


@dataclass(frozen=True, eq=False)
class AttentionEdgeScores:
    """How much each attention edge matters for a metric; positive where corrupting it lowers the metric."""

    mean: Float[Tensor, "layer head query_pos key_pos"]
    per_prompt: Float[Tensor, "batch layer head query_pos key_pos"] | None  # None where only the mean was asked for
    clean: Float[Tensor, " batch"]  # the metric of the clean runs
    corrupted: Float[Tensor, " batch"]


def attribute_nodes(
    model: Any,
    pairs: TokenizedPairs,
    metric: Metric,
    method: str = "eap",
    steps: int = 5,
    *,
    memory: int = MEMORY,
    progress: bool = True,
) -> NodeScores:
    """Score what the input, every head and every MLP write.

    Args:
        method: one of `attribute_edges`' but "exact"

    Raises:
        ValueError: as `attribute_edges`.
    """
    found = collect(
        model,
        pairs,
        metric,
        method,
        steps,
        take=_node_gradients,
        scoring=_nodes,
        per_prompt=True,
        memory=memory,
        progress=progress,
    )
    assert found.per_prompt is not None
    return NodeScores(found.reading.graph.sources, found.mean, found.per_prompt, found.clean, found.corrupted)


def attribute_attention_edges(
    model: Any,
    pairs: TokenizedPairs,
    metric: Metric,
    method: str = "eap",
    steps: int = 5,
    *,
    per_prompt: bool = True,
    memory: int = MEMORY,
    progress: bool = True,
) -> AttentionEdgeScores:
    """Score every attention edge: the value that a head moves from a key position to a query position.

    Args:
        method: one of `attribute_edges`' but "exact"
        per_prompt: keep the scores of every prompt

    Raises:
        ValueError: prompts have several lengths, a head's output is not its pattern times its values, or as
            `attribute_edges`.
    """
    refuse_several_lengths(pairs, "attention edges")
    found = collect(
        model,
        pairs,
        metric,
        method,
        steps,
        take=_head_gradients,
        scoring=_attention,
        also=lambda reading: [
            layer.at(f"attn.{name}") for layer in reading.layers for name in ("hook_pattern", "hook_v")
        ],
        per_prompt=per_prompt,
        memory=memory,
        progress=progress,
    )
    return AttentionEdgeScores(found.mean, found.per_prompt, found.clean, found.corrupted)


def _node_gradients(question: Question, corrupted: bool, edits: Sequence[Hook]) -> Gradients:
    return gradients_at(question, corrupted, edits, _written_at(question.reading))


def _written_at(reading: Reading) -> list[str]:
    """Where what is written enters the residual stream."""
    names = [reading.layers[0].at("hook_resid_pre")]
    for layer in reading.layers:
        names += [layer.at("hook_attn_out")] + [layer.at("hook_mlp_out")] * layer.block.mlp
    return names


def _nodes(reading: Reading, clean: Activations, corrupted: Activations) -> Score:
    writes = differences(reading, clean, corrupted)

    def score(gradients: Gradients) -> Float[Tensor, "batch source"]:
        scores = writes.new_empty(writes.shape[1], len(writes))
        places = [slice(0, 1)]
        for layer in reading.layers:
            heads = reading.graph.head_sources(layer.number)
            places += [heads, slice(heads.stop, heads.stop + 1)] if layer.block.mlp else [heads]
        for place, name in zip(places, _written_at(reading), strict=True):
            scores[:, place] = torch.einsum("sbtm,btm->bs", writes[place], gradients.at[name].to(writes))
        return scores

    return score


def _head_gradients(question: Question, corrupted: bool, edits: Sequence[Hook]) -> Gradients:
    layers = question.reading.layers
    return gradients_at(question, corrupted, edits, [layer.at("attn.hook_z") for layer in layers])


def _attention(reading: Reading, clean: Activations, corrupted: Activations) -> Score:
    for recorded in (clean, corrupted):
        _refuse_other_outputs(reading, recorded)

    def score(gradients: Gradients) -> Float[Tensor, "batch layer head query_pos key_pos"]:
        layers = [
            torch.sub(*(_moved(layer, recorded, gradients) for recorded in (clean, corrupted)))
            for layer in reading.layers
        ]
        return torch.stack([scores.to(layers[0].device) for scores in layers], 1)

    return score


def _moved(layer: Layer, recorded: Activations, gradients: Gradients) -> Float[Tensor, "batch head query_pos key_pos"]:
    """What every edge of a layer moves in a run, times the gradient where it arrives."""
    pattern, value = _pattern_and_value(layer, recorded)
    return pattern * torch.einsum("bqhe,bkhe->bhqk", gradients.at[layer.at("attn.hook_z")].to(value), value)


def _pattern_and_value(layer: Layer, recorded: Activations) -> tuple[Tensor, Tensor]:
    pattern, value = recorded[layer.at("attn.hook_pattern")], recorded[layer.at("attn.hook_v")]
    value = value.repeat_interleave(layer.block.n_heads // value.shape[2], 2)
    return pattern.to(exact_dtype(pattern.dtype)), value.to(exact_dtype(value.dtype))


def _refuse_other_outputs(reading: Reading, recorded: Activations) -> None:
    for layer in reading.layers:
        z = recorded[layer.at("attn.hook_z")]
        found = torch.einsum("bhqk,bkhe->bqhe", *_pattern_and_value(layer, recorded))
        if (found - z).abs().max() > TOLERANCE.get(z.dtype, 1e-5) * z.abs().max().clamp_min(1e-6):
            raise ValueError(f"heads of layer {layer.number} put out something else than pattern times values")
