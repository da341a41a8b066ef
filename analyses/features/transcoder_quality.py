"""How well transcoders replace MLPs: active features, variance unexplained, and the loss with every MLP replaced."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sparselens.analyses.engine.partial_runs import Hook, recording, run
from sparselens.analyses.engine.request import OpenModel
from sparselens.analyses.engine.residual_stream import Layer
from sparselens.analyses.features.transcoders import Transcoders
from sparselens.bars import progress_bar
from sparselens.gates.modes import evaluating
from sparselens.models.hooked_model import HookedModel
from sparselens.prompts.checks import refuse_unreadable
from sparselens.results import Result
from sparselens.training.losses import next_token_loss

AT_ONCE = 32  # rows per run


@dataclass(frozen=True, eq=False, repr=False)
class TranscoderQuality(Result):
    """How well transcoders reconstruct MLPs on some text; returned by `measure_transcoders`.

    >>> found = analyses.measure_transcoders(model, transcoders, rows)
    >>> found.l0, found.missed, found.replaced_loss - found.loss  # Float["layer"] twice, nats per token
    """

    l0: Float[Tensor, " layer"]  # active features per position
    missed: Float[Tensor, " layer"]  # fraction of variance unexplained in each MLP's output
    dead: Float[Tensor, " layer"]  # share of features that were never active
    loss: float  # nats per token
    replaced_loss: float  # with all MLPs replaced by their reconstructions at once
    n_tokens: int

    def _line(self) -> str:
        return (
            f"L0 {float(self.l0.mean()):.3g}, {float(self.missed.mean()):.1%} of variance unexplained, "
            f"{float(self.dead.mean()):.1%} dead; loss {self.loss:.3f}, with MLPs replaced {self.replaced_loss:.3f}"
        )

    def _columns(self) -> Mapping[str, Sequence[Any]]:
        columns = {"l0": self.l0, "missed": self.missed, "dead": self.dead}
        return {"layer": range(len(self.l0))} | {name: values.tolist() for name, values in columns.items()}

    def plot(self) -> Any:
        """A plotly bar chart of the fraction of variance unexplained in each layer."""
        return self._figure("bar", self.to_frame(), x="layer", y="missed")


def measure_transcoders(
    model: HookedModel, transcoders: Transcoders, rows: Int[Tensor, "row pos"], *, progress: bool = True
) -> TranscoderQuality:
    """Measure how well transcoders replace a model's MLPs; use held-out rows of text.

    >>> analyses.measure_transcoders(model, transcoders, rows)

    L0, unexplained variance and dead features are measured in the model's own run. The replaced loss is that of a run
    in which every MLP's output is its reconstruction from what the features read in that run, so errors accumulate over
    layers.

    Raises:
        ValueError: the transcoders belong to another model, or the model cannot read the rows.
    """
    opened = OpenModel(model)
    refuse_unreadable(opened.model, rows)
    transcoders.refuse_other_model(opened.reading)
    n_layers, n_features, d_model = transcoders.encoder.shape
    active, off, squares, sums = (torch.zeros(n_layers, size).double() for size in (n_features, 1, 1, d_model))
    losses = torch.zeros(2).double()
    with evaluating(opened.model), torch.no_grad(), progress_bar(len(rows), "quality", "row", progress) as bar:
        for some in rows.split(AT_ONCE):
            found = _measured(opened, transcoders, some.to(opened.device))
            for total, value in zip((active, off, squares, sums, losses), found, strict=True):
                total += value.double().cpu()
            bar.update(len(some))
    n = rows.numel()
    variance = squares[:, 0] - sums.square().sum(-1) / n
    return TranscoderQuality(
        (active.sum(-1) / n).float(),
        (off[:, 0] / variance).float(),
        (active == 0).double().mean(-1).float(),
        float(losses[0]) / len(rows),
        float(losses[1]) / len(rows),
        n,
    )


def _measured(opened: OpenModel, transcoders: Transcoders, rows: Int[Tensor, "row pos"]) -> tuple[Tensor, ...]:
    """Sums over positions (activity of features, squared errors, squared outputs, outputs) and of losses over rows."""
    layers, recorded = opened.reading.layers, dict[str, Tensor]()
    names = [name for layer in layers for name in (layer.mid, layer.at("hook_mlp_out"))]
    logits = run(opened.model, rows, recording(recorded, names))
    activations: list[Tensor] = []
    sums: list[list[Tensor]] = []
    for layer in layers:
        output = recorded[layer.at("hook_mlp_out")].float()
        rebuilt = _rebuilt(transcoders, layer, activations, recorded[layer.mid].float())
        off = (output - rebuilt).square().sum()[None]
        sums.append([(activations[-1] > 0).float().sum((0, 1)), off, output.square().sum()[None], output.sum((0, 1))])
    replaced = run(opened.model, rows, replacing(opened, transcoders))
    losses = torch.stack([next_token_loss(values, rows) * len(rows) for values in (logits, replaced)])
    return (*map(torch.stack, zip(*sums, strict=True)), losses)


def replacing(opened: OpenModel, transcoders: Transcoders) -> list[Hook]:
    """Hooks that replace all MLPs by transcoders, each reading the stream of the replaced run. For a single run."""
    activations: list[Tensor] = []
    streams: list[Tensor] = []
    hooks: list[Hook] = []
    for layer in opened.reading.layers:
        hooks.append((layer.mid, partial(_remember, streams)))
        hooks.append((layer.at("hook_mlp_out"), partial(_stand_in, transcoders, layer, activations, streams)))
    return hooks


def _remember(streams: list[Tensor], stream: Tensor) -> None:
    streams[:] = [stream]


def _stand_in(
    transcoders: Transcoders, layer: Layer, activations: list[Tensor], streams: list[Tensor], output: Tensor
) -> Tensor:
    return _rebuilt(transcoders, layer, activations, streams[0].float()).to(output)


def _rebuilt(
    transcoders: Transcoders, layer: Layer, activations: list[Tensor], stream: Float[Tensor, "row pos d_model"]
) -> Float[Tensor, "row pos d_model"]:
    """The reconstruction of a layer's output; appends its activations to those of earlier layers."""
    norm = transcoders.norm(layer)
    x = stream if norm is None else norm(stream)
    activations.append(transcoders.encode(layer.number, x))
    return transcoders.reconstruct(layer.number, activations, x)
