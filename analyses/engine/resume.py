"""Keeps the results of finished batches on disk, so that an interrupted call loses only the batch in flight.

1. The file begins with a line of JSON that identifies the request: model, prompts, metric and settings.
2. Each batch appends a record: a digest that identifies the batch, a digest of its content, the content's length, and
   the content as safetensors.
3. The same call splits its work into the same batches, and so ends with exactly the numbers of an uninterrupted run.
   A batch is computed again if its record is truncated or damaged, or of another batch size.
"""

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import MethodType
from typing import Any

from safetensors.torch import load, save
from torch import Tensor

from sparselens.analyses.engine.fingerprints import of_pairs
from sparselens.analyses.engine.processes import rank
from sparselens.analyses.engine.request import Request
from sparselens.gates.surgery import find_settings
from sparselens.prompts.metrics import METRICS, Metric

Tensors = tuple[Tensor, ...]
_DIGEST, _LENGTH = 32, 8  # bytes
_HEAD = 2 * _DIGEST + _LENGTH


class BatchLog:
    """Finished batches in a file, which is created with the first of them; without a path, nothing is kept."""

    def __init__(self, path: Path | None = None, request: Mapping[str, Any] | None = None) -> None:
        self._path, self._request = path, json.dumps(request).encode() + b"\n"
        self._places: dict[bytes, tuple[int, int]] = {}  # first byte and length of every record's content
        if path is not None and path.exists():
            os.truncate(path, self._find_records(path))

    def once(self, batch: Sequence[Tensor], make: Callable[[], Tensors]) -> Tensors:
        """The result of `make` for this batch: read from the file if it is there, otherwise computed and written.

        Args:
            batch: tensors that identify it
        """
        if self._path is None:
            return make()
        key = _digest(batch).digest()
        content = self._read(self._path, key)
        if content is None:
            content = save({str(number): values.cpu().contiguous() for number, values in enumerate(make())})
            self._places[key] = self._append(self._path, key, content)
        kept = load(content)
        return tuple(kept[str(number)] for number in range(len(kept)))

    def _read(self, path: Path, key: bytes) -> bytes | None:
        """The content of a record; None if there is none, or it is damaged."""
        if key not in self._places:
            return None
        start, length = self._places[key]
        with path.open("rb") as file:
            file.seek(start - _DIGEST - _LENGTH)
            wanted, _, content = file.read(_DIGEST), file.read(_LENGTH), file.read(length)
        return content if hashlib.sha256(content).digest() == wanted else None

    def _append(self, path: Path, key: bytes, record: bytes) -> tuple[int, int]:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab") as file:
            file.write(b"" if file.tell() else self._request)
            file.write(key + hashlib.sha256(record).digest() + len(record).to_bytes(_LENGTH, "little") + record)
            file.flush()
            os.fsync(file.fileno())
            return file.tell() - len(record), len(record)

    def _find_records(self, path: Path) -> int:
        """Note the place of every complete record. Returns where the last one ends."""
        size = path.stat().st_size
        with path.open("rb") as file:
            line = file.readline()
            if line != self._request:
                _refuse_another(path, line, self._request)
                return 0
            end = file.tell()
            while len(head := file.read(_HEAD)) == _HEAD:
                start, length = file.tell(), int.from_bytes(head[-_LENGTH:], "little")
                if start + length > size:
                    break
                self._places[head[:_DIGEST]] = start, length
                end = file.seek(start + length)
            return end


def batch_log(out: str | Path | None, request: Request, **settings: Any) -> BatchLog:
    """The log of one call, identified by its request and settings (tensors by their digest).

    The memory budget is not part of that, so a run that ran out of memory can resume with less.

    Raises:
        ValueError: the file belongs to another call (the message says what differs) or is not a log, or the metric has
            no unique name.
    """
    if out is None:
        return BatchLog()
    gates = find_settings(request.model)
    identity = {
        "metric": unique_name(request.metric),
        "prompts": of_pairs(request.pairs),
        "gate bias": None if gates is None else gates.gate_bias,  # also in the fingerprint, but here an error names it
        "model": request.opened.fingerprint,
    }
    known = {n: _digest([value]).hexdigest() if isinstance(value, Tensor) else value for n, value in settings.items()}
    number = rank()
    return BatchLog(Path(f"{out}.{number}" if number else out), identity | known)


def _refuse_another(path: Path, line: bytes, wanted: bytes) -> None:
    """Raise a ValueError unless the line is the wanted one, possibly truncated."""
    if not wanted.startswith(line):
        raise ValueError(f"{path} {_difference(line, json.loads(wanted))}. Choose another file, or delete it")


def _difference(line: bytes, request: dict[str, Any]) -> str:
    try:
        there = dict(json.loads(line))
    except (ValueError, TypeError):
        return "is not a log of batches"
    differing = [name for name in (*request, *there) if there.get(name) != request.get(name)]
    if not differing:
        return "was written by another version"
    name = differing[0]
    return f"belongs to another call: its {name} is {there.get(name)!r}, not {request.get(name)!r}"


def unique_name(metric: Metric) -> str:
    """A name that no other metric has.

    Raises:
        ValueError: it has none, such as a lambda.
    """
    for name, known in METRICS.items():
        if metric is known:
            return name
    name = getattr(metric, "__qualname__", "<none>")
    if "<" in name or isinstance(metric, (partial, MethodType)):
        raise ValueError(
            f"out= resumes only with a metric that has a name of its own, not {metric!r}: define it with def at the "
            "top level of a module, or omit out="
        )
    return f"{metric.__module__}.{name}"


def _digest(tensors: Sequence[Tensor]) -> Any:
    found = hashlib.sha256()
    for values in tensors:
        found.update(str((list(values.shape), values.tolist())).encode())
    return found
