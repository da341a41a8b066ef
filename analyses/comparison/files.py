"""A comparison as a folder: settings and caveats in `comparison.json`, and one safetensors file for each part.

A running comparison writes the same files one by one, and resumes from them after an interruption. A slim comparison is
a .zip of the same files.
"""

import json
import shutil
import sys
import zlib
from collections.abc import Callable, Mapping
from dataclasses import asdict, fields
from functools import partial
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
from sparselens.files.whole import whole_folder, write_file, write_json
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
LARGEST = 2**30  # most bytes that a .zip may unpack to

Part = TypeVar("Part")


class Parts:
    """The parts of a running comparison: kept in a folder, if given, and counted by a progress bar."""

    def __init__(self, folder: Path | None, request: dict[str, Any], progress: bool = False) -> None:
        self._folder = folder
        if folder is not None:
            _refuse_other(folder, request)
            if _card(folder) is None:  # a complete comparison stays complete, even if this run fails
                write_json(folder / CARD, {"request": request})
        total, self._logs = 2 + len(SIDES) * (len(OF_A_MODEL) - 1), progress and not is_watched()
        self._bar = tqdm(total=total, disable=not progress or self._logs, unit="part", dynamic_ncols=True, leave=False)

    def get(self, name: str, compute: Callable[[], Part]) -> Part:
        """The part called `name`, such as "loss" or "dense.heads": read if it exists, else computed and written."""
        self._bar.set_description_str(name)
        if self._logs:
            tqdm.write(name, file=sys.stderr)  # in a log, one line per part instead of a progress bar
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
        """The file that keeps the finished batches of an unfinished part; `name` starts with the part's name."""
        return None if self._folder is None else self._folder / f"{name}{UNFINISHED}"

    def finish(self, about: About, request: dict[str, Any]) -> None:
        """Mark the comparison as complete."""
        self._bar.set_description_str("compared")
        self._bar.close()
        if self._folder is not None:
            write_json(self._folder / CARD, {"request": request, "about": asdict(about)})


def save_comparison(comparison: Comparison, folder: str | Path) -> Path:
    """Write a comparison into a folder, completely or not at all.

    An existing comparison is replaced; other files in the folder, such as a report, stay.

    Raises:
        ValueError: the folder holds something other than a comparison.
    """
    folder = Path(folder)
    if folder.exists() and not (folder / CARD).exists() and any(folder.iterdir()):
        raise ValueError(f"{folder} exists and holds no comparison: choose another folder")
    with whole_folder(folder) as new:
        for name, part in _parts(comparison).items():
            save_record(new / f"{name}.safetensors", part)
        write_json(new / CARD, {"request": None, "about": asdict(comparison.about)})
        for other in _others(folder) if folder.exists() else []:
            (shutil.copytree if other.is_dir() else shutil.copy2)(other, new / other.name)
    return folder


def _others(folder: Path) -> list[Path]:
    """The files and folders that are not part of a comparison."""
    return [path for path in folder.iterdir() if path.name != CARD and path.suffix not in (".safetensors", UNFINISHED)]


def save_slim(comparison: Comparison, path: str | Path) -> Path:
    """Write what the table, figures and viewer need into one .zip; the same comparison gives the same bytes.

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
            file.writestr(ZipInfo(name), content, ZIP_LZMA)  # ZipInfo sets a fixed date
    return write_file(path, written.getvalue())


def load_comparison(folder: str | Path) -> Comparison:
    """Read what `Comparison.save` or `compare(out=...)` wrote, or a comparison that ships with sparselens.

    >>> load_comparison("stories260k/gendered_pronoun").viewer()

    Args:
        folder: a folder, the .zip of a slim comparison, or the name of a shipped comparison

    Raises:
        ValueError: there is no such folder, file or shipped comparison; it holds no comparison, or an unfinished one.
    """
    path = find(folder)
    contents = _unzipped(path) if path.is_file() else None
    card = _card(path, contents)
    if card is None:
        raise ValueError(f"{path} holds no comparison (no {CARD})")
    if "about" not in card:
        raise ValueError(f"the comparison in {path} is unfinished: run it again with the same --out")
    part = partial(_part, path, contents)
    found = {side: {name: part(f"{side}.{name}") for name in OF_A_MODEL} for side in SIDES}
    try:
        about = _about(card["about"])
    except (TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{path / CARD} was written by another version of sparselens: {error}") from error
    dense, sparse = (ModelResults(**found[side], share=about.share) for side in SIDES)
    return Comparison(about, part("solved"), part("loss"), dense, sparse, part("both"))


def _parts(comparison: Comparison) -> dict[str, Any]:
    parts: dict[str, Any] = {"solved": comparison.solved, "loss": comparison.loss, "both": comparison.summary}
    for side in SIDES:
        parts |= {f"{side}.{name}": getattr(getattr(comparison, side), name) for name in OF_A_MODEL}
    return {name: part for name, part in parts.items() if part is not None}


def _unzipped(path: Path) -> dict[str, bytes]:
    """The files in a .zip, by name: in memory, never unpacked to disk."""
    try:
        with ZipFile(path) as file:
            if (size := sum(info.file_size for info in file.infolist())) > LARGEST:
                raise ValueError(f"{path} would unpack to {size:,} bytes, more than any comparison has")
            return {info.filename: file.read(info) for info in file.infolist()}
    except (BadZipFile, zlib.error, LZMAError, EOFError, RuntimeError) as error:  # the last: encrypted
        raise ValueError(f"{path} is not a comparison, or is damaged: {error}") from error


def _part(folder: Path, contents: Mapping[str, bytes] | None, name: str) -> Any:
    """A part from a folder, or from the contents of a .zip; None if it is optional and missing."""
    path, kind = folder / f"{name}.safetensors", name.rpartition(".")[2]
    if contents is None and path.exists():
        return load_record(path, KINDS[kind], INSIDE)
    if contents is not None and path.name in contents:
        return read_record(contents[path.name], str(path), KINDS[kind], INSIDE)
    if kind not in OPTIONAL:
        raise ValueError(f"{path} is missing from the comparison")
    return None


def _about(values: dict[str, Any]) -> About:
    return record_from_json(About, values | {"prompts": [record_from_json(Prompt, one) for one in values["prompts"]]})


def _card(folder: Path, contents: Mapping[str, bytes] | None = None) -> dict[str, Any] | None:
    """The settings and caveats, from a folder or from the contents of a .zip."""
    path = folder / CARD
    if contents is not None:
        return json_object(contents[CARD], path) if CARD in contents else None
    return json_object(path.read_bytes(), path) if path.exists() else None


def _refuse_other(folder: Path, request: dict[str, Any]) -> None:
    """Raise a ValueError if the folder holds another comparison, or something else."""
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file: choose a folder")
    card = _card(folder)
    if card is None:
        if folder.exists() and any(folder.iterdir()):
            raise ValueError(f"{folder} exists and holds no comparison: choose another folder")
        return
    saved = card.get("request")
    if saved is None:
        raise ValueError(f"{folder} holds a saved comparison, which cannot be resumed: choose another folder")
    different = [key for key, wanted in request.items() if saved.get(key) != wanted]
    if different:
        raise ValueError(f"{folder} holds another comparison (other {', '.join(different)}): choose another folder")
