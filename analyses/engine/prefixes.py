"""Runs the tokens that clean and corrupted prompts share at their beginning once, instead of in every run.

1. The two prompts of a pair agree up to some token. In a causal model nothing before that token depends on what comes
   after it, so all runs of the pair are the same there, as long as patches come from the other prompt.
2. These tokens run once for a batch of pairs. Their keys and values are kept in the model's own cache, and every other
   run starts after them: activations, gradients and patches cover the remaining positions.
3. Nothing is assumed about the model: on one pair, the activations must equal those of the whole prompt (`agrees`).
Results differ only by rounding.
"""

from collections.abc import Callable
from copy import copy
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from sparselens.analyses.engine.partial_runs import Activations, only_at
from sparselens.prompts.tokenized import TokenizedPairs

LEAST = 0.2  # share of a prompt; a shorter prefix costs more to cache than to run again
TOLERANCE = {torch.float64: 1e-8, torch.bfloat16: 0.03, torch.float16: 0.005}  # relative; float32: 1e-4


@dataclass(frozen=True, eq=False)
class Prefix:
    """Cached keys and values of the first tokens of some prompts."""

    length: int
    cache: Any
    rows: Int[Tensor, " row"]  # indices into the cache

    def of(self, rows: Int[Tensor, " row"]) -> "Prefix":
        """The prefix of some of the prompts, in any order and possibly repeated."""
        return replace(self, rows=self.rows[rows])

    def options(self, tokens: Int[Tensor, "row pos"]) -> dict[str, Any]:
        """Arguments for one forward pass over the tokens that follow; it extends its own copy of the cache."""
        found, rows = copy(self.cache), self.rows
        if hasattr(found, "entries"):
            found.entries = [copy(entry) for entry in found.entries]
            for entry in found.entries:
                entry.past_keys, entry.past_values = (
                    x[rows.to(x.device)] for x in (entry.past_keys, entry.past_values)
                )
            found.previous_attention_mask = found.previous_attention_mask[rows]
            return {"past_kv_cache": found, "attention_mask": torch.ones_like(tokens)}
        found.layers = [copy(layer) for layer in found.layers]
        for layer in found.layers:
            layer.batch_select_indices(rows.to(layer.keys.device))
        return {"past_key_values": found}


def common_length(pairs: TokenizedPairs) -> int:
    """How many tokens the two prompts of every pair share at their beginning, not counting the answer's position."""
    differs = pairs.clean != pairs.corrupted
    first = torch.where(differs.any(1), differs.int().argmax(1), pairs.clean.shape[1])
    return int(torch.minimum(first, pairs.end).min())


def behind(pairs: TokenizedPairs, length: int) -> TokenizedPairs:
    """The pairs without their first tokens; of the named positions only the answer's is kept."""
    clean, corrupted = pairs.clean[:, length:], pairs.corrupted[:, length:]
    return replace(pairs, clean=clean, corrupted=corrupted, positions={"END": pairs.end - length})


def run_prefix(model: Any, tokens: Int[Tensor, "batch pos"]) -> Prefix:
    """Run these tokens as the beginning of a prompt, and keep their keys and values."""
    batch, length = tokens.shape
    with torch.no_grad(), only_at(model, torch.zeros(batch, dtype=torch.long), length):
        if hasattr(model, "original_model"):
            _, cache = model(tokens, return_type="logits_and_cache", use_cache=True)
        else:
            from transformer_lens import TransformerLensKeyValueCache

            cache = TransformerLensKeyValueCache.init_cache(model.cfg, tokens.device, batch)
            model(tokens, past_kv_cache=cache, attention_mask=torch.ones_like(tokens))
            cache.freeze()
    return Prefix(length, cache, torch.arange(batch))


def agrees(whole: Activations, behind: Callable[[], Activations]) -> bool:
    """Whether a run behind a prefix gives the activations that the whole prompt has at its last positions.

    A model that cannot run behind a prefix may raise any exception, which counts as no.
    """
    try:
        found = behind()
    except torch.OutOfMemoryError:
        raise  # says nothing about whether the model can
    except Exception:
        return False
    return found.keys() == whole.keys() and all(_alike(found[name], whole[name]) for name in whole)


def _alike(found: Tensor, whole: Tensor) -> bool:
    expected = whole[:, -found.shape[1] :]
    if found.shape != expected.shape:
        return False
    off = (found - expected).abs().max()
    return bool(off <= TOLERANCE.get(whole.dtype, 1e-4) * expected.abs().max())
