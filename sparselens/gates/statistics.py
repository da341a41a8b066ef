"""Counts attention edges while a gated model runs, per layer and head: expected (differentiable), open and visible."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sparselens.gates.gate import GateSettings, Mask, is_visible
from sparselens.gates.spans import Spans
from sparselens.gates.surgery import gate_settings


class GateStatistics:
    """Means per example over all forward passes inside one `record_gates` block.

    An attention edge is one open (layer, head, query position, key position). Two normalisations are in use, which
    differ by a factor of about two on causal models: the share of *visible* pairs, our default, and the share of *all*
    query-key pairs (T squared), which the paper's Fig. 2 uses.

    >>> with sl.record_gates(model) as gates:
    ...     model(tokens)
    >>> gates.share_of_visible_pairs
    """

    def __init__(self, settings: GateSettings) -> None:
        self._n_layers = settings.n_layers
        self.clear()

    def clear(self) -> None:
        """Discard all counts and start again inside the same block."""
        self._expected: dict[int, Tensor] = {}
        self._counts: dict[int, Tensor] = {}
        self._examples: dict[int, int] = {}
        self._mask: Tensor | Spans | None = None

    def add(
        self,
        layer: int,
        expected: Float[Tensor, "batch head"],
        opened: Float[Tensor, "batch head"],
        mask: Mask | Spans,
    ) -> None:
        """Add the counts of one attention call."""
        batch, heads = opened.shape
        if mask is not self._mask:  # layers usually share one mask: count its pairs once
            self._mask, self._pairs = mask, _count_spans(mask) if isinstance(mask, Spans) else _count_pairs(mask)
        rows = len(mask.first if isinstance(mask, Spans) else mask)
        pairs = (self._pairs * (batch // rows)).expand(-1, heads)
        counts = torch.cat([opened.detach().sum(0, keepdim=True, dtype=torch.float64), pairs])
        self._examples[layer] = self._examples.get(layer, 0) + batch
        self._expected[layer] = self._expected.get(layer, 0) + expected.sum(0)
        self._counts[layer] = self._counts.get(layer, 0) + counts

    def _per_example(self, row: int) -> Float[Tensor, "layer head"]:
        self._need_all_layers()
        return torch.stack([self._counts[i][row] / self._examples[i] for i in range(self._n_layers)])

    def _need_all_layers(self) -> None:
        missing = [i for i in range(self._n_layers) if i not in self._counts]
        if missing:
            raise ValueError(f"layers {missing} recorded nothing: run the model inside `with record_gates(model)`")

    @property
    def expected(self) -> Float[Tensor, "layer head"]:
        """Expected open edges per example, under the training noise; differentiable."""
        self._need_all_layers()
        return torch.stack([self._expected[i] / self._examples[i] for i in range(self._n_layers)])

    @property
    def open(self) -> Float[Tensor, "layer head"]:
        """Open edges per example."""
        return self._per_example(0)

    @property
    def visible_pairs(self) -> Float[Tensor, "layer head"]:
        """Visible (query, key) pairs per example: those not masked, without padding."""
        return self._per_example(1)

    @property
    def queries(self) -> Float[Tensor, "layer head"]:
        """Queries per example that see at least one key."""
        return self._per_example(2)

    @property
    def all_pairs(self) -> Float[Tensor, "layer head"]:
        """All (query, key) pairs per example, visible or not, without padding."""
        return self._per_example(3)

    @property
    def open_fraction(self) -> Float[Tensor, "layer head"]:
        """Share of the visible pairs whose gate is open."""
        return self.open / self.visible_pairs

    @property
    def share_of_visible_pairs(self) -> float:
        """Share of the visible pairs whose gate is open, over all layers and heads."""
        return float(self.open.sum() / self.visible_pairs.sum())

    @property
    def share_of_all_pairs(self) -> float:
        """Share of all pairs whose gate is open, over all layers and heads; the normalisation of the paper's Fig. 2."""
        return float(self.open.sum() / self.all_pairs.sum())

    @property
    def edges_per_query_per_head(self) -> float:
        """Open edges per query, layer and head."""
        return float(self.open.sum() / self.queries.sum())

    def expected_share(self, layer_cost: float = 1.0) -> Float[Tensor, ""]:
        """Expected share of open edges among visible pairs, over all layers and heads; differentiable.

        Post-training minimises this. An edge in layer l counts as layer_cost**l edges.
        """
        return (self.layer_weights(layer_cost) * self.expected.sum(-1)).sum() / self.visible_pairs.sum()

    def layer_weights(self, layer_cost: float) -> Float[Tensor, " layer"]:
        """Weight of an edge in each layer: 1, layer_cost, layer_cost squared, ..."""
        return layer_cost ** torch.arange(self._n_layers, device=self.expected.device)


def _count_pairs(mask: Mask) -> Float[Tensor, "count heads"]:
    """Visible pairs, queries that see a key, and all pairs of such queries with keys that some query sees."""
    visible = mask if mask.dtype == torch.bool else is_visible(mask)
    keys = visible.sum(-1)
    seen = visible.any(-2).sum(-1, keepdim=True)
    return torch.stack([keys, keys > 0, (keys > 0) * seen]).sum((1, 3)).double()


def _count_spans(spans: Spans) -> Float[Tensor, "count 1"]:
    """As `_count_pairs`, for spans."""
    keys = spans.last - spans.first
    first = spans.first.masked_fill(keys == 0, spans.keys).amin(-1, keepdim=True)
    seen = (spans.last.masked_fill(keys == 0, 0).amax(-1, keepdim=True) - first).clamp_min(0)
    return torch.stack([keys, keys > 0, (keys > 0) * seen]).sum((1, 2)).double()[:, None]


@contextmanager
def record_gates(model: nn.Module) -> Iterator[GateStatistics]:
    """Count the gates of every forward pass inside the block.

    >>> with sl.record_gates(model) as gates:
    ...     model(tokens)
    >>> gates.open_fraction  # Float["layer head"]

    Raises:
        ValueError: the model has no gates; or, in a forward pass, tokens contain padding without an `attention_mask`,
            so that it would be counted as text.
    """
    settings = gate_settings(model)
    statistics = GateStatistics(settings)
    settings.recorders.append(statistics)
    try:
        with _padding_noted(model, settings):
            yield statistics
    finally:
        settings.recorders.remove(statistics)


@contextmanager
def _padding_noted(model: Any, settings: GateSettings) -> Iterator[None]:
    """Inside the block, a TransformerLens model tells its gates which tokens are padding (`GateSettings.real`).

    A TransformerBridge rejects tokens that contain padding without a mask. Transformers models need no hook: their
    masks are made by us (`attention.register_attention`) and hide all keys from padding.
    """
    from sparselens.gates.hooked import is_hooked
    from sparselens.prompts.checks import refuse_unreadable

    inner = getattr(model, "original_model", model)
    known = inner is not model and getattr(model, "tokenizer", None) is not None

    def note_padding(_: nn.Module, args: Any, kwargs: Any) -> None:
        tokens, mask = args[0] if args else kwargs.get("input_ids"), kwargs.get("attention_mask")
        if known and mask is None and isinstance(tokens, Tensor) and not tokens.is_floating_point():
            refuse_unreadable(model, tokens, packed=True)
        plain = isinstance(mask, Tensor) and mask.ndim == 2 and not bool(mask.all())
        settings.real = mask.bool() if mask is not None and plain else None

    if not is_hooked(model):
        yield
        return
    # prepended, to run before a hook that adds a mask
    handle = inner.register_forward_pre_hook(note_padding, with_kwargs=True, prepend=True)
    try:
        yield
    finally:
        handle.remove()
        settings.real = None
