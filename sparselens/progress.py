"""What a run tells while it runs: a live line, a JSON-lines log, and wandb where it is asked for."""

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tqdm import tqdm

from sparselens.config import PostTrainConfig
from sparselens.files import write_file


class Journal:
    """The live line goes to standard error; the log to `out/log.jsonl`, one object per logged step or evaluation.

    In several processes only the main one keeps a journal.
    """

    def __init__(
        self, config: PostTrainConfig, target: float, step: int, *, out: Path | None, live: bool, every: int = 50
    ) -> None:
        self._every, self._target = every, target
        self._bar = tqdm(total=config.steps, initial=step, disable=not live, unit="step", dynamic_ncols=True)
        self._file = None if out is None else _reopen(out / "log.jsonl", step)
        self._wandb = None
        if config.wandb:
            import wandb

            self._wandb = wandb.init(project=config.wandb, config=asdict(config), dir=out)

    def step(self, step: int, task: float, multiplier: float, share: float, edges: float) -> None:
        """One training step: the live line moves, and every so often the log grows."""
        self._bar.set_postfix_str(
            f"loss {task:.4f}, target {self._target:.4f}, multiplier {multiplier:.3g}, open {share:.2%}, "
            f"edges/query {edges:.3f}",
            refresh=False,
        )
        self._bar.update()
        if step % self._every == 0:
            self._write({"step": step, "loss": task, "multiplier": multiplier, "expected_share": share})

    def evaluation(self, record: dict[str, Any]) -> None:
        """One evaluation on held-out data."""
        self._write({"evaluation": True, **record})

    def _write(self, record: dict[str, Any]) -> None:
        if self._file:
            self._file.write(json.dumps(record) + "\n")
            self._file.flush()
        if self._wandb:
            self._wandb.log({k: v for k, v in record.items() if k != "step"}, step=record["step"])

    def close(self) -> None:
        """Finish the live line and the log."""
        self._bar.close()
        if self._file:
            self._file.close()
        if self._wandb:
            self._wandb.finish()


def _reopen(path: Path, step: int) -> Any:
    """Append to the log of an interrupted run, without what it wrote after its last checkpoint."""
    lines = path.read_text().splitlines() if step and path.exists() else []
    kept = [line for line in lines if _step_of(line) <= step]
    write_file(path, "".join(line + "\n" for line in kept).encode())
    return path.open("a")


def _step_of(line: str) -> int | float:
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError):
        return math.inf  # cut short by the interruption
