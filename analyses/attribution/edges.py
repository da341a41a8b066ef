"""Attribution patching: how much every edge of a model matters for a metric, by gradients instead of one run an edge.

    score(u -> v) = (write of u, clean - corrupted) . (dmetric / d what v reads), summed over positions; about
    metric(clean) - metric(clean, but v reads what u writes in the corrupted run)
eap              the gradient of the clean run (Nanda 2023, Syed et al. 2023)
eap-ig           mean of the gradients at input embeddings corrupted + k/m (clean - corrupted), k = 0 .. m-1
                 (Hanna et al. 2024, as their code has it)
eap-ig-activations  mean over the input, all attentions and all MLPs, each in turn put at k/m of the way, k = 1 .. m.
                 As in EAP-IG's code no gradient passes through what is put there
clean-corrupted  mean of the gradients of the clean and of the corrupted run
exact            the second line itself, one edge at a time (`exact`)
Positive: corrupting the edge lowers the metric. EAP-IG's own code gives the same numbers for the loss -metric, divided
once more by the number of prompts.
"""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from jaxtyping import Float
from torch import Tensor

from sparselens.analyses.attribution.edge_scores import EdgeScores
from sparselens.analyses.attribution.exact import patch_edges
from sparselens.analyses.attribution.integration import Method, Score, collect
from sparselens.analyses.engine.batching import MEMORY, refuse_several_lengths
from sparselens.analyses.engine.edge_products import differences, edge_products
from sparselens.analyses.engine.gradients import gradients
from sparselens.analyses.engine.residual_stream import Activations, Reading
from sparselens.analyses.engine.resume import batch_log
from sparselens.prompts.metrics import Metric
from sparselens.prompts.tokenized import TokenizedPairs


def attribute_edges(
    model: Any,
    pairs: TokenizedPairs,
    metric: Metric,
    method: Method | str = "eap",
    steps: int = 5,
    *,
    per_prompt: bool = True,
    memory: int = MEMORY,
    progress: bool = True,
    out: str | Path | None = None,
) -> EdgeScores:
    """Score all edges of a model, dense or sparse, on prompt pairs.

    Args:
        steps: m, for the two integrated methods
        per_prompt: keep the scores of every prompt (4 bytes times sources times destinations each); else memory does
            not grow with the number of prompts
        memory: bytes that may be allocated at once beside the model and the scores
        out: file that keeps finished batches. The same call goes on from there after an interruption.

    Raises:
        ValueError: an argument is unknown or too small, prompts differ in length within a pair, the metric is not one
            smooth finite number a prompt, the model's residual stream cannot be read (`residual_stream.read_model`), or
            `out` answers another question.
    """
    if method == "exact":
        scores = patch_edges(model, pairs, metric, memory=memory, progress=progress, out=out)
        return scores if per_prompt else replace(scores, per_prompt=None)
    described = {"method": method, "steps": steps, "per prompt": per_prompt}
    found = collect(
        model,
        pairs,
        metric,
        method,
        steps,
        take=gradients,
        scoring=_edges,
        per_prompt=per_prompt,
        memory=memory,
        progress=progress,
        log=batch_log(out, model, pairs, metric, **described),
    )
    return EdgeScores(found.reading.graph, method, found.mean, found.per_prompt, found.clean, found.corrupted)


def attribute_edge_positions(
    model: Any,
    pairs: TokenizedPairs,
    metric: Metric,
    method: Method | str = "eap",
    steps: int = 5,
    *,
    memory: int = MEMORY,
    progress: bool = True,
) -> Float[Tensor, "source destination pos"]:
    """Mean scores of all edges at each position: the parts of `attribute_edges`' sum.

    Raises:
        ValueError: prompts have several lengths, the method is "exact", or as `attribute_edges`.
    """
    refuse_several_lengths(pairs, "positions")
    return collect(
        model,
        pairs,
        metric,
        method,
        steps,
        take=gradients,
        scoring=partial(_edges, by_position=True),
        per_prompt=False,
        memory=memory,
        progress=progress,
    ).mean


def _edges(reading: Reading, clean: Activations, corrupted: Activations, by_position: bool = False) -> Score:
    return partial(edge_products, reading, differences(reading, clean, corrupted), by_position=by_position)
