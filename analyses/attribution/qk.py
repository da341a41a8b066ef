"""Why is this gate open? The score of an attention edge, exactly, as a sum over pairs of writers (QK attribution).

1. A head's query at position i and its key at position j are linear in the residual streams there, once the norms of
   the run are held fixed; and the streams are sums of what the input, heads, MLPs and biases wrote.
2. The score is bilinear in query and key, but for a position bias and a soft-cap (`query_key_form`).
3. So score = sum over pairs (a, b) of [what a wrote into the query] . [what b wrote into the key] + position bias. In a
   sparse model the gate is a threshold on it, and nothing else. The sum is compared to the run's own score.
"""

from collections.abc import Iterator, Sequence
from itertools import compress
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sparselens.analyses.attribution.qk_attribution import QKAttribution
from sparselens.analyses.engine.edge_products import exact_dtype
from sparselens.analyses.engine.partial_runs import Activations, Hook, recording, run
from sparselens.analyses.engine.query_key_form import Place, query_key_form, showing_scores
from sparselens.analyses.engine.request import OpenModel
from sparselens.analyses.engine.residual_stream import TOLERANCE, Layer, Reading
from sparselens.circuits.graph import INPUT, head_of
from sparselens.gates.gate import is_visible
from sparselens.gates.surgery import find_settings
from sparselens.models.hooked_model import HookedModel
from sparselens.names import unknown
from sparselens.prompts.checks import refuse_misfits, refuse_unreadable
from sparselens.prompts.fitting import Fit, text_of
from sparselens.prompts.tokenized import TokenizedPairs
from sparselens.training.evaluation import evaluating

AT_ONCE = 16  # prompts of a run
EMBEDDINGS = ("hook_embed", "hook_pos_embed")
Position = int | str


def explain_edge(
    model: HookedModel,
    prompts: str | Int[Tensor, " pos"] | Int[Tensor, "batch pos"] | TokenizedPairs,
    head: str,
    query_pos: Position,
    key_pos: Position,
    *,
    by_position: bool = False,
) -> QKAttribution:
    """Why a gate is open or closed: what was written into the query times what was written into the key, for all pairs.

    >>> found = explain_edge(model, "Lily saw a big dog. She was", "a2.h3", 8, 1)
    >>> found.mean.shape, found.query_sources  # [query_source key_source], ("input", "a0.h0", ..., "b_Q")
    >>> print(explain_edge(model, TASKS["ioi"].tokenize(model.tokenizer, 40), "a9.h6", "END", "S1"))  # averaged

    Rows and columns: `input` (in models with position embeddings `token` and `position`), every earlier head and MLP,
    `b_O` for the output biases and post-norm biases of attention so far, `b_Q` and `b_K` for the biases of the layer's
    norm, queries and keys. A dense model has no gate, and the same score.

    Sign convention: positive where the pair raises the score, and so opens the gate; in the score's unit.

    Scope: exact, with the norms of this run held fixed (the layer's own, those of queries and keys, post-norms), rotary
    encodings included. In a dense model only differences of scores between keys matter to the softmax; what writes the
    query alike for all keys shows here, too.

    Args:
        prompts: a text, its tokens, rows of tokens without padding, or pairs, whose clean prompts are run
        head: the head that reads, such as "a2.h3"
        query_pos: the position that reads; a name among `pairs.positions`, or a number, negative from the end
        key_pos: the position that is read
        by_position: heads' writes split by where they were read: instead of `a1.h2` all its attention edges
            `a1.h2:3->8` that carried something. For prompts of one length and one position each.

    Raises:
        ValueError: there is no such head or position, the query does not see the key, or the model is one that
            `attribute_edges` refuses.
    """
    return explain_under(model, prompts, head, query_pos, key_pos, (), by_position)


def explain_under(
    model: HookedModel,
    prompts: str | Tensor | TokenizedPairs,
    head: str,
    query_pos: Position,
    key_pos: Position,
    hooks: Sequence[Hook],
    by_position: bool,
) -> QKAttribution:
    """As `explain_edge`, in a run under hooks."""
    opened = OpenModel(model)
    layer, number = head_of(head, (opened.model.cfg.n_layers, opened.model.cfg.n_heads))
    asked = _asked(opened, prompts, query_pos, key_pos)
    groups = _alike(asked)
    if by_position and len(groups) > 1:
        raise ValueError("by_position wants prompts of one length, with the same two positions in all")
    rows, parts = list[int](), list[_Explained]()
    with evaluating(opened.model), torch.no_grad(), showing_scores(opened.model):
        for (_, *at), members in groups.items():
            for some in (members[start : start + AT_ONCE] for start in range(0, len(members), AT_ONCE)):
                tokens = torch.stack([asked[row].tokens for row in some]).to(opened.device)
                parts.append(_explained(opened, tokens, Place(layer, number, *at), hooks, by_position))
                rows += some
    order = torch.tensor(rows).argsort()
    pairs, position_bias, score, weight = (torch.cat(values)[order].cpu() for values in zip(*(p.values for p in parts)))
    settings = find_settings(opened.model)
    written = [(pairs != 0).any(2).any(0), (pairs != 0).any(1).any(0)]  # of the edges of heads only those that carry
    kept = [
        torch.tensor([":" not in name or bool(there) for name, there in zip(names, mask, strict=True)])
        for names, mask in zip(parts[0].sources, written, strict=True)
    ]
    query_sources, key_sources = (
        tuple(compress(names, mask.tolist())) for names, mask in zip(parts[0].sources, kept, strict=True)
    )
    return QKAttribution(
        head,
        _label(opened, asked, "query_pos", query_pos),
        _label(opened, asked, "key_pos", key_pos),
        query_sources,
        key_sources,
        pairs[:, kept[0]][:, :, kept[1]],
        position_bias,
        score,
        weight,
        is_open=None if settings is None else score + settings.gate_bias > 0,
        gate_bias=None if settings is None else settings.gate_bias,
        soft_cap=_soft_cap(opened.model),
        query_pos=torch.tensor([one.first + one.query_pos for one in asked]),
        key_pos=torch.tensor([one.first + one.key_pos for one in asked]),
    )


# -- what is asked


class _Asked(NamedTuple):
    """One prompt without padding, and two positions in it."""

    tokens: Int[Tensor, " pos"]
    query_pos: int
    key_pos: int
    first: int  # padding before it


def _asked(
    opened: OpenModel, prompts: str | Tensor | TokenizedPairs, query_pos: Position, key_pos: Position
) -> list[_Asked]:
    """All prompts, in their order."""
    if isinstance(prompts, TokenizedPairs):
        refuse_misfits(opened.model, prompts)
        found: dict[int, _Asked] = {}
        for rows, first, tokens in prompts.clean_rows():
            for row, start, ids in zip(rows.tolist(), first.tolist(), tokens, strict=True):
                places = (_column(prompts, row, start, len(ids), given) for given in (query_pos, key_pos))
                found[row] = _Asked(ids, *places, start)
        return [found[row] for row in sorted(found)]
    tokens = _tokens(opened, prompts)
    refuse_unreadable(opened.model, tokens)
    places = [_place(given, tokens.shape[1]) for given in (query_pos, key_pos)]
    return [_Asked(ids, *places, 0) for ids in tokens]


def _tokens(opened: OpenModel, prompts: str | Tensor) -> Int[Tensor, "batch pos"]:
    if not isinstance(prompts, str):
        return prompts[None] if isinstance(prompts, Tensor) and prompts.ndim == 1 else prompts
    tokenizer = getattr(opened.model, "tokenizer", None)
    if tokenizer is None or not prompts.strip():
        missing = "the prompt is empty" if tokenizer is not None else "this model has no tokenizer to read text with"
        raise ValueError(f"{missing}: pass a text, or Int[pos] token ids")
    return torch.tensor([Fit(tokenizer).prompt(prompts)[0]])


def _column(pairs: TokenizedPairs, row: int, first: int, length: int, given: Position) -> int:
    """A position in the prompt without its padding."""
    if isinstance(given, int):
        return _place(given if given < 0 else given - first, length)
    if given == "END" and given not in pairs.positions:
        return int(pairs.end[row]) - first
    if given not in pairs.positions:
        raise unknown("position", given, pairs.positions)
    return _place(int(pairs.positions[given][row]) - first, length)


def _place(given: Position, length: int) -> int:
    if isinstance(given, str):
        raise ValueError(f"no such position: {given!r} (want a number; only TokenizedPairs have positions with names)")
    if not -length <= given < length:
        raise ValueError(f"no such position: {given} (want 0 to {length - 1}, or -{length} to -1 from the end)")
    return given % length


def _alike(asked: Sequence[_Asked]) -> dict[tuple[int, int, int], list[int]]:
    """The numbers of prompts by length and positions."""
    groups: dict[tuple[int, int, int], list[int]] = {}
    for row, one in enumerate(asked):
        groups.setdefault((len(one.tokens), one.query_pos, one.key_pos), []).append(row)
    return groups


def _label(opened: OpenModel, asked: Sequence[_Asked], side: str, given: Position) -> str:
    """What to call a position: the name that was given, else its token and number where all prompts have the same."""
    if isinstance(given, str):
        return given
    places = {getattr(one, side) for one in asked}
    ids = {int(one.tokens[getattr(one, side)]) for one in asked}
    where = str(*places) if len(places) == 1 else str(given)
    tokenizer = getattr(opened.model, "tokenizer", None)
    if tokenizer is None or len(ids) > 1 or not next(iter(ids)) < len(tokenizer):
        return f"position {where}"
    return f"{text_of(tokenizer, *ids)!r} ({where})"


# -- what was written


class _Explained(NamedTuple):
    """Some prompts of one length."""

    sources: tuple[list[str], list[str]]  # of the query and of the key
    values: tuple[Tensor, Tensor, Tensor, Tensor]  # pairs, position bias, score, weight; prompts first


def _explained(
    opened: OpenModel, tokens: Int[Tensor, "batch pos"], place: Place, hooks: Sequence[Hook], by_position: bool
) -> _Explained:
    reading, recorded = opened.reading, dict[str, Tensor]()
    layer = reading.layers[place.layer]
    stream, scores, pattern = layer.at("hook_resid_pre"), place.at("hook_attn_scores"), place.at("hook_pattern")
    names = [stream, scores, pattern, *_written(opened.model, reading, place.layer, by_position)]
    run(opened.model, tokens, [*hooks, *recording(recorded, names)])
    if not is_visible(recorded[scores][:1])[0, place.head, place.query_pos, place.key_pos]:
        raise ValueError(
            f"position {place.query_pos} does not see position {place.key_pos} in layer {place.layer}: its mask hides it"
        )
    form = query_key_form(opened, tokens, recorded[stream], place)
    query_sources, query = _parts(reading, place, "q", place.query_pos, recorded, by_position)
    key_sources, key = _parts(reading, place, "k", place.key_pos, recorded, by_position)
    pairs = torch.einsum("qbd,de,kbe->bqk", query, form.matrix.to(query), key.to(query))
    pairs = pairs * form.scaling.to(query)[:, None, None]
    bias = torch.full_like(pairs[:, 0, 0], form.position_bias)
    score = place.of(recorded[scores]).to(pairs)
    _refuse_other_sums(opened, place, pairs, bias, score)
    return _Explained((query_sources, key_sources), (pairs, bias, score, place.of(recorded[pattern]).to(pairs)))


def _refuse_other_sums(opened: OpenModel, place: Place, pairs: Tensor, bias: Tensor, score: Tensor) -> None:
    cap, total = _soft_cap(opened.model), pairs.sum((1, 2)) + bias
    found = total if cap is None else cap * torch.tanh(total / cap)
    off = float(((found - score).abs() / (score.abs() + pairs.abs().amax((1, 2)))).max())
    if not off <= TOLERANCE.get(opened.dtype, 1e-5):
        raise ValueError(
            f"cannot explain a{place.layer}.h{place.head}: its score is no product of query and key (off by {off:.2g})"
        )


def _soft_cap(model: Any) -> float | None:
    cap = getattr(model.cfg, "attn_scores_soft_cap", None)
    return None if cap is None or cap <= 0 else float(cap)


def _written(model: Any, reading: Reading, n_layers: int, by_position: bool) -> list[str]:
    """The hook points of all that is written before a layer reads."""
    names = [name for name in EMBEDDINGS if name in model.hook_dict] + [reading.layers[0].at("hook_resid_pre")]
    for layer in reading.layers[:n_layers]:
        names += [layer.at("attn.hook_z")] + [layer.at("hook_mlp_out")] * layer.block.mlp
        names += [layer.at("attn.hook_pattern"), layer.at("attn.hook_v")] * by_position
    return names


def _parts(
    reading: Reading, place: Place, receiver: str, pos: int, recorded: Activations, by_position: bool
) -> tuple[list[str], Float[Tensor, "source batch d_head"]]:
    """What each source contributes to the query or key at a position, and the names of the sources."""
    layer = reading.layers[place.layer]
    names, writes = _writes(reading, place.layer, pos, recorded, by_position)
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


def _writes(
    reading: Reading, n_layers: int, pos: int, recorded: Activations, by_position: bool
) -> tuple[list[str], Float[Tensor, "source batch d_model"]]:
    """All that is written at a position before a layer reads."""
    names, writes = _embeddings(recorded, recorded[reading.layers[0].at("hook_resid_pre")][:, pos], pos)
    biases: list[Tensor] = []
    for layer in reading.layers[:n_layers]:
        split = _by_position if by_position else _by_head
        for name, write in split(reading, layer, pos, recorded):
            names.append(name)
            writes.append(write)
        bias = reading.unowned(layer.number, recorded[layer.at("attn.hook_z")][:, pos : pos + 1])
        biases += [] if bias is None else [bias.reshape(-1, bias.shape[-1]).expand_as(writes[0])]
        if layer.block.mlp:
            names.append(f"m{layer.number}")
            writes.append(recorded[layer.at("hook_mlp_out")][:, pos])
    if biases:
        names.append("b_O")
        writes.append(torch.stack([bias.to(writes[0]) for bias in biases]).sum(0))
    return names, torch.stack([write.to(writes[0]) for write in writes])


def _embeddings(
    recorded: Activations, start: Float[Tensor, "batch d_model"], pos: int
) -> tuple[list[str], list[Tensor]]:
    """What block 0 reads: token and position embeddings where it is their sum, else one input."""
    start = start.to(exact_dtype(start.dtype))
    found = [recorded[name].to(start) for name in EMBEDDINGS if name in recorded]
    if len(found) == 2 and all(values.ndim == 3 for values in found):
        token, position = (values[:, pos].expand_as(start) for values in found)
        if torch.allclose(token + position, start, rtol=1e-3, atol=1e-6):
            return ["token", "position"], [token, start - token]
    return [INPUT], [start]


def _by_head(reading: Reading, layer: Layer, pos: int, recorded: Activations) -> Iterator[tuple[str, Tensor]]:
    z = recorded[layer.at("attn.hook_z")][:, pos : pos + 1]
    for head, write in enumerate(reading.head_writes(layer.number, z)[:, :, 0]):
        yield f"a{layer.number}.h{head}", write


def _by_position(reading: Reading, layer: Layer, pos: int, recorded: Activations) -> Iterator[tuple[str, Tensor]]:
    """Heads split by where they read; whole where a hook has changed what they put out, as cutting a head does."""
    z = recorded[layer.at("attn.hook_z")][:, pos : pos + 1]
    value = recorded[layer.at("attn.hook_v")]
    value = value.repeat_interleave(z.shape[2] // value.shape[2], 2)
    moved = recorded[layer.at("attn.hook_pattern")][:, :, pos].mT[..., None] * value  # batch key_pos head d_head
    off = (moved.sum(1, keepdim=True) - z).abs().amax((0, 1, 3))
    adds_up = off <= TOLERANCE.get(z.dtype, 1e-5) * z.abs().amax((0, 1, 3))
    whole, split = reading.head_writes(layer.number, z), reading.head_writes(layer.number, moved, z)
    for head in range(z.shape[2]):
        name = f"a{layer.number}.h{head}"
        if not adds_up[head]:
            yield name, whole[head, :, 0]
        else:
            for key_pos in range(moved.shape[1]):
                yield f"{name}:{key_pos}->{pos}", split[head, :, key_pos]
