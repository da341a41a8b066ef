"""The text of `sparselens post-train`: rows for training, validation and test."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from sparselens.training.text import MixedBatches, Source, TokenBatches, kept_sample, prepare, rows, sample_tokens
from sparselens.training.text.batches import refuse_no_rows
from sparselens.training.text.tokens import PieceTokenizer, Tokens


class Prepared(NamedTuple):
    """Text as rows of tokens."""

    batches: Callable[[int], Tensor]  # training batches, by index
    validation: list[Tensor]  # steers the run
    test: list[Tensor]  # for the final report
    record: dict[str, Any]  # the argument `data` of `sparselens.save`


@dataclass(frozen=True)
class TrainingText:
    """How to turn a source into training and held-out rows; most fields are options of the command."""

    source: Source
    steps: int
    accumulation: int  # batches per step
    rows_each: int  # rows of a training batch
    seq_len: int
    batch_size: int  # rows of a held-out batch
    held_out: float
    held_out_rows: int
    sampled: int
    seed: int

    def prepare(self, network: Any, reference: Any, tokenizer: Any, folder: Path, reuse: bool) -> Prepared:
        """Tokenize the source into a folder, or with `reuse` take the tokens that are already there."""
        corpus = prepare(
            self.source,
            tokenizer,
            folder,
            held_out=self.held_out,
            most_held_out=self.held_out_rows * self.seq_len,
            enough=(self.steps * self.accumulation * self.rows_each + self.rows_each + 1) * self.seq_len,
            seed=self.seed,
            known=network.get_input_embeddings().num_embeddings,
            reuse=reuse,
        )
        validation, test = (
            rows(tokens[: self.held_out_rows * self.seq_len], self.seq_len, self.batch_size)
            for tokens in (corpus.validation, corpus.test)
        )
        sample = partial(self._sample, reference, tokenizer, folder, reuse)
        return Prepared(self._batches(corpus.train, sample), validation, test, corpus.record)

    def _batches(self, text: Tokens, sample: Callable[[], Tokens]) -> Callable[[int], Tensor]:
        """Batches of the text alone, or, with `sampled`, half text and half samples of the dense model."""
        half = self.rows_each // 2 if self.sampled else 0
        batches = TokenBatches(text, self.seq_len, self.rows_each - half, self.seed)
        if not self.sampled:
            return batches
        refuse_no_rows(self.seq_len, half)  # check before sampling, which is slow
        return MixedBatches([batches, TokenBatches(sample(), self.seq_len, half, self.seed + 1)])

    def _sample(self, dense: Any, tokenizer: Any, folder: Path, reuse: bool) -> Tokens:
        """Tokens sampled from the dense model, once per run."""
        settings = {"tokens": self.sampled, "seed": self.seed, "model": dense.config._name_or_path}
        start = PieceTokenizer(tokenizer).start
        path, n, seed = folder / "sampled.bin", self.sampled, self.seed
        return kept_sample(path, settings, lambda: sample_tokens(dense, n, start, seed=seed), reuse)
