"""What a run tells while it runs: a live line, a JSON-lines log, and wandb where it is asked for."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tqdm import tqdm


class Journal:
    """The live line goes to standard error; the log to `out/log.jsonl`, one object per logged step or evaluation."""

    def __init__(self, out: Path | None, config: Any, target: float, step: int, live: bool, every: int = 50) -> None:
        self._every, self._target = every, target
        self._bar = tqdm(total=config.steps, initial=step, disable=not live, unit="step", dynamic_ncols=True)
        self._file = None if out is None else _reopen(out / "log.jsonl", step)
        self._wandb = None
        if config.wandb:
            import wandb

            self._wandb = wandb.init(project=config.wandb, config=asdict(config), dir=out)

    def step(self, step: int, task: float, multiplier: float, share: float, edges: float) -> None:
        self._bar.set_postfix_str(
            f"loss {task:.4f}, target {self._target:.4f}, multiplier {multiplier:.3g}, open {share:.2%}, "
            f"edges/query {edges:.3f}",
            refresh=False,
        )
        self._bar.update()
        if step % self._every == 0:
            self._write({"step": step, "loss": task, "multiplier": multiplier, "expected_share": share})

    def evaluation(self, record: dict[str, Any]) -> None:
        self._write({"evaluation": True, **record})

    def _write(self, record: dict[str, Any]) -> None:
        if self._file:
            self._file.write(json.dumps(record) + "\n")
            self._file.flush()
        if self._wandb:
            self._wandb.log({k: v for k, v in record.items() if k != "step"}, step=record["step"])

    def close(self) -> None:
        self._bar.close()
        if self._file:
            self._file.close()
        if self._wandb:
            self._wandb.finish()


def _reopen(path: Path, step: int) -> Any:
    """Append to the log of an interrupted run, without what it wrote after its last checkpoint."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = path.read_text().splitlines() if step and path.exists() else []
    kept = [line for line in lines if _step_of(line) <= step]
    path.write_text("".join(line + "\n" for line in kept))
    return path.open("a")


def _step_of(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError):
        return float("inf")  # cut short by the interruption
