"""Constrained post-training: minimise the expected share of open attention edges while the task loss stays at target.

    loss = expected share of visible pairs + multiplier * (task loss - target)          see geco.py
Each step: one batch through the gated model with noise, one optimiser step, one multiplier step. Every few steps the
model is evaluated with hard gates on held-out data; the sparsest state that met the target there is what is returned.
"""

import copy
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from torch import Tensor, nn

from sparselens.checkpoint import load_checkpoint, save_checkpoint
from sparselens.evaluation import Evaluation, evaluate, open_gates, to_device
from sparselens.gates import RowNoise, uniform_noise
from sparselens.geco import Geco
from sparselens.losses import Batch, Loss, distillation_loss, logits_of, next_token_loss, tokens_of
from sparselens.progress import Journal
from sparselens.statistics import record_gates
from sparselens.surgery import densify, gate_settings

Batches = Callable[[int], Batch] | Iterable[Batch]


@dataclass(frozen=True)
class PostTrainConfig:
    """How to post-train. The defaults suit a small language model."""

    steps: int = 6000
    target: float | None = None  # nats per token; None: the dense model's held-out loss plus `margin`
    margin: float = 0.01  # nats per token
    learning_rate: float = 1e-3
    warmup: int = 100  # steps of linear rise
    decay: float = 0.3  # share of the steps, at the end, over which the rate falls linearly to zero
    weight_decay: float = 0.0
    clip_norm: float = 1.0
    accumulation: int = 1  # batches per step
    mixed_precision: Literal["no", "bf16", "fp16"] = "no"
    distillation: float = 0.0  # share of the dense model's own distribution in the labels, 0 to 1
    multiplier_rate: float = 0.5  # per nat of violation and step
    slack_rate: float = 0.25  # the same while the constraint holds
    smoothing: float = 0.95
    evaluate_every: int = 250  # steps
    checkpoint_every: int = 500  # steps; only with an `out` folder
    seed: int = 0
    wandb: str | None = None  # name of a wandb project

    def __post_init__(self) -> None:
        for name in ("steps", "accumulation", "evaluate_every", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.target is not None and not math.isfinite(self.target):
            raise ValueError(f"target must be a finite number of nats per token, not {self.target}")
        if not math.isfinite(self.margin):
            raise ValueError(f"margin must be a finite number of nats per token, not {self.margin}")
        if not 0 <= self.distillation <= 1:
            raise ValueError(f"distillation must be between 0 and 1, not {self.distillation}")

    def learning_rate_at(self, step: int) -> float:
        rise = min(1.0, (step + 1) / max(1, self.warmup))
        fall = min(1.0, (self.steps - step) / max(1.0, self.decay * self.steps))
        return self.learning_rate * min(rise, fall)


@dataclass(frozen=True)
class PostTrainResult:
    """What a run came to. The model itself now holds the weights of `step`."""

    dense: Evaluation  # the dense model on the held-out batches
    sparse: Evaluation  # the returned state on the same batches
    step: int  # after which the returned state was taken
    feasible: bool  # did it meet the target? If not, it is the state with the lowest loss
    target: float  # nats per token
    history: list[dict[str, Any]]  # one record per evaluation


def post_train(
    model: nn.Module,
    batches: Batches,
    config: PostTrainConfig | None = None,
    *,
    held_out: Sequence[Batch],
    loss: Loss = next_token_loss,
    out: str | Path | None = None,
    resume: bool = False,
    progress: bool = True,
    accelerator: Accelerator | None = None,
) -> PostTrainResult:
    """Close as many gates of a gated model as the task loss allows; the model is changed in place.

    Args:
        model: a gated TransformerLens or transformers model, see `sparsify`
        batches: a function from an index to a batch, or an iterable that is gone through again and again. In several
            processes each batch is the global one, of which every process takes its rows
        held_out: batches on which the target is set and checked
        loss: mean nats per token from logits and batch
        out: folder for the checkpoint and `log.jsonl`
        resume: go on from the checkpoint in `out`; the result is that of the uninterrupted run

    Raises:
        ValueError: the model carries no gates, the loss is not finite, `out` holds another run, or the checkpoint is
            damaged.
    """
    config = config or PostTrainConfig()
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)  # dropout, where the model has any; the gates draw their own noise
        run = _Run(model, config, loss, held_out, out, accelerator)
        if resume:
            run.resume()
        try:
            return run.go(batches, progress)
        finally:
            run.close()


class _Run:
    """The moving parts of one run: what a checkpoint holds."""

    def __init__(
        self,
        model: nn.Module,
        config: PostTrainConfig,
        loss: Loss,
        held_out: Sequence[Batch],
        out: str | Path | None,
        accelerator: Accelerator | None,
    ) -> None:
        self.settings = gate_settings(model)
        self.config, self.loss, self.held_out = config, loss, held_out
        self.accelerator = accelerator or Accelerator(
            mixed_precision=config.mixed_precision,
            gradient_accumulation_steps=1,
            # bridges that split a fused QKV weight keep the fused one, without a gradient
            kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
        )
        self.out = None if out is None else Path(out)
        self.teacher = _dense_copy(model).to(self.accelerator.device) if config.distillation else None
        trainable = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trainable, config.learning_rate, (0.9, 0.95), weight_decay=config.weight_decay)
        self.plain = model
        self.model, self.optimizer = self.accelerator.prepare(model, optimizer)
        with open_gates(model):
            self.dense = self._evaluate()
        self.target = self.dense.loss + config.margin if config.target is None else config.target
        self.geco = Geco(self.target, config.multiplier_rate, config.slack_rate, config.smoothing)
        self.step = 0
        self.task_ema: float | None = None
        self.gap = 0.0  # held-out loss with hard gates minus training loss with noisy ones
        self.best: dict[str, Any] | None = None
        self.history: list[dict[str, Any]] = []

    @property
    def checkpoint(self) -> Path | None:
        return self.out / "checkpoint.pt" if self.out else None

    # -- one run, start to end

    def go(self, batches: Batches, progress: bool) -> PostTrainResult:
        if self.checkpoint and self.checkpoint.exists() and not self.step:
            raise ValueError(f"{self.out} holds the checkpoint of a run: pass resume=True to go on, or another folder")
        main = self.accelerator.is_main_process
        self.journal = Journal(self.out if main else None, self.config, self.target, self.step, progress and main)
        stream = _stream(batches, self.step * self.config.accumulation)
        if not self.history:
            self._check()
        while self.step < self.config.steps:
            task, share, edges = self._train_step(stream)
            self.step += 1
            self.journal.step(self.step, task, self.geco.multiplier, share, edges)
            if self.step % self.config.evaluate_every == 0 or self.step == self.config.steps:
                self._check()
            if self.step % self.config.checkpoint_every == 0 or self.step == self.config.steps:
                self._save()
        return self._finish()

    def _finish(self) -> PostTrainResult:
        assert self.best is not None
        best = self.best
        model = self.accelerator.unwrap_model(self.model, keep_fp32_wrapper=False)
        model.load_state_dict(best["model"])
        sparse = Evaluation(**best["evaluation"])
        return PostTrainResult(
            self.dense, sparse, best["step"], sparse.loss <= self.target, self.target, list(self.history)
        )

    def close(self) -> None:
        self.settings.noise = uniform_noise
        self.optimizer.zero_grad()
        if hasattr(self, "journal"):
            self.journal.close()

    # -- one step

    def _train_step(self, stream: Iterator[Batch]) -> tuple[float, float, float]:
        """Returns task loss, expected share of visible pairs, expected edges per query and head: global means."""
        self.model.train()
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.learning_rate_at(self.step)
        n = self.config.accumulation
        sums = torch.zeros(3, device=self.accelerator.device)
        first_row = 0
        for i in range(n):
            batch = next(stream)
            rows = len(tokens_of(batch))
            mine = slice(*_share_of_rows(rows, self.accelerator.process_index, self.accelerator.num_processes))
            self.settings.noise = RowNoise(self.config.seed, self.step, first_row + mine.start)
            with _synchronised(self.accelerator, self.model, last=i == n - 1):
                sums += self._backward(_take_rows(batch, mine)) / n
            first_row += rows
        if self.config.clip_norm:
            self.accelerator.clip_grad_norm_(self.plain.parameters(), self.config.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.accelerator.num_processes > 1:
            sums = self.accelerator.reduce(sums, "mean")  # pyright: ignore
        task, share, edges = sums.tolist()
        self._move_multiplier(task)
        return task, share, edges

    def _backward(self, batch: Batch) -> Tensor:
        batch = to_device(batch, self.accelerator.device)
        with record_gates(self.plain) as gates:
            with self.accelerator.autocast():
                logits = logits_of(self.model, batch)
            task = self.loss(logits, batch)
            fitted = self._with_teacher(task, logits, batch)
            share = gates.expected_share.to(task.dtype)
            total = self.geco.loss(share, fitted) / self.config.accumulation
            # inside the block: a recomputed (checkpointed) forward pass must record as the first one did
            self.accelerator.backward(total)
        per_query = gates.expected.detach().sum() / gates.queries.sum()
        return torch.stack([task.detach().float(), share.detach().float(), per_query.float()])

    def _with_teacher(self, task: Tensor, logits: Tensor, batch: Batch) -> Tensor:
        if self.teacher is None:
            return task
        with torch.no_grad(), self.accelerator.autocast():
            teacher = logits_of(self.teacher, batch)
        weight = self.config.distillation
        return (1 - weight) * task + weight * distillation_loss(logits, teacher, batch)

    def _move_multiplier(self, task: float) -> None:
        """The constraint is on held-out loss with hard gates, so the training loss is corrected by the last known gap."""
        if not math.isfinite(task):
            kept = f"; the best state so far is in {self.checkpoint}" if self.checkpoint and self.best else ""
            raise ValueError(
                f"the training loss is {task} at step {self.step + 1}: lower learning_rate or check the data{kept}"
            )
        self.task_ema = task if self.task_ema is None else 0.98 * self.task_ema + 0.02 * task
        self.geco.update(task + self.gap)

    # -- evaluation and the state that is kept

    def _evaluate(self) -> Evaluation:
        with self.accelerator.autocast():
            return evaluate(self.plain, self.held_out, self.loss, self.accelerator)

    def _check(self) -> None:
        now = self._evaluate()
        if not math.isfinite(now.loss):
            raise ValueError(f"the held-out loss is {now.loss} at step {self.step}")
        if self.task_ema is not None:
            self.gap += 0.5 * (now.loss - self.task_ema - self.gap)
        record = {"step": self.step, **asdict(now), "multiplier": self.geco.multiplier, "feasible": now.loss <= self.target}
        self.history.append(record)
        if self.best is None or self._rank(now) < self._rank(Evaluation(**self.best["evaluation"])):
            weights = {name: value.detach().to("cpu", copy=True) for name, value in self.plain.state_dict().items()}
            self.best = {"model": weights, "evaluation": asdict(now), "step": self.step}
        self.journal.evaluation(record)

    def _rank(self, evaluation: Evaluation) -> tuple[bool, float]:
        """Smaller is better: states that meet the target by sparsity, the others after them by loss."""
        if evaluation.loss <= self.target:
            return False, evaluation.share_of_visible_pairs
        return True, evaluation.loss

    # -- checkpoint

    def _save(self) -> None:
        if not self.checkpoint or not self.accelerator.is_main_process:
            return
        scaler = self.accelerator.scaler
        save_checkpoint(
            self.checkpoint,
            {
                "step": self.step,
                "config": asdict(self.config),
                "model": self.plain.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "scaler": None if scaler is None else scaler.state_dict(),
                "geco": self.geco.state_dict(),
                "task_ema": self.task_ema,
                "gap": self.gap,
                "dense": asdict(self.dense),
                "target": self.target,
                "best": self.best,
                "history": self.history,
                "random": torch.get_rng_state(),
            },
        )

    def resume(self) -> None:
        """Take the state of the checkpoint in `out`; start at the beginning when there is none yet."""
        if not self.checkpoint:
            raise ValueError("resume=True needs the `out` folder of the run")
        if not self.checkpoint.exists():
            return
        state = load_checkpoint(self.checkpoint)
        _same_config(state["config"], self.config, self.checkpoint)
        self.plain.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.accelerator.scaler is not None and state["scaler"] is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        self.geco.load_state_dict(state["geco"])
        self.dense, self.target = Evaluation(**state["dense"]), state["target"]
        self.geco.target = self.target
        for name in ("step", "task_ema", "gap", "best", "history"):
            setattr(self, name, state[name])
        torch.set_rng_state(state["random"])


def _dense_copy(model: nn.Module) -> nn.Module:
    teacher = densify(copy.deepcopy(model)).eval()
    for parameter in teacher.parameters():
        parameter.requires_grad_(False)
    return teacher


def _same_config(saved: dict[str, Any], config: PostTrainConfig, path: Path) -> None:
    differ = [f.name for f in fields(config) if saved.get(f.name) != getattr(config, f.name)]
    if differ:
        was = ", ".join(f"{name}={saved.get(name)!r}" for name in differ)
        raise ValueError(f"{path} was written with {was}; resume with the same settings or choose another folder")


def _stream(batches: Batches, start: int) -> Iterator[Batch]:
    """Batches from number `start` on, without end."""
    if callable(batches):
        return (batches(i) for i in itertools.count(start))
    return itertools.islice(_cycle(batches), start, None)


def _cycle(batches: Iterable[Batch]) -> Iterator[Batch]:
    while True:
        empty = True
        for batch in batches:
            empty = False
            yield batch
        if empty:
            raise ValueError("there are no training batches (an iterator that can be gone through only once?)")


def _share_of_rows(rows: int, rank: int, world: int) -> tuple[int, int]:
    if rows % world:
        raise ValueError(f"a batch of {rows} rows cannot be split evenly over {world} processes")
    return rank * rows // world, (rank + 1) * rows // world


def _take_rows(batch: Batch, mine: slice) -> Batch:
    return batch[mine] if isinstance(batch, Tensor) else {name: value[mine] for name, value in batch.items()}


def _synchronised(accelerator: Accelerator, model: nn.Module, last: bool) -> Any:
    """Processes exchange gradients only with the last micro-batch of a step."""
    return nullcontext() if last else accelerator.no_sync(model)
