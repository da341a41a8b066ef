"""Records survive saving and loading, and a file never creates a class that its reader did not name."""

import json
import math
from dataclasses import dataclass, make_dataclass
from pathlib import Path
from typing import Any

import jaxtyping
import numpy as np
import pytest
import torch
from jaxtyping import Float
from safetensors import safe_open
from safetensors.torch import save_file

from sparselens.analyses.sparsity.head_labels import HeadScores
from sparselens.files.records import checksum, load_record, save_record


@dataclass(frozen=True, eq=False)
class Inner:
    values: torch.Tensor
    counts: np.ndarray


@dataclass(frozen=True, eq=False)
class Outer:
    name: str
    inner: tuple[Inner, ...]
    share: float
    missing: None
    options: dict[str, Any]


@dataclass(frozen=True, eq=False)
class Sized:
    values: Float[torch.Tensor, " batch"]


def outer() -> Outer:
    half = torch.arange(6, dtype=torch.bfloat16).reshape(2, 3)
    inner = (Inner(half, np.arange(3)), Inner(half[:, 1], np.array([True, False])))
    return Outer("<b>ε</b>", inner, math.nan, None, {"n": 3, "big": math.inf, "deep": {"x": torch.zeros(0)}})


def test_a_record_comes_back(tmp_path: Path):
    there, back = outer(), load_record(save_record(tmp_path / "a.safetensors", outer()), Outer, [Inner])
    assert back.name == there.name and math.isnan(back.share) and back.missing is None
    assert back.options["n"] == 3 and back.options["big"] == math.inf and back.options["deep"]["x"].shape == (0,)
    for one, other in zip(there.inner, back.inner, strict=True):
        assert torch.equal(one.values, other.values) and one.values.dtype == other.values.dtype
        assert np.array_equal(one.counts, other.counts) and one.counts.dtype == other.counts.dtype


def options(tmp_path: Path, **held: Any) -> Any:
    return load_record(save_record(tmp_path / "a.safetensors", Outer("a", (), 0.0, None, held)), Outer).options


def test_files_do_not_share_their_sizes_with_each_other_or_the_caller(tmp_path: Path):
    for rows in (2, 3):
        save_record(tmp_path / f"{rows}.safetensors", Sized(torch.zeros(rows)))
    with jaxtyping.jaxtyped("context"):  # as in a function that jaxtyping checks
        assert isinstance(torch.zeros(4), Float[torch.Tensor, " batch"])
        read = [load_record(tmp_path / f"{rows}.safetensors", Sized) for rows in (2, 3)]
    assert [len(record.values) for record in read] == [2, 3]


def test_keys_with_dots_are_kept_apart(tmp_path: Path):
    one, other = torch.tensor([1]), torch.tensor([2])
    found = options(tmp_path, **{"a.b": one, "a": {"b": other}, "c": (one, {"0": other}), "c.0": other})
    assert found["a.b"].item() == 1 and found["a"]["b"].item() == 2
    assert found["c"][0].item() == 1 and found["c.0"].item() == 2


def test_arrays_of_any_layout_come_back(tmp_path: Path):
    arrays = {
        "back": np.arange(6)[::-1],
        "across": np.arange(6).reshape(2, 3).T,
        "one": np.array(3.0),
        "none": np.zeros(3)[:0][::-1],
    }
    fixed = np.arange(2)
    fixed.flags.writeable = False
    for name, found in options(tmp_path, **arrays, fixed=fixed).items():
        wanted = {**arrays, "fixed": fixed}[name]
        assert np.array_equal(found, wanted) and (found.dtype, found.shape) == (wanted.dtype, wanted.shape)


def test_only_named_classes_are_made(tmp_path: Path):
    path = save_record(tmp_path / "a.safetensors", outer())
    with pytest.raises(ValueError, match=r"the file holds a Inner \(want Outer"):
        load_record(path, Outer)
    with pytest.raises(ValueError, match="holds a Outer, not a Inner"):
        load_record(path, Inner, [Outer])


@pytest.mark.parametrize("content", [b"", b"no safetensors at all", b"\x02\x00\x00\x00\x00\x00\x00\x00{}"])
def test_broken_files_say_so(tmp_path: Path, content: bytes):
    path = tmp_path / "a.safetensors"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.safetensors does not hold a Outer of this version"):
        load_record(path, Outer)


@dataclass(frozen=True)
class Checked:
    values: Any

    def __post_init__(self) -> None:
        assert self.values.shape[0] == 1


@pytest.mark.parametrize("values", ["no tensor", torch.tensor(1)])  # AttributeError, IndexError
def test_fields_that_a_class_cannot_take_say_so(tmp_path: Path, values: Any):
    path = save_record(tmp_path / "a.safetensors", Checked(torch.ones(1)))
    other = make_dataclass("Checked", ["values"])
    save_record(path, other(values))
    with pytest.raises(ValueError, match=r"a\.safetensors does not hold a Checked of this version"):
        load_record(path, Checked)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (lambda: 0, r"options\.f is a function, which a file of results cannot hold"),
        (np.array(["a"]), r"options\.f is an array of <U1, which"),
        ({1: 2.0}, r"options\.f has the key 1: in a file of results, keys must be strings"),
    ],
)
def test_what_cannot_be_kept_is_refused(tmp_path: Path, value: Any, message: str):
    with pytest.raises(ValueError, match=message):
        save_record(tmp_path / "a.safetensors", Outer("a", (), 0.0, None, {"f": value}))
    assert not list(tmp_path.iterdir())


# -- forged or damaged files


def rewritten(path: Path, change: Any) -> Path:
    """A file with a modified tree and a matching checksum."""
    with safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
        tree = json.loads(file.metadata()["record"])
    del tree["checksum"]
    change(tree)
    save_file(tensors, path, {"record": json.dumps({**tree, "checksum": checksum(tree, tensors)})})
    return path


def with_field(name: str, value: Any) -> Any:
    return lambda tree: tree["fields"].update({name: value})


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("name", 3, r"Outer\.name is 3, not of type str"),
        ("inner", "names", r"Outer\.inner is 'names', not of type tuple"),
        ("inner", {"items": [7]}, r"Outer\.inner is \(7,\), not of type tuple"),
        ("share", True, r"Outer\.share is True, not of type float"),
        ("missing", "there", r"Outer\.missing is 'there'"),
        ("options", {"items": []}, r"Outer\.options is \(\), not of type dict"),
        ("more", 1, "unexpected keyword argument 'more'"),
    ],
)
def test_fields_of_another_type_are_refused(tmp_path: Path, name: str, value: Any, message: str):
    path = rewritten(save_record(tmp_path / "a.safetensors", outer()), with_field(name, value))
    with pytest.raises(ValueError, match=message):
        load_record(path, Outer, [Inner])


def test_a_tensor_of_other_axes_is_refused(tmp_path: Path):
    scores = HeadScores(("a", "b"), torch.ones(2, 1, 1), torch.ones(1, 1))
    path = save_record(tmp_path / "a.safetensors", scores)
    assert load_record(path, HeadScores).kinds == ("a", "b")
    for name, value in (("kinds", "previous token"), ("attention", {"tensor": "0 scores"})):
        with pytest.raises(ValueError, match=rf"HeadScores\.{name} is"):
            load_record(rewritten(save_record(path, scores), with_field(name, value)), HeadScores)


def test_deep_nesting_is_refused(tmp_path: Path):
    def nest(tree: Any) -> None:
        for _ in range(400):
            tree["fields"]["options"] = {"mapping": {"x": tree["fields"]["options"]}}

    path = rewritten(save_record(tmp_path / "a.safetensors", outer()), nest)
    with pytest.raises(ValueError, match="does not hold a Outer of this version"):
        load_record(path, Outer, [Inner])


def test_any_flipped_bit_is_noticed(tmp_path: Path):
    path = save_record(tmp_path / "a.safetensors", outer())
    whole = path.read_bytes()
    length = int.from_bytes(whole[:8], "little")
    header = whole[8 : 8 + length].rstrip()
    for place in (*range(0, 8 + len(header), 7), *range(8 + length, len(whole))):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(ValueError, match=r"a\.safetensors does not hold a Outer"):
            load_record(path, Outer, [Inner])
    path.write_bytes(whole)
    assert load_record(path, Outer, [Inner]).name == outer().name


def test_the_same_record_is_the_same_bytes(tmp_path: Path):
    paths = [save_record(tmp_path / f"{number}.safetensors", outer()) for number in range(8)]
    assert len({path.read_bytes() for path in paths}) == 1
