"""The attention edges of a model on given prompts, as a table of plain numbers: which positions attend to which.

1. Run each prompt and cache `hook_pattern`, which has the weights, and the activation that defines the edges.
2. In a sparse model the edges are the open gates (`hook_gate`); in a dense model, all pairs that its masks leave
   visible (`hook_attn_scores`).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Float, Int

from sparselens.models.hooked_model import HookedModel
from sparselens.results import Result

if TYPE_CHECKING:
    from sparselens.prompts.tokenized import TokenizedPairs

PATTERN, SCORES, GATE = "attn.hook_pattern", "attn.hook_attn_scores", "attn.hook_gate"


@dataclass(frozen=True, repr=False)
class AttentionEdges(Result):
    """Attention edges as the columns of a table, ordered by prompt, layer, head, query and key.

    >>> edges = attention_edges(model, pairs)
    >>> len(edges), edges.weight.shape, edges.per_layer().shape  # [edge], [batch layer]
    """

    n_prompts: int
    n_layers: int
    n_heads: int
    n_pos: int
    prompt: Int[np.ndarray, " edge"]
    layer: Int[np.ndarray, " edge"]
    head: Int[np.ndarray, " edge"]
    query_pos: Int[np.ndarray, " edge"]
    key_pos: Int[np.ndarray, " edge"]
    weight: Float[np.ndarray, " edge"]  # attention weight after the gate, 0 to 1
    tokens: tuple[tuple[str, ...], ...] = ()  # of every prompt, without padding; empty if not known
    starts: tuple[int, ...] = ()  # the position of every prompt's first token; empty: all 0

    def __len__(self) -> int:
        return len(self.weight)

    _largest = "weight"

    def _line(self) -> str:
        shape = f"{self.n_layers} layers of {self.n_heads} heads, {self.n_pos} positions"
        return f"{len(self):,} attention edges on {self.n_prompts} prompts, {shape}"

    def _columns(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in COLUMNS}

    def take(self, which: Bool[np.ndarray, " edge"] | Int[np.ndarray, " taken"]) -> "AttentionEdges":
        """Some of the edges, chosen by a mask, or by their indices and in that order."""
        columns: dict[str, Any] = {name: getattr(self, name)[which] for name in COLUMNS}
        return replace(self, **columns)

    def of_prompt(self, prompt: int) -> "AttentionEdges":
        """The edges of one prompt."""
        if not 0 <= prompt < self.n_prompts:
            raise ValueError(f"prompt = {prompt}: want 0 to {self.n_prompts - 1}")
        return self.take(self.prompt == prompt)

    def first(self, n: int) -> "AttentionEdges":
        """The edges of the first n prompts."""
        of_prompts = {"tokens": self.tokens[:n], "starts": self.starts[:n]}
        return replace(self.take(self.prompt < n), n_prompts=min(n, self.n_prompts), **of_prompts)

    def plot(self, prompt: int = 0, other: "AttentionEdges | None" = None, names: Sequence[str] | None = None) -> Any:
        """The edges of one prompt as the token x layer picture (`token_view`), with those of another model below.

        Args:
            names: names of the models; default: model, or dense and sparse

        Raises:
            ValueError: there is no such prompt, or the other edges are of another shape.
        """
        from sparselens.analyses.figures.token_view import token_view

        every: list[Any] = [edges._alone(prompt) for edges in (self, other) if edges is not None]
        return token_view(*every, tokens=every[0].tokens, row_names=names)

    def _alone(self, prompt: int) -> "AttentionEdges":
        """The edges of one prompt, without its padding, as if it were the only prompt."""
        edges, start = self.of_prompt(prompt), self.starts[prompt] if self.starts else 0
        tokens = self.tokens[prompt] if self.tokens else tuple(map(str, range(self.n_pos)))
        columns = {"query_pos": edges.query_pos - start, "key_pos": edges.key_pos - start}
        known: Any = {"n_prompts": 1, "n_pos": len(tokens), "tokens": (tokens,), "starts": (0,)}
        return replace(edges, prompt=np.zeros_like(edges.prompt), **columns, **known)

    def per_layer(self) -> Int[np.ndarray, "batch layer"]:
        """Number of edges of every prompt in every layer."""
        cell = self.prompt * self.n_layers + self.layer
        return np.bincount(cell, minlength=self.n_prompts * self.n_layers).reshape(self.n_prompts, self.n_layers)


COLUMNS = ("prompt", "layer", "head", "query_pos", "key_pos", "weight")


def attention_edges(model: HookedModel, prompts: "TokenizedPairs | Any") -> AttentionEdges:
    """The attention edges of a model, dense or sparse, on every prompt.

    >>> edges = attention_edges(model, pairs)
    >>> edges.weight.shape, edges.per_layer().shape  # [edge], [batch layer]
    >>> edges.to_frame(), edges.plot(prompt=0)  # a row for each edge; the token x layer picture

    Scope: a dense edge is a pair that the mask leaves visible, even if its weight vanishes in half precision.
    For the few attention modules whose scores hooks do not see (`leaves_it_to_inner`) it is a pair whose weight is
    above zero.

    Args:
        model: in evaluation mode, since gates in training are random
        prompts: TokenizedPairs, whose clean prompts run without padding, with positions counted as in `clean`; or
            Int["batch pos"] token ids without padding

    Raises:
        ValueError: the model is in training mode, of another kind, or has no attention pattern to hook; tokens without
            a mask contain padding; or the pairs are another model's.
    """
    from sparselens.gates.hooked import refuse_other_model  # imports torch

    refuse_other_model(model)
    if model.training:
        raise ValueError("the model is in training mode, where gates are random: call model.eval() first")
    n_heads = n_pos = 0
    starts, parts = dict[int, int](), list[dict[str, np.ndarray]]()
    for rows, first, tokens in _rows(model, prompts):
        _, cache = model.run_with_cache(tokens, names_filter=shows_edges)
        n_heads, columns = _read(model, cache)
        columns["query_pos"] += first[columns["prompt"]]
        columns["key_pos"] += first[columns["prompt"]]
        columns["prompt"] = rows[columns["prompt"]]
        starts |= zip(rows.tolist(), first.tolist(), strict=True)
        n_pos = max(n_pos, int(first.max()) + tokens.shape[1])
        parts.append(columns)
    joined: dict[str, Any] = {name: np.concatenate([part[name] for part in parts]) for name in COLUMNS}
    order = np.argsort(joined["prompt"], kind="stable")  # it was by layer first
    joined = {name: column[order] for name, column in joined.items()}
    first_tokens = tuple(starts[row] for row in range(len(starts)))
    shape = len(starts), model.cfg.n_layers, n_heads, n_pos
    return AttentionEdges(*shape, **joined, tokens=_tokens(model, prompts), starts=first_tokens)


def _tokens(model: Any, prompts: Any) -> tuple[tuple[str, ...], ...]:
    """The strings of every prompt's tokens, without padding."""
    from sparselens.prompts.fitting import texts_of
    from sparselens.prompts.tokenized import TokenizedPairs

    if isinstance(prompts, TokenizedPairs):
        return prompts.token_strings
    return texts_of(getattr(model, "tokenizer", None), prompts.tolist())


def _rows(model: Any, prompts: Any) -> Iterator[tuple[np.ndarray, np.ndarray, Any]]:
    """Groups of prompts of one length, without padding: their indices, first columns and tokens."""
    from sparselens.prompts.checks import refuse_misfits, refuse_unreadable  # imports torch
    from sparselens.prompts.tokenized import TokenizedPairs

    if not isinstance(prompts, TokenizedPairs):
        refuse_unreadable(model, prompts)
        yield np.arange(len(prompts)), np.zeros(len(prompts), dtype=int), prompts
        return
    refuse_misfits(model, prompts)
    for rows, first, tokens in prompts.clean_rows():
        yield rows.numpy(), first.numpy(), tokens.to(next(model.parameters()).device)


def shows_edges(name: str) -> bool:
    """Whether this is one of the hook points that `edges_of` reads."""
    return name.endswith((PATTERN, SCORES, GATE))


def edges_of(model: Any, cache: Any, n_pos: int) -> AttentionEdges:
    """The edges of one prompt of `n_pos` tokens, from the cache of a run, possibly under hooks."""
    n_heads, found = _read(model, cache)
    columns: dict[str, Any] = {**found}
    return AttentionEdges(1, model.cfg.n_layers, n_heads, n_pos, **columns)


def _read(model: Any, cache: Any) -> tuple[int, dict[str, np.ndarray]]:
    """Number of heads, and the edges of the prompts that ran, layer by layer."""
    layers = [layer for layer in range(model.cfg.n_layers) if f"blocks.{layer}.{PATTERN}" in cache]
    if not layers:
        raise ValueError(f"{type(model).__name__} has no blocks.*.{PATTERN}: load it with eager attention")
    parts = [_layer_edges(cache, layer, model.blocks[layer].attn) for layer in layers]
    columns = {name: np.concatenate([part[name] for part in parts]) for name in COLUMNS}
    return cache[f"blocks.{layers[0]}.{PATTERN}"].shape[1], columns


def _layer_edges(cache: Any, layer: int, attn: Any) -> dict[str, np.ndarray]:
    from sparselens.gates.gate import is_visible
    from sparselens.gates.hooked import leaves_it_to_inner  # imports torch, which figures of edges do not need

    pattern = cache[f"blocks.{layer}.{PATTERN}"].detach().float()
    if not pattern.isfinite().all():
        raise ValueError(f"the attention of layer {layer} is not finite: look for NaN in the weights")
    if f"blocks.{layer}.{GATE}" in cache:
        is_edge = cache[f"blocks.{layer}.{GATE}"] > 0
    elif leaves_it_to_inner(attn):  # their `hook_attn_scores` also shows the softmax
        is_edge = pattern > 0
    else:
        is_edge = is_visible(cache[f"blocks.{layer}.{SCORES}"])
    prompt, head, query_pos, key_pos = (axis.cpu().numpy() for axis in is_edge.nonzero(as_tuple=True))
    weight = pattern[is_edge].cpu().numpy()
    return dict(zip(COLUMNS, (prompt, np.full_like(prompt, layer), head, query_pos, key_pos, weight), strict=True))
