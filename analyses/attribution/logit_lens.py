"""The logit lens: what a model would predict if it stopped after each of its layers.

1. One run records the residual stream before every layer and every MLP, and after the last layer.
2. logits = unembed(norm(stream)): each stream goes through the model's own final norm, unembedding and cap.
3. For pairs: a metric of these logits. For text: the likeliest token with its probability, at every position.
Source: nostalgebraist 2020, "interpreting GPT: the logit lens". The streams and their names are those of
TransformerLens' `accumulated_resid(incl_mid=True, apply_ln=True)`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sparselens.analyses.engine.batching import in_batches
from sparselens.analyses.engine.partial_runs import Activations, recording, run, starting_at
from sparselens.analyses.engine.request import OpenModel, Request, open_request, refuse_several_lengths
from sparselens.analyses.engine.residual_stream import Reading
from sparselens.gates.modes import evaluating
from sparselens.models.hooked_model import HookedModel
from sparselens.names import unknown
from sparselens.prompts.checks import refuse_other_pairs, refuse_unreadable
from sparselens.prompts.fitting import Fit, texts_of
from sparselens.prompts.intervals import Interval, mean_interval
from sparselens.prompts.metrics import Metric, logit_difference, name_of
from sparselens.prompts.tokenized import TokenizedPairs
from sparselens.results import Result

PROBABILITY = "probability of the likeliest token"


@dataclass(frozen=True, eq=False, repr=False)
class LogitLens(Result):
    """What every residual stream predicts: a metric on pairs, or the likeliest token of a text and its probability.

    >>> lens = logit_lens(model, pairs)
    >>> lens["1_mid"], lens.interval("1_mid"), lens.values.shape  # before the MLP of layer 1; [batch stream]
    """

    what: str  # the metric, or PROBABILITY
    streams: tuple[str, ...]  # 0_pre, 0_mid, 1_pre, ..., final_post
    values: Float[Tensor, "batch stream"] | Float[Tensor, "batch stream pos"]
    positions: tuple[str, ...] = ()  # a label for every position; empty: only the answer's
    tokens: tuple[tuple[tuple[str, ...], ...], ...] = ()  # the likeliest, for every row of text, stream and position
    clean_prompt: Int[Tensor, " batch"] | None = None  # its index; pairs with the same one count as one observation

    def _line(self) -> str:
        first, last = (float(self.values[:, place, ...].mean()) for place in (0, -1))
        where = f" at {len(self.positions)} positions" if self.positions else ""
        ends = f"{first:.3g} at {self.streams[0]}, {last:.3g} at {self.streams[-1]}"
        return f"{self.what} of {len(self.streams)} streams{where}, {len(self.values)} prompts: {ends}"

    def _columns(self) -> dict[str, list[Any]]:
        if not self.positions:
            return {"stream": list(self.streams), self.what: self.mean.tolist()}
        places = [(stream, pos) for stream in self.streams for pos in self.positions]
        columns: dict[str, list[Any]] = dict(zip(("stream", "pos"), map(list, zip(*places, strict=True)), strict=True))
        if self.tokens:
            columns["token"] = [token for row in self.tokens[0] for token in row]
        return columns | {self.what: (self.values[0] if self.tokens else self.mean).flatten().tolist()}

    def __getitem__(self, stream: str) -> Float[Tensor, "*pos"]:
        return self.mean[self._place(stream)]

    def interval(self, stream: str, level: float = 0.95) -> Interval:
        """The mean value of a stream at the answer's position, with its bootstrap interval over clean prompts.

        Raises:
            ValueError: there is no such stream, or the values are by position.
        """
        if self.positions:
            raise ValueError("these values are by position: call logit_lens with by_position=False")
        return mean_interval(self.values[:, self._place(stream)], level, clusters=self.clean_prompt)

    def plot(self, prompt: int = 0) -> Any:
        """In plotly: a curve over the streams, or a heat map of streams by positions.

        Args:
            prompt: for text, the row to show, each cell with its likeliest token

        Raises:
            ValueError: there is no such prompt.
        """
        from sparselens.analyses.figures.heat_maps import heat_map, written_on

        if not self.positions:
            return self._figure("line", self.to_frame(), x="stream", y=self.what, markers=True)
        if not self.tokens:
            return heat_map(
                self.mean, self.what, rows=self.streams, upward=True, columns=self.positions, value_label=self.what
            )
        if not 0 <= prompt < len(self.values):
            raise ValueError(f"prompt = {prompt}: want 0 to {len(self.values) - 1}")
        options: dict[str, Any] = {"columns": self.positions, "value_label": "probability", "limit": 1.0}
        figure = heat_map(
            self.values[prompt], "Likeliest token after each layer", rows=self.streams, upward=True, **options
        )
        return written_on(figure, self.tokens[prompt])

    @property
    def mean(self) -> Float[Tensor, "stream *pos"]:
        """Mean over prompts."""
        return self.values.mean(0)

    def _place(self, stream: str) -> int:
        if stream not in self.streams:
            raise unknown("stream", stream, self.streams)
        return self.streams.index(stream)


def logit_lens(
    model: HookedModel,
    prompts: TokenizedPairs | str | Int[Tensor, "batch pos"],
    metric: Metric | str = logit_difference,
    *,
    by_position: bool = False,
    memory: int | None = None,
    batch_size: int | None = None,
    progress: bool = True,
) -> LogitLens:
    """Apply the final norm and the unembedding to the residual stream before every layer and MLP, and at the end.

    >>> logit_lens(model, pairs).values.shape  # [batch stream]: the logit difference
    >>> logit_lens(model, pairs, by_position=True).values.shape  # [batch stream pos]: at every position
    >>> logit_lens(model, "Once upon a time, there was a").plot()  # the likeliest token of every layer and position

    Scope: every stream is read as if it were the last. Early layers may represent an answer in other directions, so a
    low value does not show that it is absent (Belrose et al. 2023, tuned lens).

    Args:
        prompts: pairs, whose clean prompts run; a text, tokenized as tasks are; or rows of tokens of one length
        metric: for pairs; function of (logits, pairs), or name in `sparselens.prompts.metrics`
        by_position: for pairs, evaluate the metric at every position, not only at END; text is always read everywhere
        memory, batch_size: as in `patch_activations`

    Raises:
        ValueError: prompts are something else, or another model's; `by_position` with prompts of several lengths; or
            the model's residual stream cannot be read.
    """
    opened = OpenModel(model)
    if isinstance(prompts, (str, Tensor)):
        return _of_text(opened, prompts)
    refuse_other_pairs(prompts)
    if by_position:
        refuse_several_lengths(prompts, "positions")
    with open_request(opened, prompts, metric, memory=memory, batch_size=batch_size, progress=progress) as request:
        points = _points(request.reading)
        places = range(prompts.clean.shape[1]) if by_position else (None,)
        values = torch.zeros(len(request), len(points), len(places))
        for rows, (found,) in in_batches(request, partial(_measured, [*points.values()], places), "logit lens"):
            values[rows] = found.float().cpu()
    labels = prompts.labels if by_position else ()
    values = values if by_position else values[..., 0]
    return LogitLens(name_of(metric), tuple(points), values, labels, clean_prompt=prompts.clean_prompt)


def _points(reading: Reading) -> dict[str, str]:
    """The hook point of every stream."""
    points: dict[str, str] = {}
    for layer in reading.layers:
        points[f"{layer.number}_pre"] = layer.at("hook_resid_pre")
        if layer.block.mlp and not layer.block.parallel:
            points[f"{layer.number}_mid"] = layer.mid
    return points | {"final_post": reading.end}


def _measured(points: Sequence[str], places: Sequence[int | None], batch: Request) -> tuple[Tensor]:
    """The metric of every stream at these positions (None: END): [batch stream place]."""
    recorded = batch.record(points).recorded
    requests = [batch if place is None else _with_end(batch, place) for place in places]
    values = [_through(batch.opened, recorded[name], lambda: [at.measure() for at in requests]) for name in points]
    return (torch.stack([torch.stack(at_places, -1) for at_places in values], 1),)


def _with_end(batch: Request, place: int) -> Request:
    """The batch with the answer's position moved to `place`."""
    end = torch.full_like(batch.pairs.end, place)
    return replace(batch, pairs=replace(batch.pairs, positions={**batch.pairs.positions, "END": end}))


def _through(opened: OpenModel, stream: Float[Tensor, "batch pos d_model"], call: Callable[[], Any]) -> Any:
    """The result of `call` while the last block returns this stream and no block runs."""
    with starting_at(opened.model, len(opened.reading.layers), stream, opened.as_tuple):
        return call()


def _of_text(opened: OpenModel, prompts: str | Int[Tensor, "batch pos"]) -> LogitLens:
    model, tokenizer = opened.model, getattr(opened.model, "tokenizer", None)
    if tokenizer is None and isinstance(prompts, str):
        raise ValueError(f"this {type(model).__name__} has no tokenizer for strings: pass rows of tokens")
    if isinstance(prompts, str):
        row, strings = Fit(tokenizer).prompt(prompts)
        ids, texts = torch.tensor([row]), (strings,)
    else:
        refuse_unreadable(model, prompts)
        ids, texts = prompts, texts_of(tokenizer, prompts.tolist())
    tokens, recorded = ids.to(opened.device), Activations()
    with evaluating(model), torch.no_grad():
        points = _points(opened.reading)
        run(model, tokens, recording(recorded, list(points.values()), torch.arange(len(tokens))))
        likeliest = [
            _through(opened, recorded[name], lambda: run(model, tokens)).float().softmax(-1).max(-1)
            for name in points.values()
        ]
    values, places = (torch.stack([found[part] for found in likeliest], 1).cpu() for part in (0, 1))
    predicted = tuple(texts_of(tokenizer, row) for row in places.tolist())
    return LogitLens(PROBABILITY, tuple(points), values, _labels(texts), predicted)


def _labels(texts: Sequence[Sequence[str]]) -> tuple[str, ...]:
    """The index of every position, with its token if all rows have the same."""
    columns = [{*column} for column in zip(*texts, strict=True)]
    return tuple(f"{at} {column.pop() if len(column) == 1 else ''}".rstrip() for at, column in enumerate(columns))
