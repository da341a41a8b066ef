"""The induction tasks: the words before END occurred before, followed by the answer."""

from sparselens.tasks.induction import BEFORE, LONGEST, SHORTEST, induction, induction_text


def test_the_answer_came_after_the_last_word():
    lengths = set[int]()
    for pair in induction.pairs(200):
        words = pair.clean.removeprefix(BEFORE).split()
        place = words.index(words[-1])
        first = words[: len(words) - place - 1]
        assert words == [*first, *first[: place + 1]]
        assert len(set(first)) == len(first)
        assert pair.answers == (f" {first[place + 1]}",)
        assert {f" {word}" for word in first} < {*pair.answers, *pair.wrong_answers}
        lengths.add(len(first))
    assert lengths == set(range(SHORTEST, LONGEST + 1))


def test_the_new_word_stands_where_the_answer_or_the_word_before_it_stood():
    for corruption, offset in (("answer", 1), ("previous", 0)):
        for pair in induction.pairs(50, corruption=corruption):
            clean, corrupted = (text.removeprefix(BEFORE).split() for text in (pair.clean, pair.corrupted))
            place = clean.index(clean[-1]) + offset
            assert [i for i, word in enumerate(clean) if word != corrupted[i]] == [place]
            assert corrupted[place] not in clean
            assert f" {corrupted[place]}" in pair.wrong_answers


def test_the_surname_belongs_to_the_name_that_is_repeated():
    for corruption in induction_text.corruptions:
        for pair in induction_text.pairs(50, corruption=corruption):
            first = pair.clean.split()[-1]
            assert f"{first}{pair.answers[0]}" in pair.clean
            # each corrupted prompt makes the wrong answer the right one
            assert f"{pair.corrupted.split()[-1]}{pair.wrong_answers[0]}" in pair.corrupted
