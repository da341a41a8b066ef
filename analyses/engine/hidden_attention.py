"""Dense models whose attention TransformerLens leaves to transformers (GPT-Neo, GPT-J, OPT, BERT).

Hooks see only copies of their attention scores and patterns, so a change there has no effect. With gates, even open
ones, hooks see and change the real ones.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

from sparselens.gates.hooked import leaves_it_to_inner
from sparselens.gates.modes import open_gates
from sparselens.gates.surgery import is_sparse


def hides_attention(model: Any) -> bool:
    """Whether hooks see only copies of this model's attention scores and patterns."""
    return not is_sparse(model) and any(leaves_it_to_inner(block.attn) for block in model.blocks)


@contextmanager
def showing_attention(model: Any) -> Iterator[None]:
    """Inside, hooks see the attention scores and patterns that the model uses: where needed, it gets open gates."""
    with open_gates(model) if hides_attention(model) else nullcontext():
        yield


def refuse_hidden_attention(model: Any, problem: str, alternative: str) -> None:
    """Raise a ValueError if hooks see only copies of this model's attention patterns."""
    if hides_attention(model):
        raise ValueError(
            f"this dense {type(model).__name__} shows only a copy of its patterns, so {problem}: give it open gates "
            f"(sparselens.sparsify(model, gate_bias=1e4)) or {alternative}"
        )
