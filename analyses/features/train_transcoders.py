"""A compact transcoder trainer: top-k features, Adam; the loss is the fraction of variance unexplained in each layer.

1. Each step runs the model on some rows and records every MLP's input and output, both scaled to unit size.
2. activations = top-k of ReLU(encoder x + bias), so L0 is k by construction.
3. loss = sum over layers of |output - reconstruction|^2 / variance of the output, plus 1/32 of the same for the
   remaining error, reconstructed by features that have long been inactive, which revives them (Gao et al. 2024,
   2406.04093).
"""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from sparselens.analyses.engine.partial_runs import recording, run
from sparselens.analyses.engine.request import OpenModel
from sparselens.analyses.features.transcoders import READS, Transcoders
from sparselens.bars import progress_bar
from sparselens.gates.modes import evaluating
from sparselens.models.hooked_model import HookedModel
from sparselens.prompts.checks import refuse_unreadable

IDLE = 100  # steps without activity after which a feature counts as idle and is to be revived
REVIVING = 1 / 32  # weight of reviving idle features in the loss


def train_transcoders(
    model: HookedModel,
    rows: Int[Tensor, "row pos"],
    *,
    features: int = 512,
    top_k: int = 16,
    cross_layer: bool = True,
    steps: int = 2000,
    batch_size: int = 32,
    rate: float = 2e-3,
    seed: int = 0,
    progress: bool = True,
) -> Transcoders:
    """Train a transcoder for every layer of a model on rows of text. The same arguments give the same transcoders.

    >>> rows = torch.cat(sl.text.rows(tokens, seq_len=64, batch_size=64))
    >>> transcoders = analyses.train_transcoders(model, rows[256:], features=512, top_k=16)
    >>> analyses.measure_transcoders(model, transcoders, rows[:256])  # on held-out rows

    Meant for models of a few million parameters: one process, the features of all layers in memory, about a minute for
    a thousand steps of stories260k on one core. For larger models train transcoders with circuit-tracer, SAELens or
    CLT-Forge; `load_transcoders` reads them.

    Args:
        rows: token ids without padding; every step draws `batch_size` of them
        features: features per layer
        top_k: active features per position and layer
        cross_layer: features write to their own and all later layers, rather than only to their own
        rate: Adam's learning rate, decaying to zero over the second half of training

    Raises:
        ValueError: a number is not positive, top_k is larger than `features`, the model cannot read the rows, or it is
            one that `attribute_edges` refuses.
    """
    numbers = {"features": features, "top_k": top_k, "steps": steps, "batch_size": batch_size, "rate": rate}
    for name, number in numbers.items():
        if not number > 0:
            raise ValueError(f"{name} = {number}: want more than 0")
    if top_k > features:
        raise ValueError(f"top_k = {top_k}: want 1 to {features}, the number of features")
    opened = OpenModel(model)
    refuse_unreadable(opened.model, rows)
    random = torch.Generator().manual_seed(seed)
    first = _observed(opened, rows[_drawn(rows, 4 * batch_size, random)])
    trained = _Trained(_start(first, features, top_k, cross_layer, random).to(opened.device))
    adam = torch.optim.Adam(trained.parameters(), rate, betas=(0.9, 0.999))
    decay = torch.optim.lr_scheduler.LambdaLR(adam, lambda step: min(1.0, 2 * (1 - step / steps)))
    with progress_bar(steps, "transcoders", "step", progress) as bar:
        for _ in range(steps):
            seen = _observed(opened, rows[_drawn(rows, batch_size, random)])
            adam.zero_grad()
            loss = trained.loss(seen.inputs / first.in_scale, seen.outputs / first.out_scale)
            loss.backward()
            adam.step()
            decay.step()
            bar.set_postfix({"missed": f"{float(trained.missed):.3f}"}, refresh=False)
            bar.update(1)
    return _unscaled(trained.transcoders, first)


def _drawn(rows: Int[Tensor, "row pos"], count: int, random: torch.Generator) -> Int[Tensor, " count"]:
    return torch.randint(len(rows), (min(count, len(rows)),), generator=random)


@dataclass(frozen=True, eq=False)
class _Observed:
    """The inputs and outputs of all MLPs on some rows."""

    inputs: Float[Tensor, "layer row d_model"]
    outputs: Float[Tensor, "layer row d_model"]

    @property
    def in_scale(self) -> Float[Tensor, "layer 1 1"]:
        """The root mean square of the inputs."""
        return self.inputs.square().mean((1, 2), keepdim=True).sqrt().clamp_min(1e-8)

    @property
    def out_scale(self) -> Float[Tensor, "layer 1 1"]:
        """The standard deviation of the outputs over positions."""
        return self.outputs.var(1, keepdim=True).mean(2, keepdim=True).sqrt().clamp_min(1e-8)


def _observed(opened: OpenModel, rows: Int[Tensor, "row pos"]) -> _Observed:
    recorded: dict[str, Tensor] = {}
    layers = opened.reading.layers
    names = [name for layer in layers for name in (layer.mid, layer.at("hook_mlp_out"))]
    with evaluating(opened.model), torch.no_grad():
        run(opened.model, rows.to(opened.device), recording(recorded, names))
    kept = {name: values.flatten(0, 1).float() for name, values in recorded.items()}
    read = [kept[layer.mid] if layer.mlp_norm is None else layer.mlp_norm(kept[layer.mid]) for layer in layers]
    return _Observed(torch.stack(read), torch.stack([kept[layer.at("hook_mlp_out")] for layer in layers]))


def _start(seen: _Observed, features: int, top_k: int, cross_layer: bool, random: torch.Generator) -> Transcoders:
    """Initial transcoders: each feature reads and writes the same random direction; the bias is the mean output."""
    n_layers, _, d_model = seen.inputs.shape
    encoder = nn.functional.normalize(torch.randn(n_layers, features, d_model, generator=random), dim=-1)
    decoder = [0.1 * encoder[layer][:, None] for layer in range(n_layers)]
    if cross_layer:
        decoder = [one.repeat(1, n_layers - layer, 1) / (n_layers - layer) for layer, one in enumerate(decoder)]
    bias = (seen.outputs / seen.out_scale).mean(1).cpu()
    return Transcoders(encoder, torch.zeros(n_layers, features), tuple(decoder), bias, top_k=top_k, reads=READS[0])


class _Trained(nn.Module):
    """Transcoders whose tensors are parameters, in scaled units."""

    def __init__(self, start: Transcoders) -> None:
        super().__init__()
        self._start, self._top_k = start, start.top_k or 1
        self.encoder, self.encoder_bias = nn.Parameter(start.encoder), nn.Parameter(start.encoder_bias)
        self.decoder_bias = nn.Parameter(start.decoder_bias)
        self.decoder = nn.ParameterList([nn.Parameter(values) for values in start.decoder])
        self._idle = torch.zeros_like(start.encoder_bias)
        self.missed = torch.zeros(())

    @property
    def transcoders(self) -> Transcoders:
        """As plain tensors."""
        plain = {name: getattr(self, name).detach() for name in ("encoder", "encoder_bias", "decoder_bias")}
        return replace(self._start, decoder=tuple(values.detach() for values in self.decoder), **plain)

    def loss(
        self, inputs: Float[Tensor, "layer row d_model"], outputs: Float[Tensor, "layer row d_model"]
    ) -> Float[Tensor, ""]:
        """The fraction of variance unexplained, summed over layers, plus the term that revives idle features."""
        before = torch.einsum("lrm,lfm->lrf", inputs, self.encoder) + self.encoder_bias[:, None]
        values, places = before.relu().topk(self._top_k, -1, sorted=False)
        off = outputs - self.decoder_bias[:, None] - self._decoded(values, places)
        self.missed = off.detach().square().mean()
        return off.square().mean(-1).mean(-1).sum() + REVIVING * self._reviving(before, places, off.detach())

    def _decoded(
        self, values: Float[Tensor, "layer row k"], places: Int[Tensor, "layer row k"]
    ) -> Float[Tensor, "layer row d_model"]:
        """The reconstruction. Only the decoder rows of the k active features are read, not all of them."""
        parts: list[list[Tensor]] = [[] for _ in values]
        for layer, decoder in enumerate(self.decoder):
            written = nn.functional.embedding_bag(
                places[layer], decoder.flatten(1), per_sample_weights=values[layer], mode="sum"
            )
            for later, part in enumerate(written.unflatten(-1, decoder.shape[1:]).unbind(1)):
                parts[layer + later].append(part)
        return torch.stack([torch.stack(some).sum(0) for some in parts])

    def _reviving(
        self, before: Float[Tensor, "layer row feature"], places: Int[Tensor, "layer row k"], off: Tensor
    ) -> Float[Tensor, ""]:
        """The error of idle features alone in reconstructing what the active ones missed."""
        self._idle += 1
        self._idle.scatter_(1, places.flatten(1), 0.0)
        idle = self._idle > IDLE
        if not idle.any():
            return off.new_zeros(())
        allowed = before.masked_fill(~idle[:, None], 0.0).relu()
        values, others = allowed.topk(self._top_k, -1, sorted=False)
        return (off - self._decoded(values, others)).square().mean(-1).mean(-1).sum()


def _unscaled(trained: Transcoders, seen: _Observed) -> Transcoders:
    """The same transcoders in the model's own units."""
    out = seen.out_scale.flatten().to(trained.encoder)
    decoder = tuple(
        values * (out[layer : layer + values.shape[1], None]) for layer, values in enumerate(trained.decoder)
    )
    return replace(
        trained,
        encoder=trained.encoder / seen.in_scale.to(trained.encoder),
        decoder=decoder,
        decoder_bias=trained.decoder_bias * out[:, None],
    )
