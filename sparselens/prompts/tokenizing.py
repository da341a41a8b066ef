"""From prompt pairs to `TokenizedPairs`."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from sparselens.prompts.fitting import Encoded, Fit
from sparselens.prompts.pairs import PromptPair
from sparselens.prompts.tokenized import NO_ANSWER, TokenizedPairs


def tokenize_pairs(
    pairs: Iterable[PromptPair], tokenizer: Any, bos: bool | None = None, equal_length: bool = True
) -> TokenizedPairs:
    """Token ids of prompt pairs; prompts of different lengths are padded on the left, with a mask.

    Positions that only some pairs name are left out.

    >>> tokenize_pairs(task.pairs(100), model.tokenizer).clean.shape  # [batch pos]

    Args:
        tokenizer: a fast transformers tokenizer; a TransformerLens model's own is `model.tokenizer`
        bos: put the tokenizer's BOS first. Default: as the tokenizer itself does
        equal_length: clean and corrupted prompt of a pair must have as many tokens, with every position at the same one

    Raises:
        ValueError: a pair does not fit the tokenizer. Says which and why.
    """
    listed = list(pairs)
    if not listed:
        raise ValueError("there is no pair to tokenize")
    fit = Fit(tokenizer, bos, equal_length)
    return stack(listed, fit.encode(listed), fit.vocabulary)


def stack(pairs: Sequence[PromptPair], encoded: Sequence[Encoded], vocabulary: str) -> TokenizedPairs:
    """The token ids of all pairs as one table, padded on the left where lengths differ.

    Args:
        vocabulary: digest of the tokenizer's vocabulary (`Fit.vocabulary`)
    """
    width = max(len(ids) for item in encoded for ids in (item.clean, item.corrupted))
    clean, corrupted = (torch.tensor([_left(ids, width) for ids in side]) for side in _sides(encoded))
    clean_mask, corrupted_mask = (torch.tensor([_mask(ids, width) for ids in side]) for side in _sides(encoded))
    padded, same = not bool(clean_mask.all() and corrupted_mask.all()), torch.equal(clean_mask, corrupted_mask)
    return TokenizedPairs(
        clean,
        corrupted,
        _table([item.answers for item in encoded]),
        _table([item.wrong_answers for item in encoded]),
        attention_mask=clean_mask if padded else None,
        corrupted_mask=None if same else corrupted_mask,
        positions=_positions(encoded, width),
        prompts=tuple(pairs),
        token_strings=tuple(item.token_strings for item in encoded),
        vocabulary=vocabulary,
    )


def _sides(encoded: Sequence[Encoded]) -> tuple[list[list[int]], list[list[int]]]:
    return [item.clean for item in encoded], [item.corrupted for item in encoded]


def _left(ids: list[int], width: int) -> list[int]:
    return [0] * (width - len(ids)) + ids  # any token will do: it is masked


def _mask(ids: list[int], width: int) -> list[int]:
    return [0] * (width - len(ids)) + [1] * len(ids)


def _positions(encoded: Sequence[Encoded], width: int) -> dict[str, Int[Tensor, " batch"]]:
    """The positions that all pairs name, as columns of the padded table."""
    names = [name for name in encoded[0].positions if all(name in item.positions for item in encoded)]
    return {name: torch.tensor([width - len(item.clean) + item.positions[name] for item in encoded]) for name in names}


def _table(rows: Sequence[Sequence[int]]) -> Int[Tensor, " batch"] | Int[Tensor, "batch k"]:
    """One column, or as many as the longest row has, filled with NO_ANSWER."""
    width = max(map(len, rows))
    table = torch.tensor([[*row, *[NO_ANSWER] * (width - len(row))] for row in rows])
    return table.squeeze(-1) if width == 1 else table
