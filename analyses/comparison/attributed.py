"""The attribution of one model, from the folder that `sparselens attribute` writes: its figures and its report.

No model is needed: `scores.safetensors` holds the scores of every prompt, `attribute.json` what was printed,
`faithful.json` and `pruned.json` the circuits, and `circuit.html` the page about them.
"""

import html
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from sparselens.analyses.attribution.edge_scores import EdgeScores
from sparselens.analyses.comparison.figures import Draw
from sparselens.analyses.comparison.plots import edges_needed_of_one
from sparselens.analyses.comparison.report import filled_report
from sparselens.analyses.comparison.rows import percent
from sparselens.analyses.figures.viewer import Viewer, circuit_viewer
from sparselens.circuits.circuit import Circuit
from sparselens.files.reading import json_object
from sparselens.files.records import checksum
from sparselens.files.whole import write_file

CARD, SCORES, PRUNED = "attribute.json", "scores.safetensors", "pruned.json"
SAVED = ("mean", "per_prompt", "clean", "corrupted", "clean_prompt")  # fields of the scores
TOLD: dict[str, type] = {  # what the page needs of the card
    **dict.fromkeys(("model", "task", "metric", "method", "ablation"), str),
    **dict.fromkeys(("drawn", "pairs", "edges"), int),
    "circuits": dict,
}
CAPTIONS = {
    "circuit": "The smallest circuit found that reaches the wanted faithfulness on the prompts that chose it.",
    "edges_needed": "Share of attribution in the largest edges; dotted: of the mean scores.",
}
READING = (
    "In brackets: 95 % bootstrap confidence intervals over prompts. Faithfulness: (metric of the circuit - ablated) / "
    "(metric of the model - ablated); for random circuits mean, lowest and highest."
)


@dataclass(frozen=True)
class Attributed:
    """Edge scores of one model, and its circuits."""

    summary: dict[str, Any]  # what the command printed
    scores: EdgeScores
    faithful: Circuit
    page: str  # circuit.html
    pruned: Circuit | None = None

    @property
    def name(self) -> str:
        """The model's."""
        return Path(self.summary["model"]).name

    @cached_property
    def viewer(self) -> Viewer:
        """The circuit alone, without the patterns that the page has."""
        how: dict[str, Any] = {"ablation": self.summary["ablation"], "names": [self.name]}
        if self.pruned is None:
            return circuit_viewer(self.scores, edges=len(self.faithful), **how)
        return circuit_viewer(self.scores, pruned=[(self.pruned, self._pruned_told["faithfulness"])], **how)

    @property
    def _pruned_told(self) -> dict[str, Any]:
        return _told_of_pruned(self.summary) or {}

    def drawings(self) -> dict[str, Draw]:
        """The function that draws each figure, by the name of its file."""
        plot = edges_needed_of_one(self.scores, self.name)
        return {"circuit": self.viewer.save, "edges_needed": plot.save}

    def figures(self, folder: str | Path, form: str = "pdf") -> list[Path]:
        """Draw all figures into a folder."""
        return [draw(Path(folder) / f"{name}.{form}") for name, draw in self.drawings().items()]

    def save_html(self, path: str | Path) -> Path:
        """Write the report: the table, the circuit to explore and the figures in one file that needs no network."""
        told = self.summary
        cells = ((name, kept["edges"], _around(kept)) for name, kept in told["circuits"].items())
        rows = "".join(f"<tr>{''.join(f'<td>{html.escape(str(cell))}</td>' for cell in row)}</tr>" for row in cells)
        head = f"<tr><th>circuit</th><th>edges of {told['edges']:,}</th><th>faithfulness</th></tr>"
        return write_file(
            Path(path),
            filled_report(
                title=f"{self.name}: {told.get('description', told['task'])}",
                finding=self._finding(),
                description=f"{told['pairs']} of {told['drawn']} prompt pairs, {told['metric'].replace('_', ' ')}, "
                f"{told['method']} edge attribution, {told['ablation']} ablation.",
                table=f"<table>{head}{rows}</table>",
                reading=READING,
                explored="The circuit",
                viewer=self.page,
                drawings=self.drawings(),
                still="circuit",
                absent="",
                captions=CAPTIONS,
                made={name: str(told[name]) for name in ("model", "task", "method", "ablation")},
            ).encode(),
        )

    def _finding(self) -> str:
        """The faithful circuit, against random circuits of the same size, and the pruned one."""
        told = self.summary
        circuits = list(told["circuits"].values())
        found = next((c for c in circuits if c["edges"] == len(self.faithful)), circuits[0])
        return (
            f"{found['edges']:,} of {told['edges']:,} edges do {percent(found['faithfulness'])} of what {self.name} "
            f"does; as many random connected ones do {percent(circuits[-1]['faithfulness'])}." + self._pruned_finding()
        )

    def _pruned_finding(self) -> str:
        if self.pruned is None:
            return ""
        kept = percent(self._pruned_told["faithfulness"])
        return f" Pruned to {len(self.pruned):,} edges it does {kept} on prompts that did not choose them."


def is_attribution(folder: str | Path) -> bool:
    """Whether `sparselens attribute` wrote this folder."""
    return (Path(folder) / CARD).is_file()


def load_attribution(folder: str | Path) -> Attributed:
    """What `sparselens attribute` wrote.

    Raises:
        ValueError: a file is missing or holds something else.
    """
    folder = Path(folder)
    try:
        summary = json_object((folder / CARD).read_bytes(), folder / CARD)
        for name, kind in TOLD.items():
            if not isinstance(summary.get(name), kind):
                raise ValueError(f"{CARD} has {summary.get(name)!r:.60} as {name}, want a {kind.__name__}")
        for name, told in summary["circuits"].items():
            if not isinstance(told, dict) or not {"edges", "faithfulness", "interval"} <= told.keys():
                raise ValueError(f"{CARD} has {told!r:.60} as the circuit {name!r}")
        faithful, tensors = Circuit.load(folder / "faithful.json"), _read_scores(folder / SCORES)
        if tensors["mean"].shape != faithful.graph.exists.shape:
            raise ValueError(f"{SCORES} and faithful.json are of different models")
        scores = EdgeScores(faithful.graph, summary["method"], **tensors)
        pruned = None if _told_of_pruned(summary) is None else Circuit.load(folder / PRUNED)
        return Attributed(summary, scores, faithful, (folder / "circuit.html").read_text(encoding="utf-8"), pruned)
    except (OSError, ValueError) as error:
        raise ValueError(f"{folder} does not hold a whole attribution: {error}") from error


def _told_of_pruned(summary: dict[str, Any]) -> dict[str, Any] | None:
    return next((told for told in summary["circuits"].values() if "untested" in told), None)


def save_scores(scores: EdgeScores, path: Path) -> Path:
    """Write every prompt's scores, with the names of their axes and a checksum; equal scores give equal bytes."""
    tensors = {name: value.contiguous() for name in SAVED if (value := getattr(scores, name)) is not None}
    axes: dict[str, Any] = {"sources": scores.sources, "destinations": scores.destinations}
    # one entry: safetensors writes several in any order
    return write_file(path, save(tensors, {"axes": json.dumps(axes | {"checksum": checksum(axes, tensors)})}))


def _read_scores(path: Path) -> dict[str, Any]:
    """The tensors that `save_scores` wrote.

    Raises:
        ValueError: they are damaged, or the file holds something else.
    """
    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys() if name in SAVED}  # noqa: SIM118
            axes = json.loads(file.metadata()["axes"])
        if missing := {*SAVED[:4]} - tensors.keys():
            raise ValueError(f"it has no {min(missing)}")
        if axes.pop("checksum") != checksum(axes, tensors):
            raise ValueError("its checksum is that of other content, so the file is damaged")
    except (SafetensorError, LookupError, TypeError, AttributeError, RecursionError, ValueError) as error:
        raise ValueError(f"{path.name} does not hold edge scores of this version: {error}") from error
    return tensors


def _around(kept: dict[str, Any]) -> str:
    known = [f"{end:.3f}" for end in kept["interval"] if end is not None]
    return f"{kept['faithfulness']:.3f}" + (f" [{', '.join(known)}]" if known[1:] else "")
