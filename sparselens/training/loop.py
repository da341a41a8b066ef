"""Constrained post-training: minimise the expected share of open attention edges while the task loss stays at target.

    loss = edges / edges_before + multiplier * (task loss - target)     edges: expected share of visible pairs (geco.py)
1. The dense control finds a learning rate that leaves the model intact while every gate is open (control.py).
2. Each step: one batch through the gated model with noise, one optimiser step (step.py). The first
   `config.layerwise_steps` run layer by layer instead, against the dense model's own streams (layerwise.py).
3. Every few steps the model is evaluated with hard gates on held-out data, and the multiplier follows the loss measured
   there (geco.py). While the learning rate is high the target is allowed to be missed by `config.allowance`.
4. The sparsest state that met the target is what is returned, or, where none did, the state with the lowest loss
   (`result.feasible` tells).
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from itertools import count, islice
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from sparselens.files.locks import locked
from sparselens.gates.modes import open_gates
from sparselens.models.adapters import adapters_off
from sparselens.training.batches import Batches, refuse_text, stream
from sparselens.training.best import Best
from sparselens.training.checkpoint import goes_on, load_checkpoint, save_checkpoint
from sparselens.training.config import PostTrainConfig
from sparselens.training.control import Control, choose_learning_rate, control, gain_of
from sparselens.training.evaluation import Evaluation, evaluate
from sparselens.training.geco import Geco
from sparselens.training.layerwise import layerwise_fit
from sparselens.training.losses import Batch, Loss, next_token_loss
from sparselens.training.processes import accelerator_for, whole
from sparselens.training.progress import Journal
from sparselens.training.result import PostTrainResult, notes_on
from sparselens.training.step import NotFiniteError, Objective, Stepper, task_fit
from sparselens.training.stopping import StopRequest, stop_requests
from sparselens.training.teacher import Teacher


def post_train(
    model: nn.Module,
    batches: Batches,
    config: PostTrainConfig | None = None,
    *,
    held_out: Sequence[Batch],
    loss: Loss = next_token_loss,
    dense: nn.Module | None = None,
    out: str | Path | None = None,
    resume: bool = False,
    finish: bool = False,
    progress: bool = True,
    on_evaluation: Callable[[list[dict[str, Any]]], None] | None = None,
    accelerator: Accelerator | None = None,
) -> PostTrainResult:
    """Close as many gates of a gated model as the task loss allows; the model is changed in place.

    >>> model = sl.sparsify(sl.load("gpt2"), gate_bias=3e4)
    >>> result = sl.post_train(model, batches, sl.PostTrainConfig(steps=500), held_out=held_out, out="run")
    >>> sl.save(model, "gpt2-sparse", result=result)

    Args:
        model: a gated TransformerLens or transformers model, see `sparsify`
        batches: a function from an index to a batch, or an iterable that is repeated. With several
            processes each batch is global, and every process takes its share of rows
        held_out: batches on which the target is set and checked
        loss: mean nats per token from logits and batch. The library's own losses are averaged over all tokens that
            count, whatever the padding, in the batches and processes of a step and in held-out batches; other losses
            over rows. The expected share of edges is averaged over the batches and processes of a step
        dense: the dense model that target and distillation refer to. Default: `model` itself with its gates open and
            its adapters, if it has any, off; give it when `model` has been post-trained before
        out: folder for the checkpoint and `log.jsonl`. With it Ctrl-C and SIGTERM end the run after its step, with a
            checkpoint
        resume: continue from the checkpoint in `out`, with the same dense model and data; the result is that of the
            uninterrupted run, up to rounding if the number of processes differs
        finish: end the checkpoint's run where it is, with its best state so far; it can still be resumed. With another
            `target` or `margin` the better of two: that state and the one where the run is
        progress: report progress on standard error
        on_evaluation: called in the main process with the history so far, after every evaluation on held-out data; for
            instance `analyses.live_training_figure()`
        accelerator: default: one made for this run with the precision that `config` names

    The model is left in evaluation mode, with its `.grad` cleared; with FSDP its weights stay sharded.

    Raises:
        ValueError: batches are text, the model carries no gates, a loss or gradient is not finite (the model then holds
            the weights from before that step), a parameter to be trained has half precision, `out` holds another run or
            another process is at work in it, the checkpoint is damaged, or layer-by-layer steps are wanted in several
            processes.
        KeyboardInterrupt: the run was asked to stop. With `out`, `resume=True` goes on from there.
    """
    refuse_text(batches, held_out)
    config = config or PostTrainConfig()
    devices = range(torch.cuda.device_count())  # named, since torch warns where it has to guess among several
    with torch.random.fork_rng(devices), locked(out) if out is not None else nullcontext():
        run = _Run(model, config, loss, held_out, dense or model, out, accelerator)
        try:
            run.start(resume, finish)
            return run.finish() if finish else run.go(batches, progress, on_evaluation)
        finally:
            run.close()


_BROKEN = 10.0  # violation limits above what is allowed: more than an edge or two costs
_MORE_CAREFUL = 3.0  # factor of the multiplier when a run goes back


class _Run:
    """The moving parts of one run: what a checkpoint holds."""

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
            raise ValueError("layerwise_steps runs layers by themselves, past what splits a model over processes: 0")
        self.checkpoint = None if out is None else Path(out) / "checkpoint.pt"
        self.reference = dense.to(self.accelerator.device)
        layerwise = config.layerwise_steps > 0
        teacher = Teacher(dense, config.distillation, layerwise) if config.distillation or layerwise else None
        self.plain, self.stepper = model, Stepper(model, config, loss, self.accelerator)
        self.fit = task_fit(self.stepper, loss, teacher)
        self.layerwise = layerwise_fit(model, teacher, loss) if teacher and layerwise else None
        self.journal: Journal | None = None
        self.tell: Callable[[list[dict[str, Any]]], None] | None = None
        self.step = 0
        self.restarted = 0  # the step at which the optimiser last began without moments
        self.learning_rate = 0.0  # at its peak
        self.controls: list[Control] = []
        self.saved_at = 0.0
        self.history: list[dict[str, Any]] = []
        self.notes: list[str] = []

    # -- one run, start to end

    def start(self, resume: bool, finish: bool) -> None:
        """Measure the dense model and set the target, or take both and all else from the checkpoint."""
        if goes_on(self.checkpoint, resume, finish):
            self._restore(finish)
            return
        with open_gates(self.reference), adapters_off(self.reference):
            dense = self._evaluate(self.reference)
        self._aim(dense, self._target_beside(dense))

    def _target_beside(self, dense: Evaluation) -> float:
        return dense.loss + self.config.margin if self.config.target is None else self.config.target

    def _aim(self, dense: Evaluation, target: float, best: dict[str, Any] | None = None) -> None:
        self.dense, self.target, self.best = dense, target, Best(target, best)
        self.geco = self.config.geco(target)
        self.whole = Objective(self.fit, self.geco.loss)

    def go(
        self, batches: Batches, progress: bool, tell: Callable[[list[dict[str, Any]]], None] | None
    ) -> PostTrainResult:
        main = self.accelerator.is_main_process
        out = self.checkpoint.parent if self.checkpoint else None
        self.journal = Journal(self.config, self.target, self.step, out=out, live=progress) if main else None
        self.tell, self.saved_at = tell if main else None, time.monotonic()
        with stop_requests(self.checkpoint is not None) as stop:
            if not self.history:
                self.learning_rate, self.controls = choose_learning_rate(
                    self.config, self.dense.loss, lambda rate, steps: self._control(rate, steps, batches, stop)
                )
                self._check()
                self._event(
                    f"learning rate {self.learning_rate:g}{', from the dense control' if self.controls else ''}"
                )
                if gain := gain_of(self.controls, self.dense.loss):
                    self._event(gain)
            batch = stream(batches, self.step * self.config.accumulation)
            while self.step < self.config.steps:
                self._advance(batch)
                self._pause(stop)
        return self.finish()

    def _advance(self, batch: Iterator[Batch]) -> None:
        """One step, and the evaluation that is due after it."""
        rise = self.config.rise_at(self.step - self.restarted)
        rate = self.learning_rate * rise * self.config.fall_at(self.step)
        found = self.stepper(batch, self.step, rate, self._objective())
        self.step += 1
        if self.journal:
            self.journal.step(self.step, found, self.geco.multiplier, self.stepper.tokens)
        if self.step == self.config.steps or self.step % self.config.evaluate_every == 0:
            self._check()
        if self.step == self.config.layerwise_steps:
            self._event("through the whole model from here on")

    def _objective(self) -> Objective:
        if not self.layerwise or self.step >= self.config.layerwise_steps:
            return self.whole
        alone = Geco(0.0, multiplier=self.config.layerwise_multiplier)
        alone.relative_to(self.geco.edges)
        return Objective(self.layerwise, alone.loss)

    def finish(self) -> PostTrainResult:
        """The best state, put into the model, and how it came about."""
        best, step, history, controls = self.best, self.best.step, list(self.history), list(self.controls)
        best.put_into(self.plain)
        notes = [*self.notes, *notes_on(history, step, self.learning_rate, controls, bool(self.checkpoint))]
        if self.step < self.config.steps:
            notes.append(f"the run was ended after step {self.step} of {self.config.steps}: it can be resumed")
        found = best.evaluation, step, best.feasible
        return PostTrainResult(self.dense, *found, self.target, history, controls, notes)

    def close(self) -> None:
        """Take everything that belongs to the run off the model."""
        self.stepper.close()
        if self.journal:
            self.journal.close()

    # -- the dense control

    def _control(self, rate: float, steps: int, batches: Batches, stop: StopRequest) -> Control:
        """Train with every gate open, then put the weights back."""
        batch, numbers = stream(batches, 0), count()

        def train(more: int) -> float:
            try:
                for step in islice(numbers, more):
                    self.stepper(batch, step, rate * min(1.0, (step + 1) / 10), self.whole)
                    if self._is_asked(stop):
                        raise KeyboardInterrupt("stopped in the dense control, before the first step")
            except NotFiniteError:
                return math.inf
            return self._evaluate(self.plain).loss

        with open_gates(self.plain), self.stepper.on_trial():
            return control(rate, self.dense.loss, steps, train)

    # -- evaluation and the state that is kept

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
        if self.tell:
            self.tell(list(self.history))

    def _go_back(self) -> None:
        """Return to the best state, with a higher multiplier each time.

        A gate closed for good has no gradient left that could open it again, however high the multiplier climbs.
        """
        self.best.put_into(self.plain)
        self.stepper.forget()
        self.restarted = self.step  # Adam's first steps move every weight by the whole rate: it has to rise again
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
            # of the last step; none has been taken before the first
            "learning_rate": self.stepper.learning_rate if self.step else 0.0,
        }

    def _event(self, text: str) -> None:
        """Say in the history, the log and on the screen which rule acts."""
        record = self.history[-1]
        record["event"] = f"{record['event']}; {text}" if "event" in record else text
        if self.journal:
            self.journal.event(self.step, text)

    # -- checkpoint

    def _pause(self, stop: StopRequest) -> None:
        """Between two steps: write a checkpoint where one is due, and stop where that was asked."""
        asked = self._is_asked(stop)
        steps, minutes = self.config.checkpoint_every, (time.monotonic() - self.saved_at) / 60
        due = self.step % steps == 0 or minutes >= self.config.checkpoint_minutes
        if asked or due or self.step == self.config.steps:
            self._save()
        if asked:
            raise KeyboardInterrupt(f"stopped after step {self.step}; resume=True goes on from {self.checkpoint}")

    def _is_asked(self, stop: StopRequest) -> bool:
        """The same answer in all processes, since one that stopped alone would leave the others waiting for it."""
        if self.accelerator.num_processes == 1 or not self.checkpoint:
            return stop.asked
        asked = torch.tensor(float(stop.asked), device=self.accelerator.device)
        return bool(cast("Tensor", self.accelerator.reduce(asked, "sum")))

    def _save(self) -> None:
        self.saved_at = time.monotonic()
        if not self.checkpoint:
            return
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
            save_checkpoint(self.checkpoint, state)

    def _restore(self, finish: bool) -> None:
        assert self.checkpoint is not None
        state = load_checkpoint(self.checkpoint)
        self.config.refuse_other(state["config"], self.checkpoint, finish)
        try:
            self.stepper.put_state(state)
        except ValueError as error:
            raise ValueError(f"{self.checkpoint} is {error}") from error
        dense = Evaluation(**state["dense"])
        target = self._target_beside(dense) if finish else state["target"]
        self._aim(dense, target, state["best"])
        self.geco.load_state_dict(state["geco"])
        self.controls = [Control(**found) for found in state["controls"]]
        for name in ("step", "restarted", "learning_rate", "history"):
            setattr(self, name, state[name])
        if target != state["target"]:
            self.notes.append(f"judged by the target {target:.4f}; the run itself aimed at {state['target']:.4f}")
            self._judge_anew()

    def _judge_anew(self) -> None:
        """By another target than the run had, the state where it is may be better than the one that was kept."""
        now = self._evaluate(self.plain)
        anew = [{**r, "target": self.target, "feasible": r["loss"] <= self.target} for r in self.history]
        here = anew.pop() if anew[-1]["step"] == self.step else {}
        self.history = [*anew, {**here, **self._record(now, 0.0)}]
        self.best.offer(self.plain, now, step=self.step, multiplier=self.geco.multiplier)
