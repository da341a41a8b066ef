"""Builds the wheel, installs it alone into a new environment, and checks what a user would get from it.

The dependencies are borrowed from the environment that runs this script: a .pth file puts its site-packages on the
path. Nested .pth files are not read there, so its editable install of the project is out of reach: whatever the new
environment imports as sparselens came from the wheel.
"""

import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CLEAN = ROOT / ".venv-wheel"
ROOMS = ("sparselens", "tasks", "analyses")
IMPORTS = """
import sys
from importlib import import_module
from pathlib import Path
for name in ("sparselens", "sparselens.tasks", "sparselens.analyses", "sparselens.cli"):
    home = Path(import_module(name).__file__)
    if Path(sys.prefix) not in home.parents:
        raise SystemExit(f"{name} was imported from {home}, not from the wheel")
import sparselens
for name in dir(sparselens):
    getattr(sparselens, name)
"""


def main() -> None:
    wheel = build()
    check_contents(wheel)
    python = install(wheel)
    subprocess.run([python, "-I", "-c", IMPORTS], cwd=CLEAN, check=True)
    subprocess.run([python.with_name("sparselens"), "--help"], cwd=CLEAN, check=True, stdout=subprocess.DEVNULL)
    print(f"{wheel.name}: complete, and its packages import")


def build() -> Path:
    for leftover in ("build", "dist"):  # setuptools would pack files that are no longer in the sources
        shutil.rmtree(ROOT / leftover, ignore_errors=True)
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", ROOT], check=True, stdout=subprocess.DEVNULL
    )
    (wheel,) = (ROOT / "dist").glob("*.whl")
    return wheel


def check_contents(wheel: Path) -> None:
    """Everything tracked in the three rooms is there, and nothing at the top but the package and its metadata."""
    names = set(zipfile.ZipFile(wheel).namelist())
    generic = {name.split("/")[0] for name in names if not name.startswith(("sparselens/", "sparselens-"))}
    missing = expected() - names
    if generic or missing:
        raise SystemExit(f"{wheel.name}: unwanted at the top: {sorted(generic)}; missing: {sorted(missing)}")


def expected() -> set[str]:
    tracked = subprocess.run(["git", "ls-files", *ROOMS], cwd=ROOT, check=True, capture_output=True, text=True)
    files = [Path(line) for line in tracked.stdout.splitlines() if not line.endswith("ruff.toml")]
    return {str(file if file.parts[0] == "sparselens" else "sparselens" / file) for file in files}


def install(wheel: Path) -> Path:
    subprocess.run([sys.executable, "-m", "venv", "--clear", "--without-pip", CLEAN], check=True)
    python = CLEAN / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", python]
    subprocess.run([*pip, "install", "--quiet", "--no-deps", "--no-index", wheel], check=True)
    (site_packages,) = CLEAN.glob("lib/python*/site-packages")
    (site_packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python


if __name__ == "__main__":
    main()
