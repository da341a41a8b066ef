"""A comparison as a folder: `comparison.json` holds settings and caveats, one safetensors file each part.

A comparison that is still running writes the same files one by one, and resumes from them. A slim one is a .zip of the
same files.
"""

import json
import shutil
import sys
import tempfile
import zlib
from collections.abc import Callable
from dataclasses import asdict, fields
from io import BytesIO
from lzma import LZMAError
from pathlib import Path
from typing import Any, TypeVar
from zipfile import ZIP_LZMA, BadZipFile, ZipFile, ZipInfo

from tqdm import tqdm

from sparselens.analyses.attribution.attention_edges import AttentionEdges
from sparselens.analyses.attribution.edge_scores import EdgeScores
from sparselens.analyses.circuits.circuit_runs import Faithfulness
from sparselens.analyses.circuits.faithfulness import FaithfulnessCurve
from sparselens.analyses.circuits.pruning import PrunedCircuit
from sparselens.analyses.circuits.stability import Stability
from sparselens.analyses.comparison.model_results import CircuitRuns, ComponentCurves, ModelResults
from sparselens.analyses.comparison.places import find
from sparselens.analyses.comparison.results import SIDES, About, Comparison, LossPoints, Prompt, Solved
from sparselens.analyses.comparison.summaries import EdgeSummary, PairSummary
from sparselens.analyses.figures.plot import Series
from sparselens.analyses.patching.patching_result import PatchingResult
from sparselens.analyses.patching.top_components import ComponentCurve
from sparselens.analyses.sparsity.head_labels import HeadScores
from sparselens.analyses.sparsity.loss_curve import LossPoint
from sparselens.bars import is_watched
from sparselens.circuits.circuit import Circuit
from sparselens.circuits.graph import Block, Graph
from sparselens.files.reading import json_object
from sparselens.files.records import load_record, read_record, record_bytes, record_from_json, save_record
from sparselens.files.whole import write_file, write_json
from sparselens.prompts.intervals import Interval

KINDS: dict[str, type] = {
    "solved": Solved,
    "loss": LossPoints,
    "attention": AttentionEdges,
    "labels": HeadScores,
    "heads": PatchingResult,
    "mlps": PatchingResult,
    "kept": ComponentCurves,
    "edges": EdgeScores,
    "circuits": CircuitRuns,
    "summary": EdgeSummary,
    "both": PairSummary,
}
INSIDE = (
    Block, Circuit, ComponentCurve, Faithfulness, FaithfulnessCurve, Graph, Interval, LossPoint, PrunedCircuit, Series,
    Stability,
)  # fmt: skip
OF_A_MODEL = [f.name for f in fields(ModelResults) if f.name in KINDS]
OPTIONAL = ("mlps", "summary", "both")
CARD = "comparison.json"
UNFINISHED = ".unfinished"
LARGEST = 2**30  # bytes that a .zip may unpack to

Part = TypeVar("Part")


class Parts:
    """The finished parts, kept in a folder if there is one, under a bar that counts them."""

    def __init__(self, folder: Path | None, request: dict[str, Any], progress: bool = False) -> None:
        self._folder = folder
        if folder is not None:
            _refuse_other(folder, request)
            if _card(folder) is None:  # a complete one stays so, whatever becomes of this run
                write_json(folder / CARD, {"request": request})
        total, self._told = 2 + len(SIDES) * (len(OF_A_MODEL) - 1), progress and not is_watched()
        self._bar = tqdm(total=total, disable=not progress or self._told, unit="part", dynamic_ncols=True, leave=False)

    def get(self, name: str, compute: Callable[[], Part]) -> Part:
        """The part called `name`, such as "loss" or "dense.heads": read if it is there, else computed and written."""
        self._bar.set_description_str(name)
        if self._told:
            tqdm.write(name, file=sys.stderr)  # a line for each part, where a bar would fill a log
        if self._folder is None:
            part = compute()
        else:
            path = self._folder / f"{name}.safetensors"
            if not path.exists():
                save_record(path, compute())
            for log in self._folder.glob(f"{name}*{UNFINISHED}"):
                log.unlink()
            part = load_record(path, KINDS[name.rpartition(".")[2]], INSIDE)
        self._bar.update()
        return part

    def log(self, name: str) -> Path | None:
        """The file of a part's finished batches until it is whole; its name begins with the part's."""
        return None if self._folder is None else self._folder / f"{name}{UNFINISHED}"

    def finish(self, about: About, request: dict[str, Any]) -> None:
        """Mark the comparison as complete."""
        self._bar.set_description_str("compared")
        self._bar.close()
        if self._folder is not None:
            write_json(self._folder / CARD, {"request": request, "about": asdict(about)})


def save_comparison(comparison: Comparison, folder: str | Path) -> Path:
    """Write a comparison into a folder, completely or not at all.

    An existing comparison is replaced; what else is there stays, such as a report.

    Raises:
        ValueError: the folder holds something else.
    """
    folder = Path(folder)
    if folder.exists() and not (folder / CARD).exists() and any(folder.iterdir()):
        raise ValueError(f"{folder} exists and holds no comparison: choose another folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as temporary:
        new, old = Path(temporary, "new"), Path(temporary, "old")
        for name, part in _parts(comparison).items():
            save_record(new / f"{name}.safetensors", part)
        write_json(new / CARD, {"request": None, "about": asdict(comparison.about)})
        for other in _others(folder) if folder.exists() else []:
            (shutil.copytree if other.is_dir() else shutil.copy2)(other, new / other.name)
        if folder.exists():
            folder.rename(old)
        try:
            new.rename(folder)
        except BaseException:
            if old.exists():
                old.rename(folder)  # the temporary folder is about to be deleted, with all that is in it
            raise
    return folder


def _others(folder: Path) -> list[Path]:
    """What is no part of a comparison."""
    return [path for path in folder.iterdir() if path.name != CARD and path.suffix not in (".safetensors", UNFINISHED)]


def save_slim(comparison: Comparison, path: str | Path) -> Path:
    """Write what table, figures and viewer need into one .zip; the same comparison gives the same bytes.

    Raises:
        ValueError: the name does not end in .zip.
    """
    from sparselens.analyses.comparison.slim import slim

    path = Path(path)
    if path.suffix != ".zip":
        raise ValueError(f"a slim comparison is one file: want a name that ends in .zip, not {path.name}")
    comparison = slim(comparison)
    card = json.dumps({"request": None, "about": asdict(comparison.about)}, indent=2, allow_nan=False)
    contents = {f"{name}.safetensors": record_bytes(part) for name, part in _parts(comparison).items()}
    written = BytesIO()
    with ZipFile(written, "w") as file:
        for name, content in {CARD: card.encode(), **contents}.items():
            file.writestr(ZipInfo(name), content, ZIP_LZMA)  # of no date
    return write_file(path, written.getvalue())


def load_comparison(folder: str | Path) -> Comparison:
    """Read what `Comparison.save` or `compare(out=...)` wrote, or a comparison that ships with sparselens.

    >>> load_comparison("stories260k/gendered_pronoun").viewer()

    Args:
        folder: the folder, a slim comparison's .zip, or a shipped comparison's name

    Raises:
        ValueError: there is no such folder, file or shipped comparison; it holds no comparison, or an unfinished one.
    """
    path = find(folder)
    files = _Zipped(path) if path.is_file() else _Folder(path)
    card = files.card()
    if card is None:
        raise ValueError(f"{path} holds no comparison (no {CARD})")
    if "about" not in card:
        raise ValueError(f"the comparison in {path} has not been finished: run it again with the same --out")
    found = {side: {name: files.part(f"{side}.{name}") for name in OF_A_MODEL} for side in SIDES}
    try:
        about = _about(card["about"])
    except (TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{path / CARD} was written by another version of sparselens: {error}") from error
    dense, sparse = (ModelResults(**found[side], share=about.share) for side in SIDES)
    return Comparison(about, files.part("solved"), files.part("loss"), dense, sparse, files.part("both"))


def _parts(comparison: Comparison) -> dict[str, Any]:
    parts: dict[str, Any] = {"solved": comparison.solved, "loss": comparison.loss, "both": comparison.summary}
    for side in SIDES:
        parts |= {f"{side}.{name}": getattr(getattr(comparison, side), name) for name in OF_A_MODEL}
    return {name: part for name, part in parts.items() if part is not None}


class _Folder:
    """The files of a comparison in a folder."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def card(self) -> dict[str, Any] | None:
        return _card(self._path)

    def part(self, name: str) -> Any:
        path, kind = self._path / f"{name}.safetensors", name.rpartition(".")[2]
        if path.exists():
            return load_record(path, KINDS[kind], INSIDE)
        return _absent(path, kind)


class _Zipped:
    """The files of a comparison in a .zip: read in memory, never unpacked onto the disk."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            with ZipFile(path) as file:
                if (size := sum(info.file_size for info in file.infolist())) > LARGEST:
                    raise ValueError(f"{path} would unpack to {size:,} bytes, more than any comparison has")
                self._contents = {info.filename: file.read(info) for info in file.infolist()}
        except (
            BadZipFile,
            zlib.error,
            LZMAError,
            EOFError,
            RuntimeError,
        ) as error:  # the last: encrypted, or packed otherwise
            raise ValueError(f"{path} is not a comparison, or is damaged: {error}") from error

    def card(self) -> dict[str, Any] | None:
        content = self._contents.get(CARD)
        return None if content is None else json_object(content, self._path / CARD)

    def part(self, name: str) -> Any:
        path, kind = self._path / f"{name}.safetensors", name.rpartition(".")[2]
        content = self._contents.get(path.name)
        return _absent(path, kind) if content is None else read_record(content, str(path), KINDS[kind], INSIDE)


def _absent(path: Path, kind: str) -> None:
    if kind not in OPTIONAL:
        raise ValueError(f"{path} is missing from the comparison")


def _about(values: dict[str, Any]) -> About:
    return record_from_json(About, values | {"prompts": [record_from_json(Prompt, one) for one in values["prompts"]]})


def _card(folder: Path) -> dict[str, Any] | None:
    path = folder / CARD
    return json_object(path.read_bytes(), path) if path.exists() else None


def _refuse_other(folder: Path, request: dict[str, Any]) -> None:
    """Raise a ValueError if the folder holds another comparison, or something else altogether."""
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file: choose a folder")
    card = _card(folder)
    if card is None:
        if folder.exists() and any(folder.iterdir()):
            raise ValueError(f"{folder} exists and holds no comparison: choose another folder")
        return
    there = card.get("request")
    if there is None:
        raise ValueError(f"{folder} holds a saved comparison, which cannot be resumed: choose another folder")
    different = [key for key, wanted in request.items() if there.get(key) != wanted]
    if different:
        raise ValueError(f"{folder} holds another comparison (other {', '.join(different)}): choose another folder")
