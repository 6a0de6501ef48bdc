from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pl_compile.text.label_trie import LabelTrie, TrieWalk

EOS = 1


def choices_of(sequences: list[list[int]]) -> TrieWalk:
    labels = [str(index) for index in range(len(sequences))]
    return TrieWalk(LabelTrie.of(labels, sequences, fixed=True))


def _written(choices: TrieWalk, prefer: list[int]) -> list[int]:
    """The answer of a row that writes what it prefers wherever it may."""
    answer: list[int] = []
    while allowed := choices.allowed():
        wanted = prefer[len(answer)] if len(answer) < len(prefer) else allowed[0]
        answer.append(wanted if wanted in allowed else allowed[0])
        choices.push(answer[-1])
    return answer


def test_the_first_tokens_of_all_answers_may_come_first() -> None:
    assert choices_of([[7, 3, EOS], [5, EOS], [7, 4, EOS]]).allowed() == [5, 7]


def test_each_token_leaves_the_answers_that_go_on_with_it() -> None:
    choices = choices_of([[7, 3, EOS], [5, EOS], [7, 4, EOS]])

    choices.push(7)
    after_7 = choices.allowed()
    choices.push(4)
    after_4 = choices.allowed()

    assert after_7 == [3, 4]
    assert after_4 == [EOS]


def test_a_token_further_on_in_another_answer_may_not_come() -> None:
    choices = choices_of([[7, 3, EOS], [5, 4, EOS]])

    choices.push(7)

    assert choices.allowed() == [3]


def test_a_complete_answer_allows_nothing_more() -> None:
    choices = choices_of([[7, EOS], [5]])

    choices.push(5)

    assert choices.allowed() == []


@given(
    st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=6, unique=True),
    st.booleans(),
)
def test_the_certain_text_only_grows_and_is_a_label_at_the_end_alone(
    labels: list[str], ends: bool
) -> None:
    tail = [EOS] if ends else []
    trie = LabelTrie.of(labels, [[*map(ord, label), *tail] for label in labels], fixed=True)

    for label in labels:
        walk = TrieWalk(trie)
        certain = [walk.text]
        for token in [*map(ord, label), *tail]:
            if not walk.allowed():
                break  # a shorter label is complete
            walk.push(token)
            certain.append(walk.text)
        assert all(later.startswith(text) for text, later in pairwise(certain))
        assert not {*certain[:-1]} & {*labels}
        assert certain[-1] in labels


def test_with_eos_an_answer_may_end_where_another_goes_on() -> None:
    choices = choices_of([[7, EOS], [7, 3, EOS]])

    choices.push(7)

    assert choices.allowed() == [EOS, 3]


def test_without_eos_an_answer_is_complete_even_where_another_goes_on() -> None:
    choices = choices_of([[7], [7, 3]])

    choices.push(7)

    assert choices.allowed() == []


def test_equal_answers_are_one() -> None:
    choices = choices_of([[7, EOS], [7, EOS]])

    assert _written(choices, [7, EOS]) == [7, EOS]


@pytest.mark.parametrize("sequences", [[], [[]]])
def test_without_tokens_nothing_is_allowed(sequences: list[list[int]]) -> None:
    assert choices_of(sequences).allowed() == []


@settings(derandomize=True, deadline=None, max_examples=150, database=None)
@given(
    answers=st.lists(st.lists(st.integers(2, 5), max_size=4), min_size=1, max_size=6),
    prefer=st.lists(st.integers(1, 5), max_size=6),
)
def test_with_eos_what_is_written_is_always_an_answer_and_each_answer_can_be_written(
    answers: list[list[int]], prefer: list[int]
) -> None:
    ended = [[*answer, EOS] for answer in answers]

    assert _written(choices_of(ended), prefer) in ended
    for answer in ended:
        assert _written(choices_of(ended), answer) == answer
