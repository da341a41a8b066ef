"""Requirements on every task, with three tokenizers. A new task is covered once it is in TASKS."""

import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import transformers as tr

from sparselens.prompts.pairs import PromptPair
from sparselens.tasks import TASKS, find_task
from tests.tasks.drawn import N, thousand

EVERY_CORRUPTION = [(name, corruption) for name, task in TASKS.items() for corruption in task.corruptions]
HEAVY = {"torch", "numpy", "transformers", "transformer_lens", "datasets"}
TOKENIZERS = {"gpt2": "tokenizers/gpt2", "stories3m": "models/stories3m", "stories260k": "models/stories260k"}
# Tasks that do not fit a tokenizer, with the expected error message.
REFUSED: dict[tuple[str, str], str] = {
    (
        "ioi",
        "stories260k",
    ): "corruption 'abc' needs more names than the 2 that are single tokens in this tokenizer: use s2_io",
    (
        "ioi_stories",
        "stories260k",
    ): "corruption 'abc' needs more names than the 2 that are single tokens in this tokenizer: use s2_io",
    ("addition", "gpt2"): "position 'A1' lies inside a longer token",
    ("addition_causal", "gpt2"): "position 'A1' lies inside a longer token",
    ("subject_verb_agreement", "stories260k"): "needs 2 entries of its list 'noun' .* has 0 of 39",
    ("subject_verb_agreement_stories", "stories260k"): "needs 2 entries of its list 'noun' .* has 0 of 40",
    ("induction_text", "stories260k"): "needs 2 entries of its list 'surname' .* has 0 of 58",
    ("colored_objects", "stories260k"): "needs 3 entries of its list 'object' .* has 0 of 32",
    ("country_capital", "stories3m"): "needs 2 entries of its list 'capital' .* has 0 of 72",
    ("country_capital", "stories260k"): "needs 2 entries of its list 'capital' .* has 0 of 72",
    ("hypernymy", "stories260k"): "want 1 or more in each of 2 or more kinds, but only 0 of these",
    ("opposites_stories", "stories260k"): "needs 20 entries of its list 'opposite' .* has 2 of 81",
    ("opposites_quoted", "stories3m"): "needs 20 entries of its list 'opposite' .* has 18 of 254",
    ("opposites_quoted", "stories260k"): "needs 20 entries of its list 'opposite' .* has 4 of 254",
    ("brackets", "stories260k"): "needs 2 entries of its list 'answer' .* has 0 of 2",
    ("fact_retrieval", "stories260k"): "want 2 or more in each of 1 or more kinds, but only 0 of these",
}


@pytest.fixture(scope="module")
def tokenizers(shared_data: Path) -> dict[str, Any]:
    return {name: tr.AutoTokenizer.from_pretrained(shared_data / path) for name, path in TOKENIZERS.items()}


# Tasks in which some answers are right more often than others, with the reason.
UNBALANCED = {"greater_than": "a late year ends most spans, an early one hardly any"}


@pytest.mark.parametrize("name", TASKS)
def test_it_says_what_it_is(name: str):
    task = TASKS[name]
    assert task.name == name
    assert task.description and task.source
    assert all(task.pairs(1, seed)[0].positions for seed in range(3))


@pytest.mark.parametrize("name", TASKS)
def test_pairs_repeat_and_share_a_prefix(name: str):
    pairs = thousand(name)
    assert len(pairs) == N == len({pair.key for pair in pairs})
    assert tuple(TASKS[name].pairs(20)) == pairs[:20]
    assert tuple(TASKS[name].pairs(20, seed=4)) != pairs[:20]


@pytest.mark.parametrize(("name", "corruption"), EVERY_CORRUPTION)
def test_prompts_differ_where_they_should_and_only_there(name: str, corruption: str):
    changed = TASKS[name].corruptions[corruption]
    assert changed
    for pair in thousand(name, corruption):
        assert set(changed) <= set(pair.positions)
        clean, corrupted = (_without(pair, changed, side) for side in ("clean", "corrupted"))
        assert clean == corrupted
        assert any(
            pair.clean[slice(*pair.positions[p])] != pair.corrupted[slice(*pair.corrupted_positions[p])]
            for p in changed
        )


def _without(pair: PromptPair, names: tuple[str, ...], side: str) -> str:
    """The prompt with the named words blanked out."""
    text, positions = (pair.clean, pair.positions) if side == "clean" else (pair.corrupted, pair.corrupted_positions)
    for start, end in sorted((positions[name] for name in names), reverse=True):
        text = text[:start] + "_" + text[end:]
    return text


@pytest.mark.parametrize("name", [name for name in TASKS if name not in UNBALANCED])
def test_no_constant_guess_does_well(name: str):
    pairs = thousand(name)
    right = Counter(answer for pair in pairs for answer in pair.answers)
    wrong = Counter(answer for pair in pairs for answer in pair.wrong_answers)
    for answer, times in right.most_common(5):
        # where this guess is either right or wrong, it should be right about as often as any other
        share = times / (times + wrong[answer])
        chance = sum(len(p.answers) / (len(p.answers) + len(p.wrong_answers)) for p in pairs) / len(pairs)
        if times + wrong[answer] >= 100:
            assert share == pytest.approx(chance, abs=0.15), answer


@pytest.mark.filterwarnings("ignore:.*different clean prompts")  # small vocabularies have few
@pytest.mark.parametrize("tokenizer", TOKENIZERS)
@pytest.mark.parametrize("name", TASKS)
def test_tokens(name: str, tokenizer: str, tokenizers: dict[str, Any]):
    task, chosen = TASKS[name], tokenizers[tokenizer]
    if (name, tokenizer) in REFUSED:
        with pytest.raises(ValueError, match=REFUSED[name, tokenizer]):
            task.tokenize(chosen, 10)
        return
    fitted = task.fitted(chosen)
    pairs = fitted.at_most(200)
    tokens = task.tokenize(chosen, len(pairs))
    assert tokens.prompts == tuple(pairs)
    _check_rows(tokens, chosen)


@pytest.mark.parametrize(
    ("name", "corruption"), [both for both in EVERY_CORRUPTION if (both[0], "gpt2") not in REFUSED]
)
def test_tokens_of_every_corruption(name: str, corruption: str, tokenizers: dict[str, Any]):
    tokens = TASKS[name].tokenize(tokenizers["gpt2"], 50, 1, corruption)
    _check_rows(tokens, tokenizers["gpt2"])
    changed = (tokens.clean != tokens.corrupted).any(-1)
    assert changed.all()


def _check_rows(tokens: Any, tokenizer: Any) -> None:
    """Every row is compared with a plain call of the tokenizer, independent of how it was made."""
    texts = {text for pair in tokens.prompts for text in _texts(pair)}
    ids = dict(zip(texts, tokenizer(list(texts))["input_ids"], strict=True))
    prompts = [pair.clean for pair in tokens.prompts]
    plain = tokenizer(prompts, add_special_tokens=False)["input_ids"]
    for row, pair in enumerate(tokens.prompts):
        _check_row(tokens, row, pair, ids, len(plain[row]))


def _texts(pair: PromptPair) -> list[str]:
    answers = (*pair.answers[:3], *pair.wrong_answers[:3])
    return [pair.clean, pair.corrupted, *(pair.clean + answer for answer in answers)]


def _check_row(tokens: Any, row: int, pair: PromptPair, ids: dict[str, list[int]], plain: int) -> None:
    """`plain` is the number of tokens without special tokens."""
    clean, corrupted = ids[pair.clean], ids[pair.corrupted]
    assert len(clean) == len(corrupted)
    assert tokens.clean[row, -len(clean) :].tolist() == clean
    assert tokens.corrupted[row, -len(clean) :].tolist() == corrupted
    for answers, row_ids in ((pair.answers, tokens.answers[row]), (pair.wrong_answers, tokens.wrong_answers[row])):
        known = [token for token in row_ids.tolist() if token >= 0]
        assert len(known) == len(answers)
        for answer, token in list(zip(answers, known, strict=True))[:3]:
            assert ids[pair.clean + answer] == [*clean, token]
    offset, strings = tokens.clean.shape[1] - len(clean), tokens.token_strings[row]
    for name, (start, end) in pair.positions.items():
        place = int(tokens.positions[name][row]) - offset if name in tokens.positions else None
        if place is not None:
            before = "".join(strings[len(clean) - plain : place + 1])
            assert pair.clean[:end] == before
            assert before.rstrip() and start < len(before)


@pytest.mark.parametrize("name", TASKS)
def test_mistakes_are_named(name: str):
    task = TASKS[name]
    for n in (0, -3):
        with pytest.raises(ValueError, match=f"{n} pairs: want at least 1"):
            task.pairs(n)
    with pytest.raises(ValueError, match=r"no such corruption of .*: 'nonsense'"):
        task.pairs(1, corruption="nonsense")


def test_importing_the_tasks_loads_nothing_heavy():
    code = f"import sys, sparselens.tasks; assert not {HEAVY} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_an_unknown_task_is_named():
    with pytest.raises(ValueError, match=r"no such task: 'ioy', did you mean 'ioi'\? \(want .*ioi"):
        find_task("ioy")
