"""Why is this gate open? The score of an attention edge as an exact sum over pairs of sources (QK attribution).

1. A head's query at position i and its key at position j are linear in the residual streams there, once the norms of
   the run are held fixed; and the streams are sums of what the input, heads, MLPs and biases wrote.
2. The score is bilinear in query and key, except for a position bias and a soft-cap (`query_key_form`).
3. So score = sum over pairs (a, b) of [what a wrote into the query] . [what b wrote into the key] + position bias. In a
   sparse model the gate is a threshold on this score and nothing else. The sum is checked against the run's own score.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sparselens.analyses.attribution.qk_attribution import QKAttribution
from sparselens.analyses.engine.hidden_attention import showing_attention
from sparselens.analyses.engine.partial_runs import Activations, Hook, recording, run
from sparselens.analyses.engine.prompt_tokens import Position, place_of, prompt_tokens
from sparselens.analyses.engine.query_key_form import Place, query_key_form
from sparselens.analyses.engine.request import OpenModel
from sparselens.analyses.engine.residual_stream import TOLERANCE, Reading
from sparselens.analyses.engine.written import written_at, written_names
from sparselens.circuits.graph import head_of
from sparselens.gates.gate import is_visible
from sparselens.gates.modes import evaluating
from sparselens.gates.points import LayerGate, gate_of
from sparselens.gates.surgery import find_settings
from sparselens.models.hooked_model import HookedModel
from sparselens.names import unknown
from sparselens.prompts.checks import refuse_misfits
from sparselens.prompts.fitting import text_of
from sparselens.prompts.tokenized import TokenizedPairs

AT_ONCE = 16  # prompts per run


def explain_edge(
    model: HookedModel,
    prompts: str | Int[Tensor, " pos"] | Int[Tensor, "batch pos"] | TokenizedPairs,
    head: str,
    query_pos: Position,
    key_pos: Position,
    *,
    by_position: bool = False,
) -> QKAttribution:
    """Why a gate is open or closed: what each source wrote into the query, times what each wrote into the key.

    >>> found = explain_edge(model, "Lily saw a big dog. She was", "a2.h3", 8, 1)
    >>> found.mean.shape, found.query_sources  # [query_source key_source], ("input", "a0.h0", ..., "b_Q")
    >>> print(explain_edge(model, TASKS["ioi"].tokenize(model.tokenizer, 40), "a9.h6", "END", "S1"))  # averaged

    Rows and columns: `input` (in models with position embeddings `token` and `position`), every earlier head and MLP,
    `b_O` for the output biases and post-norm biases of attention so far, `b_Q` and `b_K` for the biases of the layer's
    norm, queries and keys. A dense model has the same kind of score, but no gate.

    Sign convention: positive where the pair raises the score, and so opens the gate; in the score's unit.

    Scope: exact, with the norms of this run held fixed (the layer's own, those of queries and keys, post-norms), rotary
    encodings included. The softmax of a dense model depends only on differences of scores between keys; terms that are
    equal for all keys are nevertheless included here.

    Args:
        prompts: a text, its tokens, rows of tokens without padding, or pairs, whose clean prompts are run
        head: the head that reads, such as "a2.h3"
        query_pos: the position that reads: a name among `pairs.positions`, or an index, negative from the end
        key_pos: the position that is read, given in the same way
        by_position: split the writes of heads by the position they came from: instead of `a1.h2`, all its attention
            edges `a1.h2:3->8` that carried something; for prompts of one length with the same two positions

    Raises:
        ValueError: there is no such head or position, the query does not see the key, or the model is one that
            `attribute_edges` refuses.
    """
    return explain_under(model, prompts, head, query_pos, key_pos, (), by_position)


def explain_under(
    model: HookedModel | OpenModel,
    prompts: str | Tensor | TokenizedPairs,
    head: str,
    query_pos: Position,
    key_pos: Position,
    hooks: Sequence[Hook],
    by_position: bool,
) -> QKAttribution:
    """As `explain_edge`, in a run under hooks."""
    opened = model if isinstance(model, OpenModel) else OpenModel(model)
    layer, number = head_of(head, (opened.model.cfg.n_layers, opened.model.cfg.n_heads))
    located = _locate(opened, prompts, query_pos, key_pos)
    groups = _alike(located)
    if by_position and len(groups) > 1:
        raise ValueError("by_position wants prompts of one length, with the same two positions in all")
    rows, parts = list[int](), list[_Explained]()
    with evaluating(opened.model), torch.no_grad(), showing_attention(opened.model):
        for (_, *at), members in groups.items():
            for batch in (members[start : start + AT_ONCE] for start in range(0, len(members), AT_ONCE)):
                tokens = torch.stack([located[row].tokens for row in batch]).to(opened.device)
                parts.append(_explained(opened, tokens, Place(layer, number, *at), hooks, by_position))
                rows += batch
    bias, joined = _gate_bias(opened.model, layer, number, located), _joined(parts, rows)
    query, key = (_label(opened, located, *side) for side in (("query_pos", query_pos), ("key_pos", key_pos)))
    return QKAttribution(
        head,
        query,
        key,
        *joined,
        is_open=None if bias is None else joined.score + bias > 0,
        gate_bias=bias,
        soft_cap=_soft_cap(opened.model),
        query_pos=torch.tensor([prompt.first + prompt.query_pos for prompt in located]),
        key_pos=torch.tensor([prompt.first + prompt.key_pos for prompt in located]),
    )


def _gate_bias(model: Any, layer: int, head: int, located: Sequence["_Located"]) -> float | None:
    """What a gate adds to the score: its bias, minus the surplus of ALiBi biases (`LayerGate.surplus`)."""
    settings, gate = find_settings(model), gate_of(model.blocks[layer].attn)
    if settings is None or gate is None:
        return None if settings is None else settings.gate_bias
    surplus = {_surplus(gate, head, len(prompt.tokens), prompt.query_pos) for prompt in located}
    if len(surplus) > 1:
        raise ValueError(
            "in this model a query's score depends on the length of the prompt: want prompts of one length, with the "
            "query at the same position"
        )
    return settings.gate_bias - surplus.pop()


def _surplus(gate: LayerGate, head: int, length: int, query_pos: int) -> float:
    found = gate.surplus(length, length)
    return 0.0 if found is None else float(found[head, query_pos])


# -- prompts and positions


class _Located(NamedTuple):
    """One prompt without padding, and two positions in it."""

    tokens: Int[Tensor, " pos"]
    query_pos: int
    key_pos: int
    first: int  # number of padding tokens before it


def _locate(
    opened: OpenModel, prompts: str | Tensor | TokenizedPairs, query_pos: Position, key_pos: Position
) -> list[_Located]:
    """All prompts in their order, with the two positions."""
    if isinstance(prompts, TokenizedPairs):
        refuse_misfits(opened.model, prompts)
        found: dict[int, _Located] = {}
        for rows, first, tokens in prompts.clean_rows():
            for row, start, ids in zip(rows.tolist(), first.tolist(), tokens, strict=True):
                query, key = (_column(prompts, row, start, len(ids), given) for given in (query_pos, key_pos))
                found[row] = _Located(ids, query, key, start)
        return [found[row] for row in sorted(found)]
    tokens = prompt_tokens(opened, prompts)
    query, key = (place_of(given, tokens.shape[1]) for given in (query_pos, key_pos))
    return [_Located(ids, query, key, 0) for ids in tokens]


def _column(pairs: TokenizedPairs, row: int, first: int, length: int, given: Position) -> int:
    """The index of a position in the prompt without its padding."""
    if isinstance(given, int):
        return place_of(given if given < 0 else given - first, length)
    if given == "END" and given not in pairs.positions:
        return int(pairs.end[row]) - first
    if given not in pairs.positions:
        raise unknown("position", given, pairs.positions)
    return place_of(int(pairs.positions[given][row]) - first, length)


def _alike(located: Sequence[_Located]) -> dict[tuple[int, int, int], list[int]]:
    """The indices of prompts, by length and positions."""
    groups: dict[tuple[int, int, int], list[int]] = {}
    for row, prompt in enumerate(located):
        groups.setdefault((len(prompt.tokens), prompt.query_pos, prompt.key_pos), []).append(row)
    return groups


def _label(opened: OpenModel, located: Sequence[_Located], side: str, given: Position) -> str:
    """The name of a position if it was given by name, otherwise its index, with its token if all prompts share it."""
    if isinstance(given, str):
        return given
    places = {getattr(prompt, side) for prompt in located}
    ids = {int(prompt.tokens[getattr(prompt, side)]) for prompt in located}
    where = str(*places) if len(places) == 1 else str(given)
    tokenizer = getattr(opened.model, "tokenizer", None)
    if tokenizer is None or len(ids) > 1 or not next(iter(ids)) < len(tokenizer):
        return f"position {where}"
    return f"{text_of(tokenizer, *ids)!r} ({where})"


# -- what was written


class _Explained(NamedTuple):
    """Some prompts of one length; named as in `QKAttribution`."""

    query_sources: tuple[str, ...]
    key_sources: tuple[str, ...]
    per_prompt: Float[Tensor, "batch query_source key_source"]
    position_bias: Float[Tensor, " batch"]
    score: Float[Tensor, " batch"]
    weight: Float[Tensor, " batch"]


def _joined(parts: Sequence[_Explained], rows: Sequence[int]) -> _Explained:
    """All prompts in their order, without attention edges that carried nothing."""
    order, (_, _, *values) = torch.tensor(rows).argsort(), zip(*parts, strict=True)
    pairs, bias, score, weight = (torch.cat(batches)[order].cpu() for batches in values)
    sources: list[tuple[str, ...]] = []
    for axis, names in ((1, parts[0].query_sources), (2, parts[0].key_sources)):
        carries = (pairs != 0).any(0).any(2 - axis)
        kept = [number for number, name in enumerate(names) if ":" not in name or carries[number]]
        pairs = pairs.index_select(axis, torch.tensor(kept))
        sources.append(tuple(names[number] for number in kept))
    return _Explained(sources[0], sources[1], pairs, bias, score, weight)


def _explained(
    opened: OpenModel, tokens: Int[Tensor, "batch pos"], place: Place, hooks: Sequence[Hook], by_position: bool
) -> _Explained:
    reading, recorded = opened.reading, dict[str, Tensor]()
    layer = reading.layers[place.layer]
    stream, scores, pattern = layer.at("hook_resid_pre"), place.at("hook_attn_scores"), place.at("hook_pattern")
    names = [stream, scores, pattern, *written_names(reading, place.layer, by_position)]
    run(opened.model, tokens, [*hooks, *recording(recorded, names)])
    if not is_visible(recorded[scores][:1])[0, place.head, place.query_pos, place.key_pos]:
        raise ValueError(f"in layer {place.layer} position {place.query_pos} does not see position {place.key_pos}")
    form = query_key_form(opened, tokens, recorded[stream], place)
    query_sources, query = _parts(reading, place, "q", place.query_pos, recorded, by_position)
    key_sources, key = _parts(reading, place, "k", place.key_pos, recorded, by_position)
    pairs = torch.einsum("qbd,de,kbe->bqk", query, form.matrix.to(query), key.to(query))
    pairs = pairs * form.scaling.to(query)[:, None, None]
    bias = torch.full_like(pairs[:, 0, 0], form.position_bias)
    score = place.of(recorded[scores]).to(pairs)
    _refuse_other_sums(opened, place, pairs, bias, score)
    return _Explained(
        tuple(query_sources), tuple(key_sources), pairs, bias, score, place.of(recorded[pattern]).to(pairs)
    )


def _refuse_other_sums(opened: OpenModel, place: Place, pairs: Tensor, bias: Tensor, score: Tensor) -> None:
    cap, total = _soft_cap(opened.model), pairs.sum((1, 2)) + bias
    found = total if cap is None else cap * torch.tanh(total / cap)
    off = float(((found - score).abs() / (score.abs() + pairs.abs().amax((1, 2)))).max())
    if not off <= TOLERANCE.get(opened.dtype, 1e-5):
        raise ValueError(
            f"cannot explain a{place.layer}.h{place.head}: its score is not query times key (off by {off:.2g})"
        )


def _soft_cap(model: Any) -> float | None:
    cap = getattr(model.cfg, "attn_scores_soft_cap", None)
    return None if cap is None or cap <= 0 else float(cap)


def _parts(
    reading: Reading, place: Place, receiver: str, pos: int, recorded: Activations, by_position: bool
) -> tuple[list[str], Float[Tensor, "source batch d_head"]]:
    """What each source contributes to the query or key at a position, and the names of the sources."""
    layer = reading.layers[place.layer]
    names, writes = written_at(reading, place.layer, pos, recorded, by_position)
    weight, bias = reading.weight(place.layer, receiver)[place.head], reading.bias(place.layer, receiver)
    constant = torch.zeros_like(weight[0]) if bias is None else bias[place.head]
    if layer.norm is not None:
        _, inverse = layer.norm.standardise(recorded[layer.at("hook_resid_pre")][:, pos])
        writes = layer.norm.centre(writes) * inverse * layer.norm.gain
        constant = constant + layer.norm.bias.to(weight) @ weight
    parts = torch.einsum("sbm,md->sbd", writes.to(weight), weight)
    if constant.any():
        names, parts = [*names, f"b_{receiver.upper()}"], torch.cat([parts, constant.expand_as(parts[:1])])
    return names, parts
