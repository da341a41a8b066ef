"""Attribution of whole nodes and of single attention edges, by the same gradients as edges between nodes.

1. score(u) = (clean - corrupted write of u) . (dmetric / d residual stream where u writes).
2. score(l, h, q, k) = (clean - corrupted pattern[q, k] * value[k]) . (dmetric / d z of head h at q).
3. A node's score is the sum of its edges' scores; a head's is the sum over its attention edges. A closed edge of a
   sparse model moves nothing, so only edges that are open in at least one of the two runs have a score.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sparselens.analyses.attribution.integration import DEFAULT, Method, Score, attribute, by_gradient
from sparselens.analyses.engine.edge_products import differences
from sparselens.analyses.engine.gate_gradient import GateGradient
from sparselens.analyses.engine.gradients import Gradients, gradients_at
from sparselens.analyses.engine.norms import widened
from sparselens.analyses.engine.partial_runs import Activations, Hook
from sparselens.analyses.engine.request import Request, open_request, refuse_several_lengths
from sparselens.analyses.engine.residual_stream import TOLERANCE, Layer, Reading
from sparselens.circuits.graph import head_of
from sparselens.models.hooked_model import HookedModel
from sparselens.names import unknown
from sparselens.prompts.intervals import Interval, mean_interval
from sparselens.prompts.metrics import Metric, logit_difference
from sparselens.prompts.tokenized import TokenizedPairs
from sparselens.results import Result

_SHOWN = 1e-3  # of the largest score: nodes above this that have no cell in the map are named in its title


@dataclass(frozen=True, eq=False, repr=False)
class NodeScores(Result):
    """How much each node matters for a metric, in the metric's unit: positive where the node raises it.

    >>> scores = attribute_nodes(model, pairs)  # or direct_logit_attribution, or patch_paths
    >>> scores["a1.h0"], scores.interval("a1.h0"), scores.per_prompt.shape  # its mean, with interval; [batch source]
    """

    sources: tuple[str, ...]
    mean: Float[Tensor, " source"]
    per_prompt: Float[Tensor, "batch source"]
    clean: Float[Tensor, " batch"]  # the metric of the clean runs
    corrupted: Float[Tensor, " batch"] | None  # None: no corrupted prompt was run
    what: str = "nodes"  # what is scored: nodes, direct effects, paths to a1.h0<q>
    clean_prompt: Int[Tensor, " batch"] | None = None  # its index; pairs with the same one count as one observation

    _largest = "score"

    def _line(self) -> str:
        best = self.sources[int(self.mean.abs().argmax())]
        return f"{len(self.sources)} {self.what}, {len(self.clean)} prompts: largest {best} {self[best]:+.3g}"

    def _columns(self) -> dict[str, list[Any]]:
        return {"node": list(self.sources), "score": self.mean.tolist()}

    def __getitem__(self, node: str) -> float:
        return float(self.mean[self._place(node)])

    def interval(self, node: str, level: float = 0.95) -> Interval:
        """The mean score of a node, with its bootstrap confidence interval over clean prompts.

        Raises:
            ValueError: there is no such node.
        """
        return mean_interval(self.per_prompt[:, self._place(node)], level, clusters=self.clean_prompt)

    def plot(self) -> Any:
        """The mean scores of heads and MLPs as a plotly heat map, layer by layer; others are in the title."""
        from sparselens.analyses.figures.heat_maps import heat_map

        places = {name: _row_and_column(name) for name in self.sources if name[0] in "am"}
        columns = sorted({column for _, column in places.values()}, key=lambda name: (name == "MLP", len(name), name))
        values = torch.full((1 + max((layer for layer, _ in places.values()), default=0), len(columns)), torch.nan)
        for name, (layer, column) in places.items():
            values[layer, columns.index(column)] = self[name]
        least = _SHOWN * float(self.mean.abs().max())
        others = [f"{n} {self[n]:+.3g}" for n in self.sources if n not in places and abs(self[n]) > least]
        return heat_map(values, "; ".join([self.what.capitalize(), *others]), columns=columns, value_label="score")

    def _place(self, node: str) -> int:
        if node not in self.sources:
            raise unknown("node", node, self.sources)
        return self.sources.index(node)


@dataclass(frozen=True, eq=False, repr=False)
class AttentionEdgeScores(Result):
    """How much each attention edge matters.

    >>> scores = attribute_attention_edges(model, pairs)
    >>> scores.mean.shape, scores["a1.h0"].shape  # [layer head query_pos key_pos], [query_pos key_pos]

    Sign convention: positive where corrupting the edge lowers the metric, in the metric's unit.
    """

    mean: Float[Tensor, "layer head query_pos key_pos"]
    per_prompt: Float[Tensor, "batch layer head query_pos key_pos"] | None  # None: only the mean was kept
    clean: Float[Tensor, " batch"]  # the metric of the clean runs
    corrupted: Float[Tensor, " batch"]
    positions: tuple[str, ...] = ()  # `TokenizedPairs.labels`

    _largest = "score"

    def _line(self) -> str:
        n_layers, n_heads, n_pos, _ = self.mean.shape
        shape = f"{n_layers} layers of {n_heads} heads, {n_pos} positions"
        return f"{int((self.mean != 0).sum()):,} attention edges with a score, {shape}, {len(self.clean)} prompts"

    def _columns(self) -> dict[str, list[Any]]:
        places = (self.mean != 0).nonzero()
        names = ("layer", "head", "query_pos", "key_pos")
        return dict(zip(names, places.T.tolist(), strict=True)) | {"score": self.mean[tuple(places.T)].tolist()}

    def __getitem__(self, head: str) -> Float[Tensor, "query_pos key_pos"]:
        return self.mean[head_of(head, self.mean.shape)]

    def plot(self, head: str | None = None) -> Any:
        """The mean scores of one head as a plotly heat map; by default the head with the largest score."""
        from sparselens.analyses.figures.heat_maps import pattern_map

        return pattern_map(self.mean, head, self.positions, "score")


def _row_and_column(name: str) -> tuple[int, str]:
    """Layer and column of a head or an MLP in a map."""
    layer, _, head = name[1:].partition(".")
    return int(layer), head or "MLP"


def attribute_nodes(
    model: HookedModel,
    pairs: TokenizedPairs,
    metric: Metric | str = logit_difference,
    method: Method | str = DEFAULT,
    steps: int = 5,
    *,
    gate_gradient: GateGradient | str = "none",
    memory: int | None = None,
    batch_size: int | None = None,
    progress: bool = True,
) -> NodeScores:
    """Score the input, every head and every MLP.

    >>> scores = attribute_nodes(model, pairs)
    >>> scores.per_prompt.shape, dict(zip(scores.sources, scores.mean))  # [batch source], {"input": ..., "a0.h0": ...}

    Sign convention: positive where corrupting the node lowers the metric, in the metric's unit.

    Scope: a first-order estimate, as `attribute_edges`.

    Args:
        method: as in `attribute_edges`, except "exact" (`patch_heads` and `patch_activations` are exact); "auto" is
            eap-ig
        gate_gradient: as in `attribute_edges`

    Raises:
        ValueError: the method is "exact", or as `attribute_edges`.
    """
    method = by_gradient(method, "patch_heads and patch_activations are exact for nodes")
    with open_request(model, pairs, metric, memory=memory, batch_size=batch_size, progress=progress) as request:
        found = attribute(request.sharing(), method, steps, _node_gradients, _nodes, gate_gradient=gate_gradient)
    assert found.per_prompt is not None
    sources, found_scores = request.reading.graph.sources, (found.mean, found.per_prompt, found.clean, found.corrupted)
    return NodeScores(sources, *found_scores, clean_prompt=pairs.clean_prompt)


def attribute_attention_edges(
    model: HookedModel,
    pairs: TokenizedPairs,
    metric: Metric | str = logit_difference,
    method: Method | str = DEFAULT,
    steps: int = 5,
    *,
    gate_gradient: GateGradient | str = "none",
    per_prompt: bool = True,
    memory: int | None = None,
    batch_size: int | None = None,
    progress: bool = True,
) -> AttentionEdgeScores:
    """Score every attention edge: the value that a head moves from a key position to a query position.

    >>> attribute_attention_edges(model, pairs).mean.shape  # [layer head query_pos key_pos]

    Sign convention: positive where corrupting the edge lowers the metric, in the metric's unit.

    Scope: a first-order estimate, as `attribute_edges`, with pattern and value changed together.

    Args:
        method: as in `attribute_edges`, except "exact" (`patch_activations` with site="attention_edges" is exact);
            "auto" is eap-ig
        gate_gradient: as in `attribute_edges`, for gates between an attention edge and the logits; whether the edge's
            own gate is open is in the score anyway
        per_prompt: keep the scores of every prompt

    Raises:
        ValueError: prompts have several lengths, a head's output is not its pattern times its values, the method is
            "exact", or as `attribute_edges`.
    """
    method = by_gradient(method, "patch_activations with site='attention_edges' is exact for attention edges")
    refuse_several_lengths(pairs, "attention edges")
    with open_request(model, pairs, metric, memory=memory, batch_size=batch_size, progress=progress) as request:
        how: dict[str, Any] = {"gate_gradient": gate_gradient, "per_prompt": per_prompt}
        found = attribute(request, method, steps, _head_gradients, _attention, also=_patterns_and_values, **how)
    return AttentionEdgeScores(found.mean, found.per_prompt, found.clean, found.corrupted, pairs.labels)


def _patterns_and_values(reading: Reading) -> list[str]:
    return [layer.at(f"attn.{name}") for layer in reading.layers for name in ("hook_pattern", "hook_v")]


def _node_gradients(request: Request, corrupted: bool, edits: Sequence[Hook]) -> Gradients:
    return gradients_at(request, corrupted, edits, _written_at(request.reading))


def _written_at(reading: Reading) -> list[str]:
    """The hook points at which writes enter the residual stream."""
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


def _head_gradients(request: Request, corrupted: bool, edits: Sequence[Hook]) -> Gradients:
    layers = request.reading.layers
    return gradients_at(request, corrupted, edits, [layer.at("attn.hook_z") for layer in layers])


def _attention(reading: Reading, clean: Activations, corrupted: Activations) -> Score:
    for recorded in (clean, corrupted):
        refuse_other_outputs(reading, recorded)

    def score(gradients: Gradients) -> Float[Tensor, "batch layer head query_pos key_pos"]:
        layers = [
            torch.sub(*(_moved(layer, recorded, gradients) for recorded in (clean, corrupted)))
            for layer in reading.layers
        ]
        return torch.stack([scores.to(layers[0].device) for scores in layers], 1)

    return score


def _moved(layer: Layer, recorded: Activations, gradients: Gradients) -> Float[Tensor, "batch head query_pos key_pos"]:
    """What every attention edge of a layer moves in a run, times the gradient at its query position."""
    pattern, value = pattern_and_value(layer, recorded)
    return pattern * torch.einsum("bqhe,bkhe->bhqk", gradients.at[layer.at("attn.hook_z")].to(value), value)


def pattern_and_value(
    layer: Layer, recorded: Activations
) -> tuple[Float[Tensor, "batch head query_pos key_pos"], Float[Tensor, "batch key_pos head d_head"]]:
    """The pattern of a layer in a run, and the values of every query head."""
    pattern, value = recorded[layer.at("attn.hook_pattern")], recorded[layer.at("attn.hook_v")]
    value = value.repeat_interleave(layer.block.n_heads // value.shape[2], 2)
    return widened(pattern), widened(value)


def refuse_other_outputs(reading: Reading, recorded: Activations) -> None:
    """Raise a ValueError if the output of a head in a run is not its pattern times its values."""
    for layer in reading.layers:
        z = recorded[layer.at("attn.hook_z")]
        found = torch.einsum("bhqk,bkhe->bqhe", *pattern_and_value(layer, recorded))
        if (found - z).abs().max() > TOLERANCE.get(z.dtype, 1e-5) * z.abs().max().clamp_min(1e-6):
            raise ValueError(f"the outputs of the heads of layer {layer.number} are not pattern times values")
