"""The roles of heads in a task: where they attend between its named positions, and what they write (Wang et al. 2022).

1. attention: every head's mean attention weight along each link, from a named position to an earlier one (END->IO).
2. direct: what every head writes into the logit difference (`direct_logit_attribution`).
3. Name movers attend END->IO and raise the logit difference; negative name movers attend there and lower it.
4. S-inhibition heads attend END->S2, and corrupting their paths into the queries of the name movers lowers the metric
   (`patch_paths`).
5. Duplicate-token heads attend S2->S1, induction heads S2->S1+1, previous-token heads S1+1->S1.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sparselens.analyses.attribution.direct import direct_logit_attribution
from sparselens.analyses.attribution.nodes import NodeScores
from sparselens.analyses.engine.batching import in_batches
from sparselens.analyses.engine.request import OpenModel, Request, open_request
from sparselens.analyses.patching.paths import patch_paths
from sparselens.circuits.graph import head_of
from sparselens.models.hooked_model import HookedModel
from sparselens.names import unknown
from sparselens.prompts.metrics import logit_difference
from sparselens.prompts.tokenized import TokenizedPairs
from sparselens.results import Result

MOVER, NEGATIVE, INHIBITION = "name mover", "negative name mover", "S-inhibition"
BY_ATTENTION = {"duplicate token": "S2->S1", "induction": "S2->S1+1", "previous token": "S1+1->S1"}
PER_ROLE, SHOWN = 5, 12  # number of heads drawn: for each role, or in total if no head has a role


@dataclass(frozen=True, eq=False, repr=False)
class HeadRoles(Result):
    """Where every head attends between a task's named positions, what it writes, and the roles that follow from both.

    >>> found = head_roles(model, pairs)
    >>> found.roles["S-inhibition"], found["a1.h2"]["END->IO"], found.to_frame()  # heads; a number; all of them
    """

    links: tuple[str, ...]  # from a query position to an earlier key position: END->IO
    attention: Float[Tensor, "batch layer head link"]
    direct: NodeScores  # what every node writes into the logit difference
    paths: NodeScores | None  # effects of heads that attend END->S2 through the queries of the name movers
    roles: Mapping[str, tuple[str, ...]]  # heads by role, highest attention first; empty if the task is not like IOI

    def _line(self) -> str:
        found = "; ".join(f"{role} {', '.join(heads[:3])}" for role, heads in self.roles.items() if heads)
        return f"{len(self.attention)} prompts, {len(self.links)} links: {found or 'no roles'}"

    _largest = "direct"

    def _columns(self) -> dict[str, list[Any]]:
        heads = self._heads
        columns: dict[str, list[Any]] = {"head": heads, "role": [", ".join(self.roles_of(head)) for head in heads]}
        columns["direct"] = [self.direct[head] for head in heads]
        if self.paths is not None:
            columns["path"] = [self.paths[head] if head in self.paths.sources else float("nan") for head in heads]
        return columns | dict(zip(self.links, self.mean.flatten(0, 1).T.tolist(), strict=True))

    def __getitem__(self, head: str) -> dict[str, Any]:
        layer, number = head_of(head, self.mean.shape)
        row = layer * self.mean.shape[1] + number
        return {name: column[row] for name, column in self._columns().items()}

    def roles_of(self, head: str) -> list[str]:
        """The roles of one head."""
        return [role for role, heads in self.roles.items() if head in heads]

    def plot(self, link: str | None = None) -> Any:
        """A plotly heat map: the attention of each role's top heads along all links, or of all heads along one link.

        Raises:
            ValueError: there is no such link.
        """
        from sparselens.analyses.figures.heat_maps import heat_map

        if link is not None:
            values = self.mean[..., self._place(link)]
            return heat_map(values, f"Attention {link}", value_label="attention", limit=1.0)
        strongest = self.mean.flatten(0, 1).amax(-1).argsort(descending=True)[:SHOWN].tolist()
        heads = list(dict.fromkeys(head for some in self.roles.values() for head in some[:PER_ROLE]))
        heads = heads or [self._heads[row] for row in strongest]
        values = self.mean.flatten(0, 1)[[self._heads.index(head) for head in heads]]
        rows = [": ".join([head, *filter(None, [", ".join(self.roles_of(head))])]) for head in heads]
        figure = heat_map(values, "Attention", rows=rows, columns=self.links, value_label="attention", limit=1.0)
        return figure.update_yaxes(scaleanchor=None)

    @property
    def mean(self) -> Float[Tensor, "layer head link"]:
        """The mean attention over prompts."""
        return self.attention.mean(0)

    @property
    def _heads(self) -> list[str]:
        _, n_layers, n_heads, _ = self.attention.shape
        return [f"a{layer}.h{head}" for layer in range(n_layers) for head in range(n_heads)]

    def _place(self, link: str) -> int:
        if link not in self.links:
            raise unknown("link", link, self.links)
        return self.links.index(link)


def head_roles(
    model: HookedModel,
    pairs: TokenizedPairs,
    *,
    threshold: float = 0.2,
    share: float = 0.02,
    memory: int | None = None,
    batch_size: int | None = None,
    progress: bool = True,
) -> HeadRoles:
    """Every head's attention between a task's named positions, its direct effect, and its roles in tasks like IOI.

    >>> found = head_roles(model, TASKS["ioi"].tokenize(model.tokenizer, 100))
    >>> found.roles["name mover"], found.plot(), found.plot("END->S2")

    Scope: roles are assigned only if the pairs have the positions IO, S1, S2 and S1+1, as in `ioi`; other tasks get
    only the numbers. The duplicate-token, induction and previous-token roles are based on attention alone, so such a
    head need not matter. A head that works in another way, for example attends to S2 and writes against its name, has
    no role, but shows up in `direct`.

    Sign convention: direct and path effects are positive if the head raises the logit difference.

    Args:
        pairs: prompt pairs with at least one named position other than END
        threshold: lowest mean attention along a role's link
        share: lowest direct effect or path effect, as a share of the mean logit difference; its interval must also
            exclude zero
        memory, batch_size: as in `patch_activations`

    Raises:
        ValueError: the pairs name no position but END; or as in `direct_logit_attribution` and `patch_paths`.
    """
    options: Any = {"memory": memory, "batch_size": batch_size, "progress": progress}
    opened: Any = OpenModel(model)  # accepted in place of a model
    with open_request(opened, pairs, logit_difference, **options) as request:
        links = _links(pairs)
        shape = len(request), len(request.reading.layers), request.model.cfg.n_heads, len(links)
        attention = torch.zeros(shape)
        for rows, (found,) in in_batches(request, partial(_attended, links), "attention"):
            attention[rows] = found.float().cpu()
    direct = direct_logit_attribution(opened, pairs, **options)
    found = HeadRoles(tuple(map("->".join, links)), attention, direct, None, {})
    return _with_roles(found, opened, pairs, threshold, share, options)


def _links(pairs: TokenizedPairs) -> list[tuple[str, str]]:
    """Pairs of named positions in which the first comes after the second in every prompt."""
    at = {**pairs.positions, "END": pairs.end}
    links = [(query, key) for query in at for key in at if bool((at[query] > at[key]).all())]
    if not links:
        raise ValueError(
            f"these pairs name the positions {', '.join(at)}: want at least two, one before the other. Pairs of tasks "
            "have them; in your own pairs, name spans of characters with PromptPair(positions=...)"
        )
    return links


def _attended(links: Sequence[tuple[str, str]], batch: Request) -> tuple[Float[Tensor, "batch layer head link"]]:
    names = [layer.at("attn.hook_pattern") for layer in batch.reading.layers]
    patterns = [pattern.cpu() for pattern in batch.record(names).recorded.values()]
    at = {name: where.cpu() for name, where in {**batch.pairs.positions, "END": batch.pairs.end}.items()}
    rows = torch.arange(len(batch))
    ends = [(rows, slice(None), at[query], at[key]) for query, key in links]
    return (torch.stack([torch.stack([pattern[end] for end in ends], -1) for pattern in patterns], 1),)


def _with_roles(
    found: HeadRoles, opened: Any, pairs: TokenizedPairs, threshold: float, share: float, options: Any
) -> HeadRoles:
    """The same with roles, if the task has the positions of IOI."""
    if not {"END->IO", "END->S2", *BY_ATTENTION.values()} <= {*found.links}:
        return found
    direct, least = found.direct, share * abs(float(found.direct.clean.mean()))
    looking = _attending(found, "END->IO", threshold)
    movers = tuple(head for head in looking if _raises(direct, head, least))
    lowering = tuple(head for head in looking if _raises(direct, head, least, -1))
    last = max((head_of(head, found.mean.shape)[0] for head in movers), default=0)
    before = [h for h in _attending(found, "END->S2", threshold) if head_of(h, found.mean.shape)[0] < last]
    queries = [f"{head}<q>" for head in movers]
    paths = patch_paths(opened, pairs, queries, before, **options) if before else None
    inhibition = tuple(head for head in before if paths and _raises(paths, head, least))
    roles = {MOVER: movers, NEGATIVE: lowering, INHIBITION: inhibition}
    roles |= {role: _attending(found, link, threshold) for role, link in BY_ATTENTION.items()}
    return HeadRoles(found.links, found.attention, direct, paths, roles)


def _attending(found: HeadRoles, link: str, threshold: float) -> tuple[str, ...]:
    """The heads that attend along a link, highest attention first."""
    weights = found.mean[..., found._place(link)].flatten()
    order = weights.argsort(descending=True)[: int((weights >= threshold).sum())]
    return tuple(found._heads[row] for row in order)


def _raises(scores: NodeScores, head: str, least: float, sign: int = 1) -> bool:
    """Whether a head's score, times `sign`, is at least that large, with an interval that excludes zero."""
    interval = scores.interval(head)
    significant = interval.low > 0 if sign > 0 else interval.high < 0
    return sign * interval.mean >= least and significant
