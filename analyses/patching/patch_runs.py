"""What every patching analysis runs: prompts once to record them, then rows of prompts under hooks, within a budget."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sparselens.analyses.engine.batching import refuse_several_lengths, refuse_unequal
from sparselens.analyses.engine.partial_runs import Hooks, Projections, keeping_projections, only_at, returns_tuple, run
from sparselens.analyses.patching.patch_sites import Site, shows_only_copies
from sparselens.prompts.checks import refuse_misfits
from sparselens.prompts.metrics import METRICS, Metric
from sparselens.prompts.tokenized import TokenizedPairs
from sparselens.training.evaluation import evaluating, open_gates

BASES = ("clean", "corrupted")
SOURCES = ("corrupted", "clean", "mean", "zero")
Activations = dict[str, Float[Tensor, "batch ..."]]  # by hook name

_RESIDUAL = "blocks.{}.hook_resid_pre"


@dataclass(frozen=True)
class Question:
    """What is patched where, and what is asked of the result."""

    model: Any
    metric: Metric
    sites: tuple[Site, ...]
    base: str  # the run that is changed
    source: str  # what is put into it
    as_tuple: bool  # what the model's blocks return
    mean: Activations | None = None  # of the corrupted prompts, for the source "mean"

    @property
    def names(self) -> list[str]:
        """The hook points of all sites."""
        return [site.hook_name(layer) for site in self.sites for layer in range(self.model.cfg.n_layers)]


@dataclass(frozen=True)
class Recorded:
    """Some prompts' own runs, and what can be put into the base run."""

    clean: Float[Tensor, " batch"]  # the metric
    corrupted: Float[Tensor, " batch"]
    base: Activations
    source: Activations
    projections: Sequence[Projections]  # of the base run, by layer

    def residual(self, layer: int) -> Float[Tensor, "batch pos d_model"]:
        """What block `layer` reads in the base run."""
        return self.base[_RESIDUAL.format(layer)]


@contextmanager
def asking(
    model: Any, pairs: TokenizedPairs, metric: Metric, sites: Sequence[Site], base: str, source: str
) -> Iterator[Question]:
    """Everything made ready for the patches of one call, and put back afterwards.

    Raises:
        ValueError: base or source are unknown or the same, or prompts differ in length within a pair.
    """
    _refuse(pairs, base, source)
    refuse_misfits(model, pairs)
    patterns = open_gates(model) if any(shows_only_copies(model, site) for site in sites) else nullcontext()
    with evaluating(model), torch.no_grad(), patterns:
        one = pairs[:1].to(next(model.parameters()).device)
        yield Question(model, metric, tuple(sites), base, source, returns_tuple(model, one.clean))


def _refuse(pairs: TokenizedPairs, base: str, source: str) -> None:
    for name, value, known in (("base", base, BASES), ("source", source, SOURCES)):
        if value not in known:
            raise ValueError(f"no such {name}: {value!r} (want {', '.join(known)})")
    if base == source:
        raise ValueError(f"base and source are both {base!r}: nothing would change")
    refuse_unequal(pairs)
    if source == "mean":
        refuse_several_lengths(pairs, "means at each position")


def measure(
    question: Question,
    prompts: Int[Tensor, " batch"],
    batch: TokenizedPairs,
    hooks: Hooks = (),
    corrupted: bool = False,
) -> Float[Tensor, " batch"]:
    """The metric of a run under hooks.

    The metrics of `sl.metrics` read the logits at the answer's position alone, so no others are made for them:
    they are shown these at every position. A metric of your own gets all logits.

    Args:
        prompts: numbers of the prompts, for messages

    Raises:
        ValueError: the metric does not give one finite number a prompt.
    """
    tokens = batch.corrupted if corrupted else batch.clean
    n_pos = tokens.shape[1]
    if question.metric in METRICS.values():
        mlps = any(site.name == "mlps" for site in question.sites)
        with only_at(question.model, batch.end, n_pos, trim_mlp=not mlps):
            logits = run(question.model, tokens, hooks).expand(-1, n_pos, -1)
    else:
        logits = run(question.model, tokens, hooks)
    values = question.metric(logits, batch)
    if values.shape != prompts.shape:
        raise ValueError(f"the metric gave shape {list(values.shape)} for {len(prompts)} prompts: want one value each")
    if not values.isfinite().all():
        bad = int((~values.isfinite()).nonzero()[0])
        raise ValueError(f"the metric of prompt {int(prompts[bad])} is {float(values[bad])}")
    return values


def record(question: Question, prompts: Int[Tensor, " batch"], batch: TokenizedPairs) -> Recorded:
    """Run clean and corrupted prompts, and keep what patches need of them.

    Raises:
        ValueError: an activation is not finite, or never shown.
    """
    residuals = [_RESIDUAL.format(layer) for layer in range(question.model.cfg.n_layers)]
    wanted: dict[str, list[str]] = {"clean": [], "corrupted": []}
    wanted[question.base] = [*question.names, *residuals]
    if question.source in wanted:
        wanted[question.source] = question.names
    kept: dict[str, Activations] = {"clean": {}, "corrupted": {}}
    values, projections = dict[str, Tensor](), dict[str, list[Projections]]()
    for which, names in wanted.items():
        with keeping_projections(question.model) if which == question.base else nullcontext([]) as found:
            hooks = _keeping(kept[which], names, prompts)
            values[which] = measure(question, prompts, batch, hooks, which == "corrupted")
        projections[which] = found
    silent = [name for which, names in wanted.items() for name in names if name not in kept[which]]
    if silent:
        raise ValueError(f"{silent[0]} was not called in a run of this {type(question.model).__name__}")
    base = kept[question.base]
    source = _source(question, base, kept)
    return Recorded(values["clean"], values["corrupted"], base, source, projections[question.base])


def _keeping(kept: Activations, names: Sequence[str], prompts: Tensor) -> Hooks:
    def keep(name: str) -> Callable[..., None]:
        def hook(activation: Tensor, **_: Any) -> None:
            if not activation.isfinite().all():
                bad = int((~activation.isfinite()).flatten(1).any(1).nonzero()[0])
                raise ValueError(f"{name} is not finite in prompt {int(prompts[bad])}")
            kept[name] = activation.clone()  # some families go on to add to it in place

        return hook

    return [(name, keep(name)) for name in dict.fromkeys(names)]


def _source(question: Question, base: Activations, kept: dict[str, Activations]) -> Activations:
    if question.source in kept:
        return kept[question.source]
    if question.source == "mean":
        assert question.mean is not None
        return {name: question.mean[name].expand_as(base[name]) for name in question.names}
    return {name: torch.zeros_like(base[name][:1]).expand_as(base[name]) for name in question.names}


def with_mean(question: Question, prompts: Int[Tensor, " batch"], batch: TokenizedPairs, size: int) -> Question:
    """The same question with the mean activations of all corrupted prompts, `size` of them at a time."""
    asked = replace(question, base="clean", source="corrupted")
    sums, dtypes = Activations(), dict[str, torch.dtype]()
    for some in torch.arange(len(batch)).split(size):
        for name, values in record(asked, prompts[some], batch[some]).source.items():
            wide = torch.promote_types(values.dtype, torch.float32)  # bfloat16 would lose every small addend
            sums[name] = sums.get(name, 0) + values.sum(0, keepdim=True, dtype=wide) / len(batch)
            dtypes[name] = values.dtype
    return replace(question, mean={name: total.to(dtypes[name]) for name, total in sums.items()})
