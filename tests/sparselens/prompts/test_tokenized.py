"""Token pairs: parts of them, padding, the answer's position, and what is refused."""

import jaxtyping
import pytest
import torch

from sparselens import TokenizedPairs

CLEAN = torch.tensor([[0, 0, 1, 2], [3, 4, 5, 6], [0, 7, 8, 9]])
CORRUPTED = torch.tensor([[0, 0, 1, 3], [3, 4, 5, 7], [0, 7, 8, 1]])
MASK = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1], [0, 1, 1, 1]])
RIGHT, WRONG = torch.tensor([1, 2, 3]), torch.tensor([4, 5, 6])


def padded() -> TokenizedPairs:
    positions = {"S": torch.tensor([2, 1, 1])}
    strings = (("b", "c"), ("d", "e", "f", "g"), ("h", "i", "j"))
    return TokenizedPairs(CLEAN, CORRUPTED, RIGHT, WRONG, MASK, positions=positions, token_strings=strings)


def test_answers_are_a_table_either_way():
    one = TokenizedPairs(CLEAN, CORRUPTED, RIGHT, WRONG)
    several = TokenizedPairs(CLEAN, CORRUPTED, torch.tensor([[1, 2], [2, -1], [3, 1]]), WRONG[:, None])
    assert one.answers.tolist() == [[1], [2], [3]]
    assert several.answers.tolist() == [[1, 2], [2, -1], [3, 1]]


@pytest.mark.parametrize(
    ("mask", "positions", "end"),
    [
        (None, {}, [3, 3, 3]),
        (MASK, {}, [3, 3, 3]),
        (MASK.flip(-1), {}, [1, 3, 2]),
        (None, {"END": torch.tensor([0, 1, 2])}, [0, 1, 2]),
    ],
)
def test_the_answer_is_read_at_the_last_token_unless_said_otherwise(mask, positions, end):
    pairs = TokenizedPairs(CLEAN, CORRUPTED, RIGHT, WRONG, mask, positions=positions)
    assert pairs.end.tolist() == end


def test_rows_take_everything_along():
    part = padded()[[2, 0]]
    assert part.clean.tolist() == [[0, 7, 8, 9], [0, 0, 1, 2]]
    assert part.answer.tolist() == [3, 1] and part.positions["S"].tolist() == [1, 2]
    assert part.token_strings == (("h", "i", "j"), ("b", "c"))
    assert padded()[(2, 0)].clean.tolist() == padded()[range(2, -1, -2)].clean.tolist() == part.clean.tolist()
    assert len(padded()[1]) == 1 and len(padded()[1:]) == 2 and len(padded()[torch.tensor([True, False, False])]) == 1


@pytest.mark.parametrize("size", [1, 2, 5])
def test_batches_have_no_padding_and_miss_no_prompt(size: int):
    seen = {}
    for rows, batch in padded().batches(size):
        assert batch.attention_mask is None and isinstance(batch.inputs(), torch.Tensor)
        for row, tokens, place, strings in zip(
            rows.tolist(), batch.clean.tolist(), batch.positions["S"].tolist(), batch.token_strings, strict=True
        ):
            seen[row] = tokens, tokens[place], strings
    assert seen[0] == ([1, 2], 1, ("b", "c"))
    assert seen[1] == ([3, 4, 5, 6], 4, ("d", "e", "f", "g"))
    assert seen[2] == ([7, 8, 9], 7, ("h", "i", "j"))


def test_the_most_pairs_of_one_length():
    pairs = padded()[[0, 1, 2, 1]]
    most = pairs.of_one_length()
    assert most.clean.tolist() == [[3, 4, 5, 6]] * 2 and most.attention_mask is None


def test_right_padding_is_cut_too():
    pairs = TokenizedPairs(CLEAN.flip(-1), CORRUPTED.flip(-1), RIGHT, WRONG, MASK.flip(-1))
    widths = {tuple(rows.tolist()): batch.clean.shape[1] for rows, batch in pairs.batches(3)}
    assert widths == {(0,): 2, (1,): 4, (2,): 3}


def test_prompts_that_differ_in_length_within_a_pair_keep_their_masks():
    other = torch.tensor([[0, 1, 1, 1], [1, 1, 1, 1], [0, 1, 1, 1]])
    pairs = TokenizedPairs(CLEAN, CORRUPTED, RIGHT, WRONG, MASK, other)
    (batch,) = [batch for rows, batch in pairs.batches(3) if rows.tolist() == [0]]
    assert batch.clean.tolist() == [[0, 1, 2]]
    assert batch.inputs()["attention_mask"].tolist() == [[0, 1, 1]]
    assert batch.inputs(corrupted=True)["attention_mask"].tolist() == [[1, 1, 1]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"corrupted": CORRUPTED[:, 1:]}, r"the same shape \[batch, pos\], not \[3, 4\] and \[3, 3\]"),
        ({"answer": RIGHT[:2]}, r"answer has shape \[2\], but there are 3 prompts"),
        ({"answer": torch.tensor([1, 5, 3])}, "prompt 1 has the same token as answer and wrong answer"),
        ({"answer": torch.tensor([[1], [-1], [3]])}, "prompt 1 has no answer"),
        ({"answer": torch.tensor([[1, -1, -1], [2, 0, 2], [3, -1, 0]])}, r"prompt 1 .* twice .* answers \[2, 0, 2\]"),
        ({"attention_mask": MASK[:, 1:]}, "attention_mask has shape"),
        ({"positions": {"S": torch.tensor([1, 2, 4])}}, "position 'S' must be one index below 4"),
        ({"clean": CLEAN[:0], "corrupted": CORRUPTED[:0]}, "no prompt"),
    ],
)
def test_mistakes_name_the_value(change, message, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # users run without shape checks
    options = {"clean": CLEAN, "corrupted": CORRUPTED, "answer": RIGHT, "wrong_answer": WRONG} | change
    with pytest.raises(ValueError, match=message):
        TokenizedPairs(**options)


def test_a_batch_of_none_is_refused():
    with pytest.raises(ValueError, match="a batch of 0 prompts"):
        next(padded().batches(0))
