"""JSON is read strictly; errors name the file."""

from dataclasses import dataclass

import pytest

from sparselens.files.reading import json_object, strict_json
from sparselens.files.records import record_from_json


@dataclass(frozen=True)
class Named:
    names: tuple[str, str]
    share: float
    notes: tuple[str, ...] = ()


@pytest.mark.parametrize("text", ["", "{", '{"a": NaN}', "[Infinity]", "[" * 10**5, b"\xff\xfe{"])
def test_what_is_no_strict_json_is_refused(text: str | bytes):
    with pytest.raises(ValueError, match=r"^a\.json is broken"):
        json_object(text, "a.json")


@pytest.mark.parametrize("text", ["3", '"about"', "[1, 2]", "null"])
def test_only_an_object_will_do(text: str):
    assert strict_json(text) != {}
    with pytest.raises(ValueError, match=r"a\.json is broken: it holds a .*, not an object"):
        json_object(text, "a.json")


def test_lists_stand_for_tuples_and_types_are_checked():
    assert record_from_json(Named, {"names": ["a", "b"], "share": 1}) == Named(("a", "b"), 1)
    wrong = [
        {"names": "ab", "share": 1},
        {"names": ["a"], "share": 1},
        {"names": ["a", 2], "share": 1},
        {"names": ["a", "b"], "share": "1"},
        {"names": ["a", "b"], "share": 1, "notes": "none"},
        {"names": ["a", "b"]},
        {"names": ["a", "b"], "share": 1, "more": 2},
    ]
    for values in wrong:
        with pytest.raises(TypeError):
            record_from_json(Named, values)
