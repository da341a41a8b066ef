"""Pairs to files and back, the tables of other projects, and files that are broken."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import transformers as tr

import sparselens as sl
from sparselens.prompts.formats import SUFFIXES
from sparselens.tasks import TASKS
from tests.tiny_models import tiny_tokenizer

IOI = TASKS["ioi"]


@pytest.fixture(scope="module")
def data(shared_data: Path) -> Path:
    return shared_data


@pytest.fixture(scope="module")
def gpt2(data: Path) -> Any:
    return tr.AutoTokenizer.from_pretrained(data / "tokenizers" / "gpt2")


def strings(pairs: list[sl.PromptPair]) -> list[Any]:
    return [pair.key for pair in pairs]


def table(path: Path) -> list[list[str]]:
    with path.open(newline="") as file:
        return list(csv.reader(file))


@pytest.mark.parametrize("name", SUFFIXES)
def test_there_and_back(name: str, gpt2: Any, tmp_path: Path):
    pairs = IOI.fitted(gpt2).pairs(30)
    file = sl.write_pairs(pairs, tmp_path / f"pairs.{SUFFIXES[name]}", name, tokenizer=gpt2)
    again = sl.read_pairs(file, name, tokenizer=gpt2)
    assert strings(again) == strings(pairs)
    assert (again == pairs) == (name == "parquet")  # the only one that holds positions
    assert [path.name for path in tmp_path.iterdir()] == [file.name]


def test_mib_holds_every_wrong_answer_but_one_right_one(gpt2: Any, tmp_path: Path):
    pairs = TASKS["docstring"].fitted(gpt2).pairs(10)
    file = sl.write_pairs(pairs, tmp_path / "docstring.jsonl", "mib")
    assert strings(sl.read_pairs(file, "mib")) == strings(pairs)
    with pytest.raises(ValueError, match="needs answers with a leading space"):
        sl.write_pairs(TASKS["acronyms"].pairs(3), tmp_path / "f", "mib")


def test_ioi_has_the_columns_of_eap_ig(data: Path, gpt2: Any, tmp_path: Path):
    task = IOI.fitted(gpt2)
    pairs, hard = task.pairs(20, corruption="abc"), task.pairs(20, corruption="s2_io")
    file = sl.write_pairs(pairs, tmp_path / "ioi.csv", "eap-ig", tokenizer=gpt2, hard=hard)
    ours, theirs = (table(path) for path in (file, data / "tasks/eap-ig/ioi/gpt2.csv"))
    assert ours[0] == theirs[0] == ["", "clean", "corrupted", "corrupted_hard", "correct_idx", "incorrect_idx"]
    for row, pair in zip(ours[1:], pairs, strict=True):
        assert row[1:3] == [pair.clean, pair.corrupted]
        assert gpt2.decode(int(row[4])) == pair.answers[0] and gpt2.decode(int(row[5])) == pair.wrong_answers[0]
        assert row[3].count(pair.answers[0]) == 2  # the indirect object acts, too


@pytest.mark.parametrize(
    ("table", "n", "right", "wrong"),
    [
        ("ioi", 1000, (" Amy",), (" Laura",)),
        ("gender-bias", 986, (" she",), (" he",)),
        ("fact-retrieval-comma", 190, (" Afghanistan",), (" United",)),
        ("hypernymy-comma", 198, (" gem", " gems"), (" elected", " politicians")),
        ("greater-than", 1000, tuple(str(n) for n in range(53, 100)), ("01", *(str(n) for n in range(10, 53)))),
    ],
)
def test_their_tables_become_tasks(table: str, n: int, right: Any, wrong: Any, data: Path, gpt2: Any):
    pairs = sl.read_pairs(data / "tasks/eap-ig" / table / "gpt2.csv", "eap-ig", tokenizer=gpt2)
    assert len(pairs) == n
    assert (pairs[0].answers, pairs[0].wrong_answers) == (right, wrong)
    unique = len({pair.key for pair in pairs})
    if unique < n:
        with pytest.warns(UserWarning, match=f"{n - unique} of {n} records are duplicates"):
            task = sl.Task.from_records(table, pairs)
    else:
        task = sl.Task.from_records(table, pairs)
    assert {pair.key for pair in task.pairs(unique, seed=1)} == {pair.key for pair in pairs}
    tokens = task.tokenize(gpt2, 50, seed=2)
    for row, pair in enumerate(tokens.prompts):
        ids = gpt2(pair.clean)["input_ids"]
        assert tokens.clean[row, -len(ids) :].tolist() == ids
        assert gpt2.decode(int(tokens.answers[row, 0])) == pair.answers[0]


def test_ids_are_those_of_the_table(data: Path, gpt2: Any):
    path = data / "tasks/eap-ig/ioi/gpt2.csv"
    rows = table(path)[1:101]
    tokens = sl.tokenize_pairs(sl.read_pairs(path, "eap-ig", tokenizer=gpt2)[:100], gpt2)
    assert tokens.answer.tolist() == [int(row[4]) for row in rows]
    assert tokens.wrong_answer.tolist() == [int(row[5]) for row in rows]


def test_mib_rows_of_the_hub(tmp_path: Path):
    row = {
        "prompt": "Ann and Bob had a key, Bob gave it to",
        "choices": ["Bob", "Ann"],
        "answerKey": 1,
        "metadata": {"subject": "Bob"},
        "s2_io_flip_counterfactual": {
            "prompt": "Ann and Bob had a key, Ann gave it to",
            "choices": ["Bob", "Ann"],
            "answerKey": 0,
        },
        "abc_counterfactual": {"prompt": "Cy and Di had a key, Ed gave it to", "choices": ["Di", "Cy"], "answerKey": 0},
    }
    (tmp_path / "ioi.jsonl").write_text(json.dumps(row) + "\n")
    (pair,) = sl.read_pairs(tmp_path / "ioi.jsonl", "mib")
    assert (pair.answers, pair.wrong_answers) == ((" Ann",), (" Bob",))
    assert pair.corrupted.endswith("Ann gave it to")


def test_strings_with_every_kind_of_sign_survive(tmp_path: Path):
    odd = sl.PromptPair('He said, "1,2";\n\u2028 é 漢', 'He said, "1,3";\n\u2028 é 漢', (" \u00fc",), (" ,",))
    for name in ("parquet", "mib", "auto-circuit"):
        file = sl.write_pairs([odd], tmp_path / name, name)
        assert strings(sl.read_pairs(file, name)) == [odd.key]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("eap-ig", "clean,correct_idx,incorrect_idx\na,1,2\n", "no column 'corrupted'; it has clean, correct_idx"),
        ("eap-ig", "clean,corrupted,label\na,b,2\n", "has no columns of right and wrong answers"),
        ("eap-ig", "clean,corrupted,correct_idx,incorrect_idx\na b,a c,1,2\na b,a d\n", "line 3: want 4 fields"),
        ("eap-ig", "clean,corrupted,correct_idx\na b,a c,99\n", "row 2: a prompt or its answers are empty"),
        ("eap-ig", "clean,corrupted,correct_idx,incorrect_idx\na b,a c,1,900\n", "row 2: the tokenizer has .* id 900"),
        ("eap-ig", "clean,corrupted,correct_idx,incorrect_idx\na b,a c,1,x\n", "row 2"),
        ("eap-ig", "clean,corrupted,correct_idx\n", "holds no pairs"),
        ("eap-ig", "", "no column 'clean'"),
        ("mib", '{"prompt": "a", "choices": ["b"]}\n', "no key ends in '_counterfactual'"),
        ("mib", "{not json\n", "row 1"),
        ("auto-circuit", "[1, 2]", 'want a JSON object with a list "prompts"'),
        ("auto-circuit", '{"prompts": [{"clean": "I like", "corrupt": "I hate"}]}', "row 0 has no 'answers'"),
        ("parquet", "nonsense", "not a complete parquet file"),
        ("csv", "a", "no such format: 'csv'"),
    ],
)
def test_broken_files_say_where(name: str, text: str, message: str, tmp_path: Path):
    (tmp_path / "file").write_text(text)
    with pytest.raises(ValueError, match=message):
        sl.read_pairs(tmp_path / "file", name, tokenizer=tiny_tokenizer(tmp_path))


def test_what_a_format_cannot_hold_is_refused_and_nothing_written(gpt2: Any, tmp_path: Path):
    two = [sl.PromptPair("I am", "I was", (" x", " y"), (" z",))]
    with pytest.raises(ValueError, match="holds a single answer, but 'I am' has 2"):
        sl.write_pairs(two, tmp_path / "f", "mib")
    pairs = IOI.fitted(gpt2).pairs(3)
    with pytest.raises(ValueError, match="pass the tokenizer"):
        sl.write_pairs(pairs, tmp_path / "f", "eap-ig")
    with pytest.raises(ValueError, match="same clean prompts"):
        sl.write_pairs(pairs, tmp_path / "f", "eap-ig", tokenizer=gpt2, hard=pairs[::-1])
    assert not list(tmp_path.iterdir())
