"""Reject inputs that are not prompt pairs, and prompts that do not fit a model.

Prompts do not fit if they have another vocabulary, token ids out of range, or padding without an attention mask.
"""

from collections.abc import Mapping
from typing import Any

from jaxtyping import Int
from torch import Tensor

from sparselens.prompts.fitting import vocabulary_of
from sparselens.prompts.tokenized import TokenizedPairs


def refuse_other_pairs(pairs: Any) -> None:
    """Raise a ValueError if `pairs` are not TokenizedPairs."""
    if not isinstance(pairs, TokenizedPairs):
        raise ValueError(
            f"want TokenizedPairs, not {pairs!r:.80}: make them with task.tokenize(model.tokenizer, 100), or from "
            "strings with sl.tokenize_pairs"
        )


def refuse_misfits(model: Any, pairs: TokenizedPairs) -> None:
    """Raise a ValueError if pairs were tokenized with a different vocabulary than the model's, or ids are out of range.

    Vocabularies cannot be compared for pairs made from plain tensors, nor for models without a tokenizer.
    """
    refuse_other_pairs(pairs)
    tokenizer = getattr(model, "tokenizer", None)
    known = vocabulary_of(tokenizer) if pairs.vocabulary and tokenizer is not None else ""
    if pairs.vocabulary and known not in ("", pairs.vocabulary):
        raise ValueError(
            f"these pairs were tokenized with another vocabulary than that of this {type(model).__name__}, for which "
            "their token ids mean other words: tokenize them with model.tokenizer"
        )
    sides = {"clean prompt": pairs.clean, "corrupted prompt": pairs.corrupted}
    answers = {"answer": pairs.answers, "wrong answer": pairs.wrong_answers}
    for name, ids in (sides | answers).items():
        _refuse_out_of_range(model, name, ids, lowest=-1 if name in answers else 0)


def refuse_unreadable(model: Any, tokens: Int[Tensor, "batch pos"], packed: bool = False) -> None:
    """Raise a ValueError if rows of tokens without a mask contain padding or ids out of range.

    If the padding token is also the tokenizer's BOS, EOS or unknown token, it may be intended. Then a row is rejected
    only if it ends with it, starts with it twice, or starts with it while other rows do not.

    Args:
        packed: the rows are cut from running text and may start or end with a single EOS, so only two are rejected
    """
    given: Any = tokens
    if not isinstance(given, Tensor) or given.ndim != 2 or given.is_floating_point():
        found = list(given.shape) if isinstance(given, Tensor) else repr(given)[:80]
        raise ValueError(f"want rows of token ids, Int[batch pos], not {found}: make them with model.to_tokens(text)")
    _refuse_out_of_range(model, "prompt", tokens, lowest=0)
    tokenizer = getattr(model, "tokenizer", None)
    padding = getattr(tokenizer, "pad_token_id", None)
    if tokenizer is None or padding is None or tokens.shape[1] < 2:
        return
    padded = tokens == padding
    if padding in (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id):
        twice = padded[:, :2].all(-1) | padded[:, -2:].all(-1)
        once = padded[:, -1] | (padded[:, 0] & ~padded[:, 0].all())
        rows = (twice if packed else twice | once).nonzero()
    else:
        rows = padded.any(-1).nonzero()
    if len(rows):
        raise ValueError(
            f"prompt {int(rows[0])} holds the padding token {padding} ({len(rows)} of {len(tokens)} prompts do), "
            "which would be read as text without a mask: pass TokenizedPairs, or rows of one length without padding"
        )


def _refuse_out_of_range(model: Any, name: str, ids: Int[Tensor, "batch pos"], lowest: int) -> None:
    size = _vocabulary_size(model)
    outside = ((ids < lowest) | (ids >= size)).nonzero() if size else []
    if len(outside):
        row, place = outside[0].tolist()
        raise ValueError(f"token {int(ids[row, place])} of {name} {row}: this model has tokens 0 to {size - 1}")


def _vocabulary_size(model: Any) -> int:
    """Size of the model's vocabulary; 0 if unknown."""
    config = getattr(model, "cfg", None) or getattr(model, "config", None)
    for name in ("d_vocab", "vocab_size"):
        size = config.get(name) if isinstance(config, Mapping) else getattr(config, name, None)
        if isinstance(size, int) and size > 0:
            return size
    return 0
