"""Loss against the share of open attention edges: the paper's Fig. 2a.

1. The dense model, where every visible edge is open.
2. The dense model with top-k attention, k = 1, 2, 4, ..., without training: the baseline.
3. A dense control, if given: fine-tuned like the sparse model, but with every gate open.
4. The sparse model.
All are run on the same rows in evaluation mode, and open edges are counted at the gates.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from sparselens.analyses.sparsity.row_losses import (
    RowLoss,
    RowLosses,
    Rows,
    answer_losses,
    listed,
    longest,
    row_batches,
    text_losses,
)
from sparselens.analyses.sparsity.top_k import top_k_attention
from sparselens.bars import progress_bar
from sparselens.gates.modes import evaluating, open_gates
from sparselens.gates.statistics import record_gates
from sparselens.gates.surgery import is_sparse
from sparselens.prompts.checks import refuse_misfits, refuse_other_pairs, refuse_unreadable
from sparselens.prompts.intervals import Interval, ratio_interval
from sparselens.prompts.tokenized import TokenizedPairs
from sparselens.results import Result
from sparselens.training.losses import logits_of, tokens_of


@dataclass(frozen=True, eq=False, repr=False)
class LossPoint(Result):
    """A model's loss on some rows, with its share of open attention edges.

    >>> point = measure_loss(model, pairs, name="sparse")
    >>> point.loss, point.interval(), point.share_of_visible_pairs
    """

    name: str  # dense, top-4, control, sparse
    losses: Float[Tensor, " row"]  # nats, mean over the row's counted tokens
    weights: Float[Tensor, " row"]  # number of counted tokens
    share_of_visible_pairs: float
    share_of_all_pairs: float  # the normalisation of the paper's Fig. 2
    edges_per_query_per_head: float
    clean_prompt: Int[Tensor, " row"] | None = None  # pairs only: rows with the same number are one observation

    def _line(self) -> str:
        return f"{self.name}: loss {self.interval()} nats, {self.share_of_visible_pairs:.2%} of visible pairs open"

    def _columns(self) -> dict[str, list[Any]]:
        return {"loss": self.losses.tolist(), "tokens": self.weights.tolist()}

    def plot(self) -> Any:
        """A plotly histogram of the rows' losses."""
        return self._figure("histogram", self.to_frame(), x="loss")

    @property
    def loss(self) -> float:
        """Nats per counted token, over all rows."""
        return float((self.losses * self.weights).sum() / self.weights.sum())

    def interval(self, level: float = 0.95) -> Interval:
        """The loss, with its bootstrap confidence interval over rows, or for pairs over clean prompts.

        Rows are treated as independent. Rows of one document are not quite, which makes the interval slightly too
        narrow.

        Raises:
            ValueError: no token is counted, in the rows or in a resample of them.
        """
        return ratio_interval(self.losses * self.weights, self.weights, level, clusters=self.clean_prompt)


def loss_points(
    dense: nn.Module,
    sparse: nn.Module,
    batches: Rows,
    *,
    control: nn.Module | None = None,
    counts: Sequence[int] | None = None,
    row_losses: RowLoss | None = None,
    batch_size: int = 32,
    progress: bool = True,
) -> tuple[LossPoint, ...]:
    """Measure all points of the figure, in the order dense, top-1, top-2, ..., control, sparse.

    >>> from sparselens.training.text import rows
    >>> batches = rows(tokens, seq_len=64, batch_size=32)
    >>> [(point.name, point.share_of_visible_pairs, point.loss) for point in loss_points(dense, sparse, batches)]

    Args:
        dense: a TransformerBridge or HookedTransformer without gates
        batches: rows of text, or prompt pairs, whose clean prompts are run
        counts: values of k for top-k attention; default: 1, 2, 4, ... up to the longest row
        row_losses: default: `text_losses` for text, `answer_losses` for pairs
        batch_size: rows per run; memory grows with it

    Raises:
        ValueError: the dense model has gates, the sparse one has none, a count is not positive, there is no row, or a
            loss is not finite.
    """
    if is_sparse(dense) or not is_sparse(sparse):
        raise ValueError("want a dense model without gates and a sparse one with gates (sl.densify, sl.sparsify)")
    if counts is None:
        counts = [2**power for power in range(longest(batches).bit_length())]
    hooked: Any = dense
    runs: list[tuple[str, nn.Module, Callable[[], AbstractContextManager[None]]]] = [("dense", dense, nullcontext)]
    runs += [(f"top-{k}", dense, partial(top_k_attention, hooked, k)) for k in counts]
    if control is not None:
        runs.append(("control", control, nullcontext))
    runs.append(("sparse", sparse, nullcontext))
    points: list[LossPoint] = []
    with progress_bar(len(runs), "loss", "point", progress) as bar:
        for name, model, changed in runs:
            with changed():
                points.append(measure_loss(model, batches, row_losses, name, batch_size))
            bar.update()
    return tuple(points)


def measure_loss(
    model: nn.Module, batches: Rows, row_losses: RowLoss | None = None, name: str = "", batch_size: int = 32
) -> LossPoint:
    """Measure one point: a model's loss on every row, and its open edges; in a dense model all visible ones are open.

    >>> with top_k_attention(dense, 4):
    ...     measure_loss(dense, batches, name="top-4").interval()

    The arguments are those of `loss_points`.

    Raises:
        ValueError: there is no row, rows hold padding without a mask, or a loss is not finite.
    """
    _refuse_misfits(model, batches)
    if row_losses is None:
        row_losses = answer_losses if isinstance(batches, TokenizedPairs) else text_losses
    gated = nullcontext() if is_sparse(model) else open_gates(model)
    with gated, evaluating(model), torch.no_grad(), record_gates(model) as gates:
        losses = _losses(model, batches, row_losses, batch_size)
    return LossPoint(
        name,
        losses.nats,
        losses.tokens,
        gates.share_of_visible_pairs,
        gates.share_of_all_pairs,
        gates.edges_per_query_per_head,
        batches.clean_prompt if isinstance(batches, TokenizedPairs) else None,
    )


def _refuse_misfits(model: nn.Module, batches: Rows) -> None:
    if isinstance(batches, TokenizedPairs):
        refuse_misfits(model, batches)
        return
    given: Any = batches
    if not isinstance(given, (Tensor, Mapping, Sequence)):
        refuse_other_pairs(given)
    for batch in listed(batches):
        if isinstance(batch, Tensor) or "attention_mask" not in batch:
            refuse_unreadable(model, tokens_of(batch), packed=True)


def _losses(model: nn.Module, batches: Rows, row_losses: RowLoss, batch_size: int) -> RowLosses:
    places: list[Tensor] = []
    found: list[RowLosses] = []
    for batch in row_batches(batches, batch_size, next(model.parameters()).device):
        places.append(batch.rows)
        found.append(row_losses(logits_of(model, batch.inputs), batch.target))
    order = torch.cat(places).argsort()  # pairs come sorted by length
    nats, tokens = (torch.cat([part[i].cpu().double() for part in found])[order] for i in range(2))
    if not nats.isfinite().all():
        raise ValueError(f"the loss of row {int((~nats.isfinite()).nonzero()[0])} is not finite")
    return RowLosses(nats, tokens)
