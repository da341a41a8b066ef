"""The package as a whole: public names, cost of imports, metadata."""

import ast
import re
import subprocess
import sys
from importlib import import_module
from importlib.metadata import packages_distributions, requires
from pathlib import Path

import pytest
import torch
from beartype.roar import BeartypeCallHintParamViolation
from jaxtyping import TypeCheckError
from packaging.requirements import Requirement

import sparselens
from sparselens.tasks import TASKS

ROOT = Path(__file__).resolve().parents[1]
ROOMS = {
    "sparselens": ROOT / "sparselens",
    "sparselens.tasks": ROOT / "tasks",
    "sparselens.analyses": ROOT / "analyses",
}
PUBLIC = sorted({*sparselens.__all__} - {*sparselens._MODULES})
# Imported inside functions: wandb comes with TransformerLens, IPython is there wherever a notebook is.
OPTIONAL = {"wandb", "IPython"}
HEAVY = ("torch", "transformer_lens", "transformers", "datasets", "matplotlib", "pandas", "wandb")


def run_python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd="/")
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("room", ROOMS)
def test_rooms_import_from_their_folders(room: str):
    assert Path(str(import_module(room).__file__)).parent == ROOMS[room]


@pytest.mark.parametrize("name", PUBLIC)
def test_public_names_resolve(name: str):
    assert getattr(sparselens, name).__name__ == name


def test_public_names_are_not_hidden_by_modules():
    modules = {path.stem for path in (ROOT / "sparselens").iterdir()}
    assert not modules & set(PUBLIC)


def test_types_and_shapes_are_checked_in_tests():
    """By beartype alone, and by jaxtyping where there is a shape (`quick_checks`)."""
    with pytest.raises((BeartypeCallHintParamViolation, TypeCheckError), match="'five'"):
        TASKS["ioi"].pairs("five")
    ones = torch.ones(2, 3, dtype=torch.long)
    with pytest.raises(TypeCheckError, match=r"wrong_answer"):
        sparselens.TokenizedPairs(ones, 2 * ones, ones[:, 0], ones.float())


def test_an_unknown_name_is_an_attribute_error_that_lists_the_known_ones():
    with pytest.raises(AttributeError, match=r"no attribute 'sparsity'; it has .*sparsify"):
        _ = sparselens.sparsity


@pytest.mark.parametrize("module", ["sparselens", "sparselens.tasks", "sparselens.analyses", "sparselens.cli"])
def test_an_import_loads_nothing_heavy(module: str):
    loaded = run_python(f"import sys, {module}; print(*(m for m in {HEAVY} if m in sys.modules))")
    assert loaded.split() == []


def test_stored_results_open_without_what_models_need():
    opened = "import sparselens as sl; found = sl.load_comparison('addition/addition'); found.viewer()"
    models = {"transformer_lens", "transformers", "datasets", "accelerate", "peft"}
    assert run_python(f"import sys; {opened}; print(*(m for m in {models} if m in sys.modules))").split() == []


def test_nothing_generic_is_installed_at_the_top():
    names = {name for name, owners in packages_distributions().items() if "sparselens" in owners}
    assert {name for name in names if not name.startswith("__editable__")} <= {"sparselens"}


def test_every_folder_of_modules_is_packaged():
    tomllib = pytest.importorskip("tomllib", reason="reads pyproject.toml with Python 3.11 or later")
    packages = tomllib.loads(source(ROOT / "pyproject.toml"))["tool"]["setuptools"]["packages"]
    folders = {
        ".".join([room, *path.parent.relative_to(folder).parts])
        for room, folder in ROOMS.items()
        for path in folder.rglob("*.py")
    }
    assert folders == set(packages)


def test_every_other_file_is_packaged():
    """As the globs of pyproject.toml say, against what git knows: pages, shipped models and shipped comparisons."""
    tomllib = pytest.importorskip("tomllib", reason="reads pyproject.toml with Python 3.11 or later")
    globs = tomllib.loads(source(ROOT / "pyproject.toml"))["tool"]["setuptools"]["package-data"]
    folders = tomllib.loads(source(ROOT / "pyproject.toml"))["tool"]["setuptools"]["package-dir"]
    packed = {
        path
        for package, patterns in globs.items()
        for pattern in patterns
        for path in (ROOT / folders[package]).glob(pattern.replace("**", "**/*"))
    }
    listed = subprocess.run(
        ["git", "ls-files", *(str(folder.relative_to(ROOT)) for folder in ROOMS.values())],
        capture_output=True, text=True, check=True, cwd=ROOT,
    )  # fmt: skip
    tracked = {ROOT / line for line in listed.stdout.splitlines()}
    others = {path for path in tracked if path.suffix != ".py" and path.name != "ruff.toml" and path.exists()}
    assert others - packed == set() and any(path.suffix == ".zip" for path in others)


def test_every_import_is_a_declared_dependency():
    declared = {canonical(Requirement(line).name) for line in requires("sparselens") or []} | {"sparselens"}
    owners = packages_distributions()
    undeclared = {
        (str(path.relative_to(ROOT)), module)
        for folder in ROOMS.values()
        for path in folder.rglob("*.py")
        for module in imported_by(path)
        if module not in sys.stdlib_module_names | OPTIONAL
        and not declared & {canonical(owner) for owner in owners.get(module, [module])}
    }
    assert undeclared == set()


def test_constraints_pin_the_same_torch_that_is_installed_first():
    pins = source(ROOT / "constraints.txt")
    assert re.search(r"^torch==[\d.]+$", pins, re.MULTILINE)
    assert not re.search(r"\+cpu|@ |://|^sparselens|^-e", pins, re.MULTILINE)


def test_no_stage_direction_is_left_in_the_sources():
    left = re.compile(r"\b(TODO|FIXME|XXX|NotImplementedError)\b|from __future__ import annotations")
    assert not [path for folder in ROOMS.values() for path in folder.rglob("*.py") if left.search(source(path))]


def source(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def imported_by(path: Path) -> set[str]:
    """Top-level names of the packages that a file imports."""
    nodes = list(ast.walk(ast.parse(source(path))))
    plain = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    return {name.split(".")[0] for name in plain | {n.module or "" for n in nodes if isinstance(n, ast.ImportFrom)}}
