"""Text on its way to batches: every file that people have, whole or broken; what is held out."""

import gzip
import json
import lzma
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from sparselens.models.folder import load_tokenizer
from sparselens.training.text import (
    MixedBatches,
    Source,
    Split,
    TokenBatches,
    batches_per_step,
    hold_out,
    kept_sample,
    prepare,
    read_documents,
    reading,
    rows,
    sample_tokens,
    tokenize,
    unseen_tokens,
)
from sparselens.training.text import pieces as pieces_module
from sparselens.training.text import tokens as tokens_module
from sparselens.training.text.pieces import Piece, pieces_of, split_at_separators
from sparselens.training.text.splitting import survey
from sparselens.training.text.tokens import PieceTokenizer, mapped_tokens
from tests.tiny_models import VOCABULARY, tiny_model, tiny_tokenizer

TEXT = "Zoë said hi.<|endoftext|>\nThe naïve cat\u2028slept.\n"
DOCUMENTS = ["Zoë said hi.", "The naïve cat\u2028slept."]


def written(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize(("ending", "pack"), [("", bytes), (".gz", gzip.compress), (".xz", lzma.compress)])
def test_text_files(tmp_path: Path, encoding: str, ending: str, pack: Any):
    path = written(tmp_path / f"stories.txt{ending}", pack(TEXT.encode(encoding)))
    assert read_documents(path) == DOCUMENTS


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("block", [2, 3, 7, 20])
def test_where_a_file_is_cut_into_blocks_does_not_matter(
    tmp_path: Path, encoding: str, block: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(reading, "_BLOCK", block)
    assert read_documents(written(tmp_path / "stories.txt", TEXT.encode(encoding))) == DOCUMENTS
    lines = "\n".join(json.dumps({"text": text}, ensure_ascii=False) for text in DOCUMENTS)
    assert read_documents(written(tmp_path / "stories.jsonl", lines.encode(encoding))) == DOCUMENTS
    torn = written(tmp_path / "torn.txt", b"caf\xc3\xa9 caf\xe9 noir")
    with pytest.raises(ValueError, match="at byte 9:"):
        read_documents(torn)


@pytest.mark.parametrize("ending", ["", ".gz"])
def test_json_lines(tmp_path: Path, ending: str):
    lines = "\n".join(json.dumps({"story": text}, ensure_ascii=False) for text in DOCUMENTS) + "\n\n"
    data = lines.encode()
    path = written(tmp_path / f"stories.jsonl{ending}", gzip.compress(data, mtime=0) if ending else data)
    assert read_documents(path, "story") == DOCUMENTS


def test_saved_datasets(tmp_path: Path):
    data = datasets.Dataset.from_dict({"story": DOCUMENTS})
    data.save_to_disk(str(tmp_path / "rows"))
    datasets.DatasetDict({"train": data, "test": data}).save_to_disk(str(tmp_path / "splits"))
    datasets.DatasetDict({"test": data}).save_to_disk(str(tmp_path / "untrained"))
    assert read_documents(tmp_path / "rows", "story") == DOCUMENTS
    assert read_documents(tmp_path / "splits", "story") == DOCUMENTS
    with pytest.raises(ValueError, match=r"has no column 'text'; it has \['story'\]"):
        read_documents(tmp_path / "rows")
    with pytest.raises(ValueError, match=r"has no split 'train'; it has \['test'\]"):
        read_documents(tmp_path / "untrained", "story")
    assert read_documents(tmp_path / "untrained", "story", "test") == DOCUMENTS


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("latin.txt", "caf\xe9 noir".encode("latin-1"), "is not utf-8-sig at byte 3: convert it first"),
        ("torn.txt", b"\xff\xfea\x00b", "is not utf-16 at byte 4"),
        ("unmarked.txt", "plain text".encode("utf-16-le"), "has a NUL character at position 1"),
        ("wide.txt", "plain text".encode("utf-32"), "has a NUL character"),
        ("empty.txt", b"", "holds no text"),
        ("blank.txt", b" \n<|endoftext|>\n", "holds no text"),
        ("empty.jsonl", b"", "holds no text"),
        ("cut.txt.gz", gzip.compress(b"some text" * 99, mtime=0)[:-9], r"is not a complete \.gz file"),
        ("cut.txt.xz", lzma.compress(b"some text" * 99)[:-9], r"is not a complete \.xz file"),
        ("none.txt.xz", b"plain", r"is not a complete \.xz file"),
        ("none.txt.gz", b"plain", r"is not a complete \.gz file"),
        ("broken.jsonl", b'{"text": "a"}\n{"text": "b', r'line 2: want a JSON object with "text"'),
        ("missing.jsonl", b'{"text": "a"}\n\n{"story": "b"}', r'line 3: want a JSON object with "text" \(KeyError'),
        ("list.jsonl", b'["a"]', r'line 1: want a JSON object with "text"'),
        ("number.jsonl", b'{"text": 7}', "line 1: the text is a int, want a string"),
        ("null.jsonl", b'{"text": null}', "line 1: the text is a NoneType, want a string"),
    ],
)
def test_broken_files_are_refused_by_name(tmp_path: Path, name: str, data: bytes, message: str):
    with pytest.raises(ValueError, match=message) as error:
        read_documents(written(tmp_path / name, data))
    assert name in str(error.value)


def test_lone_surrogates_do_not_reach_the_tokenizer(tmp_path: Path):
    assert read_documents(written(tmp_path / "a.jsonl", rb'{"text": "odd \ud800 thing"}')) == ["odd ? thing"]


@pytest.mark.parametrize("name", ["/no/such/file.txt", "no-such-file.txt", "./missing"])
def test_missing_files(name: str):
    with pytest.raises(ValueError, match="no such file, folder or hub dataset"):
        read_documents(name)


@pytest.mark.parametrize(("bos", "eos", "first"), [(7, 8, [7]), (None, 8, [8])])
def test_documents_open_with_what_the_tokenizer_has(tmp_path: Path, bos: Any, eos: Any, first: list[int]):
    tokenizer = tiny_tokenizer(tmp_path)
    tokenizer.bos_token = None if bos is None else f"w{bos}"
    tokenizer.eos_token = None if eos is None else f"w{eos}"
    assert tokenize(["w1 w2", "w3"], tokenizer).tolist() == [*first, 1, 2, *first, 3]


def test_a_tokenizer_that_cannot_open_documents_is_refused(tmp_path: Path):
    tokenizer = tiny_tokenizer(tmp_path)
    tokenizer.bos_token = tokenizer.eos_token = None
    with pytest.raises(ValueError, match="neither a BOS nor an EOS token"):
        tokenize(["w1 w2"], tokenizer)


def test_rows_leave_the_rest_out():
    batches = rows(torch.arange(11), seq_len=3, batch_size=2)
    assert [batch.tolist() for batch in batches] == [[[0, 1, 2], [3, 4, 5]], [[6, 7, 8]]]
    with pytest.raises(ValueError, match="2 tokens do not fill one row of 3"):
        rows(torch.arange(2), seq_len=3, batch_size=2)


def test_every_pass_holds_every_row_once_at_another_offset():
    batches = TokenBatches(torch.arange(100), seq_len=4, batch_size=3)
    per_pass = (100 // 4 - 1) // 3
    first, second = (torch.cat([batches(p * per_pass + i) for i in range(per_pass)]) for p in (0, 1))
    for table in (first, second):
        assert table.flatten().sort().values.diff().tolist() == [1] * (table.numel() - 1)
    assert not torch.equal(first, second)
    assert torch.equal(batches(3), TokenBatches(torch.arange(100), seq_len=4, batch_size=3)(3))  # needs only the index
    assert not torch.equal(batches(3), TokenBatches(torch.arange(100), seq_len=4, batch_size=3, seed=1)(3))


def test_batches_from_a_file_are_those_from_memory(tmp_path: Path):
    tokens = torch.randint(31, (1000,), generator=torch.Generator().manual_seed(0)).int()
    mapped = mapped_tokens(written(tmp_path / "tokens.bin", tokens.numpy().tobytes()))
    one, other = (TokenBatches(given, seq_len=7, batch_size=4, seed=5) for given in (tokens.long(), mapped))
    for index in (0, 3, 40, 1):
        assert torch.equal(one(index), other(index))
    assert one(0).dtype == other(0).dtype == rows(mapped, 7, 4)[0].dtype == torch.long


@pytest.mark.parametrize(
    ("tokens", "processes", "expected"),
    [
        (32 * 64, 1, (32, 1)),
        (320 * 64, 1, (32, 10)),
        (10 * 64 + 63, 1, (10, 1)),
        (33 * 64, 1, (17, 2)),  # 34 rows
        (33 * 64, 4, (20, 2)),
        (100_000, 1, (32, 49)),  # 1,568 rows for 1,562
    ],
)
def test_tokens_per_step_become_equal_batches(tokens: int, processes: int, expected: tuple[int, int]):
    assert batches_per_step(tokens, seq_len=64, batch_size=32, processes=processes) == expected


def test_less_than_a_row_per_step_is_refused():
    with pytest.raises(ValueError, match="63 tokens per optimiser step are less than one row of 64"):
        batches_per_step(63, seq_len=64, batch_size=32)


def test_one_row_too_few_is_refused():
    assert TokenBatches(torch.arange(16), seq_len=4, batch_size=3)(0).shape == (3, 4)
    with pytest.raises(ValueError, match="15 tokens are too few for one batch of 3 x 4"):
        TokenBatches(torch.arange(15), seq_len=4, batch_size=3)
    with pytest.raises(ValueError, match="not 0 x 4"):
        TokenBatches(torch.arange(99), seq_len=4, batch_size=0)


def test_mixed_batches_join_rows_of_every_source():
    one, other = TokenBatches(torch.zeros(99, dtype=torch.long), 4, 1), TokenBatches(torch.ones(99).long(), 4, 2)
    assert MixedBatches([one, other])(5).tolist() == [[0] * 4, [1] * 4, [1] * 4]


def test_sampled_text_comes_from_the_model_and_leaves_the_random_state_alone():
    model = tiny_model("gpt2")
    before = torch.get_rng_state()
    tokens = sample_tokens(model, 50, start=5, length=9, batch_size=4)
    assert torch.equal(torch.get_rng_state(), before)
    assert tokens.shape == (50,)
    assert tokens[:45:9].tolist() == [5] * 5
    assert torch.equal(tokens, sample_tokens(model, 50, start=5, length=9, batch_size=4))
    assert not torch.equal(tokens, sample_tokens(model, 50, start=5, length=9, batch_size=4, seed=1))


# pieces

PROSE = " ".join(
    f"Once upon a time, child{i} had {i * 37} red-brown\nboats.  \n\nNobody\u2019s na\u00efve!" for i in range(60)
)


@pytest.fixture
def short_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces_module, "SIZE", 50)
    monkeypatch.setattr(pieces_module, "_NEAR", 25)


@pytest.mark.parametrize("block", [1, 5, 64, 10_000])
def test_pieces_are_small_and_make_up_the_document(short_pieces: None, block: int):
    text = f"  {PROSE} \n<|endoftext|>\n second<|endoftext|> {' ' * 80}<|endoftext|>{'x' * 120}{' ' * 60}"
    found = list(split_at_separators(text[i : i + block] for i in range(0, len(text), block)))
    assert max(len(piece.text) for piece in found) <= 50 + len("<|endoftext|>")
    documents = ["".join(piece.text for piece in document) for document in by_document(found)]
    assert documents == [PROSE, "second", "x" * 120]
    assert next(iter(pieces_of(PROSE))) == Piece(found[0].text, True)


def by_document(pieces: list[Piece]) -> list[list[Piece]]:
    documents: list[list[Piece]] = []
    for piece in pieces:
        if piece.opens:
            documents.append([])
        documents[-1].append(piece)
    return documents


def byte_tokenizer() -> Any:
    """As GPT-2's: a word's token begins with the space before it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<s>"]
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([PROSE], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>")


def piece_tokenizer() -> Any:
    """As Llama's: a space is put in front of every text."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=["<unk>", "<s>"], show_progress=False)
    tokenizer.train_from_iterator([PROSE, "a b"], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", unk_token="<unk>")


@pytest.mark.parametrize("make", [byte_tokenizer, piece_tokenizer])
def test_pieces_have_the_tokens_of_the_whole_document(short_pieces: None, make: Any):
    tokenizer = make()
    whole = tokenizer(PROSE, add_special_tokens=False)["input_ids"]
    assert len(list(pieces_of(PROSE))) > 40
    assert tokenize([PROSE], tokenizer).tolist() == [tokenizer.bos_token_id, *whole]


def test_pieces_of_real_text_have_the_tokens_of_the_whole(shared_data: Path, short_pieces: None):

    tokenizer = load_tokenizer("stories260k")
    text = read_documents(shared_data / "text/tinystories_sample_2M.txt")[0]
    assert len(list(pieces_of(text))) > 5
    whole = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tokenize([text], tokenizer).tolist() == [tokenizer.bos_token_id, *whole]


# what is held out


def text_file(folder: Path, documents: list[str], name: str = "stories.txt") -> Source:
    return Source(str(written(folder / name, "<|endoftext|>".join(documents).encode())))


def stories(n: int = 60, words: int = 12) -> list[str]:
    return [" ".join(f"w{(7 * i + j) % (VOCABULARY - 1) + 1}" for j in range(words)) for i in range(n)]


def parts(source: Source, split: Split) -> dict[str, list[Piece]]:
    found: dict[str, list[Piece]] = {"train": [], "validation": [], "test": []}
    for part, piece in split.parts(source.pieces()):
        found[part].append(piece)
    return found


def test_whole_documents_are_held_out(tmp_path: Path):
    documents = [f"document {i}" for i in range(40)]
    source = text_file(tmp_path, documents)
    text = survey(source.pieces())[-1]
    found = parts(source, hold_out(text, 0.2, seed=3))
    assert sorted(piece.text for part in found.values() for piece in part) == sorted(documents)
    assert [len(found[part]) for part in ("train", "validation", "test")] == [32, 4, 4]
    assert all(piece.opens for part in found.values() for piece in part)
    assert parts(source, hold_out(text, 0.2, seed=3)) == found
    assert parts(source, hold_out(text, 0.2, seed=4)) != found


def test_no_more_is_held_out_than_is_needed(tmp_path: Path):
    source = text_file(tmp_path, [f"document {i:03d}" for i in range(200)])
    text = survey(source.pieces())[-1]
    assert [hold_out(text, 0.2, most=most).test for most in (None, 60, 10**9)] == [20, 5, 20]
    long = text_file(tmp_path, ["word " * 1000])
    assert hold_out(survey(long.pieces())[-1], 0.2, most=60).test == 60


def test_a_document_that_is_cut_begins_once_and_no_word_is_torn(tmp_path: Path):
    words = [f"w{i % 30 + 1}" for i in range(2000)]
    source = text_file(tmp_path, [" ".join(words)])
    tokenizer = tiny_tokenizer(tmp_path / "tokenizer")
    corpus = prepare(source, tokenizer, tmp_path / "tokens")
    ids = [int(word[1:]) for word in words]
    joined = torch.cat([corpus.validation, corpus.test, corpus.train]).tolist()
    assert joined == [tokenizer.bos_token_id, *ids]  # one BOS, although the text is in three parts
    assert len(corpus.test) == pytest.approx(0.05 * len(ids), rel=0.05)


def test_of_many_documents_each_begins_with_bos_and_goes_on_over_rows(tmp_path: Path):
    documents = stories(40, words=30)
    corpus = prepare(text_file(tmp_path, documents), tiny_tokenizer(tmp_path / "tokenizer"), tmp_path / "tokens")
    assert [int((part == 0).sum()) for part in (corpus.train, corpus.validation, corpus.test)] == [36, 2, 2]
    assert len(corpus.train) == 36 * 31
    (batch,) = rows(corpus.validation, seq_len=20, batch_size=9)
    assert batch.flatten().tolist() == corpus.validation[:60].tolist()  # rows of 20 hold documents of 31


@pytest.mark.parametrize("held_out", [0.0, 1.0, float("nan"), 0.9])
def test_senseless_shares_are_refused(tmp_path: Path, held_out: float):
    source = text_file(tmp_path, ["word"] * 100)
    with pytest.raises(ValueError, match=r"held-out share|100 documents are too few"):
        hold_out(survey(source.pieces())[-1], held_out)


def test_too_little_text_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="2 characters are too few to hold out 10%"):
        hold_out(survey(text_file(tmp_path, ["ab"]).pieces())[-1])


def test_a_text_is_known_by_its_documents_alone(tmp_path: Path, short_pieces: None):
    documents = ["one " * 40 + "end", "two"]
    lines = "\n".join(json.dumps({"text": f" {text}\n"}) for text in documents).encode()
    same = [
        text_file(tmp_path, documents),
        Source(str(written(tmp_path / "a.jsonl.gz", gzip.compress(lines, mtime=0)))),
    ]
    first, second = (survey(source.pieces(), at={1}) for source in same)
    assert first == second
    assert first[0].documents == 1 and first[1].documents == 2
    assert first[0] == survey(text_file(tmp_path, documents[:1]).pieces())[-1]
    moved = ["one " * 40, "end two"]  # the same characters, another border
    assert survey(text_file(tmp_path, moved).pieces())[-1].sha256 != first[1].sha256


# on disk


def test_what_is_on_disk_is_what_was_in_the_text(tmp_path: Path):
    tokenizer, source = tiny_tokenizer(tmp_path / "tokenizer"), text_file(tmp_path, stories())
    corpus = prepare(source, tokenizer, tmp_path / "tokens", held_out=0.2, seed=5)
    split = Split.from_record(json.loads(json.dumps(corpus.record)))
    assert split == corpus.split and split.seed == 5
    for name, pieces in parts(source, split).items():
        assert torch.equal(getattr(corpus, name), tokenize([piece.text for piece in pieces], tokenizer))
    files = {path.name: path.stat().st_size for path in (tmp_path / "tokens").iterdir()}
    assert sum(size for name, size in files.items() if name.endswith(".bin")) == 4 * 60 * 13
    with pytest.raises(ValueError, match=r"the record of a split has the fields \['sha256'\]"):
        Split.from_record({"sha256": "0"})


def test_the_tokenizer_gets_little_at_once(tmp_path: Path, short_pieces: None, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tokens_module, "_AT_ONCE", 300)
    monkeypatch.setattr(reading, "_BLOCK", 64)
    seen: list[int] = []
    encode = PieceTokenizer.__call__
    monkeypatch.setattr(
        PieceTokenizer, "__call__", lambda self, p: seen.append(sum(len(x.text) for x in p)) or encode(self, p)
    )
    long = " ".join(stories(300))
    prepare(text_file(tmp_path, [long]), tiny_tokenizer(tmp_path / "tokenizer"), tmp_path / "tokens")
    assert sum(seen) == len(long)
    assert max(seen) <= 350


def test_a_run_goes_on_with_the_tokens_it_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    tokenizer, source = tiny_tokenizer(tmp_path / "tokenizer"), text_file(tmp_path, stories())
    first = prepare(source, tokenizer, tmp_path / "tokens", reuse=True)
    Path(source.name).unlink()
    again = prepare(source, tokenizer, tmp_path / "tokens", reuse=True)
    assert torch.equal(again.train, first.train) and again.split == first.split
    with pytest.raises(ValueError, match=r"written with seed=0: resume with the same, or choose another folder"):
        prepare(source, tokenizer, tmp_path / "tokens", seed=1, reuse=True)
    other = text_file(tmp_path, stories(30))
    assert prepare(other, tokenizer, tmp_path / "tokens").split.documents == 30  # anew, where it is not to be reused


def test_tokens_that_were_not_written_to_the_end_are_written_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    tokenizer, source = tiny_tokenizer(tmp_path / "tokenizer"), text_file(tmp_path, stories())
    prepare(source, tokenizer, tmp_path / "tokens")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(PieceTokenizer, "__call__", interrupted)
        prepare(source, tokenizer, tmp_path / "tokens", seed=1)
    assert prepare(source, tokenizer, tmp_path / "tokens", seed=1, reuse=True).split.seed == 1


def interrupted(*_: Any) -> None:
    raise KeyboardInterrupt


def test_sampled_text_is_sampled_once(tmp_path: Path):
    calls: list[int] = []

    def sample() -> torch.Tensor:
        calls.append(1)
        return torch.arange(7)

    for _ in range(2):
        found = kept_sample(tmp_path / "sampled.bin", {"tokens": 7}, sample, reuse=True)
        assert found.tolist() == list(range(7))
    assert len(calls) == 1
    with pytest.raises(ValueError, match="tokens=7"):
        kept_sample(tmp_path / "sampled.bin", {"tokens": 8}, sample, reuse=True)
    kept_sample(tmp_path / "sampled.bin", {"tokens": 8}, sample)
    assert len(calls) == 2


def test_unknown_tokens_are_refused_before_the_whole_text_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tokens_module, "_AT_ONCE", 50)
    read: list[Piece] = []
    original = Source.pieces
    source = text_file(tmp_path, stories(200))
    split = hold_out(survey(source.pieces())[-1])
    monkeypatch.setattr("sparselens.training.text.corpus._split", lambda *_: split)
    monkeypatch.setattr(Source, "pieces", lambda self: (read.append(p) or p for p in original(self)))
    with pytest.raises(ValueError, match="the tokenizer returned token"):
        prepare(source, tiny_tokenizer(tmp_path / "tokenizer"), tmp_path / "tokens", known=9)
    assert len(read) < 10
    assert not (tmp_path / "tokens" / "split.json").exists()


# streams


@pytest.fixture
def streamed(tmp_path: Path) -> Source:
    folder = tmp_path / "stories"
    folder.mkdir()
    lines = "".join(json.dumps({"story": text, "n": i}) + "\n" for i, text in enumerate(stories(100)))
    written(folder / "train.jsonl", lines.encode())
    return Source(str(folder), "story", stream=True)


def test_a_stream_is_read_as_far_as_it_is_needed(streamed: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tokens_module, "_AT_ONCE", 50)
    tokenizer = tiny_tokenizer(tmp_path / "tokenizer")
    corpus = prepare(streamed, tokenizer, tmp_path / "tokens", most_held_out=12, enough=300)
    size = len(stories()[0])
    held_out = -(-12 * 8 // size)  # 8 characters for a token
    assert corpus.split.validation == held_out and corpus.split.seed is None
    documents = stories(100)
    assert torch.equal(corpus.validation, tokenize(documents[:held_out], tokenizer).int())
    assert torch.equal(corpus.test, tokenize(documents[held_out : corpus.split.documents], tokenizer).int())
    rest = tokenize(documents[corpus.split.documents :], tokenizer)
    assert 300 <= len(corpus.train) < 400 < len(rest)
    assert torch.equal(corpus.train, rest[: len(corpus.train)].int())


def test_streams_that_are_too_short_or_have_no_such_column(streamed: Source, tmp_path: Path):
    tokenizer = tiny_tokenizer(tmp_path / "tokenizer")
    with pytest.raises(ValueError, match="the stream is too short to hold out 8000 characters twice"):
        prepare(streamed, tokenizer, tmp_path / "tokens", most_held_out=1000, enough=300)
    with pytest.raises(ValueError, match="pass most_held_out"):
        prepare(streamed, tokenizer, tmp_path / "tokens")
    with pytest.raises(ValueError, match=r"has no column 'text'; it has \['story', 'n'\]"):
        next(Source(streamed.name, stream=True).pieces())


# unseen text


def unseen(source: Source, tokenizer: Any, *records: Any, enough: int = 10**6) -> tuple[list[int], list[str]]:
    names = ("sparse", "control")[: len(records)]
    tokens, notes = unseen_tokens(source, tokenizer, dict(zip(names, records, strict=True)), enough)
    return tokens.tolist(), notes


def test_text_unseen_by_a_model_is_its_own_test_part(tmp_path: Path):
    tokenizer, source = tiny_tokenizer(tmp_path / "tokenizer"), text_file(tmp_path, stories())
    for seed, share in ((0, 0.1), (1, 0.4)):
        corpus = prepare(source, tokenizer, tmp_path / "tokens", held_out=share, seed=seed)
        assert unseen(source, tokenizer, corpus.record) == (corpus.test.tolist(), [])
    assert unseen(source, tokenizer, corpus.record, enough=5)[0] == corpus.test[:5].tolist()
    more = text_file(tmp_path, [*stories(), "w1 w2"])  # what came later may be anything
    assert unseen(more, tokenizer, corpus.record) == (corpus.test.tolist(), [])


def test_text_of_few_documents_is_split_again_where_it_was(tmp_path: Path, short_pieces: None):
    source = text_file(tmp_path, [" ".join(stories(200)), "w5 w6"])
    tokenizer = tiny_tokenizer(tmp_path / "tokenizer")
    one, other = (prepare(source, tokenizer, tmp_path / f"{s}", held_out=s) for s in (0.2, 0.3))
    assert unseen(source, tokenizer, one.record) == (one.test.tolist(), [])
    both, _ = unseen(source, tokenizer, one.record, other.record)  # 10 % to 20 %, and 15 % to 30 % of the text
    assert len(both) == pytest.approx(0.05 * len(" ".join(stories(200)).split()), abs=4)
    assert both == one.test[-len(both) :].tolist() == other.test[: len(both)].tolist()


def test_text_is_unseen_only_where_no_model_has_seen_it(tmp_path: Path):
    tokenizer, source = tiny_tokenizer(tmp_path / "tokenizer"), text_file(tmp_path, numbered(100))
    one, other = (prepare(source, tokenizer, tmp_path / f"{seed}", held_out=0.6, seed=seed) for seed in (0, 1))
    both, notes = unseen(source, tokenizer, one.record, other.record)
    rows_of = [
        set(map(tuple, torch.tensor(t).view(-1, 4).tolist())) for t in (both, one.test.tolist(), other.test.tolist())
    ]
    assert rows_of[0] == rows_of[1] & rows_of[2] and 0 < len(rows_of[0]) < 30
    assert notes == []


def numbered(n: int) -> list[str]:
    """Documents of three words, no two of them alike."""
    return [f"w{i // 25 + 1} w{i // 5 % 5 + 1} w{i % 5 + 1}" for i in range(n)]


def test_of_another_text_everything_is_unseen_as_far_as_known(tmp_path: Path):
    tokenizer, source = tiny_tokenizer(tmp_path / "tokenizer"), text_file(tmp_path, stories())
    record = prepare(source, tokenizer, tmp_path / "tokens").record
    changed = [*stories()[:-1], "w1 w2"]
    other = text_file(tmp_path, changed)
    tokens, notes = unseen(other, tokenizer, record)
    assert tokens == tokenize(changed, tokenizer).tolist()
    assert notes == [
        "According to its record, the sparse model was post-trained on a different text; all of the text that the loss "
        "is measured on counts as unseen by it."
    ]


def test_without_a_record_the_default_split_is_assumed_and_said(tmp_path: Path):
    tokenizer, source = tiny_tokenizer(tmp_path / "tokenizer"), text_file(tmp_path, stories())
    corpus = prepare(source, tokenizer, tmp_path / "tokens")
    tokens, (note,) = unseen(source, tokenizer, None)
    assert tokens == corpus.test.tolist()
    assert note.startswith("The sparse model has no record of its training text")


def test_of_a_stream_the_head_tells_what_is_unseen(streamed: Source, tmp_path: Path):
    tokenizer = tiny_tokenizer(tmp_path / "tokenizer")
    corpus = prepare(streamed, tokenizer, tmp_path / "tokens", most_held_out=12, enough=300)
    for stream in (False, True):
        assert unseen(Source(streamed.name, "story", stream=stream), tokenizer, corpus.record) == (
            corpus.test.tolist(),
            [],
        )
    folder = tmp_path / "others"
    folder.mkdir()
    written(folder / "train.jsonl", json.dumps({"story": "w4 w5"}).encode())
    tokens, (note,) = unseen(Source(str(folder), "story"), tokenizer, corpus.record)
    assert tokens == [0, 4, 5] and "a different text" in note
