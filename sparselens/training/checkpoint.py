"""Checkpoints that are either whole or absent, and that are read without unpickling."""

from pathlib import Path
from typing import Any

import torch

from sparselens.files.whole import whole_file


def goes_on(path: Path | None, resume: bool, finish: bool) -> bool:
    """Whether a run goes on from the checkpoint at this path, or begins.

    Raises:
        ValueError: there is one but neither resume nor finish, or none to finish.
    """
    found = path is not None and path.exists()
    if (resume or finish) and path is None:
        raise ValueError(f"{'finish' if finish else 'resume'}=True needs the `out` folder of the run")
    if finish and not found:
        raise ValueError(f"there is no run to finish: {path} does not exist")
    if found and not (resume or finish):
        raise ValueError(f"{path} is of an earlier run: pass resume=True (--resume) to go on, or another folder")
    return found


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """`state` holds tensors, numbers, strings and plain containers of these.

    Raises:
        OSError: it cannot be written, as on a full disk; the old checkpoint is still there. Names the path.
    """
    try:
        with whole_file(path) as file:
            torch.save(state, file)
    except RuntimeError as error:  # torch's own for a full disk
        raise OSError(f"{path} could not be written: {error}") from error


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint into main memory.

    Raises:
        ValueError: the file is cut short, damaged, or not a checkpoint.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(f"{path} is not a whole checkpoint ({error}); remove it to start the run again") from error
    if not isinstance(state, dict) or "step" not in state:
        raise ValueError(f"{path} is not a checkpoint of this program; remove it or choose another folder")
    return state
