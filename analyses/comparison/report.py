"""A comparison as one HTML page that needs no network: what was found, the evidence, and how it was made.

In print a picture replaces the viewer; on a dark screen the figures are dark, too.
"""

import base64
import html
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from sparselens.analyses.circuits.pruning import PrunedCircuit
from sparselens.analyses.comparison.figures import Draw, figures_of, left_out, view
from sparselens.analyses.comparison.finding import Fact, facts, finding
from sparselens.analyses.comparison.results import SIDES, Comparison
from sparselens.analyses.comparison.rows import html_table, percent
from sparselens.analyses.comparison.table import rows_of
from sparselens.analyses.figures.page import filled
from sparselens.analyses.figures.two_papers import for_both_papers
from sparselens.files.whole import write_file

LARGE, DPI = 300_000, 160  # bytes of an SVG above which a PNG takes its place

CAPTIONS = {
    "fig1_tokens": "Attention edges on single prompts: positions left to right, layers upward; above, what the models "
    "predict (dense/sparse where they differ).",
    "fig2a_loss": "Loss against the share of open attention edges.",
    "fig2b_patterns": "Attention patterns of one prompt, layer by head.",
    "fig3_kept": "Share of the metric kept when only the top heads act.",
    "fig3_kept_with_mlps": "The same for heads and MLPs in one ranking.",
    "fig4a_edges_needed": "Share of attribution in the largest edges; dotted: of the mean scores.",
    "fig4b_circuits": "The fewest edges found that reach the wanted faithfulness on the prompts that chose them "
    "(pruned circuits, if there are), or else hold the given share of attribution; dead ends are left out.",
    "fig4b_difference": "Edges in one of these circuits only, and in both.",
}
READING = (
    "In brackets: 95 % bootstrap confidence intervals over prompts, which are the same for both models. Faithfulness: "
    "(metric of the circuit - ablated) / (metric of the model - ablated); random circuits: mean, lowest and highest. "
    "The share of attribution is a property of the scores, faithfulness of the circuit's behaviour, so both are given. "
    "Heads for 90 % of the metric: the number from which on the mean over prompts stays above 90 %, with heads ranked "
    "for every prompt or once for all. A head counts as, say, an induction head if at least 0.4 of its attention on "
    "repeated random tokens goes where an induction head attends."
)
HERO, STILL = "fig1_tokens", "fig4b_circuits"  # what a comparison begins with; what stands for the viewer on paper
WIDE = ("fig2b_patterns", "fig3_kept", "fig3_kept_with_mlps")


def save_report(comparison: Comparison, path: str | Path, hero: Any = None) -> Path:
    """Write the report, completely or not at all."""
    return write_file(Path(path), report_page(comparison, hero).encode())


def report_page(comparison: Comparison, hero: Any = None) -> str:
    """The page as text.

    Args:
        hero: the first picture; default: attention edges on the first prompts
    """
    about, viewer, known = comparison.about, view(comparison), facts(comparison)
    drawings = figures_of(comparison, viewer)
    return filled_report(
        title=f"{about.names[0]} and {about.names[1]}: {about.description}",
        finding=finding(comparison),
        facts=known,
        names=about.names,
        description=_description(comparison),
        notes=about.notes,
        absent=" ".join(left_out(comparison)),
        table=html_table(rows_of(comparison), about.names, [fact.name for fact in known]),
        reading=READING,
        explored="Both circuits",
        viewer=viewer.html,
        drawings=drawings if hero is None else {**drawings, HERO: hero.save},
        hero=HERO,
        still=STILL,
        captions=CAPTIONS,
        made=_made(comparison),
    )


def filled_report(
    *,
    drawings: Mapping[str, Draw],
    captions: Mapping[str, str],
    still: str,
    made: Mapping[str, str],
    table: str,
    hero: str | None = None,
    facts: Sequence[Fact] = (),
    names: Sequence[str] = (),
    notes: Sequence[str] = (),
    **texts: str,
) -> str:
    """The page of a comparison, or of one model's circuit.

    Args:
        hero: name of the drawing that it begins with
        names: of the models that the facts are about, the dense one first
        still: name of the drawing that stands for the viewer on paper
        table: as HTML; everything else is escaped
        texts: title, finding, description, what to know when reading the table, what is explored, which figures are
            absent, and the viewer's page
    """
    figures = dict(_figures(drawings, captions))
    filling = {
        "notes": "".join(f'<p class="note">{_safe(note)}</p>' for note in notes),
        "models": "".join(f"<span>{_safe(name)}</span>" for name in names),
        "facts": "".join(map(_fact, facts)),
        "hero": figures.pop(hero) if hero else "",
        "still": figures.pop(still),
        "table": table,
        "figures": "".join(figures.values()),
        "made": _made_table(made),
        **{name: _safe(text) for name, text in texts.items()},
    }
    template = files("sparselens.analyses.comparison").joinpath("report.html").read_text(encoding="utf-8")
    return filled(template, filling)


def _fact(fact: Fact) -> str:
    fewer = f"{fact.ratio} fewer" if not fact.ratio.startswith("0") else f"dense / sparse {fact.ratio}"
    ratio = f"<b>{_safe(fewer)}</b>" if fact.ratio else ""
    return f"<div><dt>{_safe(fact.name)}</dt><dd>{_safe(fact.dense)}</dd><dd>{_safe(fact.sparse)} {ratio}</dd></div>"


def _description(comparison: Comparison) -> str:
    solved, about = comparison.solved, comparison.about
    n_pairs = int(solved.kept.sum())
    different = len(solved.clean_prompt[solved.kept].unique())
    chosen = "all" if n_pairs == len(solved.kept) else "those that both models solve"
    return (
        f"{n_pairs} of {len(solved.kept)} prompt pairs ({chosen}), {different} clean prompts, "
        f"{about.metric.replace('_', ' ')}, {about.method} edge attribution, {about.ablation} ablation."
    )


def _figures(drawings: Mapping[str, Draw], captions: Mapping[str, str]) -> Iterable[tuple[str, str]]:
    with tempfile.TemporaryDirectory() as folder:
        for name, draw in drawings.items():
            wide = ' class="full"' if name in WIDE else ""
            caption = _safe(captions[name])
            kind, picture = _picture(draw, Path(folder) / name)
            image = f'<img class="{kind}" alt="{caption}" src="{picture}">'
            yield name, f"<figure{wide}>{image}<figcaption>{caption}</figcaption></figure>"


def _picture(draw: Draw, path: Path) -> tuple[str, str]:
    """The figure as a data URL: as SVG, or as PNG where thousands of lines would make that many times larger."""
    drawn = draw(path.with_suffix(".svg"))
    if drawn.stat().st_size <= LARGE:
        return "drawn", _data_url("image/svg+xml", for_both_papers(drawn.read_text(encoding="utf-8")).encode())
    return "painted", _data_url("image/png", draw(path.with_suffix(".png"), dpi=DPI).read_bytes())


def _data_url(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def _made(comparison: Comparison) -> dict[str, str]:
    about = comparison.about
    return {
        "task": about.task,
        "command": about.command or "called from Python",
        "seed": str(about.seed),
        "circuit": f"fewest edges with {percent(about.share)} of the sum of |mean scores|",
        **_pruning(comparison),
        **about.versions,
    }


def _made_table(rows: Mapping[str, str]) -> str:
    cells_ = (f"<tr><td>{_safe(name)}</td><td><code>{_safe(value)}</code></td></tr>" for name, value in rows.items())
    return f"<table><tbody>{''.join(cells_)}</tbody></table>"


def _pruning(comparison: Comparison) -> dict[str, str]:
    """What pruning made of each model's faithful circuit."""
    sides = zip(SIDES, comparison.about.names, strict=True)
    found = {name: getattr(comparison, side).circuits.pruned for side, name in sides}
    return {f"pruned circuit, {name}": _said(pruned) for name, pruned in found.items() if pruned is not None}


def _said(pruned: PrunedCircuit) -> str:
    left = f"{pruned.untested} not yet tried alone" if pruned.untested else "none of which can be removed"
    return (
        f"{pruned.start} edges pruned to {len(pruned.circuit)} ({left}) on {len(pruned.chosen_on)} pairs; faithfulness "
        f"on {len(pruned.held_out.clean)} other pairs {pruned.held_out.mean:.2f}"
    )


def _safe(text: str) -> str:
    return html.escape(text)
