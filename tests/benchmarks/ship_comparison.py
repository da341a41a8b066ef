"""Puts a comparison among those that ship with sparselens: `ship_comparison.py NUMBERS MODEL/TASK`.

It is saved slim, opened again, and has to tell and show exactly what the whole one does. Folders of this machine are no
part of it: the models are called by --names, in its command, too, where other paths lose their folders.
"""

import argparse
import shlex
import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from sparselens.analyses import Comparison, load_comparison
from sparselens.analyses.comparison.places import SHIPPED

MOST = 3 * 2**20  # bytes of all of them
ROLES = ("--dense", "--sparse")


def ship(numbers: Path, name: str, names: tuple[str, str] | None) -> Path:
    whole = load_comparison(numbers)
    names = names or whole.about.names
    whole = replace(whole, about=replace(whole.about, names=names, command=command(whole.about.command, names)))
    path = whole.save(SHIPPED / f"{name}.zip", slim=True)
    try:
        refuse_other(load_comparison(path), whole)
        if (size := sum(file.stat().st_size for file in SHIPPED.rglob("*.zip"))) > MOST:
            raise ValueError(f"with {name} all that ships would be {size:,} bytes, more than {MOST:,}")
    except BaseException:
        path.unlink()
        raise
    return path


def command(words: str, names: tuple[str, str]) -> str:
    """The command without folders of this machine."""
    split, called = shlex.split(words), dict(zip(ROLES, names, strict=True))
    pairs = zip(["", *split], split, strict=False)
    return shlex.join(
        called.get(before) or (Path(word).name if word.startswith("/") else word) for before, word in pairs
    )


def refuse_other(slim: Comparison, whole: Comparison) -> None:
    if not slim.table().equals(whole.table()):
        raise ValueError("the table of the slim comparison is another one")
    if slim.viewer().html != whole.viewer().html:
        raise ValueError("the viewer of the slim comparison is another one")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("numbers", type=Path, help="folder that `sparselens compare` wrote as numbers/")
    parser.add_argument("name", help="MODEL/TASK")
    parser.add_argument("--names", nargs=2, metavar=("DENSE", "SPARSE"), help="of the models; default: as they are")
    options = parser.parse_args()
    path = ship(options.numbers, options.name, tuple(options.names) if options.names else None)
    print(f"{path}: {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
