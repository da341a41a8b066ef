"""Finds heads with known attention patterns: previous-token heads, duplicate-token heads and induction heads.

1. For each kind of head, a query's targets are the keys that such a head attends to. Not every query has one: for
   induction, its token must have occurred before.
2. score = attention on targets / all attention, over the queries that have a target, averaged over the prompts with
   such a query. Target patterns and score are those of TransformerLens' `head_detector`, which however accepts only
   strings and counts all queries; here a prompt is any row of tokens.
3. The default prompts are repeated random tokens, since only there does attention alone reveal an induction head.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sparselens.circuits.graph import head_of
from sparselens.gates.hooked import refuse_other_model
from sparselens.gates.modes import evaluating
from sparselens.models.hooked_model import HookedModel
from sparselens.names import unknown
from sparselens.prompts.checks import refuse_misfits, refuse_unreadable
from sparselens.prompts.tokenized import TokenizedPairs
from sparselens.results import Result

KINDS = ("previous token", "duplicate token", "induction")

_PATTERN = "blocks.{}.attn.hook_pattern"
_COPIES, _LENGTH = 4, 16  # default prompts: 16 random tokens, repeated to make 4 copies


@dataclass(frozen=True, eq=False, repr=False)
class HeadScores(Result):
    """The score of every head for each kind, 0 to 1.

    >>> found = label_heads(model)
    >>> found["a1.h2"], found.labels(), found.scores.shape  # by kind, heads with a label, [kind layer head]
    """

    kinds: tuple[str, ...]
    scores: Float[Tensor, "kind layer head"]  # 0 for a head without any attention, which sparse models have
    attention: Float[Tensor, "layer head"]  # total attention weight per query, over all queries: 1 if no gate is closed

    _largest = "score"

    def _line(self) -> str:
        known = ", ".join(f"{name} {label}" for name, label in list(self.labels().items())[:3])
        return f"{len(self.labels())} of {self.attention.numel()} heads have a label{known and ': '}{known}"

    def _columns(self) -> dict[str, list[Any]]:
        kind, layer, head = torch.cartesian_prod(*map(torch.arange, self.scores.shape)).T.tolist()
        heads = [f"a{i}.h{j}" for i, j in zip(layer, head, strict=True)]
        return {"head": heads, "kind": [self.kinds[i] for i in kind], "score": self.scores.flatten().tolist()}

    def __getitem__(self, head: str) -> dict[str, float]:
        layer, number = head_of(head, self.scores.shape[1:])
        return dict(zip(self.kinds, self.scores[:, layer, number].tolist(), strict=True))

    def plot(self, kind: str = "induction") -> Any:
        """The scores for one kind as a plotly heat map."""
        from sparselens.analyses.figures.heat_maps import heat_map

        if kind not in self.kinds:
            raise unknown("kind", kind, self.kinds)
        return heat_map(self.scores[self.kinds.index(kind)], kind, value_label="score", limit=1.0)

    def label(self, layer: int, head: int, threshold: float = 0.4) -> str:
        """The highest-scoring kind and its score, such as "induction 0.82"; "" below the threshold.

        Raises:
            ValueError: there is no such head.
        """
        _, n_layers, n_heads = self.scores.shape
        if not (0 <= layer < n_layers and 0 <= head < n_heads):
            raise ValueError(f"no such head: a{layer}.h{head} ({n_layers} layers of {n_heads} heads)")
        score, kind = self.scores[:, layer, head].max(0)
        return f"{self.kinds[int(kind)]} {float(score):.2f}" if score >= threshold else ""

    def labels(self, threshold: float = 0.4) -> dict[str, str]:
        """Labels by node name (`a0.h1`), of the heads that have one."""
        _, n_layers, n_heads = self.scores.shape
        every = {
            f"a{layer}.h{head}": self.label(layer, head, threshold)
            for layer in range(n_layers)
            for head in range(n_heads)
        }
        return {name: label for name, label in every.items() if label}


def label_heads(
    model: HookedModel,
    prompts: Sequence[str] | TokenizedPairs | Int[Tensor, "batch pos"] | None = None,
    *,
    n: int = 10,
    seed: int = 0,
    exclude_bos: bool = False,
    exclude_current_token: bool = False,
) -> HeadScores:
    """Score every head of a dense or sparse model as previous-token, duplicate-token and induction head.

    >>> label_heads(sl.load("stories260k-sparse")).labels(threshold=0.98)
    {'a1.h2': 'previous token 0.99', 'a3.h6': 'previous token 1.00'}

    Scope: targets are always earlier keys, so in a bidirectional model attention to later keys counts as off target. In
    a sparse model a head may score high with just a few open edges; `HeadScores.attention` shows how much attention
    there is. A label describes where a head attends, not what it does for a task.

    Args:
        model: a TransformerBridge or HookedTransformer
        prompts: strings; pairs, whose clean prompts are used, without their padding; or rows of tokens without padding.
            Default: `repeated_tokens`, where every copy but the first has induction targets
        n: number of random rows, if no prompts are given
        exclude_bos: ignore attention to the first token, where many heads rest, and score only the remainder
        exclude_current_token: ignore attention to the query's own token

    Raises:
        ValueError: there is no prompt, one is shorter than two tokens or longer than the model's context, strings are
            given but the model has no tokenizer, rows of tokens hold padding, or the pairs were made for another model.
    """
    refuse_other_model(model)
    network: Any = model
    rows = _rows(network, prompts, n, seed)
    options = {"exclude_bos": exclude_bos, "exclude_current_token": exclude_current_token}
    scores = torch.zeros(len(KINDS), model.cfg.n_layers, model.cfg.n_heads)
    attention = torch.zeros(model.cfg.n_layers, model.cfg.n_heads)
    counted = torch.zeros(len(KINDS), 1, 1)  # number of prompts that have a query with a target
    with evaluating(network), torch.no_grad():
        for tokens in rows:
            patterns = _patterns(network, tokens)
            found, has_targets = _scores(patterns, tokens, options)
            scores, counted = scores + found, counted + has_targets[:, None, None]
            attention += patterns.sum((-2, -1)) / tokens.shape[-1]
    return HeadScores(KINDS, scores / counted.clamp_min(1), attention / len(rows))


def repeated_tokens(model: HookedModel, n: int = 10, seed: int = 0) -> Int[Tensor, "batch pos"]:
    """Rows of 16 different random tokens in four copies; fewer tokens or copies if vocabulary or context is small.

    Each row starts with the model's BOS, if the model prepends one to its prompts.

    Raises:
        ValueError: n is not positive, or the context has no room for two copies.
    """
    first = _opening(model)
    room = model.cfg.n_ctx - len(first)
    length = min(_LENGTH, room // 2, model.cfg.d_vocab)
    if n < 1 or length < 1:
        raise ValueError(f"n = {n} rows in a context of {model.cfg.n_ctx}: want 1 or more, and room to repeat a token")
    generator = torch.Generator().manual_seed(seed)
    rows = [torch.randperm(model.cfg.d_vocab, generator=generator)[:length] for _ in range(n)]
    return torch.stack([torch.cat([torch.tensor(first).long(), *[row] * min(_COPIES, room // length)]) for row in rows])


def _opening(model: Any) -> list[int]:
    """The model's BOS; empty if it has none, or only one that TransformerLens added beyond the vocabulary."""
    bos = getattr(getattr(model, "tokenizer", None), "bos_token_id", None)
    prepends_bos = getattr(model.cfg, "default_prepend_bos", True)
    return [bos] if prepends_bos and bos is not None and bos < model.cfg.d_vocab else []


def _rows(
    model: Any, prompts: Sequence[str] | TokenizedPairs | Tensor | None, n: int, seed: int
) -> list[Int[Tensor, "1 pos"]]:
    if prompts is None:
        rows = [*repeated_tokens(model, n, seed).split(1)]  # not checked for padding: any token may be drawn
    elif isinstance(prompts, TokenizedPairs):
        refuse_misfits(model, prompts)
        rows = [row for _, _, tokens in prompts.clean_rows() for row in tokens.split(1)]
    elif isinstance(prompts, Tensor):
        refuse_unreadable(model, prompts)
        rows = [*prompts.split(1)] if len(prompts) else []
    elif type(prompts) not in (list, tuple):
        want = "a list of strings, task.tokenize(model.tokenizer, 100), or rows of tokens"
        raise ValueError(f"prompts are {prompts!r:.80}: want {want}")
    elif getattr(model, "tokenizer", None) is None:
        raise ValueError(f"this {type(model).__name__} has no tokenizer for strings: pass rows of tokens")
    else:
        rows = [model.to_tokens(prompt) for prompt in prompts]
    if not rows:
        raise ValueError("there is no prompt to score heads on")
    for number, row in enumerate(rows):
        if not 2 <= row.shape[-1] <= model.cfg.n_ctx:
            raise ValueError(f"prompt {number} has {row.shape[-1]} tokens: want 2 to {model.cfg.n_ctx}")
    return rows


def _patterns(model: Any, tokens: Int[Tensor, "1 pos"]) -> Float[Tensor, "layer head query_pos key_pos"]:
    names = [_PATTERN.format(layer) for layer in range(model.cfg.n_layers)]
    _, cache = model.run_with_cache(tokens.to(next(model.parameters()).device), names_filter=lambda name: name in names)
    missing = [name for name in names if name not in cache]
    if missing:
        raise ValueError(f"{type(model).__name__} does not expose {missing[0]}: load it with eager attention")
    patterns = torch.stack([cache[name][0].float().cpu() for name in names])
    if not patterns.isfinite().all():
        raise ValueError("attention patterns are not finite: look for NaN in the weights")
    return patterns


def _scores(
    patterns: Float[Tensor, "layer head query_pos key_pos"], tokens: Int[Tensor, "1 pos"], options: dict[str, bool]
) -> tuple[Float[Tensor, "kind layer head"], Bool[Tensor, " kind"]]:
    """The scores, and for each kind whether the prompt has a query with a target."""
    from transformer_lens import head_detector as detector

    wanted = [
        detector.get_previous_token_head_detection_pattern(tokens.cpu()),
        detector.get_duplicate_token_head_detection_pattern(tokens.cpu()),
        detector.get_induction_head_detection_pattern(tokens.cpu()),
    ]

    def score(pattern: Tensor, kind: Tensor) -> float:
        pattern = pattern * kind.any(-1, keepdim=True)  # the queries that have a target
        found = detector.compute_head_attention_similarity_score(pattern, kind, error_measure="mul", **options)
        return 0.0 if math.isnan(found) else found  # a head without attention gives 0 / 0

    scores = torch.tensor([[[score(head, kind) for head in layer] for layer in patterns] for kind in wanted])
    return scores, torch.tensor([bool(kind.any()) for kind in wanted])
