"""A comparison as one HTML page: tables, figures and viewer, the command, versions and seeds; no network is asked."""

import base64
import html
import re
import tempfile
from collections.abc import Iterable
from importlib.resources import files
from pathlib import Path

from sparselens.analyses.comparison.figures import Draw, figures_of, view
from sparselens.analyses.comparison.results import Comparison
from sparselens.analyses.comparison.table import percent
from sparselens.files.whole import write_file

LARGE, DPI = 300_000, 160  # bytes of an SVG above which a PNG takes its place

CAPTIONS = {
    "fig1_tokens": "Attention edges on single prompts: positions left to right, layers upward.",
    "fig2a_loss": "Loss against the share of open attention edges.",
    "fig2b_patterns": "Attention patterns of one prompt, layer by head.",
    "fig3_kept": "Share of the metric kept when only the top heads act.",
    "fig3_kept_with_mlps": "The same for heads and MLPs in one order.",
    "fig4a_edges_needed": "Share of attribution that the largest edges hold; dotted: of the mean scores.",
    "fig4b_circuits": "The edges that hold the share of attribution that the paper's rule asks for.",
    "fig4b_difference": "Edges of one circuit alone, and of both.",
}
WIDE = ("fig1_tokens", "fig2b_patterns", "fig3_kept", "fig3_kept_with_mlps", "fig4b_circuits")
READING = (
    "In brackets: 95 % intervals over different clean prompts (Wilson's of shares, else bootstrap), which are the same "
    "for both models. Faithfulness: (metric of the circuit - metric of nothing) / (metric of the model - metric of "
    "nothing); random edges are one draw. A share of attribution depends on scores alone; what a circuit does is told "
    "by its faithfulness, so both are printed. Heads for 90 %: from how many on the mean over prompts stays above it, "
    "whether each prompt has its own best heads or all have the same. Heads count as of a kind when at least 0.4 of "
    "their attention on repeated random tokens is where that kind looks."
)


def save_report(comparison: Comparison, path: str | Path) -> Path:
    """Write the report; whole or not at all."""
    return write_file(Path(path), report_page(comparison).encode())


def report_page(comparison: Comparison) -> str:
    """The page as text."""
    about = comparison.about
    filling = {
        "title": _safe(f"{about.names[0]} and {about.names[1]}: {about.description}"),
        "description": _safe(_description(comparison)),
        "notes": "".join(f'<p class="note">{_safe(note)}</p>' for note in about.notes),
        "table": comparison.table("html"),
        "reading": _safe(READING),
        "viewer": _safe(view(comparison).html),
        "figures": "".join(_figures(comparison)),
        "made": _made(comparison),
    }
    template = files("sparselens.analyses.comparison").joinpath("report.html").read_text(encoding="utf-8")
    return re.sub(r"\{\{(\w+)\}\}", lambda place: filling[place[1]], template)


def _description(comparison: Comparison) -> str:
    solved, about = comparison.solved, comparison.about
    asked = int(solved.asked.sum())
    different = len(solved.clean_prompt[solved.asked].unique())
    chosen = "all" if asked == len(solved.asked) else "those that both models get right"
    return (
        f"{asked} of {len(solved.asked)} prompt pairs ({chosen}), {different} clean prompts, "
        f"{about.metric.replace('_', ' ')}, {about.method} edge attribution, {about.ablation} ablation."
    )


def _figures(comparison: Comparison) -> Iterable[str]:
    with tempfile.TemporaryDirectory() as folder:
        for name, draw in figures_of(comparison).items():
            wide = ' class="full"' if name in WIDE else ""
            caption = _safe(CAPTIONS[name])
            picture = _picture(draw, Path(folder) / name)
            yield f'<figure{wide}><img alt="{caption}" src="{picture}"><figcaption>{caption}</figcaption></figure>'


def _picture(draw: Draw, path: Path) -> str:
    """The figure as a data URL: as SVG, or as PNG where thousands of lines would make that many times larger."""
    drawn = draw(path.with_suffix(".svg"))
    kind = "image/svg+xml"
    if drawn.stat().st_size > LARGE:
        drawn, kind = draw(path.with_suffix(".png"), dpi=DPI), "image/png"
    return f"data:{kind};base64,{base64.b64encode(drawn.read_bytes()).decode()}"


def _made(comparison: Comparison) -> str:
    about = comparison.about
    rows = {
        "task": about.task,
        "command": about.command or "called from Python",
        "seed": str(about.seed),
        "circuit": f"fewest edges with {percent(about.share)} of the sum of |mean scores|",
        **about.versions,
    }
    cells_ = (f"<tr><td>{_safe(name)}</td><td><code>{_safe(value)}</code></td></tr>" for name, value in rows.items())
    return f"<table><tbody>{''.join(cells_)}</tbody></table>"


def _safe(text: str) -> str:
    return html.escape(text)
