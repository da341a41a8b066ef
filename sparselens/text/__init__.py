"""From text to token batches: read documents in pieces, hold some out, tokenize to disk, cut into rows.

`prepare` does all of it in constant memory; `read_documents`, `tokenize` and `rows` do it for text that is small.
"""

from sparselens.text.batches import MixedBatches, TokenBatches, batches_per_step, rows
from sparselens.text.corpus import Corpus, kept_sample, prepare
from sparselens.text.reading import Source, read_documents
from sparselens.text.sampling import sample_tokens
from sparselens.text.splitting import Split, hold_out
from sparselens.text.tokens import tokenize
from sparselens.text.unseen import unseen_tokens

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
