"""A comparison as one HTML page that works offline: the finding, the evidence, and how it was made.

In print a still picture replaces the viewer; in dark mode the figures are dark too.
"""

import base64
import html
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any

from sparselens.analyses.circuits.pruning import PrunedCircuit
from sparselens.analyses.comparison.figures import Draw, figures_of, left_out, view
from sparselens.analyses.comparison.finding import Fact, facts, finding
from sparselens.analyses.comparison.results import SIDES, Comparison
from sparselens.analyses.comparison.rows import html_table, percent
from sparselens.analyses.comparison.table import rows_of
from sparselens.analyses.figures.page import filled, write_page
from sparselens.analyses.figures.two_papers import for_both_papers

LARGE, DPI = 300_000, 160  # an SVG of more bytes is replaced by a PNG of this resolution

CAPTIONS = {
    "fig1_tokens": "Attention edges on single prompts: positions from left to right, layers from bottom to top. Above: "
    "the models' predictions (dense/sparse where they differ).",
    "fig2a_loss": "Loss against the share of open attention edges.",
    "fig2b_patterns": "Attention patterns of one prompt, layer by head.",
    "fig3_kept": "Share of the metric kept when only the top heads are active.",
    "fig3_kept_with_mlps": "The same for heads and MLPs in one ranking.",
    "fig4a_edges_needed": "Share of attribution in the largest edges. Dotted: for the mean scores.",
    "fig4b_circuits": "The smallest circuits found that reach the target faithfulness on the prompts they were chosen "
    "on (after pruning, if there was any), or else that hold the given share of attribution. Dead ends are left out.",
    "fig4b_difference": "Edges in only one of these circuits, and in both.",
}
READING = (
    "In brackets: 95 % bootstrap confidence intervals over prompts, which are the same for both models. Faithfulness: "
    "(metric of the circuit - ablated metric) / (metric of the model - ablated metric); for random circuits, the mean "
    "and in brackets the lowest and highest. The share of attribution is a property of the scores, faithfulness one of "
    "the circuit's behaviour, so both are given. Heads needed for 90 % of the metric: the number above which the mean "
    "over prompts stays above 90 %, with heads ranked per prompt or once for all prompts. A head counts as, say, an "
    "induction head if at least 0.4 of its attention on repeated random tokens goes where an induction head attends."
)
HERO, STILL = "fig1_tokens", "fig4b_circuits"  # first figure of the report; figure that replaces the viewer in print
WIDE = ("fig2b_patterns", "fig3_kept", "fig3_kept_with_mlps")


def save_report(comparison: Comparison, path: str | Path, hero: Any = None) -> Path:
    """Write the report."""
    return write_page(path, partial(report_page, comparison, hero))


def report_page(comparison: Comparison, hero: Any = None) -> str:
    """The page as text.

    Args:
        hero: the first figure; default: attention edges on the first prompts
    """
    about, viewer, main = comparison.about, view(comparison), facts(comparison)
    drawings = figures_of(comparison, viewer)
    return filled_report(
        title=f"{about.names[0]} and {about.names[1]}: {about.description}",
        finding=finding(comparison),
        facts=main,
        names=about.names,
        description=_description(comparison),
        notes=about.notes,
        absent=" ".join(left_out(comparison)),
        table=html_table(rows_of(comparison), about.names, [fact.name for fact in main]),
        reading=READING,
        explored="both circuits",
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
        hero: name of the figure at the top
        names: the models that the facts are about, the dense one first
        still: name of the figure that replaces the viewer in print
        table: as HTML; everything else is escaped
        texts: title, finding, description, reading (how to read the table), explored (what the viewer shows), absent
            (which figures are missing, and why) and viewer (its page)
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
    fewer = fact.differs and not fact.ratio.startswith("0")
    text = _safe(f"{fact.ratio} fewer" if fewer else f"dense / sparse {fact.ratio}") if fact.ratio else ""
    ratio = f"<b>{text}</b>" if text and fact.differs else text
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
    """The figure's CSS class and data URL: an SVG, or a PNG if the SVG would be many times larger."""
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
        f"{percent(about.share)} circuit": f"fewest edges with {percent(about.share)} of the sum of |mean scores|",
        **_pruning(comparison),
        **about.versions,
    }


def _made_table(rows: Mapping[str, str]) -> str:
    body = (f"<tr><td>{_safe(name)}</td><td><code>{_safe(value)}</code></td></tr>" for name, value in rows.items())
    return f"<table><tbody>{''.join(body)}</tbody></table>"


def _pruning(comparison: Comparison) -> dict[str, str]:
    """How pruning changed each model's faithful circuit."""
    sides = zip(SIDES, comparison.about.names, strict=True)
    found = {name: getattr(comparison, side).circuits.pruned for side, name in sides}
    return {f"pruned circuit, {name}": _outcome(pruned) for name, pruned in found.items() if pruned is not None}


def _outcome(pruned: PrunedCircuit) -> str:
    left = f"{pruned.untested} not tested individually" if pruned.untested else "none of which can be removed"
    return (
        f"{pruned.start} edges pruned to {len(pruned.circuit)} ({left}) on {len(pruned.chosen_on)} pairs; faithfulness "
        f"on {len(pruned.held_out.clean)} held-out pairs: {pruned.held_out.mean:.2f}"
    )


def _safe(text: str) -> str:
    return html.escape(text)
