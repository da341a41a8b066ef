"""The public names of the analyses."""

import ast
import sys
from importlib import import_module
from pathlib import Path

import pytest

from sparselens import analyses

SOURCE = Path(str(analyses.__file__))


@pytest.mark.parametrize("name", sorted(analyses._HOME_OF))
def test_public_names_resolve(name: str):
    import_module(analyses._HOME_OF[name])  # whatever was imported before
    assert getattr(analyses, name).__name__ == name
    assert name in dir(analyses)


def test_type_checkers_see_the_same_names():
    (block,) = [node for node in ast.parse(SOURCE.read_text(encoding="utf-8")).body if isinstance(node, ast.If)]
    seen = {
        alias.asname: node.module for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    assert seen == analyses._HOME_OF


def test_public_names_are_not_hidden_by_modules():
    assert not {path.stem for path in SOURCE.parent.iterdir()} & {*analyses.__all__, *analyses._HOME_OF}
    for name in ("attention_edges", "stability"):  # once modules of these names
        with pytest.raises(ModuleNotFoundError):
            import_module(f"sparselens.analyses.{name}")
        assert callable(getattr(analyses, name))


def test_the_rooms_are_few():
    assert len([path for path in SOURCE.parent.iterdir() if not path.name.startswith((".", "__pycache__"))]) <= 9


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(AttributeError, match=r"no attribute 'patch_neurons'; it has .*patch_heads"):
        _ = analyses.patch_neurons
    assert "sparselens.analyses.patch_neurons" not in sys.modules
