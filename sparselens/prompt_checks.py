"""Whether a model can read prompts: made with its vocabulary, every token id in its range, padding marked as such."""

from typing import Any

from jaxtyping import Int
from torch import Tensor

from sparselens.fitting import vocabulary_of
from sparselens.tokenized import TokenizedPairs


def refuse_misfits(model: Any, pairs: TokenizedPairs) -> None:
    """Raise a ValueError if pairs were tokenized with another vocabulary than the model's tokenizer has.

    Not known, and so not refused: pairs made from plain tensors, and models that carry no tokenizer.
    """
    tokenizer = getattr(model, "tokenizer", None)
    if pairs.vocabulary and tokenizer is not None and vocabulary_of(tokenizer) != pairs.vocabulary:
        raise ValueError(
            f"these pairs were tokenized with another vocabulary than this {type(model).__name__}'s tokenizer has, so "
            "their token ids mean other words to it: tokenize them with model.tokenizer"
        )
