"""What clean and corrupted prompts have in common at their beginning runs once, instead of in every run.

1. The two prompts of a pair agree up to some token. In a causal model nothing before that token depends on what comes
   after it, so all runs of the pair are the same there, whatever is patched by what the other prompt has.
2. These tokens run once for a batch of pairs. Their keys and values are kept in the model's own cache, and every other
   run begins behind them: activations, gradients and patches are those of the positions that are left.
3. Nothing is assumed of the model: on one pair the activations must be those of the whole prompt (`agrees`).
Results differ by rounding alone.
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

LEAST = 0.2  # of a prompt: to run less again costs less than to keep it
TOLERANCE = {torch.float64: 1e-8, torch.bfloat16: 0.03, torch.float16: 0.005}  # relative; float32: 1e-4


@dataclass(frozen=True, eq=False)
class Prefix:
    """Keys and values of the first tokens of some prompts."""

    length: int
    cache: Any
    rows: Int[Tensor, " row"]  # of the cache

    def of(self, rows: Int[Tensor, " row"]) -> "Prefix":
        """That of some of the prompts, in any order and as often as they are named."""
        return replace(self, rows=self.rows[rows])

    def options(self, tokens: Int[Tensor, "row pos"]) -> dict[str, Any]:
        """Arguments of one forward pass over the tokens that follow, which adds to its own copy of the cache."""
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
    """How many first tokens all pairs have in common within them, short of the answer's position."""
    differs = pairs.clean != pairs.corrupted
    first = torch.where(differs.any(1), differs.int().argmax(1), pairs.clean.shape[1])
    return int(torch.minimum(first, pairs.end).min())


def behind(pairs: TokenizedPairs, length: int) -> TokenizedPairs:
    """The pairs without their first tokens; of the named positions the answer's is left."""
    clean, corrupted = pairs.clean[:, length:], pairs.corrupted[:, length:]
    return replace(pairs, clean=clean, corrupted=corrupted, positions={"END": pairs.end - length})


def run_prefix(model: Any, tokens: Int[Tensor, "batch pos"]) -> Prefix:
    """Keys and values of these tokens, at the beginning of a prompt."""
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
    """Are the activations those at the last positions of the whole prompt?

    A model that cannot run behind a prefix may fail in whatever way: then they are not.
    """
    try:
        found = behind()
    except torch.OutOfMemoryError:
        raise  # which says nothing about the model
    except Exception:
        return False
    return found.keys() == whole.keys() and all(_alike(found[name], whole[name]) for name in whole)


def _alike(found: Tensor, whole: Tensor) -> bool:
    expected = whole[:, -found.shape[1] :]
    if found.shape != expected.shape:
        return False
    off = (found - expected).abs().max()
    return bool(off <= TOLERANCE.get(whole.dtype, 1e-4) * expected.abs().max())
