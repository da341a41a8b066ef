"""Text on its way to batches: every file that people have, whole or broken."""

import gzip
import json
import lzma
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch

from sparselens.text import MixedBatches, TokenBatches, read_documents, rows, sample_tokens, split_documents, tokenize
from tests.tiny_models import tiny_model, tiny_tokenizer

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


@pytest.mark.parametrize("ending", ["", ".gz"])
def test_json_lines(tmp_path: Path, ending: str):
    lines = "\n".join(json.dumps({"story": text}, ensure_ascii=False) for text in DOCUMENTS) + "\n\n"
    data = lines.encode()
    path = written(tmp_path / f"stories.jsonl{ending}", gzip.compress(data) if ending else data)
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


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("latin.txt", "caf\xe9 noir".encode("latin-1"), "is not utf-8-sig at byte 3; convert it first"),
        ("torn.txt", b"\xff\xfea\x00b", "is not utf-16 at byte 4"),
        ("unmarked.txt", "plain text".encode("utf-16-le"), "holds a NUL character at position 1"),
        ("wide.txt", "plain text".encode("utf-32"), "holds a NUL character"),
        ("empty.txt", b"", "holds no text"),
        ("blank.txt", b" \n<|endoftext|>\n", "holds no text"),
        ("empty.jsonl", b"", "holds no text"),
        ("cut.txt.gz", gzip.compress(b"some text" * 99)[:-9], r"is not a whole \.gz file"),
        ("cut.txt.xz", lzma.compress(b"some text" * 99)[:-9], r"is not a whole \.xz file"),
        ("none.txt.xz", b"plain", r"is not a whole \.xz file"),
        ("none.txt.gz", b"plain", r"is not a whole \.gz file"),
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


def test_whole_documents_are_held_out():
    documents = [f"document {i}" for i in range(40)]
    split = split_documents(documents, 0.2, seed=3)
    assert sorted(split.train + split.validation + split.test) == sorted(documents)
    assert [len(part) for part in (split.train, split.validation, split.test)] == [32, 4, 4]
    assert split_documents(documents, 0.2, seed=3) == split
    assert split_documents(documents, 0.2, seed=4) != split


def test_one_long_document_is_cut_by_position():
    text = "".join(f"{i:04d} " for i in range(1000))
    split = split_documents([text], 0.1)
    assert "".join(split.validation + split.test + split.train) == text
    assert len("".join(split.test)) == pytest.approx(0.05 * len(text), rel=0.01)


@pytest.mark.parametrize("held_out", [0.0, 1.0, float("nan"), 0.9])
def test_senseless_shares_are_refused(held_out: float):
    with pytest.raises(ValueError, match=r"held-out share|too few"):
        split_documents(["word "] * 100, held_out)


def test_too_little_text_is_refused():
    with pytest.raises(ValueError, match="too few"):
        split_documents(["ab"], 0.1)


@pytest.mark.parametrize(("bos", "eos", "first"), [(7, 8, [7]), (None, 8, [8]), (None, None, [])])
def test_documents_open_with_what_the_tokenizer_has(tmp_path: Path, bos: Any, eos: Any, first: list[int]):
    tokenizer = tiny_tokenizer(tmp_path)
    tokenizer.bos_token = None if bos is None else f"w{bos}"
    tokenizer.eos_token = None if eos is None else f"w{eos}"
    assert tokenize(["w1 w2", "w3"], tokenizer).tolist() == [*first, 1, 2, *first, 3]


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
