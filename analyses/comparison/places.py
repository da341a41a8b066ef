"""Where a comparison is stored: in a folder, in a slim .zip, or under the name of one that ships with sparselens."""

from pathlib import Path

from sparselens.names import unknown

SHIPPED = Path(__file__).parent / "shipped"  # MODEL/TASK.zip


def shipped_comparisons() -> list[str]:
    """Names of the comparisons that ship with sparselens, as `load_comparison` takes them."""
    return sorted(path.relative_to(SHIPPED).with_suffix("").as_posix() for path in SHIPPED.glob("*/*.zip"))


def find(name: str | Path) -> Path:
    """The folder or file of a comparison.

    Raises:
        ValueError: it does not exist.
    """
    if Path(name).exists():
        return Path(name)
    if str(name) in shipped_comparisons():
        return SHIPPED / f"{name}.zip"
    raise unknown("comparison", str(name), (*shipped_comparisons(), "a saved folder or .zip"))
