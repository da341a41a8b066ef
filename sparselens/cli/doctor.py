"""`sparselens doctor`: what is installed, what is missing or out of range, and the command that fixes it.

The ranges are read from the installed project's own metadata, so they cannot drift from `pyproject.toml`. Every
import of something heavy is caught: the doctor has to report even on a torch that cannot be imported.
"""

import platform
import sys
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib import import_module
from importlib.metadata import PackageNotFoundError, metadata, requires, version
from pathlib import Path

import typer
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from sparselens.cli.options import Json, Out
from sparselens.cli.table import finish, print_table

PROJECT = "sparselens"
# Installed is not working: these have binaries, or import something that has, and can fail on import.
IMPORTED = {"torch": "torch", "transformers": "transformers", "transformer-lens": "transformer_lens"}


@dataclass(frozen=True)
class Package:
    """One requirement: what is installed, what is wanted, and, if these disagree, why and what fixes it."""

    name: str
    installed: str
    wanted: str
    problem: str = ""
    mend: str = ""


@dataclass(frozen=True)
class Surroundings:
    """The environment besides packages."""

    platform: str
    devices: list[str]
    models: list[str]  # the model classes that TransformerLens offers here
    hub: list[str]
    attention: list[str]  # the implementations of gated attention that can run here


def doctor(out: Out = None, json: Json = False) -> None:
    """Report versions, devices and models, what is missing, and how to fix it.

    Example: `sparselens doctor --json`

    Exit code 1 means that something needed is missing, broken or out of range. With `--out DIR` the report is also
    written to `DIR/doctor.json`.
    """
    packages = [examine_python(), *examine_packages(PROJECT)]
    surroundings = examine_surroundings()
    problems = [package for package in packages if package.problem]
    _print_report(packages, surroundings, problems)
    report = {"ok": not problems, "packages": [asdict(package) for package in packages], **asdict(surroundings)}
    finish(report, json, out and out / "doctor.json")
    if problems:
        raise typer.Exit(1)


def examine_python() -> Package:
    """The running interpreter against the versions that the project supports."""
    try:
        wanted = metadata(PROJECT)["Requires-Python"]
    except PackageNotFoundError:
        wanted = ""
    installed = platform.python_version()
    if SpecifierSet(wanted).contains(installed, prereleases=True):
        return Package("python", installed, wanted)
    return Package("python", installed, wanted, "out of range", "make a new environment with such a Python")


def examine_packages(project: str) -> list[Package]:
    """The project itself and everything its metadata asks for, extras left out."""
    try:
        own = Package(project, version(project), "")
    except PackageNotFoundError:
        return [Package(project, "-", "", "not installed", f"{sys.executable} -m pip install {project}")]
    requirements = (Requirement(line) for line in requires(project) or [])
    needed = (r for r in requirements if r.marker is None or r.marker.evaluate({"extra": ""}))
    return [own, *(examine(requirement) for requirement in needed)]


def examine(requirement: Requirement) -> Package:
    """One requirement against what is installed, imported where an import can fail."""
    name, wanted = requirement.name, str(requirement.specifier)
    mend = f'{sys.executable} -m pip install "{name}{wanted}"'
    try:
        installed = version(name)
    except PackageNotFoundError:
        return Package(name, "-", wanted, "missing", mend)
    if not requirement.specifier.contains(installed, prereleases=True):
        return Package(name, installed, wanted, "out of range", mend)
    if name in IMPORTED and (error := import_error(IMPORTED[name])):
        return Package(name, installed, wanted, f"broken: {error}", f"{mend} --force-reinstall")
    return Package(name, installed, wanted)


def import_error(module: str, attribute: str | None = None) -> str:
    """Why a module, or a name in it, cannot be imported, in one line; empty when it can."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            loaded = import_module(module)
            if attribute is not None:
                getattr(loaded, attribute)
    except Exception as error:  # a broken binary raises anything from OSError to RuntimeError
        return " ".join(f"{type(error).__name__}: {error}".split())
    return ""


def examine_surroundings() -> Surroundings:
    """Everything but packages; empty where a broken package keeps it from being found out."""
    classes = {"TransformerBridge": "transformer_lens.model_bridge", "HookedTransformer": "transformer_lens"}
    return Surroundings(
        platform=platform.platform(),
        devices=_or_nothing(devices),
        models=[name for name, module in classes.items() if not import_error(module, name)],
        hub=_or_nothing(hub),
        attention=_or_nothing(attention),
    )


def devices() -> list[str]:
    """Every device that torch can use here."""
    import torch

    found = [f"cpu ({torch.get_num_threads()} threads)"]
    for index in range(torch.cuda.device_count()):
        gpu = torch.cuda.get_device_properties(index)
        found.append(f"cuda:{index} ({gpu.name}, {gpu.total_memory / 2**30:.0f} GiB)")
    if torch.backends.mps.is_available():
        found.append("mps")
    return found


def hub() -> list[str]:
    """Whether the Hugging Face hub may be used, and where its files are kept."""
    from huggingface_hub import constants

    state = "offline (HF_HUB_OFFLINE is set)" if constants.HF_HUB_OFFLINE else "online"
    kept = Path(constants.HF_HUB_CACHE)
    return [state, f"cache {kept}" if kept.is_dir() else f"cache {kept} (not there yet)"]


def attention() -> list[str]:
    """Which implementations of gated attention can run here, which "auto" takes, and why others cannot."""
    import torch

    from sparselens.gates.fused import resolve, why_no_triton

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    missing = why_no_triton(device)
    found = ["eager", "flex" if device.type == "cuda" else "flex (evaluation)"]
    found.append(f"no triton: {missing}" if missing else "triton")
    return [*found, f"auto is {resolve('auto', device)} on {device.type}"]


def _or_nothing(question: Callable[[], list[str]]) -> list[str]:
    try:
        return question()
    except Exception:  # the package that would answer is broken, which the table of packages says
        return []


def _print_report(packages: list[Package], surroundings: Surroundings, problems: list[Package]) -> None:
    rows = [(p.name, p.installed, p.wanted, p.problem or "ok") for p in packages]
    print_table("sparselens doctor", ("what", "installed", "wanted", "state"), rows)
    found = asdict(surroundings) | {"platform": [surroundings.platform]}
    print_table("environment", ("what", "found"), [(what, "\n".join(a) or "none") for what, a in found.items()])
    if problems:
        print_table("how to fix it", ("what", "command"), [(p.name, p.mend) for p in problems])
