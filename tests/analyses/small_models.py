"""Models small enough to work out by hand, and prompt pairs for tiny random ones."""

from functools import cache
from typing import Any

import torch
from torch import Tensor

import sparselens as sl
from sparselens.prompts.tokenized import TokenizedPairs
from tests.tiny_models import tiny_tokens


@cache
def shipped(name: str) -> Any:
    """A model that ships with the package, read once: for tests that leave it as it is."""
    return sl.load(name)


def native_model(**options: Any) -> Any:
    """A TransformerBridge without norms, biases and positions, all weights zero: every head looks at all alike."""
    from transformer_lens.config import TransformerBridgeConfig
    from transformer_lens.model_bridge import TransformerBridge

    sizes = {"n_layers": 2, "n_heads": 1, "d_model": 2, "d_head": 2, "d_mlp": 2, "n_ctx": 4, "d_vocab": 3}
    settings = {"act_fn": "relu", "normalization_type": None, "positional_embedding_type": "standard"}
    model = TransformerBridge.boot_native(TransformerBridgeConfig(**(sizes | settings | options)))
    for parameter in model.parameters():
        parameter.data.zero_()
    return model.eval()


def put(linear: Any, matrix: list[list[float]]) -> None:
    """Let a linear layer compute x @ matrix, with x a row."""
    weight = linear.original_component.weight
    weight.data = torch.tensor(matrix, dtype=weight.dtype).T.contiguous()


def two_layers() -> Any:
    """Tokens 0, 1, 2 are (1, 0), (0, 1), (2, 1); the logits of 0 and 1 are the two numbers of the last residual stream.

    The head of layer 0 writes twice the mean of what it sees, that of layer 1 the mean times [[2, 0], [0, 6]].
    """
    model = native_model(attn_only=True)
    model.embed.original_component.weight.data = torch.tensor([[1.0, 0.0], [0.0, 1.0], [2.0, 1.0]])
    for block, value in zip(model.blocks, ([[1, 0], [0, 1]], [[1, 0], [0, 3]]), strict=True):
        put(block.attn.v, value)
        put(block.attn.o, [[2, 0], [0, 2]])
    put(model.unembed, [[1, 0, 0], [0, 1, 0]])
    return model


def two_layer_pairs() -> TokenizedPairs:
    """Clean tokens 0 1, corrupted 2 1; right answer 0, wrong answer 1."""
    return TokenizedPairs(torch.tensor([[0, 1]]), torch.tensor([[2, 1]]), torch.tensor([0]), torch.tensor([1]))


def tiny_pairs(batch: int = 3, length: int = 9, changed: tuple[int, ...] = (2, 5), seed: int = 0) -> TokenizedPairs:
    """Random prompts of tokens 1 to 30 that differ from the corrupted ones at some positions."""
    clean = tiny_tokens(batch, length, seed)
    corrupted = clean.clone()
    corrupted[:, changed] = clean[:, changed] % 30 + 1
    return TokenizedPairs(clean, corrupted, torch.arange(batch) + 1, torch.arange(batch) + 11)


def near_pairs(model: Any, size: float, seed: int = 0) -> tuple[TokenizedPairs, TokenizedPairs]:
    """Two opposite corruptions of one token, whose embedding is moved by `size`. Changes the model's embeddings."""
    clean = torch.randint(1, 15, (2, 7), generator=torch.Generator().manual_seed(seed))
    embedding: Tensor = model.original_model.get_input_embeddings().weight.data
    at = embedding[clean[:, 3]]
    step = size * torch.randn(at.shape, generator=torch.Generator().manual_seed(seed + 1)).to(at)
    embedding[20:22], embedding[22:24] = at + step, at - step
    answers = torch.tensor([1, 2]), torch.tensor([4, 5])
    return tuple(  # pyright: ignore
        TokenizedPairs(clean, clean.index_fill(1, torch.tensor([3]), 0) + _at(3, ids), *answers)
        for ids in ([20, 21], [22, 23])
    )


def _at(position: int, ids: list[int]) -> Tensor:
    tokens = torch.zeros(2, 7, dtype=torch.long)
    tokens[:, position] = torch.tensor(ids)
    return tokens
