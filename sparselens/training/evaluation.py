"""Measures a model on held-out batches in evaluation mode: task loss and attention edges."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, cast

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from sparselens.gates.modes import evaluating
from sparselens.gates.statistics import record_gates
from sparselens.gates.surgery import gate_settings
from sparselens.training.batches import to_device
from sparselens.training.losses import Batch, Loss, logits_of, next_token_loss, tokens_of, weight_of


@dataclass(frozen=True)
class Evaluation:
    """Means over held-out examples, in evaluation mode."""

    loss: float  # nats per token
    open_edges: float  # per example, over all layers and heads
    share_of_visible_pairs: float
    share_of_all_pairs: float
    edges_per_query_per_head: float
    cost: float  # what is minimised: the share of visible pairs, later layers weighted by `layer_cost`
    share_per_layer: list[float] = field(default_factory=list[float])  # of visible pairs, from the first layer on

    def rank(self, target: float) -> "Rank":
        """The smaller, the better: states that meet the target by sparsity, after them the others by loss."""
        misses = self.loss > target
        return Rank(misses, 0.0 if misses else self.cost, self.loss)


class Rank(NamedTuple):
    """How good a state is, by comparison."""

    misses: bool  # the target
    cost: float  # where it does not miss
    loss: float  # nats per token; decides between equally sparse states, as where every gate is held open


def evaluate(
    model: nn.Module,
    batches: Sequence[Batch],
    loss: Loss = next_token_loss,
    accelerator: Accelerator | None = None,
    layer_cost: float = 1.0,
) -> Evaluation:
    """Loss and open edges of a gated model. With an `accelerator` of several processes each takes its share of batches.

    Args:
        layer_cost: an edge in layer l counts as layer_cost**l edges in `Evaluation.cost`, and nowhere else

    Raises:
        ValueError: there is no batch, or the model carries no gates.
    """
    if not len(batches):
        raise ValueError("there is no held-out batch to evaluate on")
    device = next(model.parameters()).device
    rank, world = (accelerator.process_index, accelerator.num_processes) if accelerator else (0, 1)
    sums = torch.zeros(3 + 4 * gate_settings(model).n_layers, dtype=torch.float64, device=device)
    with evaluating(model), torch.no_grad():
        for first in range(0, len(batches), world):  # each process as often: with FSDP they wait for each other
            mine = first + rank
            found = _sums(model, batches[min(mine, len(batches) - 1)], loss, device)
            sums += found if mine < len(batches) else 0
    if accelerator and world > 1:
        sums = cast("Tensor", accelerator.reduce(sums, "sum"))
    tokens, nats, examples = sums[:3].tolist()
    per_layer = sums[3:].cpu().reshape(4, -1)
    opened, visible, pairs, queries = per_layer.sum(-1).tolist()
    weights = layer_cost ** torch.arange(per_layer.shape[1], dtype=torch.float64)
    return Evaluation(
        nats / tokens if tokens else math.nan,
        opened / examples,
        opened / visible,
        opened / pairs,
        opened / queries,
        float(per_layer[0] @ weights) / visible,
        (per_layer[0] / per_layer[1]).tolist(),
    )


def _sums(model: nn.Module, batch: Batch, loss: Loss, device: torch.device) -> Tensor:
    """Tokens, nats and rows; then open edges, visible pairs, all pairs and queries, each of every layer.

    Nothing here waits for a GPU but the copying of the batch, which is counted before it goes there.
    """
    rows, tokens = len(tokens_of(batch)), weight_of(loss, batch)
    batch = to_device(batch, device)
    with record_gates(model) as gates:
        nats = loss(logits_of(model, batch), batch)
    weight, examples = (torch.full((), n, dtype=torch.float64, device=device) for n in (tokens, rows))
    told = torch.stack([weight, weight * nats.double() if tokens else weight, examples])
    counts = [rows * x.sum(-1) for x in (gates.open, gates.visible_pairs, gates.all_pairs, gates.queries)]
    return torch.cat([told, *(count.to(device) for count in counts)])
