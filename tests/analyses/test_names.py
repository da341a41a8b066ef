"""The public names of the analyses."""

import sys
from importlib import import_module
from inspect import signature
from pathlib import Path

import pytest

from sparselens import analyses

SOURCE = Path(str(analyses.__file__))


@pytest.mark.parametrize("name", sorted(analyses.__all__))
def test_public_names_resolve(name: str):
    assert getattr(analyses, name).__name__ == name
    assert name in dir(analyses)


@pytest.mark.parametrize("name", sorted(analyses._RENAMED))
def test_old_names_of_results_warn(name: str):
    with pytest.warns(DeprecationWarning, match=rf"analyses\.{name} is now analyses\.{analyses._RENAMED[name]}"):
        assert getattr(analyses, name) is getattr(analyses, analyses._RENAMED[name])
    assert name not in analyses.__all__


def test_attribution_has_one_default_method():
    kinds = ("edges", "edge_positions", "nodes", "attention_edges")
    functions = ["compare", *(f"attribute_{kind}" for kind in kinds)]
    defaults = {name: signature(getattr(analyses, name)).parameters["method"].default for name in functions}
    for command in ("attribute", "compare"):
        module = import_module(f"sparselens.cli.{command}")
        defaults[command] = signature(getattr(module, command)).parameters["method"].default
    assert set(defaults.values()) == {"eap-ig"}, defaults


def test_public_names_are_not_hidden_by_modules():
    assert not {path.stem for path in SOURCE.parent.iterdir()} & {*analyses.__all__}
    for name in ("attention_edges", "stability"):  # once modules of these names
        with pytest.raises(ModuleNotFoundError):
            import_module(f"sparselens.analyses.{name}")
        assert callable(getattr(analyses, name))


def test_the_rooms_are_few():
    rooms = [path for path in SOURCE.parent.iterdir() if path.is_dir() and not path.name.startswith((".", "__"))]
    assert len(rooms) <= 8


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(AttributeError, match=r"no attribute 'patch_neurons'; it has .*patch_heads"):
        _ = analyses.patch_neurons
    assert "sparselens.analyses.patch_neurons" not in sys.modules
