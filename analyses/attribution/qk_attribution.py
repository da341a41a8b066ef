"""The score of a head between two positions, as a sum over pairs of what wrote the query and what wrote the key."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sparselens.results import Result


class SourcePair(NamedTuple):
    """What one source wrote into the query, times what another wrote into the key."""

    query_source: str
    key_source: str
    score: float

    def __repr__(self) -> str:
        return f"{self.query_source} with {self.key_source} {self.score:+.3g}"


@dataclass(frozen=True, eq=False, repr=False)
class QKAttribution(Result):
    """Why a gate is open or closed, on one prompt or on several; made by `explain_edge`.

    >>> found = explain_edge(model, "Lily saw a big dog. She was", "a2.h3", 8, 1)
    >>> print(found)  # the sentence
    >>> found.top(3), found.closing(), found["a1.h0", "input"]

    Sign convention: positive where the pair raises the score, and so opens the gate; in the score's unit.
    """

    head: str
    query: str  # label of the position that reads
    key: str  # label of the position that is read
    query_sources: tuple[str, ...]
    key_sources: tuple[str, ...]
    per_prompt: Float[Tensor, "batch query_source key_source"]
    position_bias: Float[Tensor, " batch"]  # ALiBi and the like; zero elsewhere
    score: Float[Tensor, " batch"]  # the input of gate and softmax, with scale, position bias and soft-cap
    weight: Float[Tensor, " batch"]  # attention weight, after the gate
    is_open: Bool[Tensor, " batch"] | None  # None: a dense model has no gate
    gate_bias: float | None  # the gate is open where score + gate_bias > 0
    soft_cap: float | None  # score = soft_cap * tanh(sum / soft_cap); None: the score is the sum
    query_pos: Int[Tensor, " batch"]
    key_pos: Int[Tensor, " batch"]

    _largest = "score"

    # -- numbers

    @property
    def mean(self) -> Float[Tensor, "query_source key_source"]:
        """The mean over prompts."""
        return self.per_prompt.mean(0)

    def __len__(self) -> int:
        return len(self.score)

    def __getitem__(self, pair: tuple[str, str]) -> float:
        return float(self.mean[self._place(pair)])

    def _place(self, pair: Sequence[Any]) -> tuple[int, int]:
        from sparselens.names import unknown

        for name, known in zip(pair, (self.query_sources, self.key_sources), strict=False):
            if name not in known:
                raise unknown("source", name, known)
        return self.query_sources.index(pair[0]), self.key_sources.index(pair[1])

    def of_prompt(self, prompt: int) -> "QKAttribution":
        """The attribution on one of the prompts.

        Raises:
            ValueError: there is no such prompt.
        """
        if not 0 <= prompt < len(self):
            raise ValueError(f"prompt = {prompt}: want 0 to {len(self) - 1}")
        rows = slice(prompt, prompt + 1)
        values = {name: values[rows] for name, values in vars(self).items() if isinstance(values, Tensor)}
        changes: dict[str, Any] = values
        return replace(self, **changes)

    def top(self, n: int) -> list[SourcePair]:
        """The `n` pairs of largest |mean|, largest first."""
        mean = self.mean
        order = mean.abs().flatten().argsort(descending=True, stable=True)[:n]
        return [self._pair(int(number)) for number in order]

    def _pair(self, number: int) -> SourcePair:
        row, column = divmod(number, len(self.key_sources))
        return SourcePair(self.query_sources[row], self.key_sources[column], float(self.mean[row, column]))

    # -- what closes the gate

    def closing(self) -> list[SourcePair]:
        """The fewest pairs without which the gate would be closed, largest first; `without` removes them in a run.

        Raises:
            ValueError: there is no open gate, there are several prompts, or no pairs close it.
        """
        if len(self) > 1:
            raise ValueError(f"closing() is for one prompt, not for {len(self)}: call .of_prompt(0).closing()")
        if self.is_open is None or self.gate_bias is None or not self.is_open[0]:
            state = "has no gate" if self.is_open is None else "is closed already"
            raise ValueError(f"{self.head} from {self.query} to {self.key} {state}: there is nothing to close")
        values, order = self.per_prompt[0].flatten().double().sort(descending=True, stable=True)
        left = values.flip(0).cumsum(0).flip(0)[1:]  # what remains without the first, the first two, ...
        left = torch.cat([left, left.new_zeros(1)]) + self.position_bias.double()
        closed = self._capped(left) + self.gate_bias <= 0
        enough = (closed & (values > 0)).nonzero()
        if not len(enough):
            raise ValueError("no pairs close this gate: its position bias and gate bias keep it open without any")
        return [self._pair(int(number)) for number in order[: int(enough[0]) + 1]]

    def without(self, pairs: Sequence[Sequence[Any]]) -> list[tuple[str, Callable[..., Tensor]]]:
        """Hooks that replace the score by the sum of all other pairs, for runs on the prompts of the attribution.

        >>> logits = model.run_with_hooks(tokens, fwd_hooks=found.without(found.closing()))  # with that gate closed

        Raises:
            ValueError: a name is not that of a source.
        """
        left = self.per_prompt.clone()
        for pair in pairs:
            left[(slice(None), *self._place(pair))] = 0
        score = self._capped(left.sum((1, 2)) + self.position_bias)
        layer, number = map(int, self.head.removeprefix("a").split(".h"))
        return [(f"blocks.{layer}.attn.hook_attn_scores", partial(self._put, number, score))]

    def _put(self, head: int, score: Tensor, scores: Tensor, **_: Any) -> Tensor:
        rows = torch.arange(len(self), device=scores.device)
        changed = scores.clone()
        changed[rows, head, self.query_pos.to(scores.device), self.key_pos.to(scores.device)] = score.to(scores)
        return changed

    def _uncapped(self) -> Float[Tensor, " batch"]:
        return self.per_prompt.sum((1, 2)) + self.position_bias

    def _capped(self, values: Tensor) -> Tensor:
        return values if self.soft_cap is None else self.soft_cap * torch.tanh(values / self.soft_cap)

    # -- display

    def sentence(self, n: int = 3) -> str:
        """The finding in words, with the `n` largest pairs.

        Raises:
            ValueError: `n` is not positive.
        """
        if n < 1:
            raise ValueError(f"n = {n}: want at least one pair")
        top, total = self.top(n), float(self.mean.sum())
        named, others = sum(pair.score for pair in top), self.mean.numel() - len(top)
        parts = [f"{a} with {b} {value:+.2f}" for a, b, value in top]
        parts[0] = f"{top[0].query_source} (query) with {top[0].key_source} (key) {top[0].score:+.2f}"
        if others:
            parts.append(f"{others:,} other pair{'s' * (others > 1)} {total - named:+.2f}")
        if self.position_bias.any():
            parts.append(f"position bias {float(self.position_bias.mean()):+.2f}")
        return f"{self._finding()}; {'mostly' if named * total > total**2 / 2 else 'largest'} {', '.join(parts)}"

    def _finding(self) -> str:
        many = f" in {len(self)} prompts" if len(self) > 1 else ""
        capped = "" if self.soft_cap is None else f" ({float(self._uncapped().mean()):.2f} before the soft-cap)"
        value = f"{'mean ' if many else ''}score {float(self.score.mean()):.2f}{capped}"
        return f"{self.head} at {self.query} reads {self.key}{many}: {value}{self._gate()}"

    def _gate(self) -> str:
        if self.is_open is None or self.gate_bias is None:
            return f", weight {float(self.weight.mean()):.2f} (no gate)"
        threshold, opened = f"{-self.gate_bias + 0.0:g}", int(self.is_open.sum())
        if len(self) > 1:
            return f"; open (score above {threshold}) in {opened}"
        return f" > {threshold}, open" if opened else f" ≤ {threshold}, closed"

    def _line(self) -> str:
        best = "".join(f"; {a} with {b} {value:+.2f}" for a, b, value in self.top(1))
        return f"{self._finding()}{best}"

    def __str__(self) -> str:
        return self.sentence()

    def _columns(self) -> Mapping[str, Sequence[Any]]:
        n_rows, n_columns = self.mean.shape
        return {
            "query_source": [name for name in self.query_sources for _ in range(n_columns)],
            "key_source": list(self.key_sources) * n_rows,
            "score": self.mean.flatten().tolist(),
        }

    def folded(self, most: int = 8) -> tuple[list[str], list[str], Float[Tensor, "row column"]]:
        """Names of rows and columns, and the matrix, with all but the `most` largest of each summed into one."""
        mean = self.mean
        rows, row_names = _fold(mean.abs().amax(1), self.query_sources, most)
        columns, column_names = _fold(mean.abs().amax(0), self.key_sources, most)
        return row_names, column_names, rows @ mean @ columns.T

    def plot(self, most: int = 8) -> Any:
        """The pairs as a plotly heat map: query sources as rows, key sources as columns.

        Args:
            most: number of rows and columns to show; all others are summed into one
        """
        from sparselens.analyses.figures.heat_maps import heat_map

        rows, columns, values = self.folded(most)
        title = f"{self.head} at {self.query} reads {self.key}: score {float(self.score.mean()):.2f}"
        figure = heat_map(values, title, rows=rows, columns=columns, value_label="part of the score")
        figure.update_traces(texttemplate="%{z:+.2f}")
        figure.update_xaxes(title_text="wrote the key")
        figure.update_yaxes(title_text="wrote the query")
        return figure


def _fold(
    sizes: Float[Tensor, " source"], names: tuple[str, ...], most: int
) -> tuple[Float[Tensor, "kept source"], list[str]]:
    """A matrix that keeps the largest sources in their order and sums all others, and the names of its rows."""
    kept = sizes.argsort(descending=True, stable=True)[: min(most, int((sizes > 0).sum()))].sort().values
    left = torch.ones_like(sizes).index_fill(0, kept, 0)
    picked = torch.eye(len(sizes), dtype=sizes.dtype)[kept]
    shown = [names[place] for place in kept.tolist()]
    if not (left * sizes).any():
        return picked, shown
    return torch.cat([picked, left[None]]), [*shown, f"{int(left.sum())} others"]
