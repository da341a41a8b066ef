"""Prompt pairs as token ids, with answers and named positions. They can be made from plain tensors.

pairs = sl.TokenizedPairs(clean, corrupted, answer, wrong_answer)
for rows, batch in pairs.batches(32):       # prompts of one length each, without padding
    values[rows] = metric(model(batch.clean), batch)
"""

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sparselens.prompts.answers import NO_ANSWER, refuse_wrong_answers
from sparselens.prompts.intervals import first_alike
from sparselens.prompts.pairs import PromptPair
from sparselens.results import Result
from sparselens.training.losses import Batch

CLUSTER_BY = ("prompt", "answer")


@dataclass(frozen=True, repr=False)
class TokenizedPairs(Result):
    """Clean and corrupted prompts that line up token by token, and the answer tokens that a metric compares.

    >>> pairs = sl.TokenizedPairs(clean, corrupted, answer, wrong_answer)  # Int["batch pos"] twice, Int[" batch"] twice
    >>> pairs.end, pairs[:10].clean.shape

    Answers are one token per prompt, or several (`batch k`, padded with -1). Prompts of different lengths are padded,
    on either side, with an `attention_mask`. The metric is evaluated at the position `END`: the last token, unless
    `positions` names another.

    Raises:
        ValueError: shapes disagree, a prompt has no answer, or a token is both right and wrong.
    """

    clean: Int[Tensor, "batch pos"]
    corrupted: Int[Tensor, "batch pos"]
    answer: Int[Tensor, " batch"] | Int[Tensor, "batch k"]
    wrong_answer: Int[Tensor, " batch"] | Int[Tensor, "batch k_wrong"]
    attention_mask: Int[Tensor, "batch pos"] | None = None  # 0 marks padding; None: no padding
    corrupted_mask: Int[Tensor, "batch pos"] | None = None  # only if lengths differ within pairs
    # token indices in the clean prompt, for positions that all pairs have
    positions: Mapping[str, Int[Tensor, " batch"]] = field(default_factory=dict[str, Tensor])
    reference: Float[Tensor, "batch d_vocab"] | None = None  # clean log-probabilities at END, for kl_divergence
    prompts: tuple[PromptPair, ...] = ()  # the pairs as strings, if they were made from strings
    token_strings: tuple[tuple[str, ...], ...] = ()  # of the clean prompts, without padding
    vocabulary: str = ""  # digest of the tokenizer's vocabulary (`fitting.vocabulary_of`); "": unknown

    def __post_init__(self) -> None:
        for name in ("clean", "corrupted", "answer", "wrong_answer"):
            ids: Any = getattr(self, name)
            if not isinstance(ids, Tensor) or ids.is_floating_point():
                raise ValueError(f"{name} is {ids!r:.60}: want a tensor of token ids (sl.tokenize_pairs takes strings)")
        if self.clean.ndim != 2 or self.clean.shape != self.corrupted.shape:
            raise ValueError(
                f"clean and corrupted must have the same shape [batch, pos], not {_shape(self.clean)} and "
                f"{_shape(self.corrupted)}"
            )
        batch, pos = self.clean.shape
        if batch == 0 or pos == 0:
            raise ValueError("there are no prompts, or they have no tokens")
        for item in fields(self):
            value = getattr(self, item.name)
            if isinstance(value, Tensor) and len(value) != batch:
                raise ValueError(f"{item.name} has shape {_shape(value)}, but there are {batch} prompts")
        for name, mask in (("attention_mask", self.attention_mask), ("corrupted_mask", self.corrupted_mask)):
            if mask is not None and mask.shape != self.clean.shape:
                raise ValueError(f"{name} has shape {_shape(mask)}, but the prompts have {_shape(self.clean)}")
        for name, where in self.positions.items():
            if where.shape != (batch,) or int(where.min()) < 0 or int(where.max()) >= pos:
                raise ValueError(f"position {name!r} must be one index below {pos} for each of {batch} prompts")
        refuse_wrong_answers(self.answers, self.wrong_answers)

    # -- inputs of models and metrics

    @property
    def answers(self) -> Int[Tensor, "batch k"]:
        """The right answer tokens, padded with -1."""
        return self.answer if self.answer.ndim == 2 else self.answer[:, None]

    @property
    def wrong_answers(self) -> Int[Tensor, "batch k_wrong"]:
        """The wrong answer tokens, padded with -1."""
        return self.wrong_answer if self.wrong_answer.ndim == 2 else self.wrong_answer[:, None]

    @property
    def end(self) -> Int[Tensor, " batch"]:
        """The position whose logits give the answer."""
        if "END" in self.positions:
            return self.positions["END"]
        if self.attention_mask is None:
            return torch.full_like(self.clean[:, 0], self.clean.shape[1] - 1)
        places = torch.arange(self.clean.shape[1], device=self.clean.device)
        return (places * self.attention_mask).argmax(-1)

    def inputs(self, corrupted: bool = False) -> Batch:
        """Input for `sparselens.training.losses.logits_of`: tokens, and their mask if there is padding."""
        tokens = self.corrupted if corrupted else self.clean
        mask = self.attention_mask
        if corrupted and self.corrupted_mask is not None:
            mask = self.corrupted_mask
        return tokens if mask is None else {"input_ids": tokens, "attention_mask": mask}

    def clusters(self, by: str = "prompt") -> list[Hashable]:
        """A label per pair for confidence intervals (`prompts.intervals`); equal labels mark dependent observations.

        Args:
            by: "prompt": pairs with the same clean prompt, which a model answers in the same way; or "answer": pairs
                with the same right answers, which a model may favour

        Raises:
            ValueError: `by` is neither.
        """
        if by not in CLUSTER_BY:
            raise ValueError(f"cannot cluster by {by!r}: want {' or '.join(CLUSTER_BY)}")
        if by == "answer":
            return [tuple(sorted(row)) for row in self.answers.tolist()]
        mask = torch.ones_like(self.clean) if self.attention_mask is None else self.attention_mask
        return [tuple(row) for row in torch.where(mask.bool(), self.clean, NO_ANSWER).tolist()]

    @property
    def clean_prompt(self) -> Int[Tensor, " batch"]:
        """Index of the first pair with the same clean prompt; results keep it for their confidence intervals."""
        return torch.from_numpy(first_alike(self.clusters()))

    def groups(self, by: Callable[[PromptPair], str] | None = None, least: int = 1) -> "dict[str, TokenizedPairs]":
        """Group pairs by template, or by the labels that a function assigns, in order of appearance.

        >>> TASKS["gendered_pronoun"].tokenize(model.tokenizer, 200).groups()  # {"Well, {NAME} is a ...": ..., ...}

        Args:
            by: returns the label of a pair. Default: the template it was made from (`PromptPair.template`)
            least: leave out groups with fewer pairs

        Raises:
            ValueError: the pairs were made from tensors, a pair has no label, or no group is large enough.
        """
        if not self.prompts:
            raise ValueError(
                "these pairs were made from tensors, so their groups are unknown: select rows, such as pairs[:9]"
            )
        rows = dict[str, list[int]]()
        for row, pair in enumerate(self.prompts):
            label = pair.template if by is None else by(pair)
            if not label:
                raise ValueError(f"pair {row} has no {'template' if by is None else 'label'} ({pair.clean!r})")
            rows.setdefault(label, []).append(row)
        kept = {label: self[some] for label, some in rows.items() if len(some) >= least}
        if not kept:
            raise ValueError(f"no group has {least} pairs; the largest has {max(map(len, rows.values()))}")
        return kept

    # -- display

    def _line(self) -> str:
        lengths = sorted({int(length) for length in _lengths(self.inputs())})
        tokens = str(lengths[0]) if len(lengths) == 1 else f"{lengths[0]} to {lengths[-1]}"
        named = f", positions {', '.join(self.positions)}" if self.positions else ""
        return f"{len(self)} pairs of {tokens} tokens{named}"

    def _columns(self) -> Mapping[str, Sequence[Any]]:
        if self.prompts:
            return {
                "clean": [pair.clean for pair in self.prompts],
                "corrupted": [pair.corrupted for pair in self.prompts],
                "answer": [", ".join(pair.answers) for pair in self.prompts],
                "wrong_answer": [", ".join(pair.wrong_answers) for pair in self.prompts],
            }
        return {name: getattr(self, name).tolist() for name in ("clean", "corrupted", "answer", "wrong_answer")}

    @property
    def labels(self) -> tuple[str, ...]:
        """A label for every position: its index, and the token or position name that all clean prompts share there."""
        names = {int(at[0]): name for name, at in self.positions.items() if bool((at == at[0]).all())}
        shared = [names.get(place, "") for place in range(self.clean.shape[1])]
        if self.token_strings and self.attention_mask is None:
            for place, tokens in enumerate(zip(*self.token_strings, strict=True)):
                shared[place] = tokens[0] if len({*tokens}) == 1 else shared[place]
        return tuple(f"{place} {text}".rstrip() for place, text in enumerate(shared))

    # -- subsets and batches

    def __len__(self) -> int:
        return len(self.clean)

    def __getitem__(self, rows: int | slice | Sequence[int] | Tensor) -> "TokenizedPairs":
        """The selected pairs, in the order of `rows`.

        Raises:
            ValueError: no pair is selected, or `rows` is a string.
        """
        if isinstance(rows, str):
            raise ValueError(f"no such rows: {rows!r} (want indices, a slice or a mask; positions are in .positions)")
        places = rows.cpu() if isinstance(rows, Tensor) else rows if isinstance(rows, (int, slice)) else list(rows)
        chosen = torch.arange(len(self))[places].reshape(-1)
        kept = self._map(lambda values: values[chosen.to(values.device)])
        listed: dict[str, Any] = {
            name: tuple(getattr(self, name)[i] for i in chosen.tolist()) if getattr(self, name) else ()
            for name in ("prompts", "token_strings")
        }
        return replace(kept, **listed)

    def to(self, device: torch.device | str) -> "TokenizedPairs":
        """The same pairs on another device."""
        return self._map(lambda values: values.to(device))

    def batches(self, size: int) -> Iterator[tuple[Int[Tensor, " row"], "TokenizedPairs"]]:
        """Batches of at most `size` pairs of one length, without padding, with the indices of their rows.

        If clean and corrupted prompt of a pair differ in length, some padding remains.

        Raises:
            ValueError: `size` is not positive.
        """
        for rows in self.rows(size):
            yield rows, self[rows]._without_padding()

    def rows(self, size: int) -> Iterator[Int[Tensor, " row"]]:
        """The row indices of `batches`, without copying prompts.

        Raises:
            ValueError: `size` is not positive.
        """
        if size < 1:
            raise ValueError(f"a batch of {size} prompts: want at least 1")
        lengths = torch.stack([_lengths(self.inputs(corrupted)) for corrupted in (False, True)], -1).cpu()
        for length in lengths.unique(dim=0):
            yield from (lengths == length).all(-1).nonzero().squeeze(-1).split(size)

    def of_one_length(self) -> "TokenizedPairs":
        """The largest group of pairs of one length, without padding; for figures with tokens on their axes."""
        _, largest = max(self.batches(len(self)), key=lambda batch: len(batch[0]))
        return largest

    def clean_rows(self) -> Iterator[tuple[Int[Tensor, " row"], Int[Tensor, " row"], Int[Tensor, "row _length"]]]:
        """The clean prompts in groups of one length, without padding: row indices, first columns and tokens.

        Raises:
            ValueError: a prompt has padding inside.
        """
        mask = torch.ones_like(self.clean) if self.attention_mask is None else self.attention_mask
        first, lengths = mask.argmax(-1), mask.sum(-1)
        places = torch.arange(mask.shape[1], device=mask.device)
        inside = (places >= first[:, None]) & (places < (first + lengths)[:, None])
        broken = (inside != mask.bool()).any(-1).nonzero()
        if len(broken):
            raise ValueError(f"prompt {int(broken[0])} has padding inside")
        for length in lengths.unique():
            rows = (lengths == length).nonzero().squeeze(-1)
            yield rows.cpu(), first[rows].cpu(), self.clean[rows][inside[rows]].view(len(rows), -1)

    def _without_padding(self) -> "TokenizedPairs":
        """The same pairs without the columns that are padding in all prompts, clean and corrupted."""
        if self.attention_mask is None and self.corrupted_mask is None:
            return self
        clean_mask = torch.ones_like(self.clean) if self.attention_mask is None else self.attention_mask
        corrupted_mask = clean_mask if self.corrupted_mask is None else self.corrupted_mask
        used = (clean_mask + corrupted_mask).any(0).nonzero()
        columns = slice(int(used[0]), int(used[-1]) + 1)
        clean_mask, corrupted_mask = clean_mask[:, columns], corrupted_mask[:, columns]
        padded = not bool(clean_mask.all() and corrupted_mask.all())
        return replace(
            self,
            clean=self.clean[:, columns],
            corrupted=self.corrupted[:, columns],
            attention_mask=clean_mask if padded else None,
            corrupted_mask=corrupted_mask if padded else None,
            positions={name: where - columns.start for name, where in self.positions.items()},
        )

    def _map(self, change: Any) -> "TokenizedPairs":
        tensors = {f.name: getattr(self, f.name) for f in fields(self) if isinstance(getattr(self, f.name), Tensor)}
        changed: dict[str, Any] = {name: change(values) for name, values in tensors.items()}
        return replace(self, **changed, positions={name: change(where) for name, where in self.positions.items()})


def _lengths(batch: Batch) -> Int[Tensor, " batch"]:
    if isinstance(batch, Tensor):
        return torch.full_like(batch[:, 0], batch.shape[1])
    return batch["attention_mask"].sum(-1)


def _shape(values: Tensor) -> str:
    return str(list(values.shape))
