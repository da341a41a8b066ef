"""Tasks of a user's own: drawing, fitting to a tokenizer, datasets, records, and what a model makes of them."""

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch

import sparselens as sl
from sparselens.prompts.draw import Draw
from sparselens.prompts.fitting import Fit, MisfitError
from sparselens.prompts.pairs import fill, next_word
from tests.tiny_models import bridge_of, tiny_model, tiny_tokenizer

LETTERS = tuple(f"w{i}" for i in range(1, 9))


def draw(random: Draw, words: Any, corruption: str) -> sl.PromptPair:
    a, b, other = random.sample(words["word"], 3)
    return sl.pair("{A} {B} w20 {C}", {"A": a, "B": b, "C": a}, {"C": other}, f" {b}", f" {a}", after=("A",))


TASK = sl.Task("copy", "what followed before?", draw, {"word": sl.Words(LETTERS, sl.spaced, need=3)}, {"swap": ("C",)})


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return tiny_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def test_the_same_pairs_everywhere():
    first = TASK.pairs(3, seed=1)
    assert [pair.clean for pair in first] == ["w2 w7 w20 w2", "w4 w6 w20 w4", "w1 w7 w20 w1"]
    assert TASK.pairs(50, seed=1)[:3] == first != TASK.pairs(3, seed=2)


def test_spans_of_slots_and_next_words():
    (pair,) = TASK.pairs(1, seed=1)
    assert pair.positions == {"A": (0, 2), "B": (3, 5), "C": (10, 12), "A+1": (3, 5), "END": (11, 12)}
    assert next_word("Ann, who", (0, 3)) == (3, 4)
    assert fill("{a}, {A}!", {"a": "x", "A": "yz"}) == ("x, yz!", {"A": (3, 5)})


def test_all_pairs_and_no_more():
    few = replace(TASK, words={"word": LETTERS[:4]})
    with pytest.warns(UserWarning, match="'copy' has 12 different clean prompts"):
        assert len(few.pairs(4 * 3 * 2)) == 24
    with pytest.raises(ValueError, match="'copy' has 24 different pairs, 25 were requested"):
        few.pairs(25)


def test_tokens_line_up(tokenizer: Any):
    tokens = TASK.tokenize(tokenizer, 40)
    number = {f"w{i}": i for i in range(31)}
    for row, pair in enumerate(tokens.prompts):
        assert tokens.clean[row].tolist() == [number[word] for word in pair.clean.split()]
        assert tokens.corrupted[row].tolist() == [number[word] for word in pair.corrupted.split()]
        assert tokens.answer[row] == number[pair.answers[0].strip()]
        assert "".join(tokens.token_strings[row]) == pair.clean
    where = {name: places.tolist() for name, places in tokens.positions.items()}
    assert where == {"A": [0] * 40, "B": [1] * 40, "C": [3] * 40, "A+1": [1] * 40, "END": [3] * 40}


def test_bos_is_put_first_on_request(tokenizer: Any):
    plain, dressed = TASK.tokenize(tokenizer, 5), TASK.tokenize(tokenizer, 5, bos=True)
    assert torch.equal(dressed.clean[:, 1:], plain.clean) and (dressed.clean[:, 0] == tokenizer.bos_token_id).all()
    assert torch.equal(dressed.positions["C"], plain.positions["C"] + 1)
    assert dressed.token_strings[0] == ("<|endoftext|>", *plain.token_strings[0])
    tokenizer_without = type(
        "Bare", (), {"bos_token_id": None, "unk_token_id": None, "backend_tokenizer": tokenizer.backend_tokenizer}
    )()
    with pytest.raises(ValueError, match="no BOS token"):
        Fit(tokenizer_without, bos=True)


def test_prompts_of_different_lengths_are_padded_left(tokenizer: Any):
    pairs = [
        sl.PromptPair("w1 w2", "w1 w3", (" w4",), (" w5",)),
        sl.PromptPair("w1 w2 w6", "w7 w2 w6", (" w4",), (" w5",)),
    ]
    tokens = sl.tokenize_pairs(pairs, tokenizer)
    assert tokens.attention_mask is not None and tokens.attention_mask.tolist() == [[0, 1, 1], [1, 1, 1]]
    assert tokens.clean[0, 1:].tolist() == [1, 2] and tokens.positions["END"].tolist() == [2, 2]
    assert tokens.corrupted_mask is None


def test_pairs_of_unequal_length_only_on_request(tokenizer: Any):
    pairs = [sl.PromptPair("w1 w2", "w3 w1 w2", (" w4",), (" w5",))]
    with pytest.raises(
        ValueError, match="pair 0 does not fit the tokenizer: clean and corrupted prompt differ in their number"
    ):
        sl.tokenize_pairs(pairs, tokenizer)
    tokens = sl.tokenize_pairs(pairs, tokenizer, equal_length=False)
    assert tokens.attention_mask is not None and tokens.corrupted_mask is not None
    assert (tokens.attention_mask.tolist(), tokens.corrupted_mask.tolist()) == ([[0, 1, 1]], [[1, 1, 1]])


@pytest.mark.parametrize(
    ("pair", "reason"),
    [
        (sl.PromptPair("w1 zebra", "w1 w2", (" w4",), (" w5",)), "unknown to the tokenizer"),
        (sl.PromptPair("w1 w2", "w1 w3", (" w4 w5",), (" w5",)), "an answer is not a single token"),
        (sl.PromptPair("w1 w2", "w1 w3", (" zebra",), (" w5",)), "an answer is not a single token"),
        (sl.PromptPair("w1 w2", "w1 w3", (" w4",), ("\tw4",)), "a right and a wrong answer are the same token"),
        (sl.PromptPair("w1 w2", "w1 w3", (" w4",), (" w5",), {"X": (0, 1)}, {"X": (0, 1)}), "'X' lies inside a longer"),
        (sl.PromptPair("w1 w2", "w1 w3", (" w4",), (" w5",), {"X": (0, 2)}, {"X": (3, 5)}), "at different tokens"),
    ],
)
def test_why_a_pair_does_not_fit(pair: sl.PromptPair, reason: str, tokenizer: Any):
    (found,) = Fit(tokenizer).check([pair])
    assert isinstance(found, MisfitError) and reason in str(found)


def test_words_that_do_not_fit_are_never_drawn(tokenizer: Any):
    words = {"word": sl.Words(("zebra", "w1", "w2", "w3", "a b"), sl.spaced, need=3)}
    task = sl.Task("few", "", draw, words)
    tokens = task.tokenize(tokenizer, 6)
    assert Counter(word for pair in tokens.prompts for word in pair.clean.split()).keys() == {"w1", "w2", "w3", "w20"}
    with pytest.raises(ValueError, match=r"'few' needs 4 entries of its list 'word' .* has 3 of 5: w1, w2, w3"):
        sl.Task("few", "", draw, {"word": sl.Words(words["word"].entries, sl.spaced, need=4)}).tokenize(tokenizer, 1)
    with pytest.raises(
        ValueError, match=r"0 of \d+ pairs drawn of 'odd' fit this tokenizer, 5 were requested: .* unknown"
    ):
        sl.Task("odd", "", draw, {"word": ("zebra", "lion", "bear")}).tokenize(tokenizer, 5)


def test_a_slow_tokenizer_is_refused():
    with pytest.raises(ValueError, match="use a fast tokenizer"):
        Fit(object())


def test_a_tokenizer_set_to_cut_does_not(tokenizer: Any):
    backend = tokenizer.backend_tokenizer
    backend.enable_truncation(2)
    try:
        assert TASK.tokenize(tokenizer, 3).clean.shape == (3, 4)
    finally:
        backend.no_truncation()


def test_dataset_names_itself_and_survives_parquet(tmp_path: Path):
    data = TASK.dataset(12, seed=5)
    assert data._fingerprint == "copy-v1-swap-seed5-n12" and "what followed" in data.info.description
    data.to_parquet(tmp_path / "pairs.parquet")
    again = datasets.Dataset.from_parquet(str(tmp_path / "pairs.parquet"), cache_dir=str(tmp_path))
    assert again.features == data.features and again.to_list() == data.to_list()
    task = sl.Task.from_records("again", again)
    assert {pair.key for pair in task.pairs(12)} == {pair.key for pair in TASK.pairs(12, seed=5)}
    assert task.pairs(1)[0].positions.keys() == {"A", "B", "C", "A+1", "END"}
    assert {pair.template for pair in task.pairs(12)} == {pair.template for pair in TASK.pairs(12, seed=5)} != {""}
    assert {pair.template for pair in task.pairs(12)} == {pair.template for pair in TASK.pairs(12, seed=5)} != {""}


def test_pairs_are_grouped_by_template_or_label(tokenizer: Any):
    forms = ("{A} {B} w20 {A2}", "w20 {A} w21 {B} w22 {A2}")

    def either(random: Draw, words: Any, corruption: str) -> sl.PromptPair:
        a, b, other = random.sample(words["word"], 3)
        return sl.pair(random.choice(forms), {"A": a, "B": b, "A2": a}, {"A2": other}, f" {b}", f" {a}")

    pairs = replace(TASK, draw=either).tokenize(tokenizer, 40)
    groups = pairs.groups()
    assert {*groups} == {*forms} and sum(map(len, groups.values())) == 40
    for template, some in groups.items():
        opens = "w20" if template.startswith("w20") else some.prompts[0].clean.split()[0]
        assert all(pair.clean.startswith("w20") == (opens == "w20") for pair in some.prompts)
        assert len(some) == len(some.prompts) == len(some.clean)
    fewest = min(map(len, groups.values()))
    assert len(pairs.groups(least=fewest + 1)) == (1 if fewest < 20 else 0)
    by_answer = pairs.groups(lambda pair: pair.answers[0])
    assert all(len(some.answer.unique()) == 1 for some in by_answer.values())
    with pytest.raises(ValueError, match="no group has 41 pairs; the largest has"):
        pairs.groups(least=41)
    with pytest.raises(ValueError, match="pair 0 has no label"):
        pairs.groups(lambda _: "")
    with pytest.raises(ValueError, match=r"pair 0 has no template \('a b'\)"):
        replace(pairs[:1], prompts=(sl.PromptPair("a b", "a c", (" d",), (" e",)),)).groups()
    with pytest.raises(ValueError, match="made from tensors"):
        replace(pairs, prompts=()).groups()


def test_a_fitted_task_has_another_fingerprint(tokenizer: Any):
    assert TASK.fitted(tokenizer).fingerprint(3, 0).startswith("copy-v1-swap-")
    assert TASK.fitted(tokenizer).fingerprint(3, 0) != TASK.fingerprint(3, 0)


def test_records(tokenizer: Any):
    rows = [
        {"clean": "w1 w2", "corrupted": "w1 w3", "answer": " w4", "wrong_answer": [" w5", " w6"]},
        {
            "clean": "w2 w2",
            "corrupted": "w2 w3",
            "answers": [" w4"],
            "wrong_answers": [" w5"],
            "positions": {"X": (0, 2)},
        },
    ]
    task = sl.Task.from_records("mine", rows)
    assert len(task.tokenize(tokenizer, 2)) == 2
    with pytest.warns(UserWarning, match="1 of 3 records are duplicates and are left out"):
        sl.Task.from_records("mine", [*rows, rows[0]])


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "there are no records"),
        ([{"clean": "a", "corrupted": "b", "answer": " c"}], "record 0: no wrong_answer .want clean, corr"),
        ([{"text": "a", "answers": [" c"]}], "record 0: no clean and no corrupted and no wrong_answer "),
        (
            [{"clean": "a", "corrupted": "a", "answer": " c", "wrong_answer": " d"}],
            "record 0: clean and corrupted .* same",
        ),
        ([{"clean": "a", "corrupted": "b", "answer": " c", "wrong_answer": " c"}], "' c' is both answer and wrong"),
        ([{"clean": "a", "corrupted": "b", "answer": 5, "wrong_answer": " c"}], "record 0 is broken"),
        (
            [{"clean": "a", "corrupted": "b", "answer": " c", "wrong_answer": " d", "positions": {"X": (0, 9)}}],
            "'X', characters 0 to 9, is outside",
        ),
    ],
)
def test_broken_records_are_named(rows: Any, message: str):
    with pytest.raises(ValueError, match=message):
        sl.Task.from_records("mine", rows)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: sl.pair("{A}", {"A": "x"}, {"B": "y"}, " a", " b"), "no such slot: 'B'"),
        (lambda: fill("{A} {B}", {"A": "x"}), "no word for {B}"),
        (lambda: fill("{A} {A}", {"A": "x"}), "occurs twice"),
        (lambda: sl.PromptPair("", "b", (" c",), (" d",)), "are empty"),
        (lambda: sl.PromptPair("a", "b", (" c",), ("",)), "an answer to 'a' is empty"),
        (lambda: sl.PromptPair("a", "b", (" c",), (" d",), {"X": (0, 1)}, {}), "have different position names"),
        (lambda: Draw(0).sample([1, 2], 3), "cannot choose 3 of 2"),
        (lambda: Draw(0).below(0), "cannot choose from 0 items"),
    ],
)
def test_mistakes_name_the_value(call: Any, message: str):
    with pytest.raises(ValueError, match=message):
        call()


def test_draws_are_uniform_and_repeatable():
    random = Draw(7)
    counts = Counter(random.choice("abcd") for _ in range(4000))
    assert set(counts) == set("abcd") and min(counts.values()) > 850
    assert sorted(Draw(1).shuffle(range(9))) == list(range(9)) and Draw(1).shuffle(range(9)) == Draw(1).shuffle(
        range(9)
    )
    assert 400 < sum(Draw(seed).flip() for seed in range(1000)) < 600


@pytest.mark.parametrize("gated", [False, True])
def test_what_a_model_can_do(gated: bool, tokenizer: Any):
    model = bridge_of(tiny_model("gpt2"))
    if gated:
        sl.sparsify(model)
    found = sl.evaluate(model.train(), TASK, 50, tokenizer=tokenizer, batch_size=7, progress=False)
    assert model.training
    model.eval()
    with torch.no_grad():
        end = model(found.pairs.clean)[:, -1]
    by_hand = end.gather(1, found.pairs.answers) - end.gather(1, found.pairs.wrong_answers)
    assert torch.allclose(found.values, by_hand[:, 0], atol=1e-5)
    assert found.correct.tolist() == (by_hand[:, 0] > 0).tolist()
    assert found.accuracy.mean == pytest.approx(found.correct.float().mean().item()) and found.chance == 0.5
    assert len(found.failures) == 50 - found.correct.sum()
    solved = TASK.solved_by(model, 50, tokenizer=tokenizer, progress=False)
    assert len(solved) == found.correct.sum() and not set(solved.prompts[0].key) <= {p.key for p in found.failures}


def test_given_pairs_are_evaluated_as_the_task_that_drew_them(tokenizer: Any):
    model = bridge_of(tiny_model("gpt2"))
    drawn = sl.evaluate(model, TASK, 20, tokenizer=tokenizer, progress=False)
    given = sl.evaluate(model, drawn.pairs, progress=False)
    assert torch.equal(given.correct, drawn.correct) and torch.equal(given.values, drawn.values)
    assert (given.task, given.metric_name, given.chance) == ("given pairs", "logit_difference", 0.5)
    assert given.failures == drawn.failures
    plain = sl.TokenizedPairs(
        drawn.pairs.clean,
        drawn.pairs.corrupted,
        drawn.pairs.answer,
        drawn.pairs.wrong_answer,
        drawn.pairs.attention_mask,
    )
    found = sl.evaluate(model, plain, metric=sl.metrics.answer_probability, progress=False)
    assert torch.equal(found.correct, drawn.correct) and found.metric_name == "answer_probability"
    with pytest.raises(ValueError, match=r"made from tensors and have no strings: use found\.pairs\[~found\.correct\]"):
        _ = found.failures
    beyond = sl.TokenizedPairs(plain.clean + 90, plain.corrupted, plain.answer, plain.wrong_answer)
    with pytest.raises(ValueError, match="of clean prompt 0: this model has tokens 0 to"):
        sl.evaluate(model, beyond, progress=False)


def test_a_model_without_tokenizer_says_so():
    with pytest.raises(ValueError, match="GPT2LMHeadModel has no tokenizer"):
        sl.evaluate(tiny_model("gpt2"), TASK, 5)


def test_none_solved_is_an_error(tokenizer: Any):
    never = sl.Task.from_records(
        "never",
        [{"clean": "w1 w2", "corrupted": "w1 w3", "answer": " w4", "wrong_answer": [f" w{i}" for i in range(5, 31)]}],
    )
    model = bridge_of(tiny_model("gpt2"))
    best = int(model(torch.tensor([[1, 2]]))[0, -1].argmax())
    assert best != 4
    with pytest.raises(ValueError, match="solves none of 1 pairs of 'never'"):
        never.solved_by(model, 1, tokenizer=tokenizer, progress=False)
