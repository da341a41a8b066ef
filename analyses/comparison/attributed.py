"""Figures and report of one model's attribution, from the folder that `sparselens attribute` writes.

No model is needed: `scores.safetensors` holds the per-prompt scores, `attribute.json` the printed results,
`faithful.json` and `pruned.json` the circuits, and `circuit.html` the interactive page about them.
"""

import html
import json
import math
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
from sparselens.analyses.figures.page import write_page
from sparselens.analyses.figures.viewer import Viewer, circuit_viewer
from sparselens.circuits.circuit import Circuit
from sparselens.files.reading import json_object
from sparselens.files.records import checksum
from sparselens.files.whole import write_file

CARD, SCORES, PRUNED = "attribute.json", "scores.safetensors", "pruned.json"
SAVED = ("mean", "per_prompt", "clean", "corrupted", "clean_prompt")  # saved fields of EdgeScores
NEEDED: dict[str, type] = {  # entries of the card that the report needs
    **dict.fromkeys(("model", "task", "metric", "method", "ablation"), str),
    **dict.fromkeys(("drawn", "pairs", "edges"), int),
    "circuits": dict,
}
CAPTIONS = {
    "circuit": "The smallest circuit found that reaches the target faithfulness on the prompts it was chosen on.",
    "edges_needed": "Share of attribution in the largest edges. Dotted: for the mean scores.",
}
READING = (
    "In brackets: 95 % bootstrap confidence intervals over prompts. Faithfulness: (metric of the circuit - ablated "
    "metric) / (metric of the model - ablated metric); for random circuits, the mean and in brackets the lowest and "
    "highest."
)


@dataclass(frozen=True)
class Attributed:
    """Edge scores of one model, and its circuits."""

    summary: dict[str, Any]  # contents of attribute.json
    scores: EdgeScores
    faithful: Circuit
    page: str  # circuit.html
    pruned: Circuit | None = None

    @property
    def name(self) -> str:
        """Name of the model."""
        return Path(self.summary["model"]).name

    @cached_property
    def viewer(self) -> Viewer:
        """The circuit alone, without the attention patterns that the page has."""
        how: dict[str, Any] = {"ablation": self.summary["ablation"], "names": [self.name]}
        if self.pruned is None:
            return circuit_viewer(self.scores, edges=len(self.faithful), **how)
        return circuit_viewer(self.scores, pruned=[(self.pruned, self._pruned_faithfulness)], **how)

    @property
    def _pruned_faithfulness(self) -> float:
        entry = _pruned_entry(self.summary)
        return math.nan if entry is None else entry["faithfulness"]

    def drawings(self) -> dict[str, Draw]:
        """The function that draws each figure, by file name."""
        plot = edges_needed_of_one(self.scores, self.name)
        return {"circuit": self.viewer.save, "edges_needed": plot.save}

    def figures(self, folder: str | Path, form: str = "pdf") -> list[Path]:
        """Draw all figures into a folder."""
        return [draw(Path(folder) / f"{name}.{form}") for name, draw in self.drawings().items()]

    def save_html(self, path: str | Path) -> Path:
        """Write the report: the table, the interactive circuit and the figures in one HTML file that works offline."""
        return write_page(path, self._report)

    def _report(self) -> str:
        card = self.summary
        cells = ((name, circuit["edges"], _with_interval(circuit)) for name, circuit in card["circuits"].items())
        rows = "".join(f"<tr>{''.join(f'<td>{html.escape(str(cell))}</td>' for cell in row)}</tr>" for row in cells)
        head = f"<tr><th>circuit</th><th>edges of {card['edges']:,}</th><th>faithfulness</th></tr>"
        return filled_report(
            title=f"{self.name}: {card.get('description', card['task'])}",
            finding=self._finding(),
            description=f"{card['pairs']} of {card['drawn']} prompt pairs, {card['metric'].replace('_', ' ')}, "
            f"{card['method']} edge attribution, {card['ablation']} ablation.",
            table=f"<table>{head}{rows}</table>",
            reading=READING,
            explored="the circuit",
            viewer=self.page,
            drawings=self.drawings(),
            still="circuit",
            absent="",
            captions=CAPTIONS,
            made={name: str(card[name]) for name in ("model", "task", "method", "ablation")},
        )

    def _finding(self) -> str:
        """The faithful circuit, compared with random circuits of the same size, and the pruned circuit."""
        circuits = list(self.summary["circuits"].values())
        found = next((c for c in circuits if c["edges"] == len(self.faithful)), circuits[0])
        finding = (
            f"{found['edges']:,} of {self.summary['edges']:,} edges do {percent(found['faithfulness'])} of what "
            f"{self.name} does; random connected circuits of that size do {percent(circuits[-1]['faithfulness'])}."
        )
        if self.pruned is None:
            return finding
        kept = percent(self._pruned_faithfulness)
        return f"{finding} Pruned to {len(self.pruned):,} edges, the circuit does {kept} on held-out prompts."


def is_attribution(folder: str | Path) -> bool:
    """Whether the folder was written by `sparselens attribute`."""
    return (Path(folder) / CARD).is_file()


def load_attribution(folder: str | Path) -> Attributed:
    """Read what `sparselens attribute` wrote.

    Raises:
        ValueError: a file is missing, or does not hold what it should.
    """
    folder = Path(folder)
    try:
        summary = json_object((folder / CARD).read_bytes(), folder / CARD)
        for name, kind in NEEDED.items():
            if not isinstance(summary.get(name), kind):
                raise ValueError(f"{CARD} has {summary.get(name)!r:.60} as {name}, want a {kind.__name__}")
        for name, entry in summary["circuits"].items():
            if not isinstance(entry, dict) or not {"edges", "faithfulness", "interval"} <= entry.keys():
                raise ValueError(f"{CARD} has {entry!r:.60} as the circuit {name!r}")
        faithful, tensors = Circuit.load(folder / "faithful.json"), _read_scores(folder / SCORES)
        if tensors["mean"].shape != faithful.graph.exists.shape:
            raise ValueError(f"{SCORES} and faithful.json are of different models")
        scores = EdgeScores(faithful.graph, summary["method"], **tensors)
        pruned = None if _pruned_entry(summary) is None else Circuit.load(folder / PRUNED)
        return Attributed(summary, scores, faithful, (folder / "circuit.html").read_text(encoding="utf-8"), pruned)
    except (OSError, ValueError) as error:
        raise ValueError(f"{folder} does not hold a complete attribution: {error}") from error


def _pruned_entry(summary: dict[str, Any]) -> dict[str, Any] | None:
    return next((entry for entry in summary["circuits"].values() if "untested" in entry), None)


def save_scores(scores: EdgeScores, path: Path) -> Path:
    """Write per-prompt scores, with the names along their axes and a checksum; equal scores give equal bytes."""
    tensors = {name: value.contiguous() for name in SAVED if (value := getattr(scores, name)) is not None}
    axes: dict[str, Any] = {"sources": scores.sources, "destinations": scores.destinations}
    # all metadata in one entry, since safetensors writes entries in arbitrary order
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
            raise ValueError("its checksum does not match its content, so the file is damaged")
    except (SafetensorError, LookupError, TypeError, AttributeError, RecursionError, ValueError) as error:
        raise ValueError(f"{path.name} does not hold edge scores that this version can read: {error}") from error
    return tensors


def _with_interval(circuit: dict[str, Any]) -> str:
    """The circuit's faithfulness, with its interval if both ends are known."""
    ends = [f"{end:.3f}" for end in circuit["interval"] if end is not None]
    return f"{circuit['faithfulness']:.3f}" + (f" [{', '.join(ends)}]" if len(ends) == 2 else "")
