"""The attention pattern of one head as circuitsvis' interactive view, made to work offline and safely.

circuitsvis' `str(view)` loads its script from a CDN, while `local_src` contains the script itself. The page forbids all
network requests, tokens cannot end its script block, and in a notebook it runs in a sandboxed frame.
"""

import html
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from sparselens.analyses.attribution.attention_edges import AttentionEdges
from sparselens.analyses.figures.given import refuse_others
from sparselens.analyses.figures.notebook import Page
from sparselens.analyses.figures.page import filled, read
from sparselens.analyses.figures.pattern_drawing import check_head, pattern_of
from sparselens.analyses.figures.token_layout import printable


@dataclass(frozen=True)
class HeadPattern(Page):
    """The pattern of a head as an interactive page; see `head_pattern`."""

    html: str = field(repr=False)

    def _repr_html_(self) -> str:
        return (
            '<div><iframe style="width:100%; max-width:700px; height:760px; border:0; background:white" '
            'sandbox="allow-scripts" '
            f'srcdoc="{html.escape(self.html)}"></iframe></div>'
        )


def head_pattern(
    edges: AttentionEdges, tokens: Sequence[Sequence[str]], prompt: int, layer: int, head: int
) -> HeadPattern:
    """The attention pattern of one head on one prompt, drawn by circuitsvis.

    >>> head_pattern(attention_edges(model, pairs.clean), tokens, prompt=0, layer=1, head=3)

    Args:
        tokens: the token strings of every prompt, as for `token_view`.

    Raises:
        ValueError: edges and tokens do not match, or there is no such prompt or head.
    """
    from circuitsvis.attention import attention_pattern

    refuse_others(AttentionEdges, edges)
    check_head(edges, layer, head)
    pattern = pattern_of(edges, tokens, prompt)[layer, head]
    seen = [printable(token) for token in tokens[prompt]]
    # replace the random element id, so that the same pattern gives the same page
    view = attention_pattern(tokens=[], attention=pattern, min_value=0.0, max_value=1.0, mask_upper_tri=False)
    name = f"a{layer}.h{head}"
    source = re.sub(r"circuits-vis-[0-9a-f-]{13}", name.replace(".", "-"), view.local_src)
    # escape "<", since a token "</script>" would end the script block
    source = source.replace('"tokens": []', f'"tokens": {json.dumps(seen)}'.replace("<", "\\u003c"))
    return HeadPattern(filled(read("pattern.html"), {"title": f"Attention pattern of {name}", "view": source}))
