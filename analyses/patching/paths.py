"""Path patching: how much a node matters for the metric through chosen receivers only.

1. Both prompts of every pair run once.
2. A receiver reads what it would read if the sender had written as on the corrupted prompt, and everything between them
   as on the clean one: its query, key, value or MLP input is computed from clean stream - (clean - corrupted write).
3. The clean prompt runs with all receivers patched like this: score = metric(clean) - metric(patched run).
Source: Wang et al. 2022, appendix B, who freeze the heads in between; here the MLPs in between are frozen too, so that
the path is one edge. For a single receiver these are the exact edge scores (`patch_edges`).
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Int
from torch import Tensor

from sparselens.analyses.attribution.exact import Base, batches, clean_base, patched
from sparselens.analyses.attribution.nodes import NodeScores
from sparselens.analyses.engine.request import open_request
from sparselens.analyses.engine.resume import batch_log
from sparselens.bars import progress_bar
from sparselens.circuits.graph import LOGITS, RECEIVERS, Graph
from sparselens.models.hooked_model import HookedModel
from sparselens.prompts.metrics import Metric, logit_difference
from sparselens.prompts.tokenized import TokenizedPairs


def patch_paths(
    model: HookedModel,
    pairs: TokenizedPairs,
    receivers: str | Sequence[str],
    senders: str | Sequence[str] | None = None,
    metric: Metric | str = logit_difference,
    *,
    memory: int | None = None,
    batch_size: int | None = None,
    progress: bool = True,
    out: str | Path | None = None,
) -> NodeScores:
    """How much each sender matters for the metric through its direct paths to the receivers.

    >>> patch_paths(model, pairs, "logits").plot()  # every node's direct path to the logits, layer by head
    >>> patch_paths(model, pairs, ["a1.h0<q>", "a1.h1<q>"], senders="a0.h1").per_prompt.shape  # [batch source]

    Sign convention: positive where corrupting the paths lowers the metric, in the metric's unit.

    Scope: the paths of one sender at a time. What a receiver reads does not depend on the other receivers, so paths
    from one receiver to another are not counted.

    Args:
        receivers: inputs of heads (`a2.h3<q>`, `<k>` or `<v>`; `a2.h3` for all three) and MLPs (`m1`); or only `logits`
        senders: `input`, heads (`a0.h1`) and MLPs (`m0`); default: all that write before a receiver reads
        memory, batch_size, out: as in `attribute_edges`; rows of a run are senders times prompts

    Raises:
        ValueError: there is no such node, a sender writes after all receivers read, receivers include keys or values
            that heads share, in a combination that cannot be patched, or as `patch_edges`.
    """
    names = [receivers] if isinstance(receivers, str) else list(receivers)
    with open_request(model, pairs, metric, memory=memory, batch_size=batch_size, progress=progress) as request:
        request = request.sharing()
        graph, n = request.reading.graph, len(request)
        into = _destinations(graph, names)
        rows = _sources(graph, [senders] if isinstance(senders, str) else senders, into)
        scores, metrics = torch.zeros(n, len(graph.sources)), torch.zeros(2, n)
        log = batch_log(out, request, method="paths", receivers=into, senders=rows)
        with progress_bar(n * len(rows), "paths", "path", request.progress) as bar:
            for batch, at_once in batches(request, lambda base: _patched(base, rows[:1], into)):
                base, corrupted = clean_base(batch)
                metrics[:, batch.prompts] = torch.stack([base.clean.metric, corrupted]).float().cpu()
                differs = base.writes[rows.to(base.writes.device)].flatten(1).any(1).cpu()
                bar.update(len(batch) * int((~differs).sum()))  # senders that write the same in both runs score zero
                for some in rows[differs].split(max(1, at_once // len(batch))) if differs.any() else ():
                    where = [batch.prompts, some]
                    (found,) = log.once(where, lambda: (base.clean.metric - _patched(base, some, into),))  # noqa: B023
                    scores[batch.prompts[:, None], some] = found.T.float().cpu()
                    bar.update(found.numel())
    scores, sources = scores[:, rows], tuple(graph.sources[row] for row in rows)
    what = f"paths to {', '.join(names)}"
    return NodeScores(sources, scores.mean(0), scores, metrics[0], metrics[1], what, pairs.clean_prompt)


def _patched(base: Base, senders: Int[Tensor, " row"], into: Int[Tensor, " destination"]) -> Tensor:
    """The metric with the paths of one sender in each row patched."""
    rows, columns = base.batch.reading.graph.exists[senders][:, into].nonzero().T
    return patched(base, torch.stack([senders[rows], into[columns]], 1), rows)


def _destinations(graph: Graph, names: Sequence[str]) -> Int[Tensor, " destination"]:
    """The columns of the receivers; a head without <q>, <k> or <v> stands for all three."""
    heads = {name.partition("<")[0] for name in graph.destinations if "<" in name}
    each = [[f"{name}<{part}>" for part in RECEIVERS] if name in heads else [name] for name in names]
    found = sorted({graph.destination(name) for some in each for name in some})
    if not found:
        raise ValueError("there is no receiver: want heads such as a1.h0<q>, MLPs such as m1, or logits")
    if LOGITS in names and len(found) > 1:
        raise ValueError("paths to the logits end there: patch the other receivers in a separate call")
    shared = [graph.destinations[column] for column in found if _is_shared(graph, graph.destinations[column])]
    layers = sorted({name.partition(".")[0] for name in shared} | {graph.destinations[found[0]].partition(".")[0]})
    if shared and len(layers) > 1:
        raise ValueError(
            f"{shared[-1]} is shared with other heads: receivers like this must be in one layer, and no receiver in an "
            f"earlier one, but they are in {', '.join(layers)}"
        )
    if shared:
        _refuse_mixed(graph, layers[0], {graph.destinations[column] for column in found})
    return torch.tensor(found)


def _refuse_mixed(graph: Graph, layer: str, names: set[str]) -> None:
    """Raise a ValueError if a receiving head would also see a key or value that is patched for another head.

    `exact.patched` keeps the outputs of heads that receive something, and of one head of every group, since a norm
    over all keys may couple the groups.
    """
    block = graph.blocks[int(layer[1:])]
    shared = block.n_heads // block.n_kv_heads
    for part in ("k", "v"):
        patched = [head for head in range(block.n_heads) if f"{layer}.h{head}<{part}>" in names]
        places = {h % shared for h in range(block.n_heads) for p in "kv" if f"{layer}.h{h}<{p}>" in names}
        for head in range(block.n_heads):
            seen = head % shared in places or f"{layer}.h{head}<q>" in names
            other = next((one for one in patched if one // shared == head // shared and head not in patched), None)
            if seen and other is not None:
                raise ValueError(
                    f"heads {other} and {head} of {layer} share keys and values, so these receivers cannot include "
                    f"{layer}.h{other}<{part}> alone: add {layer}.h{head}<{part}>, or use separate calls"
                )


def _is_shared(graph: Graph, name: str) -> bool:
    """Whether this is the key or the value of several heads."""
    block = graph.blocks[int(name[1:].partition(".")[0])] if name[-3:] in ("<k>", "<v>") else None
    return block is not None and 0 < block.n_kv_heads < block.n_heads


def _sources(graph: Graph, names: Sequence[str] | None, into: Int[Tensor, " destination"]) -> Int[Tensor, " source"]:
    """The rows of the senders."""
    writes_before = graph.exists[:, into].any(1)
    rows = writes_before.nonzero()[:, 0].tolist() if names is None else [graph.source(name) for name in names]
    for row in rows:
        if not writes_before[row]:
            raise ValueError(f"{graph.sources[row]} writes after {graph.destinations[int(into[-1])]} reads: no path")
    if not rows:
        raise ValueError("there is no sender: want input, heads such as a0.h1, or MLPs such as m0")
    return torch.tensor(rows)
