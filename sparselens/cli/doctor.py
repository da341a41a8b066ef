"""`sparselens doctor`: which requirements are missing or out of range, and the commands that fix them.

Version ranges come from the installed project's metadata, so they always match `pyproject.toml`. Every heavy import is
guarded: the report must work even if torch cannot be imported.
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
# Installed does not mean working: these contain or depend on binaries, so importing them can fail.
IMPORTED = {"torch": "torch", "transformers": "transformers", "transformer-lens": "transformer_lens"}


@dataclass(frozen=True)
class Package:
    """One requirement: installed and required version and, if they disagree, the reason and a fix."""

    name: str
    installed: str
    wanted: str
    problem: str = ""
    mend: str = ""


@dataclass(frozen=True)
class Surroundings:
    """The environment apart from packages."""

    platform: str
    devices: list[str]
    models: list[str]  # model classes of the installed TransformerLens
    hub: list[str]
    attention: list[str]  # implementations of gated attention that can run here


def doctor(out: Out = None, json: Json = False) -> None:
    """Report versions, devices and model classes, what is missing, and how to fix it.

    Example: `sparselens doctor --json`

    Exits with code 1 if a requirement is missing, broken or out of range. `--out DIR` also writes the report to
    `DIR/doctor.json`.
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
    """Check the running interpreter against the supported Python versions."""
    try:
        wanted = metadata(PROJECT)["Requires-Python"]
    except PackageNotFoundError:
        wanted = ""
    installed = platform.python_version()
    if SpecifierSet(wanted).contains(installed, prereleases=True):
        return Package("python", installed, wanted)
    return Package("python", installed, wanted, "out of range", f"create an environment with Python {wanted}")


def examine_packages(project: str) -> list[Package]:
    """The project itself and all its requirements, without extras."""
    try:
        own = Package(project, version(project), "")
    except PackageNotFoundError:
        return [Package(project, "-", "", "not installed", f"{sys.executable} -m pip install {project}")]
    requirements = (Requirement(line) for line in requires(project) or [])
    needed = (r for r in requirements if r.marker is None or r.marker.evaluate({"extra": ""}))
    return [own, *(examine(requirement) for requirement in needed)]


def examine(requirement: Requirement) -> Package:
    """Check one requirement against the installed version; also import it, if that can fail."""
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
    """Why a module, or a name in it, cannot be imported, in one line; empty if it can."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            loaded = import_module(module)
            if attribute is not None:
                getattr(loaded, attribute)
    except Exception as error:  # broken binaries raise many types, from OSError to RuntimeError
        return " ".join(f"{type(error).__name__}: {error}".split())
    return ""


def examine_surroundings() -> Surroundings:
    """Examine everything except packages; entries are empty if a broken package prevents the check."""
    classes = {"TransformerBridge": "transformer_lens.model_bridge", "HookedTransformer": "transformer_lens"}
    return Surroundings(
        platform=platform.platform(),
        devices=_or_nothing(devices),
        models=[name for name, module in classes.items() if not import_error(module, name)],
        hub=_or_nothing(hub),
        attention=_or_nothing(attention),
    )


def devices() -> list[str]:
    """Every device that torch can use."""
    import torch

    found = [f"cpu ({torch.get_num_threads()} threads)"]
    for index in range(torch.cuda.device_count()):
        gpu = torch.cuda.get_device_properties(index)
        found.append(f"cuda:{index} ({gpu.name}, {gpu.total_memory / 2**30:.0f} GiB)")
    if torch.backends.mps.is_available():
        found.append("mps")
    return found


def hub() -> list[str]:
    """Whether the Hugging Face hub may be used, and where its files are cached."""
    from huggingface_hub import constants

    state = "offline (HF_HUB_OFFLINE is set)" if constants.HF_HUB_OFFLINE else "online"
    kept = Path(constants.HF_HUB_CACHE)
    return [state, f"cache {kept}" if kept.is_dir() else f"cache {kept} (does not exist yet)"]


def attention() -> list[str]:
    """Which implementations of gated attention can run here, which one "auto" selects, and why others cannot run."""
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
    except Exception:  # a package is broken, which the table of packages shows
        return []


def _print_report(packages: list[Package], surroundings: Surroundings, problems: list[Package]) -> None:
    rows = [(p.name, p.installed, p.wanted, p.problem or "ok") for p in packages]
    print_table("sparselens doctor", ("package", "installed", "required", "status"), rows)
    found = asdict(surroundings) | {"platform": [surroundings.platform]}
    print_table("environment", ("what", "found"), [(name, "\n".join(lines) or "none") for name, lines in found.items()])
    if problems:
        print_table("how to fix it", ("package", "command"), [(p.name, p.mend) for p in problems])
