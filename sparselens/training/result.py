"""The result of a post-training run, with notes on possible problems."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sparselens.gates.modes import OPEN_BIAS
from sparselens.results import Result
from sparselens.training.control import Control, gain_of
from sparselens.training.evaluation import Evaluation

_LOST = 2.0  # nats above the dense model: more than sparsity ever costs
_NEAR = 0.1  # nats above the target: close enough for the state to be of interest


@dataclass(frozen=True, repr=False)
class PostTrainResult(Result):
    """The result of a run. The model itself holds the weights of `step`.

    >>> result.sparse.share_of_visible_pairs, result.sparse.loss - result.dense.loss
    """

    dense: Evaluation  # the dense model on the held-out batches
    sparse: Evaluation  # the returned state on the same batches
    step: int  # after which the returned state was taken
    feasible: bool  # whether it met the target; if not, it is the state with the lowest loss
    target: float  # nats per token
    history: list[dict[str, Any]]  # one record per evaluation
    controls: list[Control] = field(default_factory=list[Control])  # learning rates tried with every gate open
    notes: list[str] = field(default_factory=list[str])  # descriptions of problems; empty if there were none

    def _line(self) -> str:
        losses = f"loss {self.sparse.loss:.4f} (dense {self.dense.loss:.4f}, target {self.target:.4f})"
        met = "" if self.feasible else ", target not met"
        return f"step {self.step}: {losses}, {self.sparse.share_of_visible_pairs:.2%} of visible pairs open{met}"

    def _columns(self) -> Mapping[str, Sequence[Any]]:
        names = {name: None for record in self.history for name in record}
        return {name: [record.get(name) for record in self.history] for name in names}

    def plot(self) -> Any:
        """Plot loss, open edges and multiplier over steps with plotly; `analyses.training_figure` shows more."""
        shown = self.to_frame().melt("step", ["loss", "open_edges", "multiplier"], "of")
        figure = self._figure("line", shown, x="step", y="value", facet_row="of")
        return figure.update_yaxes(matches=None)


def notes_on(
    history: Sequence[dict[str, Any]],
    kept: int,
    learning_rate: float,
    controls: Sequence[Control] = (),
    checkpoint: bool = True,
) -> list[str]:
    """Describe why a run may have failed, or achieved less than it seems.

    Args:
        kept: step of the returned state
        checkpoint: whether there is a checkpoint from which the last state can be recovered
    """
    start, *later = history
    returned = next(record for record in history if record["step"] == kept)
    notes: list[str] = []
    if not kept:
        notes.append("the returned state is the one before training (step 0): no later evaluation was better")
    elif returned["open_edges"] >= start["open_edges"] and returned["gate_bias"] < OPEN_BIAS:
        before, after = (f"{record['open_edges']:.1f}" for record in (start, returned))
        notes.append(f"no attention edge was closed: {before} open per example before training, {after} after it")
    if later and not any(record["feasible"] for record in later):
        best = min(later, key=lambda record: record["loss"])
        notes.append(
            f"the held-out loss never met the target of {best['target']:.4f} after step 0: "
            f"{best['loss']:.4f} at best (step {best['step']})"
        )
    last = history[-1]
    near = last["target"] < last["loss"] <= last["target"] + _NEAR
    if near and 0 < last["open_edges"] < returned["open_edges"] / 2:
        margin = math.ceil((last["loss"] - last["dense_loss"]) * 1e4) / 1e4
        notes.append(
            f"the last state (step {last['step']}) has {last['share_of_visible_pairs']:.2%} of the visible pairs open, "
            f"{returned['open_edges'] / last['open_edges']:.0f} times fewer than the returned one, and misses the "
            f"target by {last['loss'] - last['target']:.4f} nats: "
            + (f"--finish --margin {margin:g} (finish=True) returns it" if checkpoint else "without `out` it is lost")
        )
    if later and all(record["loss"] > record["dense_loss"] + _LOST for record in later):
        notes.append(
            f"every evaluation after step 0 was more than {_LOST:g} nats above the dense loss "
            f"({start['dense_loss']:.4f}): learning_rate={learning_rate:g} is too high, or the run too short"
        )
    if gain := gain_of(controls, start["dense_loss"]):
        notes.append(gain)
    return notes
