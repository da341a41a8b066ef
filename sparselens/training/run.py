"""One post-training run: its state, steps, evaluations and checkpoints; loop.py describes the algorithm."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from itertools import count, islice
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from sparselens.gates.modes import open_gates
from sparselens.models.adapters import adapters_off
from sparselens.training.batches import Batches, stream
from sparselens.training.best import Best
from sparselens.training.checkpoint import load_checkpoint, resumes, save_checkpoint
from sparselens.training.config import PostTrainConfig
from sparselens.training.control import Control, choose_learning_rate, control, gain_of, rate_text
from sparselens.training.evaluation import Evaluation, evaluate
from sparselens.training.geco import Geco
from sparselens.training.layerwise import layerwise_fit
from sparselens.training.losses import Batch, Loss
from sparselens.training.processes import accelerator_for, whole
from sparselens.training.progress import Journal
from sparselens.training.result import PostTrainResult, notes_on
from sparselens.training.step import NotFiniteError, Objective, Stepper, task_fit
from sparselens.training.stopping import StopRequest, stop_requests
from sparselens.training.teacher import Teacher

OnEvaluation = Callable[[list[dict[str, Any]]], None]  # is called with the history so far

_BROKEN = 10.0  # violation limits above the allowed loss: more than closing an edge or two could cost
_MORE_CAREFUL = 3.0  # factor by which going back raises the multiplier


class Run:
    """State of one run; everything that changes is saved in its checkpoints."""

    def __init__(
        self,
        model: nn.Module,
        config: PostTrainConfig,
        loss: Loss,
        held_out: Sequence[Batch],
        dense: nn.Module,
        out: str | Path | None,
        accelerator: Accelerator | None,
    ) -> None:
        self.config, self.loss, self.held_out = config, loss, held_out
        self.accelerator = accelerator or accelerator_for(config.mixed_precision)
        if config.layerwise_steps and self.accelerator.num_processes > 1:
            raise ValueError("layerwise_steps works only in a single process: set it to 0")
        self.checkpoint = None if out is None else Path(out) / "checkpoint.pt"
        self.reference = dense.to(self.accelerator.device)
        layerwise = config.layerwise_steps > 0
        teacher = Teacher(dense, config.distillation, layerwise) if config.distillation or layerwise else None
        self.plain, self.stepper = model, Stepper(model, config, loss, self.accelerator)
        self.fit = task_fit(self.stepper, loss, teacher)
        self.layerwise = layerwise_fit(model, teacher, loss) if teacher and layerwise else None
        self.journal: Journal | None = None
        self.on_evaluation: OnEvaluation | None = None
        self.step = 0
        self.restarted = 0  # the step at which the optimiser was last reset
        self.learning_rate = 0.0  # peak value
        self.controls: list[Control] = []
        self.saved_at = 0.0
        self.history: list[dict[str, Any]] = []
        self.notes: list[str] = []

    # -- one run, start to end

    def start(self, resume: bool, finish: bool) -> None:
        """Evaluate the dense model and set the target, or restore the whole state from the checkpoint."""
        if resumes(self.checkpoint, resume, finish):
            self._restore(finish)
            return
        with open_gates(self.reference), adapters_off(self.reference):
            dense = self._evaluate(self.reference)
        self._set_target(dense, self._target_for(dense))

    def _target_for(self, dense: Evaluation) -> float:
        return dense.loss + self.config.margin if self.config.target is None else self.config.target

    def _set_target(self, dense: Evaluation, target: float, best: dict[str, Any] | None = None) -> None:
        self.dense, self.target, self.best = dense, target, Best(target, best)
        self.geco = self.config.geco(target)
        self.objective = Objective(self.fit, self.geco.loss)

    def train(self, batches: Batches, progress: bool, on_evaluation: OnEvaluation | None) -> PostTrainResult:
        """Take all remaining steps."""
        self.saved_at = time.monotonic()
        if self.accelerator.is_main_process:
            out = self.checkpoint.parent if self.checkpoint else None
            self.journal = Journal(self.config, self.target, self.step, out=out, live=progress)
            self.on_evaluation = on_evaluation
        with stop_requests(self.checkpoint is not None) as stop:
            if not self.history:
                self.learning_rate, self.controls = choose_learning_rate(
                    self.config, self.dense.loss, lambda rate, steps: self._control(rate, steps, batches, stop)
                )
                self._check()
                self._event(rate_text(self.config, self.learning_rate, self.controls))
                if gain := gain_of(self.controls, self.dense.loss):
                    self._event(gain)
            batch = stream(batches, self.step * self.config.accumulation)
            while self.step < self.config.steps:
                self._advance(batch)
                self._pause(stop)
        return self.finish()

    def _advance(self, batch: Iterator[Batch]) -> None:
        """Take one step, and evaluate if it is time."""
        rise = self.config.rise_at(self.step - self.restarted)
        rate = self.learning_rate * rise * self.config.fall_at(self.step)
        means = self.stepper(batch, self.step, rate, self._objective())
        self.step += 1
        if self.journal:
            self.journal.step(self.step, means, self.geco.multiplier, self.stepper.tokens)
        if self.step == self.config.steps or self.step % self.config.evaluate_every == 0:
            self._check()
        if self.step == self.config.layerwise_steps:
            self._event("end of layer-by-layer training")

    def _objective(self) -> Objective:
        if not self.layerwise or self.step >= self.config.layerwise_steps:
            return self.objective
        geco = Geco(0.0, multiplier=self.config.layerwise_multiplier)
        geco.relative_to(self.geco.edges)
        return Objective(self.layerwise, geco.loss)

    def finish(self) -> PostTrainResult:
        """Load the best state into the model and summarise the run."""
        best = self.best
        best.put_into(self.plain)
        notes = notes_on(self.history, best.step, self.learning_rate, self.controls, bool(self.checkpoint))
        if self.step < self.config.steps:
            notes.append(f"the run was ended after step {self.step} of {self.config.steps}: it can be resumed")
        return PostTrainResult(
            dense=self.dense,
            sparse=best.evaluation,
            step=best.step,
            feasible=best.feasible,
            target=self.target,
            history=list(self.history),
            controls=list(self.controls),
            notes=[*self.notes, *notes],
        )

    def close(self) -> None:
        """Remove everything that belongs to the run from the model."""
        self.stepper.close()
        if self.journal:
            self.journal.close()

    # -- the dense control

    def _control(self, rate: float, steps: int, batches: Batches, stop: StopRequest) -> Control:
        """Train with every gate open, then restore the weights."""
        batch, numbers = stream(batches, 0), count()

        def train(more: int) -> float:
            try:
                for step in islice(numbers, more):
                    self.stepper(batch, step, rate * min(1.0, (step + 1) / 10), self.objective)
                    if self._must_stop(stop):
                        raise KeyboardInterrupt("stopped in the dense control, before the first step")
            except NotFiniteError:
                return math.inf
            return self._evaluate(self.plain).loss

        with open_gates(self.plain), self.stepper.on_trial():
            return control(rate, self.dense.loss, steps, train)

    # -- evaluation and the best state

    def _evaluate(self, model: nn.Module) -> Evaluation:
        with self.accelerator.autocast():
            return evaluate(model, self.held_out, self.loss, self.accelerator, self.config.layer_cost)

    def _check(self) -> None:
        now = self._evaluate(self.plain)
        if not math.isfinite(now.loss):
            raise ValueError(f"the held-out loss is {now.loss} after step {self.step}: {self.stepper.cure}")
        allowance = self.config.allowance_at(self.step)
        in_layers = self.step < self.config.layerwise_steps
        if self.step and not in_layers:
            self.geco.update(now.loss, allowance)
        self.geco.relative_to(now.cost)
        record = self._record(now, allowance)
        self.history.append(record)
        self.best.offer(self.plain, now, step=self.step, multiplier=self.geco.multiplier)
        if self.journal:
            self.journal.evaluation(record)
        met = self.target + allowance
        if not in_layers and self.best.evaluation.loss <= met < now.loss - _BROKEN * self.config.violation_limit:
            self._go_back()
        if self.on_evaluation:
            self.on_evaluation(list(self.history))

    def _go_back(self) -> None:
        """Return to the best state, with a higher multiplier each time.

        A gate that is closed everywhere has no gradient left that could reopen it, however high the multiplier.
        """
        self.best.put_into(self.plain)
        self.stepper.forget()
        self.restarted = self.step  # repeat the warm-up: Adam's first steps move every weight by the full learning rate
        self.geco.restart(_MORE_CAREFUL * max(self.best.multiplier, self.geco.multiplier))
        self.geco.relative_to(self.best.evaluation.cost)
        self._event(f"back to step {self.best.step}, multiplier {self.geco.multiplier:.3g}")

    def _record(self, now: Evaluation, allowance: float) -> dict[str, Any]:
        return {
            "step": self.step,
            **asdict(now),
            "dense_loss": self.dense.loss,
            "target": self.target,
            "allowance": allowance,
            "feasible": not now.rank(self.target).misses,
            "multiplier": self.geco.multiplier,
            "gate_bias": self.stepper.settings.gate_bias,
            "learning_rate": self.stepper.learning_rate if self.step else 0.0,  # of the last step
        }

    def _event(self, text: str) -> None:
        """Report an intervention in the history, the log and the progress output."""
        record = self.history[-1]
        record["event"] = f"{record['event']}; {text}" if "event" in record else text
        if self.journal:
            self.journal.event(self.step, text)

    # -- checkpoint

    def _pause(self, stop: StopRequest) -> None:
        """Between two steps: write a checkpoint if it is time, and stop if requested."""
        stopping = self._must_stop(stop)
        steps, minutes = self.config.checkpoint_every, (time.monotonic() - self.saved_at) / 60
        due = self.step % steps == 0 or minutes >= self.config.checkpoint_minutes
        if self.checkpoint and (stopping or due or self.step == self.config.steps):
            self._save(self.checkpoint)
        if stopping:
            raise KeyboardInterrupt(f"stopped after step {self.step}; resume=True continues from {self.checkpoint}")

    def _must_stop(self, stop: StopRequest) -> bool:
        """Whether any process was asked to stop: if only one stopped, the others would wait for it forever."""
        if self.accelerator.num_processes == 1 or not self.checkpoint:
            return stop.received
        received = torch.tensor(float(stop.received), device=self.accelerator.device)
        return bool(cast("Tensor", self.accelerator.reduce(received, "sum")))

    def _save(self, path: Path) -> None:
        self.saved_at = time.monotonic()
        main = self.accelerator.is_main_process
        state = {
            **self.stepper.state(keep=main),
            "best": whole(self.best.state, keep=main),
            "step": self.step,
            "restarted": self.restarted,
            "config": asdict(self.config),
            "geco": self.geco.state_dict(),
            "learning_rate": self.learning_rate,
            "controls": [asdict(control) for control in self.controls],
            "dense": asdict(self.dense),
            "target": self.target,
            "history": self.history,
        }
        if main:
            save_checkpoint(path, state)

    def _restore(self, finish: bool) -> None:
        assert self.checkpoint is not None
        state = load_checkpoint(self.checkpoint)
        self.config.refuse_other(state["config"], self.checkpoint, finish)
        try:
            self.stepper.put_state(state)
        except ValueError as error:
            raise ValueError(f"{self.checkpoint} is {error}") from error
        dense, steered_to = Evaluation(**state["dense"]), state["target"]
        target = self._target_for(dense) if finish else steered_to
        self._set_target(dense, target, state["best"])
        self.geco.load_state_dict(state["geco"])
        self.controls = [Control(**fields) for fields in state["controls"]]
        for name in ("step", "restarted", "learning_rate", "history"):
            setattr(self, name, state[name])
        if target != steered_to:
            self.notes.append(f"selected by the target {target:.4f}; the run was steered to {steered_to:.4f}")
            self._apply_target()

    def _apply_target(self) -> None:
        """Judge a restored run by a new target: its current state may now be better than the one kept as best."""
        now = self._evaluate(self.plain)
        history = [{**r, "target": self.target, "feasible": r["loss"] <= self.target} for r in self.history]
        last = history.pop() if history[-1]["step"] == self.step else {}
        self.history = [*history, {**last, **self._record(now, 0.0)}]
        self.best.offer(self.plain, now, step=self.step, multiplier=self.geco.multiplier)
