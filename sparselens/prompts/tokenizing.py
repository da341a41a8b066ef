"""Tokenize prompt pairs into `TokenizedPairs`."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from sparselens.prompts.answers import NO_ANSWER
from sparselens.prompts.fitting import Encoded, Fit
from sparselens.prompts.pairs import PromptPair
from sparselens.prompts.tokenized import TokenizedPairs


def tokenize_pairs(
    pairs: Iterable[PromptPair], tokenizer: Any, bos: bool | None = None, equal_length: bool = True
) -> TokenizedPairs:
    """Tokenize prompt pairs; prompts of different lengths are padded on the left, with a mask.

    Positions that only some pairs have are left out.

    >>> tokenize_pairs(task.pairs(100), model.tokenizer).clean.shape  # [batch pos]

    Args:
        tokenizer: a fast transformers tokenizer, such as `model.tokenizer` of a TransformerLens model
        bos: whether to prepend the tokenizer's BOS. Default: as the tokenizer does
        equal_length: require both prompts of a pair to have the same number of tokens, and the same positions

    Raises:
        ValueError: a pair does not fit the tokenizer; the message says why.
    """
    listed = list(pairs)
    if not listed:
        raise ValueError("there are no pairs to tokenize")
    fit = Fit(tokenizer, bos, equal_length)
    return stack(listed, fit.encode(listed), fit.vocabulary)


def stack(pairs: Sequence[PromptPair], encoded: Sequence[Encoded], vocabulary: str) -> TokenizedPairs:
    """Combine encoded pairs into one table of token ids, padded on the left if lengths differ.

    Args:
        vocabulary: digest of the tokenizer's vocabulary (`Fit.vocabulary`)
    """
    rows = [torch.tensor(ids) for side in ("clean", "corrupted") for ids in (getattr(item, side) for item in encoded)]
    left: dict[str, Any] = {
        "batch_first": True,
        "padding_side": "left",
    }  # the padding token is arbitrary, since it is masked
    clean, corrupted = pad_sequence(rows, **left).chunk(2)
    clean_mask, corrupted_mask = pad_sequence([torch.ones_like(row) for row in rows], **left).chunk(2)
    padded, same = not bool(clean_mask.all() and corrupted_mask.all()), torch.equal(clean_mask, corrupted_mask)
    return TokenizedPairs(
        clean,
        corrupted,
        _table([item.answers for item in encoded]),
        _table([item.wrong_answers for item in encoded]),
        attention_mask=clean_mask if padded else None,
        corrupted_mask=None if same else corrupted_mask,
        positions=_positions(encoded, clean.shape[1]),
        prompts=tuple(pairs),
        token_strings=tuple(item.token_strings for item in encoded),
        vocabulary=vocabulary,
    )


def _positions(encoded: Sequence[Encoded], width: int) -> dict[str, Int[Tensor, " batch"]]:
    """The positions that all pairs have, as columns of the padded table."""
    names = [name for name in encoded[0].positions if all(name in item.positions for item in encoded)]
    return {name: torch.tensor([width - len(item.clean) + item.positions[name] for item in encoded]) for name in names}


def _table(rows: Sequence[Sequence[int]]) -> Int[Tensor, " batch"] | Int[Tensor, "batch k"]:
    """Rows padded with NO_ANSWER to equal length; one-dimensional if all have length one."""
    table = pad_sequence([torch.tensor(list(row)) for row in rows], batch_first=True, padding_value=NO_ANSWER)
    return table.squeeze(-1) if table.shape[1] == 1 else table
