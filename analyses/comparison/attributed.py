"""The attribution of one model as a folder, as `sparselens attribute` writes it: its figures and its report.

No model is needed: `scores.safetensors` holds the scores of every prompt, `attribute.json` what was printed,
`faithful.json` the circuit, and `circuit.html` the page about it.
"""

import html
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from sparselens.analyses.attribution.edge_scores import EdgeScores
from sparselens.analyses.comparison.figures import Draw
from sparselens.analyses.comparison.plots import edges_needed_of_one
from sparselens.analyses.comparison.report import filled_report
from sparselens.analyses.comparison.rows import percent
from sparselens.analyses.figures.viewer import Viewer, circuit_viewer
from sparselens.circuits.circuit import Circuit
from sparselens.files.whole import write_file

CARD = "attribute.json"
SAVED = ("mean", "per_prompt", "clean", "corrupted")  # fields of the scores
CAPTIONS = {
    "circuit": "The smallest circuit found that is as faithful as was asked for.",
    "edges_needed": "Share of attribution in the largest edges; dotted: of the mean scores.",
}
READING = (
    "In brackets: 95 % bootstrap confidence intervals over prompts. Faithfulness: (metric of the circuit - metric of "
    "nothing) / (metric of the model - metric of nothing); of random circuits mean, lowest and highest."
)


@dataclass(frozen=True)
class Attributed:
    """Edge scores of one model, and its circuit."""

    summary: dict[str, Any]  # what the command printed
    scores: EdgeScores
    faithful: Circuit
    page: str  # circuit.html

    @property
    def name(self) -> str:
        """The model's."""
        return Path(self.summary["model"]).name

    @cached_property
    def viewer(self) -> Viewer:
        """The circuit alone, without the patterns that the page has."""
        ablation = self.summary["ablation"]
        return circuit_viewer(self.scores, edges=len(self.faithful), ablation=ablation, names=[self.name])

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
        """The faithful circuit, against circuits at random of the same size."""
        told = self.summary
        circuits = list(told["circuits"].values())
        found = next((c for c in circuits if c["edges"] == len(self.faithful)), circuits[0])
        return (
            f"{found['edges']:,} of {told['edges']:,} edges do {percent(found['faithfulness'])} of what {self.name} "
            f"does; as many connected at random do {percent(circuits[-1]['faithfulness'])}."
        )


def is_attribution(folder: str | Path) -> bool:
    """Whether `sparselens attribute` wrote this folder."""
    return (Path(folder) / CARD).is_file()


def load_attribution(folder: str | Path) -> Attributed:
    """What `sparselens attribute` wrote.

    Raises:
        ValueError: a file is missing or holds something else.
    """
    from safetensors.torch import load_file

    folder = Path(folder)
    try:
        summary = json.loads((folder / CARD).read_text(encoding="utf-8"))
        faithful, tensors = Circuit.load(folder / "faithful.json"), load_file(folder / "scores.safetensors")
        saved: dict[str, Any] = {name: tensors[name] for name in SAVED}
        scores = EdgeScores(faithful.graph, summary["method"], **saved)
        return Attributed(summary, scores, faithful, (folder / "circuit.html").read_text(encoding="utf-8"))
    except (OSError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"{folder} does not hold a whole attribution: {error}") from error


def _around(kept: dict[str, Any]) -> str:
    known = [f"{end:.3f}" for end in kept["interval"] if end is not None]
    return f"{kept['faithfulness']:.3f}" + (f" [{', '.join(known)}]" if known[1:] else "")
