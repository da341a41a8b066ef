"""Attribution patching: how much every edge of a model matters for a metric, by gradients instead of one run per edge.

1. score(u -> v) = (clean - corrupted write of u) . (dmetric / d input of v), summed over positions: to first order,
   metric(clean) - metric(clean, but v reads the write of u from the corrupted run).
2. eap: the gradient of the clean run (Nanda 2023; Syed et al. 2023).
3. eap-ig: mean gradient at input embeddings corrupted + k/m (clean - corrupted), k = 0 .. m-1 (Hanna et al. 2024, as in
   their code). The default.
4. eap-ig-activations: mean over the input, all attention layers and all MLPs, each in turn interpolated k/m of the way
   from corrupted to clean, for k = 1 .. m. As in EAP-IG's code, no gradient passes through the interpolated activation.
5. clean-corrupted: mean of the gradients of the clean and the corrupted run.
6. exact: the difference in step 1 itself, one edge at a time (`exact`). Recommended if the graph has at most 1,000
   edges: it needs no approximation and takes seconds to minutes. auto: exact up to that size, otherwise eap-ig.
7. Gradients stop at hard gates; `gate_gradient` can give gates the gradient used in training.
EAP-IG's own code gives the same numbers for the loss -metric, divided once more by the number of prompts.
"""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, get_args

from jaxtyping import Float
from torch import Tensor

from sparselens.analyses.attribution.edge_scores import EdgeScores
from sparselens.analyses.attribution.exact import exact_scores
from sparselens.analyses.attribution.integration import DEFAULT, Method, Score, attribute, by_gradient, chosen
from sparselens.analyses.engine.edge_products import differences, edge_products
from sparselens.analyses.engine.gate_gradient import GateGradient, refuse_gate_gradient
from sparselens.analyses.engine.gradients import gradients
from sparselens.analyses.engine.partial_runs import Activations
from sparselens.analyses.engine.request import Request, open_request, refuse_several_lengths
from sparselens.analyses.engine.residual_stream import Reading
from sparselens.analyses.engine.resume import batch_log
from sparselens.circuits.selection import top
from sparselens.models.hooked_model import HookedModel
from sparselens.names import unknown
from sparselens.prompts.metrics import Metric, logit_difference
from sparselens.prompts.tokenized import TokenizedPairs


def attribute_edges(
    model: HookedModel,
    pairs: TokenizedPairs,
    metric: Metric | str = logit_difference,
    method: Method | str = DEFAULT,
    steps: int = 5,
    *,
    gate_gradient: GateGradient | str = "none",
    candidates: int | None = None,
    per_prompt: bool = True,
    memory: int | None = None,
    batch_size: int | None = None,
    progress: bool = True,
    out: str | Path | None = None,
) -> EdgeScores:
    """Score all edges of a model, dense or sparse, on prompt pairs.

    >>> scores = attribute_edges(model, pairs, "logit_difference")
    >>> scores.mean.shape, scores.per_prompt.shape  # [source destination], [batch source destination]
    >>> scores.smallest(0.9).edges[:2]
    ['input->a0.h1<v>', 'a0.h1->m0']

    Sign convention: positive where corrupting the edge lowers the metric, in the metric's unit.

    Scope: a first-order estimate of patching one edge while all others stay clean. It misses joint effects of edges and
    the curvature of the metric, so test the chosen circuit by its faithfulness.

    Args:
        metric: function of (logits, pairs), or name in `sparselens.prompts.metrics`
        method: "eap-ig", "eap", "eap-ig-activations", "clean-corrupted" or "exact"; "auto": exact, as recommended, if
            the graph has at most 1,000 edges, otherwise eap-ig
        steps: m, for the two integrated methods
        gate_gradient: gradient of a sparse model's hard gates. "none": that of a step function, zero.
            "straight-through": sigmoid'(gate_logit), as in training without noise, so that edges also score by opening
            or closing gates. In a dense model, which has no gates, both are the same
        candidates: for "exact": patch only this many edges, those of largest |EAP-IG score|; the others are not tried
            and score zero. With 32, the faithful circuit of addition-sparse is the same as with all 175 edges, in a
            third of the time
        per_prompt: keep the scores of every prompt (4 bytes x sources x destinations each); without them, memory does
            not grow with the number of prompts
        memory: bytes to use in addition to the model and the scores; one prompt is measured to find the batch size.
            Default: 64 prompts at a time for small models, otherwise 1 GiB
        batch_size: prompts per run, instead of a memory budget
        out: file for finished batches; after an interruption the same call resumes from it

    Raises:
        ValueError: an argument is unknown or too small, prompts of a pair differ in length, the metric is not one
            differentiable finite number per prompt, the model's residual stream cannot be read
            (`residual_stream.read_model`), or `out` belongs to another call.
    """
    if method not in get_args(Method):
        raise unknown("method", method, get_args(Method))
    with open_request(model, pairs, metric, memory=memory, batch_size=batch_size, progress=progress) as request:
        method, request = chosen(method, request.reading.graph), request.sharing()
        refuse_gate_gradient(gate_gradient, method)
        if candidates is not None and (method != "exact" or candidates < 1):
            raise ValueError(f"candidates = {candidates} with method {method!r}: want at least 1, and 'exact'")
        if method == "exact":
            scores = (
                exact_scores(request, None, out) if candidates is None else _exact_of(request, candidates, steps, out)
            )
            return scores if per_prompt else replace(scores, per_prompt=None)
        how: dict[str, Any] = {"gate_gradient": gate_gradient, "per_prompt": per_prompt}
        log = batch_log(out, request, method=method, steps=steps, **how)
        found = attribute(request, method, steps, gradients, _edges, log=log, **how)
    name = method if gate_gradient == "none" else f"{method}, {gate_gradient} gates"
    found_scores = found.mean, found.per_prompt, found.clean, found.corrupted
    return EdgeScores(request.reading.graph, name, *found_scores, clean_prompt=pairs.clean_prompt)


def _exact_of(request: Request, candidates: int, steps: int, out: str | Path | None) -> EdgeScores:
    """Exact scores of the edges with the largest |EAP-IG score|, zero for all others."""
    graph = request.reading.graph
    mean = attribute(request, DEFAULT, steps, gradients, _edges, per_prompt=False).mean
    scores = exact_scores(request, top(graph, mean, min(candidates, graph.n_edges)).kept, out)
    assert scores.per_prompt is not None
    name = f"exact ({candidates} candidates)"
    return replace(scores, method=name, mean=scores.mean.nan_to_num(0), per_prompt=scores.per_prompt.nan_to_num(0))


def attribute_edge_positions(
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
) -> Float[Tensor, "source destination pos"]:
    """Mean scores of all edges at each position; summed over positions they are `attribute_edges(...).mean`.

    >>> attribute_edge_positions(model, pairs).abs().sum((0, 1))  # [pos]: how much is at each position

    Sign convention: positive where corrupting the edge lowers the metric, in the metric's unit.

    Args:
        method: as in `attribute_edges`, except "exact"; "auto" is eap-ig
        gate_gradient: as in `attribute_edges`

    Raises:
        ValueError: prompts have several lengths, the method is "exact", or as `attribute_edges`.
    """
    method = by_gradient(method, "attribute_edges has exact scores, of all positions together")
    refuse_several_lengths(pairs, "positions")
    with open_request(model, pairs, metric, memory=memory, batch_size=batch_size, progress=progress) as request:
        how: dict[str, Any] = {"gate_gradient": gate_gradient, "per_prompt": False}
        return attribute(request, method, steps, gradients, partial(_edges, by_position=True), **how).mean


def _edges(reading: Reading, clean: Activations, corrupted: Activations, by_position: bool = False) -> Score:
    return partial(edge_products, reading, differences(reading, clean, corrupted), by_position=by_position)
