"""Progress of a run: a live line or a few printed ones, a JSON-lines log and, optionally, wandb."""

import json
import math
import sys
import time
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import Any

from tqdm import tqdm

from sparselens.files.whole import write_file
from sparselens.training.config import PostTrainConfig
from sparselens.training.step import StepMeans

_LINES = 38  # evaluations printed without a terminal, in addition to the first and the last
_EVERY = 50  # training steps between two entries of the log


class Journal:
    """Reports a run on standard error and in `out/log.jsonl`.

    Standard error gets one live line in a terminal and occasional lines elsewhere (a file, a notebook). The log has one
    object per logged step, evaluation or event. With several processes only the main one keeps a journal.
    """

    def __init__(self, config: PostTrainConfig, target: float, step: int, *, out: Path | None, live: bool) -> None:
        self._target, self._live = target, live
        terminal = sys.stderr.isatty()
        self._bar = tqdm(
            total=config.steps, initial=step, disable=not (live and terminal), unit="step", dynamic_ncols=True
        )
        self._lines = _Lines(config.steps, step) if live and not terminal else None
        self._file = None if out is None else _reopen(out / "log.jsonl", step)
        self._wandb = None
        if config.wandb:
            import wandb

            self._wandb = wandb.init(project=config.wandb, config=asdict(config), dir=out)

    def step(self, step: int, means: StepMeans, multiplier: float, tokens: int) -> None:
        """Report a training step: always in the live line, now and then in the log."""
        self._bar.set_postfix_str(
            f"loss {means.fit:.4f}, target {self._target:.4f}, multiplier {multiplier:.3g}, open {means.share:.2%}, "
            f"edges/query {means.edges:.3f}",
            refresh=False,
        )
        self._bar.update()
        if self._lines:
            self._lines.tokens += tokens
        if step % _EVERY == 0:
            self._write({"step": step, "loss": means.fit, "multiplier": multiplier, "expected_share": means.share})

    def evaluation(self, record: dict[str, Any]) -> None:
        """Report a held-out evaluation."""
        self._write({"evaluation": True, **record})
        if self._lines and self._lines.due(record["step"]):
            self._say(self._lines.format(record, self._target))

    def event(self, step: int, text: str) -> None:
        """Report a decision of the run, such as going back to an earlier state."""
        self._write({"step": step, "event": text})
        self._say(f"step {step}: {text}")

    def _say(self, text: str) -> None:
        if self._live:
            tqdm.write(f"{time.strftime('%H:%M:%S')}  {text}", file=sys.stderr)
            sys.stderr.flush()

    def _write(self, record: dict[str, Any]) -> None:
        if self._file:
            self._file.write(json.dumps(record) + "\n")
            self._file.flush()
        if self._wandb:
            self._wandb.log({k: v for k, v in record.items() if k != "step"}, step=record["step"])

    def close(self) -> None:
        """Close the live line and the log."""
        self._bar.close()
        if self._file:
            self._file.close()
        if self._wandb:
            self._wandb.finish()


class _Lines:
    """Selects and formats the evaluations that are printed without a terminal."""

    def __init__(self, steps: int, first: int) -> None:
        self._steps, self._first, self._start = steps, first, time.monotonic()
        self._next: float = first
        self.tokens = 0  # trained on since the program started

    def due(self, step: int) -> bool:
        """Whether to print another line; the first and the last evaluation always get one."""
        if step < min(self._next, self._steps):
            return False
        self._next = step + self._steps / _LINES
        return True

    def format(self, record: dict[str, Any], target: float) -> str:
        """For instance `step 500/6000  loss 1.7312 (target 1.7132)  open 12.30%  ...  0:41:10 left`."""
        step = record["step"]
        parts = [
            f"step {step}/{self._steps}",
            f"loss {record['loss']:.4f} (target {target:.4f})",
            f"open {record['share_of_visible_pairs']:.2%}",
            f"multiplier {record['multiplier']:.3g}",
        ]
        if step > self._first:
            seconds = time.monotonic() - self._start
            left = seconds / (step - self._first) * (self._steps - step)
            parts += [f"{self.tokens / seconds:,.0f} tokens/s", f"{timedelta(seconds=round(left))} left"]
        return "  ".join(parts)


def _reopen(path: Path, step: int) -> Any:
    """Open the log for appending, after deleting entries later than the step at which the run resumes."""
    lines = path.read_text().splitlines() if step and path.exists() else []
    kept = [line for line in lines if _step_of(line) <= step]
    write_file(path, "".join(line + "\n" for line in kept).encode())
    return path.open("a")


def _step_of(line: str) -> int | float:
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError):
        return math.inf  # truncated by the interruption
