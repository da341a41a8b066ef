"""`sparselens doctor`: what is installed, what is missing or out of range, and the command that mends it.

The ranges are read from the installed project's own metadata, so they cannot drift from `pyproject.toml`. Every
import of something heavy is caught: the doctor must be able to report on the patient that cannot stand up.
"""

import os
import platform
import sys
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib import import_module
from importlib.metadata import PackageNotFoundError, metadata, requires, version

import typer
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from sparselens.cli.options import Json, Out
from sparselens.cli.table import finish, print_table

# What imports without torch tells little: these are the imports that fail when an installation is broken.
IMPORTED = {"torch": "torch", "transformers": "transformers", "transformer-lens": "transformer_lens"}


@dataclass(frozen=True)
class Package:
    """One requirement: what is installed, what is wanted, and what is wrong with it (nothing, when it is fine)."""

    name: str
    installed: str
    wanted: str
    problem: str = ""
    mend: str = ""


def doctor(out: Out = None, json: Json = False) -> None:
    """Tell versions, devices and models, what is missing, and how to mend it.

    Example: `sparselens doctor --json`

    Exit code 1 says that something needed is missing, broken or out of range. With `--out DIR` the report is also
    written to `DIR/doctor.json`.
    """
    report = examine()
    packages = [python(), *packages_of("sparselens")]
    _print_report(report, packages)
    problems = [package for package in packages if package.problem]
    table = {
        "ok": not problems,
        "packages": {package.name: asdict(package) for package in packages},
        **report,
    }
    finish(table, json, out and out / "doctor.json")
    if problems:
        raise typer.Exit(1)


def python() -> Package:
    """The running interpreter as a row of the table."""
    try:
        wanted = metadata("sparselens")["Requires-Python"]
    except PackageNotFoundError:
        wanted = ""
    installed = platform.python_version()
    if SpecifierSet(wanted).contains(installed, prereleases=True):
        return Package("python", installed, wanted)
    return Package("python", installed, wanted, "out of range", "make the environment anew with such a Python")


def packages_of(project: str) -> list[Package]:
    """The project itself and everything its metadata asks for, extras left out."""
    try:
        requirements = [Requirement(line) for line in requires(project) or []]
    except PackageNotFoundError:
        return [Package(project, "-", "", "not installed", f"{_pip()} install {project}")]
    needed = (r for r in requirements if r.marker is None or r.marker.evaluate({"extra": ""}))
    return [Package(project, version(project), ""), *(check(requirement) for requirement in needed)]


def check(requirement: Requirement) -> Package:
    """Compare one requirement with what is installed, and import it where an import can fail."""
    name, wanted = requirement.name, str(requirement.specifier)
    mend = f'{_pip()} install "{name}{wanted}"'
    try:
        installed = version(name)
    except PackageNotFoundError:
        return Package(name, "-", wanted, "missing", mend)
    if not requirement.specifier.contains(installed, prereleases=True):
        return Package(name, installed, wanted, "out of range", mend)
    error = import_error(IMPORTED[name]) if name in IMPORTED else ""
    if error:
        return Package(name, installed, wanted, f"broken: {error}", f"{mend} --force-reinstall")
    return Package(name, installed, wanted)


def import_error(module: str, attribute: str = "") -> str:
    """Why a module, or a name in it, cannot be imported, in one line; empty when it can."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            loaded = import_module(module)
            if attribute:
                getattr(loaded, attribute)
    except Exception as error:  # a broken binary raises anything from OSError to RuntimeError
        return " ".join(f"{type(error).__name__}: {error}".split())
    return ""


def examine() -> dict[str, object]:
    """What there is to work with: devices, model classes of TransformerLens, and the Hugging Face hub."""
    return {
        "platform": platform.platform(),
        "devices": _or_nothing(devices),
        "models": {
            "TransformerBridge": not import_error("transformer_lens.model_bridge", "TransformerBridge"),
            "HookedTransformer": not import_error("transformer_lens", "HookedTransformer"),
        },
        "hub": _or_nothing(hub),
    }


def devices() -> list[str]:
    """Every device torch can use, with what one wants to know of it."""
    import torch

    found = [f"cpu ({torch.get_num_threads()} threads)"]
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        found.append(f"cuda:{index} ({properties.name}, {properties.total_memory / 2**30:.0f} GiB)")
    if torch.backends.mps.is_available():
        found.append("mps")
    return found


def hub() -> list[str]:
    """Whether the hub may be asked, and where its files are kept."""
    from huggingface_hub import constants

    kept = constants.HF_HUB_CACHE
    state = "offline (HF_HUB_OFFLINE is set)" if constants.HF_HUB_OFFLINE else "online"
    return [state, f"cache {kept}{'' if os.path.isdir(kept) else ' (empty)'}"]


def _or_nothing(question: Callable[[], list[str]]) -> list[str]:
    """The answer, or an empty list when what would answer is itself missing or broken."""
    try:
        return question()
    except Exception:  # already reported as a package's problem
        return []


def _pip() -> str:
    return f"{sys.executable} -m pip"


def _print_report(report: dict[str, object], packages: list[Package]) -> None:
    rows = [(p.name, p.installed, p.wanted, p.problem or "ok") for p in packages]
    print_table("sparselens doctor", ("what", "installed", "wanted", "state"), rows)
    models = report["models"]
    assert isinstance(models, dict)
    rows = [
        ("platform", report["platform"]),
        ("devices", ", ".join(report["devices"]) or "unknown"),
        ("models", ", ".join(name for name, there in models.items() if there) or "none"),
        ("hub", ", ".join(report["hub"]) or "unknown"),
    ]
    print_table("to work with", ("what", "found"), rows)
    mends = [(p.name, p.mend) for p in packages if p.problem]
    if mends:
        print_table("how to mend it", ("what", "command"), mends)
