"""One request behind every analysis: a model, prompt pairs and a metric, and the runs made with them.

1. `open_request` refuses pairs that the model cannot read or that differ in length, and puts the model into evaluation
   mode. What is found out about the model is cached in an `OpenModel`, so that several requests can share it.
2. `Request.batch` moves prompts of one length, without padding, to the model's device. `Request.sharing` makes their
   runs start where the two prompts of a pair first differ.
3. `Request.measure` is the metric of a run under hooks; `Request.record` keeps activations of the run as well.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sparselens.analyses.engine.budget import Budget
from sparselens.analyses.engine.fingerprints import of_model
from sparselens.analyses.engine.partial_runs import (
    Activations,
    Hook,
    only_at,
    recording,
    refuse_unless_finite,
    returns_tuple,
    run,
)
from sparselens.analyses.engine.prefixes import LEAST, Prefix, agrees, behind, common_length, run_prefix
from sparselens.analyses.engine.residual_stream import Reading, read_model
from sparselens.gates.hooked import refuse_other_model
from sparselens.gates.modes import evaluating
from sparselens.models.hooked_model import HookedModel
from sparselens.prompts.checks import refuse_misfits, refuse_other_pairs
from sparselens.prompts.metrics import METRICS, Metric, find_metric, measured
from sparselens.prompts.tokenized import TokenizedPairs

PerPrompt = Float[Tensor, " batch"]
_ALONG_POSITIONS = ("hook_resid_pre", "hook_resid_post", "hook_q", "hook_k", "hook_v", "hook_z", "hook_mlp_out")


class OpenModel:
    """A model, and a cache of what has been found out about it."""

    def __init__(self, model: HookedModel) -> None:
        refuse_other_model(model)
        self.model: Any = model  # analyses use TransformerLens' modules, which carry no types
        self.begins_behind = dict[tuple[int, int], bool]()  # (length, start): whether such runs agree with whole ones
        parameter = next(self.model.parameters())
        self.device, self.dtype = parameter.device, parameter.dtype

    @cached_property
    def reading(self) -> Reading:
        """How its blocks read and write the residual stream."""
        return read_model(self.model)

    @cached_property
    def as_tuple(self) -> bool:
        """Whether its blocks return tuples."""
        return returns_tuple(self.model, torch.zeros(1, 1, dtype=torch.long, device=self.device))

    def has_gradient(self, metric: Metric, pairs: TokenizedPairs) -> bool:
        """Whether the metric is differentiable with respect to the logits."""
        one = pairs[:1]._without_padding().to(self.device)
        with torch.enable_grad():
            size = (*one.clean.shape, self.model.cfg.d_vocab)
            return metric(torch.zeros(size, device=self.device, requires_grad=True), one).requires_grad

    @cached_property
    def fingerprint(self) -> str:
        """A digest of weights and settings; cached, since hashing takes seconds for a large model."""
        return of_model(self.model)


@dataclass(frozen=True)
class Run:
    """One forward pass: the metric of every prompt, and the activations recorded in it."""

    metric: PerPrompt
    recorded: Activations


@dataclass(frozen=True, eq=False)
class Request:
    """A model, prompt pairs and a metric of its logits; made by `open_request`."""

    opened: OpenModel
    pairs: TokenizedPairs
    metric: Metric
    prompts: Int[Tensor, " batch"]  # the pairs' indices among all pairs
    budget: Budget = field(default_factory=Budget)
    progress: bool = False
    also: tuple[str, ...] = ()  # hook points to record in every run, in addition to the sources' writes
    starts: Mapping[int, int] = field(default_factory=dict[int, int])  # length of a prompt -> where its runs start
    prefix: Prefix | None = None  # of a batch whose runs do not start at the first token

    @property
    def model(self) -> Any:
        """The model itself."""
        return self.opened.model

    @property
    def reading(self) -> Reading:
        """How the model's blocks read and write the residual stream."""
        return self.opened.reading

    def __len__(self) -> int:
        return len(self.pairs)

    def sizes(self, *steps: Callable[[Any], Any]) -> tuple[list[int], Any]:
        """How many rows like this batch's can run at once; see `Budget.sizes`."""
        left_out = self.prefix.length if self.prefix else 0
        return self.budget.sizes(self.model, self.pairs.clean.shape[1] + left_out, *steps)

    def sharing(self) -> "Request":
        """The same request, whose runs skip the tokens that clean and corrupted prompts share at their beginning.

        Only for runs that leave these positions unchanged: nothing is set to zero or to a mean, and no position is
        addressed by its index. If the model cannot do this, or the metric is not one of `sl.metrics`, the request is
        returned unchanged.
        """
        if self.starts or self.metric not in METRICS.values():
            return self
        groups = [(int(rows[0]), some) for rows, some in self.pairs.batches(len(self))]
        lengths = {some.clean.shape[1]: (common_length(some), row) for row, some in groups}
        worth = {length: found for length, found in lengths.items() if found[0] >= LEAST * length}
        if not worth:
            return self
        found = replace(self, starts={length: start for length, (start, _) in worth.items()})
        known = self.opened.begins_behind
        for length, (start, row) in worth.items():  # every length is checked: rotary encodings may depend on it
            if (length, start) not in known:
                known[length, start] = agrees(self._along_positions(row), partial(found._along_positions, row))
            if not known[length, start]:
                return self
        return found

    def _along_positions(self, row: int) -> Activations:
        """The activations that analyses record, on one clean prompt."""
        recorded: Activations = {}
        names = [name for name in self.model.hook_dict if name.endswith(_ALONG_POSITIONS)]
        self.batch(torch.tensor([row])).measure(recording(recorded, names))
        return recorded

    def batch(self, rows: Int[Tensor, " row"]) -> "Request":
        """Some prompts of one length, without padding, on the model's device."""
        pairs = self.pairs[rows]._without_padding().to(self.opened.device)
        batch = replace(self, pairs=pairs, prompts=self.prompts[rows])
        start = self.starts.get(pairs.clean.shape[1])
        if start is None:
            return batch
        prefix = run_prefix(self.model, pairs.clean[:, :start])
        return replace(batch, pairs=behind(pairs, start), prefix=prefix)

    def rows(self, rows: Int[Tensor, " row"]) -> "Request":
        """Some prompts of a batch, in any order and possibly repeated."""
        prefix = self.prefix and self.prefix.of(rows)
        return replace(self, pairs=self.pairs[rows], prompts=self.prompts[rows], prefix=prefix)

    def repeated(self, count: int) -> "Request":
        """The prompts of a batch, repeated `count` times."""
        return self.rows(torch.arange(len(self)).repeat(count))

    def measure(self, hooks: Sequence[Hook] = (), corrupted: bool = False, trim_mlp: bool = False) -> PerPrompt:
        """The metric of a run under hooks.

        The metrics of `sl.metrics` read the logits only at the answer's position, so only these are computed for them,
        and repeated at every position. A metric of your own gets all logits.

        Args:
            trim_mlp: also run the last MLP at the answer's position only; must be False while it is recorded or edited

        Raises:
            ValueError: the metric does not return one finite number per prompt.
        """
        tokens = self.pairs.corrupted if corrupted else self.pairs.clean
        options = self.prefix.options(tokens) if self.prefix else {}
        if self.metric in METRICS.values():
            with only_at(self.model, self.pairs.end, tokens.shape[1], trim_mlp):
                logits = run(self.model, tokens, hooks, **options).expand(-1, tokens.shape[1], -1)
        else:
            logits = run(self.model, tokens, hooks, **options)
        values = measured(self.metric, logits, self.pairs)
        refuse_unless_finite("the metric", values, self.prompts)
        return values

    def record(self, names: Sequence[str], corrupted: bool = False, trim_mlp: bool = False) -> Run:
        """The metric of a run, and its activations at the named hook points.

        Raises:
            ValueError: as `measure`; or an activation is not finite, or a hook point was not reached.
        """
        recorded: Activations = {}
        with torch.no_grad():
            metric = self.measure(recording(recorded, names, self.prompts), corrupted, trim_mlp)
        silent = [name for name in names if name not in recorded]
        if silent:
            raise ValueError(f"{silent[0]} was not called in a run of this {type(self.model).__name__}")
        return Run(metric, recorded)


@contextmanager
def open_request(
    model: HookedModel | OpenModel,
    pairs: TokenizedPairs,
    metric: Metric | str,
    *,
    memory: int | None = None,
    batch_size: int | None = None,
    progress: bool = False,
) -> Iterator[Request]:
    """Check the inputs and yield a request; inside, the model is in evaluation mode and gradients are disabled.

    Args:
        model: a model; or an `OpenModel`, to share what has been found out about it between requests
        metric: function or name in `sparselens.prompts.metrics`
        memory: bytes to use in addition to the model; the batch size is found by a trial run
        batch_size: rows (prompts, or patched prompts) per run, without a trial run

    Raises:
        ValueError: there is no such metric, the prompts of a pair differ in length, or the pairs are another model's.
    """
    opened = model if isinstance(model, OpenModel) else OpenModel(model)
    function, budget = find_metric(metric), Budget(batch_size, memory)
    refuse_other_pairs(pairs)
    refuse_unequal(pairs)
    refuse_misfits(opened.model, pairs)
    with evaluating(opened.model), torch.no_grad():
        yield Request(opened, pairs, function, torch.arange(len(pairs)), budget, progress)


def refuse_unequal(pairs: TokenizedPairs) -> None:
    """Raise a ValueError if the two prompts of a pair differ in length, or if padding cannot be cut off.

    Every position needs its counterpart, and prompts of one length run without their masks.
    """
    if pairs.corrupted_mask is not None:  # otherwise one mask is for both
        mask = torch.ones_like(pairs.corrupted_mask) if pairs.attention_mask is None else pairs.attention_mask
        unequal = (mask != pairs.corrupted_mask).any(-1).nonzero()
        if len(unequal):
            raise ValueError(
                f"clean and corrupted prompt of pair {int(unequal[0])} differ in length ({len(unequal)} of "
                f"{len(pairs)} pairs do): every position needs its counterpart"
            )
    for rows, batch in pairs.batches(len(pairs)):
        if batch.attention_mask is not None:
            broken = int(rows[int((batch.attention_mask == 0).any(-1).nonzero()[0])])
            raise ValueError(
                f"prompt {broken} has padding inside, or on another side than prompts of the same length: pad all on "
                "one side"
            )


def refuse_several_lengths(pairs: TokenizedPairs, what: str) -> None:
    """Raise a ValueError unless all prompts have one length; a mean over prompts at a position needs that."""
    refuse_other_pairs(pairs)
    lengths = sorted({batch.clean.shape[1] for _, batch in pairs.batches(len(pairs))})
    if len(lengths) > 1:
        raise ValueError(f"prompts have lengths {lengths[0]} to {lengths[-1]}: {what} need one length for all")
