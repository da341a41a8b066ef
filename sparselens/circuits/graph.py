"""The computational graph of a transformer as plain data: the components that write to and read the residual stream.

1. Sources are `input`, every head `a0.h1` and every MLP `m0`.
2. Destinations are a head's queries, keys and values, such as `a2.h3<q>`, every MLP `m1`, and `logits`.
3. A destination reads everything written before it, so one number per destination (`Graph.reads`) determines which
   edges exist. Edge names are those of EAP-IG (Hanna et al. 2024) and MIB: `a0.h1->a2.h3<q>`, `m0->logits`.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from sparselens.gates.hooked import refuse_other_model
from sparselens.models.hooked_model import HookedModel
from sparselens.names import meant

_HEAD = re.compile(r"a(\d+)\.h(\d+)")
RECEIVERS = ("q", "k", "v")
INPUT, LOGITS = "input", "logits"
MOST_HEADS = 2**15  # in a graph: a file may claim any number, and memory grows with its square


@dataclass(frozen=True)
class Block:
    """The components of one transformer block."""

    n_heads: int
    n_kv_heads: int = 0  # 0: as many as heads. An edge into `a0.h1<k>` affects the keys only as head 1 sees them
    mlp: bool = True
    parallel: bool = False  # the MLP reads the same input as the attention, without the attention's output


@dataclass(frozen=True, repr=False)
class Graph:
    """Nodes and edges of a model with these blocks.

    >>> graph = Graph.of_model(sl.load("addition"))
    >>> graph.n_edges, graph.exists.shape  # Bool["source destination"]
    """

    blocks: tuple[Block, ...]

    def __post_init__(self) -> None:
        _refuse_too_many_heads(sum(block.n_heads for block in self.blocks))

    @classmethod
    def of_model(cls, model: HookedModel) -> "Graph":
        """The graph of a TransformerBridge or HookedTransformer.

        Raises:
            ValueError: the model is of another kind, or a layer has no attention.
        """
        opened: Any = model
        refuse_other_model(opened)
        cfg, modules = opened.cfg, [block._modules for block in opened.blocks]
        for number, inside in enumerate(modules):
            if inside.get("attn") is None:
                kind = getattr(cfg, "architecture", None) or type(model).__name__
                raise ValueError(f"layer {number} of this {kind} has no attention")
        n_kv_heads = getattr(cfg, "n_key_value_heads", None) or cfg.n_heads
        parallel = bool(getattr(cfg, "parallel_attn_mlp", False))
        return cls(tuple(Block(cfg.n_heads, n_kv_heads, x.get("mlp") is not None, parallel) for x in modules))

    @classmethod
    def of_shape(
        cls, n_layers: int, n_heads: int, n_kv_heads: int = 0, mlp: bool = True, parallel: bool = False
    ) -> "Graph":
        """The graph of a model whose blocks are all the same.

        Raises:
            ValueError: a number is not positive, or `n_heads` is not a multiple of `n_kv_heads`.
        """
        n_kv_heads = n_kv_heads or n_heads
        if n_layers < 1 or n_heads < 1 or n_kv_heads < 1 or n_heads % n_kv_heads:
            raise ValueError(f"no such model: {n_layers} layers, {n_heads} heads, {n_kv_heads} key-value heads")
        _refuse_too_many_heads(n_layers * n_heads)
        return cls((Block(n_heads, n_kv_heads, mlp, parallel),) * n_layers)

    @classmethod
    def from_config(cls, cfg: Mapping[str, Any]) -> "Graph":
        """The graph of a model from its shape, in the format of EAP-IG's files."""
        return cls.of_shape(
            cfg["n_layers"],
            cfg["n_heads"],
            cfg.get("n_key_value_heads") or 0,
            mlp=not cfg.get("attn_only", False),
            parallel=bool(cfg.get("parallel_attn_mlp", False)),
        )

    def config(self) -> dict[str, Any] | None:
        """The model's shape in the format of EAP-IG and MIB; None if blocks differ, which the format cannot express."""
        block = self.blocks[0]
        if any(other != block for other in self.blocks):
            return None
        return {
            "n_layers": len(self.blocks),
            "n_heads": block.n_heads,
            "n_key_value_heads": block.n_kv_heads or block.n_heads,
            "parallel_attn_mlp": block.parallel,
            "attn_only": not block.mlp,
        }

    @cached_property
    def sources(self) -> tuple[str, ...]:
        """Names of all sources, in the order in which they write."""
        names = [INPUT]
        for layer, block in enumerate(self.blocks):
            names += [f"a{layer}.h{head}" for head in range(block.n_heads)]
            names += [f"m{layer}"] * block.mlp
        return tuple(names)

    @cached_property
    def destinations(self) -> tuple[str, ...]:
        """Names of all destinations: each block's queries, keys and values, then its MLP; last the logits."""
        names: list[str] = []
        for layer, block in enumerate(self.blocks):
            names += [f"a{layer}.h{head}<{receiver}>" for receiver in RECEIVERS for head in range(block.n_heads)]
            names += [f"m{layer}"] * block.mlp
        return (*names, LOGITS)

    @cached_property
    def reads(self) -> Int[Tensor, " destination"]:
        """How many sources each destination reads: the first so many, which write before it reads."""
        counts: list[int] = []
        written = 1
        for block in self.blocks:
            counts += [written] * len(RECEIVERS) * block.n_heads
            counts += [written if block.parallel else written + block.n_heads] * block.mlp
            written += block.n_heads + block.mlp
        return torch.tensor([*counts, written])

    @cached_property
    def exists(self) -> Bool[Tensor, "source destination"]:
        """Which pairs of source and destination are edges."""
        return torch.arange(len(self.sources))[:, None] < self.reads

    @property
    def n_edges(self) -> int:
        """Number of edges: 3 H s + s (+ H if not parallel) per layer and s for the logits, after s earlier sources."""
        return int(self.reads.sum())

    def head_sources(self, layer: int) -> slice:
        """The indices of a layer's heads among the sources."""
        start = 1 + sum(block.n_heads + block.mlp for block in self.blocks[:layer])
        return slice(start, start + self.blocks[layer].n_heads)

    def head_destinations(self, layer: int) -> slice:
        """The indices of a layer's queries, keys and values among the destinations."""
        start = sum(3 * block.n_heads + block.mlp for block in self.blocks[:layer])
        return slice(start, start + 3 * self.blocks[layer].n_heads)

    # -- names

    @cached_property
    def _source_of(self) -> Mapping[str, int]:
        return {name: index for index, name in enumerate(self.sources)}

    @cached_property
    def _destination_of(self) -> Mapping[str, int]:
        return {name: index for index, name in enumerate(self.destinations)}

    def source(self, name: str) -> int:
        """The index of a source, which is its row in scores and masks."""
        if name not in self._source_of:
            near = meant(name, self.sources)
            raise ValueError(f"no such source: {name!r}{near} (want input, m0, a0.h1 within {self})")
        return self._source_of[name]

    def destination(self, name: str) -> int:
        """The index of a destination, which is its column in scores and masks."""
        if name not in self._destination_of:
            near = meant(name, self.destinations)
            want = f"want m0, a0.h1<q>, <k> or <v>, or logits within {self}"
            raise ValueError(f"no such destination: {name!r}{near} ({want})")
        return self._destination_of[name]

    def edge(self, name: str | tuple[str, str]) -> tuple[int, int]:
        """Row and column of an edge, given as `a0.h1->a2.h3<q>` or as a pair of source and destination.

        Raises:
            ValueError: this is not the name of an edge, or the source writes after the destination reads.
        """
        name = name if isinstance(name, str) else "->".join(name)
        start, arrow, end = name.partition("->")
        if not arrow:
            raise ValueError(f"no such edge: {name!r} (want a source, ->, a destination, as in a0.h1->m2)")
        source, destination = self.source(start), self.destination(end)
        if not self.exists[source, destination]:
            raise ValueError(f"no such edge: {name!r} ({end} reads before {start} writes)")
        return source, destination

    def edge_names(self, chosen: Bool[Tensor, "source destination"]) -> list[str]:
        """Names of the chosen edges, ordered by source."""
        pairs: list[list[int]] = chosen.nonzero().tolist()
        return [f"{self.sources[source]}->{self.destinations[destination]}" for source, destination in pairs]

    def columns(self, chosen: Bool[Tensor, "source destination"], scores: Tensor) -> dict[str, list[Any]]:
        """The chosen edges as columns of a table, ordered by source."""
        ends: list[list[int]] = chosen.nonzero().T.tolist()
        return {
            "edge": self.edge_names(chosen),
            "source": [self.sources[source] for source in ends[0]],
            "destination": [self.destinations[destination] for destination in ends[1]],
            "score": scores[chosen].tolist(),
        }

    def matrix(self, edges: Sequence[str]) -> Bool[Tensor, "source destination"]:
        """The named edges as a mask."""
        chosen = torch.zeros_like(self.exists)
        for name in edges:
            chosen[self.edge(name)] = True
        return chosen

    @cached_property
    def receivers(self) -> Bool[Tensor, "source destination"]:
        """Which destinations belong to the node of each source; those of a head are its queries, keys and values."""
        owners = [self._source_of.get(name.partition("<")[0], -1) for name in self.destinations]
        return torch.arange(len(self.sources))[:, None] == torch.tensor(owners)

    def __repr__(self) -> str:
        return f"Graph({self})"

    def __str__(self) -> str:
        heads = sorted({block.n_heads for block in self.blocks})
        shape = f"{len(self.blocks)} layer{'s' * (len(self.blocks) != 1)} of {' or '.join(map(str, heads))} heads"
        return shape + ("" if all(block.mlp for block in self.blocks) else ", not all with MLPs")


def _refuse_too_many_heads(n: int) -> None:
    if n > MOST_HEADS:
        raise ValueError(f"the graph has {n:,} heads: at most {MOST_HEADS:,} are supported")


def head_of(name: str, shape: Sequence[int]) -> tuple[int, int]:
    """Layer and index of a head such as `a0.h1` in a model of this shape (layers, heads).

    Raises:
        ValueError: there is no such head.
    """
    found = _HEAD.fullmatch(name)
    layer, head = map(int, found.groups()) if found else (shape[0], 0)
    if layer >= shape[0] or head >= shape[1]:
        near = meant(name, [f"a{i}.h{j}" for i in range(shape[0]) for j in range(shape[1])])
        raise ValueError(f"no such head: {name!r}{near} (want a0.h0 to a{shape[0] - 1}.h{shape[1] - 1})")
    return layer, head
