"""Stores results (nested dataclasses, tensors and plain values) in one safetensors file, without pickle.

Tensors keep their dtype and shape; everything else is JSON in the file's header, where a tensor is `{"tensor": name}`
and a dataclass `{"record": its name, "fields": {...}}`. Reading creates only instances of the classes that the caller
names, and checks the type of every field against its annotation and the content against a checksum.
"""

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

import jaxtyping
import numpy as np
import torch
from torch import Tensor

from sparselens.files.whole import write_file

Record = TypeVar("Record")

_HEADER = "record"
_CHECKSUM = "checksum"


def save_record(path: Path, record: Any) -> Path:
    """Write a dataclass whose fields are dataclasses, tensors, arrays, strings, numbers, None, or tuples and mappings.

    Raises:
        ValueError: a field has another type, or a mapping has a key that is not a string.
    """
    return write_file(path, record_bytes(record))


def record_bytes(record: Any) -> bytes:
    """The content of the file that `save_record` writes."""
    from safetensors.torch import save

    tensors: dict[str, Tensor] = {}
    tree = _packed(record, tensors, "")
    # inside the single header entry, since safetensors writes several entries in arbitrary order
    tree[_CHECKSUM] = checksum(tree, tensors)
    return save(tensors, {_HEADER: json.dumps(tree, allow_nan=False)})


def load_record(path: Path, kind: type[Record], parts: Iterable[type] = ()) -> Record:
    """Read a file that `save_record` wrote.

    Args:
        kind: the dataclass that the file is expected to hold
        parts: further dataclasses that may occur inside it

    Raises:
        ValueError: the file holds something else, is damaged, or was written by another version.
    """
    from safetensors import safe_open

    def read() -> tuple[dict[str, Tensor], dict[str, str] | None]:
        with safe_open(path, "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118 - no mapping

    return _made(read, str(path), kind, parts)


def read_record(content: bytes, name: str, kind: type[Record], parts: Iterable[type] = ()) -> Record:
    """As `load_record`, from the content of a file called `name`."""
    from safetensors.torch import load

    def read() -> tuple[dict[str, Tensor], dict[str, str] | None]:
        tensors = load(content)  # also checks the header
        return tensors, json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])["__metadata__"]

    return _made(read, name, kind, parts)


def _made(
    read: Callable[[], tuple[dict[str, Tensor], dict[str, str] | None]],
    name: str,
    kind: type[Record],
    parts: Iterable[type],
) -> Record:
    """Build a record from the tensors and metadata of a file; `name` is for error messages."""
    from safetensors import SafetensorError

    try:
        tensors, metadata = read()
        tree = json.loads((metadata or {})[_HEADER])
        if tree.pop(_CHECKSUM) != checksum(tree, tensors):
            raise ValueError("its checksum does not match its content, so the file is damaged")
        known = {known.__name__: known for known in (kind, *parts)}
        record = _unpacked(tree, tensors, known)
    except (SafetensorError, LookupError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{name} does not hold a {kind.__name__} of this version: {error}") from error
    if not isinstance(record, kind):
        raise ValueError(f"{name} holds a {type(record).__name__}, not a {kind.__name__}")
    return record


def record_from_json(kind: type[Record], values: Mapping[str, Any]) -> Record:
    """A dataclass from a JSON object, with lists converted to tuples.

    Raises:
        TypeError: a field is missing or unknown, or its type is not the annotated one.
    """
    given: dict[str, Any] = {name: tuple(x) if isinstance(x, list) else x for name, x in values.items()}
    refuse_other_types(kind, given)
    return kind(**given)


def _packed(value: Any, tensors: dict[str, Tensor], name: str) -> Any:
    if isinstance(value, (Tensor, np.ndarray)):
        known = f"{len(tensors)} {name}"  # numbered, since keys may contain dots, so that names could collide
        tensor = value if isinstance(value, Tensor) else _as_tensor(value, name)
        tensors[known] = tensor.detach().cpu().contiguous().clone()  # safetensors refuses tensors that share memory
        return {"tensor" if isinstance(value, Tensor) else "array": known}
    if is_dataclass(value) and not isinstance(value, type):
        inside = {
            f.name: _packed(getattr(value, f.name), tensors, f"{name}.{f.name}".lstrip(".")) for f in fields(value)
        }
        return {"record": type(value).__name__, "fields": inside}
    if isinstance(value, Mapping):
        if wrong := [key for key in value if not isinstance(key, str)]:
            raise ValueError(f"{name} has the key {wrong[0]!r}: in a file of results, keys must be strings")
        return {"mapping": {key: _packed(inner, tensors, f"{name}.{key}") for key, inner in value.items()}}
    if isinstance(value, (tuple, list)):
        return {"items": [_packed(inner, tensors, f"{name}.{number}") for number, inner in enumerate(value)]}
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": repr(value)}
    if value is None or isinstance(value, (str, int, float)):
        return value
    raise ValueError(f"{name} is a {type(value).__name__}, which a file of results cannot hold")


def _as_tensor(array: np.ndarray, name: str) -> Tensor:
    try:
        return torch.from_numpy(np.array(array, order="C"))  # a copy, since torch does not take negative strides
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} is an array of {array.dtype}, which a file of results cannot hold") from error


def _unpacked(tree: Any, tensors: Mapping[str, Tensor], known: Mapping[str, type]) -> Any:
    if not isinstance(tree, dict):
        return tree
    ((form, value), *rest) = tree.items()
    if form == "record":
        if value not in known:
            raise ValueError(f"the file holds a {value} (want {', '.join(known)})")
        found = {name: _unpacked(inner, tensors, known) for name, inner in dict(rest)["fields"].items()}
        refuse_other_types(known[value], found)
        return known[value](**found)
    if form == "mapping":
        return {name: _unpacked(inner, tensors, known) for name, inner in value.items()}
    if form == "items":
        return tuple(_unpacked(inner, tensors, known) for inner in value)
    if form == "float":
        return float(value)
    return tensors[value] if form == "tensor" else tensors[value].numpy()


def checksum(tree: Any, tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of plain values and tensors."""
    found = hashlib.sha256(json.dumps(tree, allow_nan=False).encode())
    for name, tensor in sorted(tensors.items()):
        found.update(repr((name, str(tensor.dtype), tuple(tensor.shape))).encode())
        if tensor.numel():  # the strides of an empty tensor may not allow a view
            found.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def refuse_other_types(kind: type, found: Mapping[str, Any]) -> None:
    """Raise a TypeError if a value in `found` does not have the annotated type of that field of the dataclass."""
    for name, hint in get_type_hints(kind).items():
        if name in found and not _is_of(hint, found[name]):
            expected = hint.__name__ if isinstance(hint, type) else hint
            raise TypeError(f"{kind.__name__}.{name} is {found[name]!r:.80}, not of type {expected}")


def _is_of(hint: Any, value: Any) -> bool:
    """Whether a value has an annotated type; supports only the kinds of annotation that records use."""
    origin, inside = get_origin(hint), get_args(hint)
    if hint is Any:
        return True
    if origin in (Union, UnionType):
        return any(_is_of(part, value) for part in inside)
    if origin is tuple:
        inside = inside[:1] * len(value) if inside[1:] == (...,) and isinstance(value, tuple) else inside
        return isinstance(value, tuple) and len(value) == len(inside) and all(map(_is_of, inside, value))
    if origin is not None:  # a mapping from strings
        return isinstance(value, Mapping) and all(_is_of(inside[1], held) for held in value.values())
    if hint in (int, float):
        return isinstance(value, (int, hint)) and not isinstance(value, bool)
    with jaxtyping.jaxtyped("context"):  # separate axis sizes from those of a caller that jaxtyping checks, too
        return isinstance(value, type(None) if hint is None else hint)
