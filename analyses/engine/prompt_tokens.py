"""Turns prompts as users give them (a text, token ids, or rows of ids) into tokens, and finds positions in them."""

from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from sparselens.analyses.engine.request import OpenModel
from sparselens.prompts.checks import refuse_unreadable
from sparselens.prompts.fitting import Fit

Position = int | str


def prompt_tokens(opened: OpenModel, prompts: str | Tensor) -> Int[Tensor, "batch pos"]:
    """The prompts as rows of tokens.

    Raises:
        ValueError: they are something else, the model has no tokenizer for text, or it cannot read these tokens.
    """
    if not isinstance(prompts, str):
        given: Any = prompts  # `refuse_unreadable` checks what it is
        tokens = given[None] if getattr(given, "ndim", 0) == 1 else given
    else:
        tokenizer = getattr(opened.model, "tokenizer", None)
        if tokenizer is None or not prompts.strip():
            problem = "the prompt is empty" if tokenizer is not None else "this model has no tokenizer for text"
            raise ValueError(f"{problem}: pass a text, or Int[pos] token ids")
        tokens = torch.tensor([Fit(tokenizer).prompt(prompts)[0]])
    refuse_unreadable(opened.model, tokens)
    return tokens


def place_of(given: Position, length: int) -> int:
    """The index of a position, which may be counted from the end.

    Raises:
        ValueError: there is no such position.
    """
    if isinstance(given, str):
        raise ValueError(f"no such position: {given!r} (want a number; only TokenizedPairs have named positions)")
    if not -length <= given < length:
        raise ValueError(f"no such position: {given} (want 0 to {length - 1}, or -{length} to -1 from the end)")
    return given % length
