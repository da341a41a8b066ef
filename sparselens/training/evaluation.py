"""Evaluate a model on held-out batches: task loss and open attention edges."""

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
    cost: float  # the minimised quantity: open share of visible pairs, with layers weighted by `layer_cost`
    share_per_layer: list[float] = field(default_factory=list[float])  # open share of visible pairs in each layer

    def rank(self, target: float) -> "Rank":
        """Sort key, smaller is better: states that meet the target by sparsity, then all others by loss."""
        misses = self.loss > target
        return Rank(misses, 0.0 if misses else self.cost, self.loss)


class Rank(NamedTuple):
    """Sort key of a state, smaller is better."""

    misses: bool  # whether the loss exceeds the target
    cost: float  # 0 if the target is missed
    loss: float  # nats per token; breaks ties, for instance between states with every gate held open


def evaluate(
    model: nn.Module,
    batches: Sequence[Batch],
    loss: Loss = next_token_loss,
    accelerator: Accelerator | None = None,
    layer_cost: float = 1.0,
) -> Evaluation:
    """Loss and open edges of a gated model, in evaluation mode.

    Args:
        accelerator: with several processes, each takes its share of the batches
        layer_cost: an edge in layer l counts as layer_cost**l edges, only in `Evaluation.cost`

    Raises:
        ValueError: there is no batch, or the model has no gates.
    """
    if not len(batches):
        raise ValueError("there is no held-out batch to evaluate on")
    device = next(model.parameters()).device
    rank, world = (accelerator.process_index, accelerator.num_processes) if accelerator else (0, 1)
    sums = torch.zeros(3 + 4 * gate_settings(model).n_layers, dtype=torch.float64, device=device)
    with evaluating(model), torch.no_grad():
        for first in range(0, len(batches), world):  # equally often in each process: with FSDP they wait for each other
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
    """Tokens, nats and rows; then open edges, visible pairs, all pairs and queries, each for every layer.

    Apart from copying the batch, nothing here synchronises with the GPU: tokens are counted before the copy.
    """
    rows, tokens = len(tokens_of(batch)), weight_of(loss, batch)
    batch = to_device(batch, device)
    with record_gates(model) as gates:
        nats = loss(logits_of(model, batch), batch)
    weight, examples = (torch.full((), n, dtype=torch.float64, device=device) for n in (tokens, rows))
    totals = torch.stack([weight, weight * nats.double() if tokens else weight, examples])
    counts = [rows * x.sum(-1) for x in (gates.open, gates.visible_pairs, gates.all_pairs, gates.queries)]
    return torch.cat([totals, *(count.to(device) for count in counts)])
