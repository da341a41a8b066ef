"""All figures of a comparison, by name: drawn for a paper or shown in the viewer."""

from collections.abc import Callable
from functools import partial
from math import isfinite
from pathlib import Path

from sparselens.analyses.comparison.model_results import CircuitRuns
from sparselens.analyses.comparison.plots import edges_needed_plot, kept_plot, loss_plot
from sparselens.analyses.comparison.results import SIDES, Comparison
from sparselens.analyses.figures.paper import FORMATS
from sparselens.analyses.figures.pattern_drawing import pattern_figure
from sparselens.analyses.figures.plot import Plot
from sparselens.analyses.figures.plot_drawing import save_plots
from sparselens.analyses.figures.token_view import TokenView, token_view
from sparselens.analyses.figures.viewer import Viewer, circuit_viewer
from sparselens.files.whole import write_file
from sparselens.names import unknown

ACROSS = 36  # positions that fit side by side in Fig. 1

Draw = Callable[..., Path]  # draw(path, dpi=300)


def plots_of(comparison: Comparison) -> list[Plot]:
    """All plots that this comparison has the data for."""
    return [*loss_plots(comparison), *kept_plots(comparison), edges_needed_plot(comparison)]


def loss_plots(comparison: Comparison) -> list[Plot]:
    """Fig. 2a, if the loss was measured on text rather than on the task's answers (see `left_out`)."""
    about = comparison.about
    return [] if left_out(comparison) else [loss_plot(comparison.loss.points, about.names, about.loss)]


def left_out(comparison: Comparison) -> tuple[str, ...]:
    """Which figures are not drawn, and what to pass to get them."""
    if comparison.about.loss != "the answers":
        return ()
    return (
        "Fig. 2a, loss against open edges, is not drawn: the loss was measured only on the task's answers, on few "
        "prompts. To get the figure, pass rows of tokens as text=... to compare, or --text FILE on the command line.",
    )


def kept_plots(comparison: Comparison) -> list[Plot]:
    """Fig. 3: heads alone, and heads with MLPs; each ranked per prompt and once for all prompts."""
    parts = [part for part in ("heads", "heads_once", "components", "components_once") if _has_shares(comparison, part)]
    return [kept_plot(comparison, part) for part in parts]


def _has_shares(comparison: Comparison, part: str) -> bool:
    """Whether both models have these components, and every share of the metric is defined."""
    kept = [getattr(model.kept, part) for model in (comparison.dense, comparison.sparse)]
    return None not in kept and all(bool(found.shares.isfinite().all()) for found in kept)


def tokens_view(comparison: Comparison) -> TokenView:
    """Fig. 1: the attention edges of as many prompts as fit on a page."""
    attention = (comparison.dense.attention, comparison.sparse.attention)
    prompts = comparison.about.prompts[: prompts_across(comparison)]
    dense, sparse = (edges.first(len(prompts)) for edges in attention)
    return token_view(
        dense,
        sparse,
        [list(prompt.tokens) for prompt in prompts],
        outputs=[prompt.outputs for prompt in prompts],
        titles=[prompt.title for prompt in prompts],
        row_names=comparison.about.names,
    )


def prompts_across(comparison: Comparison) -> int:
    """How many prompts fit on a page."""
    return min(max(1, ACROSS // comparison.dense.attention.n_pos), len(comparison.about.prompts))


def view(comparison: Comparison) -> Viewer:
    """Both circuits, linked, with everything else that the comparison shows."""
    prompts, about = comparison.about.prompts, comparison.about
    return circuit_viewer(
        comparison.dense.edges,
        comparison.sparse.edges,
        share=about.share,
        faithful=[_faithful(getattr(comparison, side).circuits) for side in SIDES],
        pruned=[getattr(comparison, side).circuits.pruned for side in SIDES],
        ablation=about.ablation,
        names=about.names,
        title=f"{about.names[0]} and {about.names[1]}: {about.description}",
        attention=(comparison.dense.attention, comparison.sparse.attention),
        tokens=[list(prompt.tokens) for prompt in prompts],
        outputs=[prompt.outputs for prompt in prompts],
        titles=[prompt.title for prompt in prompts],
        labels=(comparison.dense.labels.labels(), comparison.sparse.labels.labels()),
        plots=plots_of(comparison),
    )


def _faithful(runs: CircuitRuns) -> tuple[int, float] | None:
    if runs.faithful_edges is None or not isfinite(runs.faithful.mean):  # clean and ablated runs score the same
        return None
    return runs.faithful_edges, runs.faithful.mean


def figures_of(comparison: Comparison, viewer: Viewer | None = None) -> dict[str, Draw]:
    """The function that draws each figure, by file name.

    Args:
        viewer: the comparison's viewer, if it has already been built
    """
    viewer = viewer or view(comparison)
    patterns = pattern_figure(
        comparison.dense.attention,
        comparison.sparse.attention,
        [prompt.tokens for prompt in comparison.about.prompts],
        names=comparison.about.names,
    )
    kept = kept_plots(comparison)
    return {
        "fig1_tokens": tokens_view(comparison).save,
        **{f"fig2a_{plot.name}": plot.save for plot in loss_plots(comparison)},
        "fig2b_patterns": patterns.save,
        **({"fig3_kept": partial(save_plots, kept[:2])} if kept else {}),
        **({"fig3_kept_with_mlps": partial(save_plots, kept[2:])} if kept[2:] else {}),
        "fig4a_edges_needed": edges_needed_plot(comparison).save,
        "fig4b_circuits": viewer.save,
        "fig4b_difference": partial(viewer.save, view="difference"),
    }


def draw_all(comparison: Comparison, folder: str | Path, form: str = "pdf") -> list[Path]:
    """Draw every figure of the paper into a folder, and write the table in three formats.

    Raises:
        ValueError: figures cannot be drawn in this format.
    """
    refuse_unknown_form(form)
    folder = Path(folder)
    drawn = [draw(folder / f"{name}.{form}") for name, draw in figures_of(comparison).items()]
    return [*drawn, *write_tables(comparison, folder)]


def refuse_unknown_form(form: str) -> None:
    """Raise a ValueError unless figures can be drawn in this format."""
    if form not in FORMATS:
        raise unknown("form of a figure", form, FORMATS)


def write_tables(comparison: Comparison, folder: Path) -> list[Path]:
    """Write the table as CSV, Markdown and LaTeX."""
    texts = {
        "table.csv": comparison.table().to_csv(),
        "table.md": comparison.table("markdown"),
        "table.tex": comparison.table("latex"),
    }
    return [write_file(folder / name, text.encode()) for name, text in texts.items()]
