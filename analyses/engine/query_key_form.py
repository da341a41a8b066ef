"""How an attention score depends on its query and key, measured by gradients of the model's own attention.

1. score = scale (R_i N(q)) . (R_j N(k)) + position bias, with R the rotary encoding of a position and N the norm of
   queries or keys, if there is one. A soft-cap may follow.
2. At q = 0 and k = 0 the score is the position bias, and its mixed second derivative is the matrix between q and k:
   there N is linear (1 / sqrt(eps)), and the slope of a soft-cap is one.
3. The gradient at k = 0 with the run's query is that matrix times q, up to the divisor of N in the run; likewise for
   keys.
"""

from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sparselens.analyses.engine.gradients import frozen
from sparselens.analyses.engine.norms import widened
from sparselens.analyses.engine.partial_runs import Hook, run, skipping
from sparselens.analyses.engine.request import OpenModel


@dataclass(frozen=True)
class Place:
    """One entry of a head's attention scores."""

    layer: int
    head: int
    query_pos: int
    key_pos: int

    def at(self, name: str) -> str:
        """The full name of a hook point in the layer's attention."""
        return f"blocks.{self.layer}.attn.{name}"

    def of(self, scores: Float[Tensor, "batch head query_pos key_pos"]) -> Float[Tensor, " batch"]:
        """The entry in every prompt's scores."""
        return scores[:, self.head, self.query_pos, self.key_pos]


@dataclass(frozen=True, eq=False)
class QueryKeyForm:
    """The score before a soft-cap is `scaling * query @ matrix @ key + position_bias`, with query and key = W x + b."""

    matrix: Float[Tensor, "d_query d_key"]
    scaling: Float[Tensor, " batch"]  # from the run's query and key norms; 1 if there are none
    position_bias: float


def query_key_form(
    opened: OpenModel, tokens: Int[Tensor, "batch pos"], stream: Float[Tensor, "batch pos d_model"], place: Place
) -> QueryKeyForm:
    """How the score at `place` depends on query and key when its layer reads `stream`."""
    n = len(tokens)
    rows = torch.tensor([0, *range(n), *range(n)], device=stream.device)
    no_query = torch.arange(2 * n + 1, device=stream.device) > n  # row 0 has neither, the next n rows have no key
    no_key = ~no_query
    no_query[0] = True
    held, leaves, scores = stream[rows], dict[str, Tensor](), list[Tensor]()
    hooks: list[Hook] = [
        (place.at("hook_q"), partial(_silence, leaves, "query", no_query, place.query_pos)),
        (place.at("hook_k"), partial(_silence, leaves, "key", no_key, place.key_pos)),
        (place.at("hook_attn_scores"), lambda seen: scores.append(place.of(seen))),
    ]
    others = [number for number in range(len(opened.model.blocks)) if number != place.layer]
    with frozen(opened.model), torch.enable_grad():
        with skipping(opened.model, dict.fromkeys(others, lambda: held), opened.as_tuple):
            run(opened.model, tokens[rows.to(tokens.device)], hooks)
        return _form(scores[0], leaves, place, opened.model.cfg.n_heads)


def _silence(
    leaves: dict[str, Tensor], name: str, rows: Bool[Tensor, " row"], pos: int, activation: Tensor
) -> Float[Tensor, "row pos head d_head"]:
    """The activation with zeros at one position of some rows; gradients can be taken with respect to these zeros."""
    changed, rows = activation.detach().clone(), rows.to(activation.device)
    leaves[name] = torch.zeros_like(changed[rows, pos]).requires_grad_()
    leaves[f"kept {name}"] = changed[~rows, pos]
    changed[rows, pos] = leaves[name]
    return changed


def _form(scores: Float[Tensor, " row"], leaves: dict[str, Tensor], place: Place, n_heads: int) -> QueryKeyForm:
    query, key = leaves["query"], leaves["key"]
    kv_head = place.head * key.shape[1] // n_heads
    at_query, at_key = torch.autograd.grad(scores.sum(), [query, key], create_graph=True)
    columns = [torch.autograd.grad(x, query, retain_graph=True)[0][0, place.head] for x in at_key[0, kv_head]]
    matrix = widened(torch.stack(columns, -1))
    queries, keys = leaves["kept query"][:, place.head].to(matrix), leaves["kept key"][:, kv_head].to(matrix)
    scaling = _ratio(at_key[1:, kv_head], queries @ matrix) * _ratio(at_query[1:, place.head], keys @ matrix.T)
    return QueryKeyForm(matrix.detach(), scaling.detach(), float(scores[0].detach()))


def _ratio(seen: Float[Tensor, "batch d_head"], expected: Float[Tensor, "batch d_head"]) -> Float[Tensor, " batch"]:
    """The factor between parallel vectors; 1 where they are zero."""
    size = expected.square().sum(-1)
    return torch.where(size > 0, (seen.to(expected) * expected).sum(-1) / size, 1)
