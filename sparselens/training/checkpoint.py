"""Checkpoints that are written completely or not at all, and read without unpickling arbitrary objects."""

from pathlib import Path
from typing import Any

import torch

from sparselens.files.whole import whole_file


def resumes(path: Path | None, resume: bool, finish: bool) -> bool:
    """Whether a run continues from the checkpoint at this path, rather than starting from scratch.

    Raises:
        ValueError: there is a checkpoint but neither `resume` nor `finish`, or no checkpoint to finish.
    """
    found = path is not None and path.exists()
    if (resume or finish) and path is None:
        raise ValueError(f"{'finish' if finish else 'resume'}=True needs the `out` folder of the run")
    if finish and not found:
        raise ValueError(f"there is no run to finish: {path} does not exist")
    if found and not (resume or finish):
        raise ValueError(f"{path} is from an earlier run: pass resume=True (--resume), or choose another folder")
    return found


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint of tensors, numbers, strings and plain containers of these.

    Raises:
        OSError: it cannot be written, for instance because the disk is full; the previous checkpoint is kept.
    """
    try:
        with whole_file(path) as file:
            torch.save(state, file)
    except RuntimeError as error:  # raised by torch if the disk is full
        raise OSError(f"{path} could not be written: {error}") from error


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint into CPU memory.

    Raises:
        ValueError: the file is truncated, damaged, or not a checkpoint.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(f"{path} is not a complete checkpoint ({error}); delete it to restart the run") from error
    if not isinstance(state, dict) or "step" not in state:
        raise ValueError(f"{path} is not a checkpoint of post-training; delete it or choose another folder")
    return state
