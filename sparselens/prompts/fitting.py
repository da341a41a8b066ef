"""Fit words and prompt pairs to a tokenizer, and encode them. Does not load torch.

1. Every answer must be a single token when it follows its prompt.
2. Positions must end at a token border, and every character must be known to the tokenizer.
3. Clean and corrupted prompt must line up token by token, unless lengths may differ.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from sparselens.prompts.pairs import PromptPair, Span
from sparselens.prompts.words import Continuation, Words

_ANY_TEXT = "the"  # words must be one token when they follow this text


@dataclass(frozen=True)
class Encoded:
    """Token ids of one pair, including special tokens at the beginning."""

    clean: list[int]
    corrupted: list[int]
    answers: list[int]
    wrong_answers: list[int]
    positions: dict[str, int]  # name -> index of its last token in the clean prompt
    token_strings: tuple[str, ...]  # of the clean prompt, which is their concatenation without the special tokens


class MisfitError(ValueError):
    """The reason why a pair does not fit a tokenizer."""


class Fit:
    """Checks prompt pairs against a tokenizer and encodes those that fit.

    Raises:
        ValueError: the tokenizer does not report token offsets, or `bos` is True but it has no BOS token.
    """

    def __init__(self, tokenizer: Any, bos: bool | None = None, equal_length: bool = True) -> None:
        self._tokenizer, self._backend = tokenizer, _backend(tokenizer)
        self._unknown = tokenizer.unk_token_id
        self._first = _first_ids(tokenizer, bos)
        self._first_strings: tuple[str, ...] = tuple(tokenizer.convert_ids_to_tokens(self._first))
        self._equal_length = equal_length
        self._known: dict[tuple[str, str], int | None] = {}  # (end of prompt, answer) -> token

    @cached_property
    def vocabulary(self) -> str:
        """A digest of the tokenizer's vocabulary; see `vocabulary_of`."""
        return vocabulary_of(self._tokenizer)

    def prompt(self, text: str) -> tuple[list[int], tuple[str, ...]]:
        """Token ids of one prompt, including special tokens at the beginning, and their strings.

        Raises:
            ValueError: the prompt contains text that is unknown to the tokenizer.
        """
        (encoding,) = self._backend.encode_batch([text], add_special_tokens=False)
        for token, (start, end) in zip(encoding.ids, encoding.offsets, strict=True):
            if token == self._unknown:
                raise ValueError(f"the tokenizer does not know {text[start:end]!r} in the prompt {text!r}")
        return self._first + encoding.ids, (*self._first_strings, *_strings(text, encoding.offsets))

    def keep(self, task: str, name: str, words: Words) -> Words:
        """The entries whose required strings are single tokens.

        Raises:
            ValueError: fewer entries are left than the task needs. Lists them.
        """
        kept = [entry for entry in words.entries if all(map(self._is_one_token, words.one_token(entry)))]
        if len(kept) < words.need:
            shown = f": {', '.join(map(str, kept[:10]))}" if kept else ""
            raise ValueError(
                f"{task!r} needs {words.need} entries of its list {name!r} that are single tokens, but this tokenizer "
                f"has {len(kept)} of {len(words.entries)}{shown}"
            )
        return Words(kept, words.one_token, words.need)

    def single_tokens(self, prompt: str, answers: Iterable[str]) -> tuple[str, ...]:
        """The answers that are a single token when they follow the prompt."""
        (encoding,) = self._backend.encode_batch([prompt], add_special_tokens=False)
        self._learn_answers([(prompt, answers)], [encoding])
        return tuple(answer for answer in answers if self._known[_tail(prompt), answer] is not None)

    def encode(self, pairs: Sequence[PromptPair]) -> list[Encoded]:
        """Token ids of every pair.

        Raises:
            ValueError: a pair does not fit; the message says why.
        """
        encoded: list[Encoded] = []
        for number, (found, pair) in enumerate(zip(self.check(pairs), pairs, strict=True)):
            if isinstance(found, MisfitError):
                raise ValueError(f"pair {number} does not fit the tokenizer: {found} ({pair.clean!r}, {pair.answers})")
            encoded.append(found)
        return encoded

    def check(self, pairs: Sequence[PromptPair]) -> Iterator[Encoded | MisfitError]:
        """Token ids of every pair, or the reason why it does not fit."""
        cleans = self._backend.encode_batch([p.clean for p in pairs], add_special_tokens=False)
        others = self._backend.encode_batch([p.corrupted for p in pairs], add_special_tokens=False)
        self._learn_answers([(p.clean, (*p.answers, *p.wrong_answers)) for p in pairs], cleans)
        for pair, clean, corrupted in zip(pairs, cleans, others, strict=True):
            try:
                yield self._encoded(pair, clean, corrupted)
            except MisfitError as misfit:
                yield misfit

    def _encoded(self, pair: PromptPair, clean: Any, corrupted: Any) -> Encoded:
        ids, other = clean.ids, corrupted.ids
        if self._unknown is not None and self._unknown in ids + other:
            raise MisfitError("a prompt contains text that is unknown to the tokenizer")
        positions = self._places(pair.clean, pair.positions, clean)
        others = self._places(pair.corrupted, pair.corrupted_positions, corrupted)
        if self._equal_length and len(ids) != len(other):
            raise MisfitError("clean and corrupted prompt differ in their number of tokens")
        if self._equal_length and positions != others:
            raise MisfitError("a position is at different tokens in clean and corrupted prompt")
        right, wrong = (self._answer_ids(pair.clean, texts) for texts in (pair.answers, pair.wrong_answers))
        if set(right) & set(wrong):
            raise MisfitError("a right and a wrong answer are the same token")
        strings = (*self._first_strings, *_strings(pair.clean, clean.offsets))
        return Encoded(self._first + ids, self._first + other, right, wrong, positions, strings)

    def _places(self, text: str, positions: Mapping[str, Span], encoding: Any) -> dict[str, int]:
        return {name: self._place(name, text, span, encoding) for name, span in positions.items()}

    def _place(self, name: str, text: str, span: Span, encoding: Any) -> int:
        """Index of the last token of a position. It may include the space before the word, but no other word.

        The prompt's last character, from which the answer is read, is exempt: its token may start with other words.
        """
        token = encoding.char_to_token(span[1] - 1)
        if token is None:
            raise MisfitError(f"position {name!r} has no token")
        start, end = encoding.offsets[token]
        last = name == "END" and span[1] == len(text)
        if not last and (end > span[1] or text[start : span[0]].strip()):
            raise MisfitError(f"position {name!r} lies inside a longer token")
        return len(self._first) + token

    def _answer_ids(self, prompt: str, answers: Iterable[str]) -> list[int]:
        tail = _tail(prompt)
        found = [self._known[tail, answer] for answer in answers]
        whole = [token for token in found if token is not None]
        if len(whole) < len(found):
            raise MisfitError("an answer is not a single token")
        return whole

    def _learn_answers(self, prompts: Sequence[tuple[str, Iterable[str]]], encodings: Sequence[Any]) -> None:
        """Look up the tokens of new answers, each as the continuation of its prompt.

        Tokens do not span spaces, so an answer's token depends only on the last word of the prompt. It is looked up
        once for all prompts that end in that word.
        """
        new = dict[tuple[str, str], tuple[str, list[int]]]()
        for (prompt, answers), encoding in zip(prompts, encodings, strict=True):
            tail = _tail(prompt)
            for answer in answers:
                if (tail, answer) not in self._known:
                    new.setdefault((tail, answer), (prompt + answer, encoding.ids))
        longer = self._backend.encode_batch([text for text, _ in new.values()], add_special_tokens=False)
        for key, (_, before), after in zip(new, new.values(), longer, strict=True):
            self._known[key] = self._added(before, after.ids)

    def _is_one_token(self, continuation: Continuation) -> bool:
        before, word = ("", continuation) if isinstance(continuation, str) else continuation
        texts = [_ANY_TEXT + before, _ANY_TEXT + before + word]
        start, whole = self._backend.encode_batch(texts, add_special_tokens=False)
        return self._added(start.ids, whole.ids) is not None

    def _added(self, before: list[int], after: list[int]) -> int | None:
        """The single token that `after` adds to `before`; None if there is not exactly one."""
        if len(after) != len(before) + 1 or after[:-1] != before or after[-1] == self._unknown:
            return None
        return after[-1]


def _backend(tokenizer: Any) -> Any:
    """The underlying fast tokenizer, without padding or truncation."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or not hasattr(backend, "encode_batch"):
        raise ValueError(
            f"{type(tokenizer).__name__} does not report token offsets: use a fast tokenizer "
            "(transformers.AutoTokenizer on a folder with tokenizer.json)"
        )
    if backend.padding is None and backend.truncation is None:
        return backend
    plain = type(backend).from_str(backend.to_str())
    plain.no_padding()
    plain.no_truncation()
    return plain


def vocabulary_of(tokenizer: Any) -> str:
    """A digest of a tokenizer's vocabulary, without added tokens; "" for slow tokenizers, which do not separate them.

    Added tokens are ignored because TransformerLens adds special tokens to its copy of a tokenizer, changing no ids.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return ""
    # by id, since sorting the whole vocabulary takes four times as long
    tokens = list(map(backend.id_to_token, range(backend.get_vocab_size(with_added_tokens=False))))
    return hashlib.sha256(repr(tokens).encode()).hexdigest()[:16]


def _first_ids(tokenizer: Any, bos: bool | None) -> list[int]:
    """Special tokens to prepend: those that the tokenizer adds by default (None), BOS (True) or none (False)."""
    if bos is None:
        bare, dressed = (tokenizer(_ANY_TEXT, add_special_tokens=special)["input_ids"] for special in (False, True))
        return next(list(dressed[:i]) for i in range(len(dressed) + 1) if dressed[i:][: len(bare)] == bare)
    if not bos:
        return []
    if tokenizer.bos_token_id is None:
        raise ValueError("bos=True, but the tokenizer has no BOS token")
    return [tokenizer.bos_token_id]


def _tail(prompt: str) -> str:
    """The last word, with the space before it."""
    return prompt[max(0, prompt.rfind(" ", 0, len(prompt.rstrip()))) :]


def _strings(text: str, offsets: Sequence[tuple[int, int]]) -> Iterator[str]:
    """The text of every token; spaces belong to the following token. If tokens share a character, the first has it."""
    done = 0
    for _, end in offsets:
        yield text[done:end]
        done = max(done, end)


def text_of(tokenizer: Any, token: int) -> str:
    """The text of a token, including a leading space.

    Raises:
        ValueError: the tokenizer has no such token.
    """
    if not 0 <= token < len(tokenizer):
        raise ValueError(f"the tokenizer has {len(tokenizer)} tokens, but none with id {token}")
    before = tokenizer(_ANY_TEXT, add_special_tokens=False)["input_ids"]
    options = {"clean_up_tokenization_spaces": False}
    return tokenizer.decode([*before, token], **options)[len(tokenizer.decode(before, **options)) :]


def texts_of(tokenizer: Any, rows: Sequence[Sequence[int]]) -> tuple[tuple[str, ...], ...]:
    """The text of every token in rows of ids; without a tokenizer, the ids as strings."""
    every = {token for row in rows for token in row}
    known = {token: str(token) if tokenizer is None else text_of(tokenizer, token) for token in every}
    return tuple(tuple(known[token] for token in row) for row in rows)
