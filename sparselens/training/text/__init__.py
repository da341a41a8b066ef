"""From text to token batches: read documents in pieces, hold some out, tokenize to disk, cut into rows.

`prepare` does all of this in constant memory; `read_documents`, `tokenize` and `rows` are for text that fits in memory.
"""

from sparselens.training.text.batches import MixedBatches, TokenBatches, batches_per_step, rows
from sparselens.training.text.corpus import Corpus, kept_sample, prepare
from sparselens.training.text.reading import Source, read_documents
from sparselens.training.text.sampling import sample_tokens
from sparselens.training.text.splitting import Split, hold_out
from sparselens.training.text.tokens import tokenize
from sparselens.training.text.unseen import unseen_tokens

__all__ = [
    "Corpus",
    "MixedBatches",
    "Source",
    "Split",
    "TokenBatches",
    "batches_per_step",
    "hold_out",
    "kept_sample",
    "prepare",
    "read_documents",
    "rows",
    "sample_tokens",
    "tokenize",
    "unseen_tokens",
]
