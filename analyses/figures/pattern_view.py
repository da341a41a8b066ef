"""The attention pattern of one head, to hover over: circuitsvis' view, made to work offline and harmless.

circuitsvis' `str(view)` loads its script from a CDN; `local_src` holds the script itself. The page forbids every
request, tokens cannot end its script, and in a notebook it runs in a frame that may do nothing else.
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
    """The attention pattern of one head on one prompt, as circuitsvis shows it.

    >>> head_pattern(attention_edges(model, pairs.clean), tokens, prompt=0, layer=1, head=3)

    Args:
        tokens: the strings of every prompt, as for `token_view`.

    Raises:
        ValueError: edges and tokens do not belong together, or there is no such prompt or head.
    """
    from circuitsvis.attention import attention_pattern

    refuse_others(AttentionEdges, edges)
    check_head(edges, layer, head)
    pattern = pattern_of(edges, tokens, prompt)[layer, head]
    seen = [printable(token) for token in tokens[prompt]]
    # a name of our own for the element, in place of a random one: the same pattern, the same page
    view = attention_pattern(tokens=[], attention=pattern, min_value=0.0, max_value=1.0, mask_upper_tri=False)
    name = f"a{layer}.h{head}"
    source = re.sub(r"circuits-vis-[0-9a-f-]{13}", name.replace(".", "-"), view.local_src)
    # "<" as an escape: a token that reads </script> would end the script
    source = source.replace('"tokens": []', f'"tokens": {json.dumps(seen)}'.replace("<", "\\u003c"))
    return HeadPattern(filled(read("pattern.html"), {"title": f"Attention pattern of {name}", "view": source}))
