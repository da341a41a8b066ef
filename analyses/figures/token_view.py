"""The token x layer drawing (the paper's Fig. 1): a column per prompt, a line per attention edge, dense above sparse.

`token_view` takes results, never models, and computes one layout: `save` draws it with matplotlib, `save_html` writes
the interactive page, `show` displays the page in a notebook.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path as FilePath
from typing import Any

from sparselens.analyses.attribution.attention_edges import AttentionEdges
from sparselens.analyses.engine.renamed import renamed_argument
from sparselens.analyses.figures.given import model_names, refuse_others
from sparselens.analyses.figures.notebook import Page, framed
from sparselens.analyses.figures.paper import form_of
from sparselens.analyses.figures.token_layout import Layout, Prompt, Row, lay_out
from sparselens.analyses.figures.token_page import token_page
from sparselens.files.whole import write_file

DRAWN = 5000  # edges per panel


@dataclass(frozen=True, repr=False)
class TokenView(Page):
    """The layout of a token x layer drawing, and its page; see `token_view`."""

    layout: Layout
    title: str

    def __repr__(self) -> str:
        n = len(self.layout.panels)
        return f"TokenView({self.title!r}, {n} panel{'s' * (n > 1)})"

    def save(self, path: str | FilePath, dpi: int = 300) -> FilePath:
        """Write a .pdf, .svg or .png, 6.75 inches wide, either completely or not at all."""
        path = FilePath(path)
        return write_file(path, self._drawn(form_of(path), dpi))

    @cached_property
    def html(self) -> str:
        """The interactive page."""
        return token_page(self.layout, self.title)

    def _repr_html_(self) -> str:
        return framed(self.html, self._drawn("png", dpi=160), self.title, room="11em")

    def _drawn(self, kind: str, dpi: int) -> bytes:
        from sparselens.analyses.figures.token_drawing import draw_tokens

        return draw_tokens(self.layout, kind, dpi)


@renamed_argument("dense", "edges")
@renamed_argument("sparse", "other")
def token_view(
    edges: AttentionEdges,
    other: AttentionEdges | None = None,
    tokens: Sequence[Sequence[str]] = (),
    *,
    titles: Sequence[str] | None = None,
    outputs: Sequence[Sequence[str]] | None = None,
    arrows: Sequence[Sequence[tuple[int, int]]] | None = None,
    row_names: Sequence[str] | None = None,
    title: str = "Attention edges",
    arrow_name: str = "carry",
    dense_threshold: float = 0.0,
    max_edges: int = DRAWN,
) -> TokenView:
    """Lay out the attention edges of a model on a few prompts, or of a dense model above those of a sparse one.

    >>> token_view(attention_edges(model, pairs[:2]), tokens=pairs.token_strings[:2])

    Args:
        other: attention edges of a second model, drawn below the first.
        tokens: for every prompt, the strings written below its positions.
        titles: a heading for every prompt.
        outputs: for every prompt, the strings written above its positions, such as the model's answers; "" for none.
        arrows: for every prompt, (from, to) positions of arrows drawn above it, such as the carries of a sum.
        row_names: names of the models; default: model, or dense and sparse.
        arrow_name: what the legend says about the arrows.
        dense_threshold: smallest attention weight drawn in the first row; the page has a slider for it.
        max_edges: at most this many edges are drawn per panel, the strongest. Headers give the full number.

    Raises:
        ValueError: edges, tokens, titles, outputs and arrows differ in the number of prompts or in shape.
    """
    refuse_others(AttentionEdges, edges, other)
    columns = [
        Prompt(prompt, *rest)
        for prompt, *rest in zip(
            tokens,
            _for_each("titles", titles, "", tokens),
            _for_each("outputs", outputs, (), tokens),
            _for_each("arrows", arrows, (), tokens),
            strict=True,
        )
    ]
    every = [edges] if other is None else [edges, other]
    _check_shapes(every, columns)
    names = model_names(row_names, len(every))
    rows = [Row(name, one, dense_threshold * (one is edges)) for name, one in zip(names, every, strict=True)]
    return TokenView(lay_out(rows, columns, arrow_name, max_edges), title)


def _for_each(name: str, given: Sequence[Any] | None, default: Any, tokens: Sequence[Any]) -> Sequence[Any]:
    if given is not None and len(given) != len(tokens):
        raise ValueError(f"{len(given)} {name} for {len(tokens)} prompts: want one per prompt")
    return [default] * len(tokens) if given is None else given


def _check_shapes(every: Sequence[AttentionEdges], columns: Sequence[Prompt]) -> None:
    dense = every[0]
    shapes = [(edges.n_prompts, edges.n_layers, edges.n_heads, edges.n_pos) for edges in every]
    if shapes[0] != shapes[-1]:
        raise ValueError(
            f"dense and sparse edges differ in (prompts, layers, heads, positions): {shapes[0]}, {shapes[1]}"
        )
    if not columns or len(columns) != dense.n_prompts:
        raise ValueError(f"tokens of {len(columns)} prompts for edges of {dense.n_prompts} prompts: want as many")
    for prompt in columns:
        if len(prompt.tokens) != dense.n_pos or len(prompt.outputs) not in (0, dense.n_pos):
            raise ValueError(
                f"{len(prompt.tokens)} tokens and {len(prompt.outputs)} outputs for {dense.n_pos} positions: "
                f"{''.join(prompt.tokens)!r}"
            )
        if any(not 0 <= position < dense.n_pos for arrow in prompt.arrows for position in arrow):
            raise ValueError(f"arrows {prompt.arrows}: want positions from 0 to {dense.n_pos - 1}")
