"""Rows laid end to end: nothing lost, nothing twice, what rows share there once."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pl_compile.text.render import Rendered
from pl_compile.training.data.dataset import TrainingSequence
from pl_compile.training.data.packing import PackedBatch, Span, pack


def sequence(ids: list[int], rows: list[int], in_loss: list[bool], task: int) -> TrainingSequence:
    rendered = Rendered(np.asarray(ids, np.int64), np.asarray(rows, np.int64), 0)
    return TrainingSequence(task, rendered, np.asarray(in_loss, np.bool_))


no, yes = False, True


def test_each_row_follows_its_tasks_head_and_tasks_follow_each_other() -> None:
    batch = pack(
        [
            sequence([0, 0, 7, 8, 9], [0, 1, -1, -1, -1], [no, no, no, yes, yes], task=1),
            sequence([5, 0, 6], [-1, 0, -1], [yes, no, yes], task=0),
            sequence([0, 0, 7, 6], [0, 1, -1, -1], [no, no, no, yes], task=1),
        ]
    )

    assert batch.token_ids.tolist() == [5, 0, 6, 0, 0, 7, 8, 9, 6]
    assert batch.virtual_rows.tolist() == [-1, 0, -1, 0, 1, -1, -1, -1, -1]
    assert batch.tasks.tolist() == [0, 0, 0, 1, 1, 1, 1, 1, 1]
    assert batch.positions.tolist() == [0, 1, 2, 0, 1, 2, 3, 4, 3]
    alone, together = batch.groups
    assert (alone.task, alone.common, alone.rows) == (0, Span(0, 0), (Span(0, 3),))
    assert (together.task, together.common) == (1, Span(3, 3))
    assert together.rows == (Span(6, 2), Span(8, 1))
    # The last common token predicts the first own token of both rows.
    assert batch.targets.tolist() == [6, 8, 9, 6]
    assert batch.loss_at.tolist() == [1, 5, 6, 5]
    assert batch.target_tasks.tolist() == [0, 1, 1, 1]


def test_a_learned_prefix_is_not_in_the_line_but_takes_its_positions() -> None:
    batch = pack(
        [sequence([0, 0, 7, 8, 9], [0, 1, -1, -1, -1], [no, no, yes, yes, yes], task=0)],
        learned_prefix=True,
    )

    assert batch.token_ids.tolist() == [7, 8, 9]
    assert batch.positions.tolist() == [2, 3, 4]
    # Nothing in the line predicts the first token.
    assert (batch.targets.tolist(), batch.loss_at.tolist()) == ([8, 9], [0, 1])


def test_a_bos_before_a_learned_prefix_is_inside_of_it() -> None:
    opened = sequence([9, 0, 0, 7, 8], [-1, 0, 1, -1, -1], [no, no, no, yes, yes], task=0)

    batch = pack([opened], learned_prefix=True)

    assert batch.token_ids.tolist() == [7, 8]
    assert batch.virtual_rows.tolist() == [-1, -1]
    assert batch.positions.tolist() == [2, 3]
    # The base alone is given it.
    assert pack([opened.without_virtual()]).token_ids.tolist() == [9, 7, 8]


def test_a_target_of_id_zero_counts() -> None:
    assert pack([sequence([5, 0], [-1, -1], [yes, yes], task=0)]).targets.tolist() == [0]


def test_identical_rows_keep_a_token_of_their_own() -> None:
    batch = pack([sequence([5, 6, 7], [-1] * 3, [no, no, yes], task=0)] * 3)

    assert batch.token_ids.tolist() == [5, 6, 7, 7, 7]
    assert batch.loss_at.tolist() == [1, 1, 1]


def test_another_device_gets_what_is_computed_with() -> None:
    batch = pack([sequence([5, 6], [-1] * 2, [no, yes], task=0)])

    moved = batch.to(torch.device("meta"))

    tensors = {name: value for name, value in vars(moved).items() if name != "groups"}
    there = {name for name, value in tensors.items() if value.device.type == "meta"}
    assert set(tensors) - there == {"virtual_rows", "tasks"}  # where indices are worked out
    assert moved.groups == batch.groups


@st.composite
def micro_batches(draw: st.DrawFn) -> tuple[list[TrainingSequence], bool]:
    """Rows of up to three tasks over so few tokens that many open alike."""
    learned_prefix = draw(st.booleans())
    virtual = draw(st.lists(st.integers(0, 4), min_size=3, max_size=3))
    rows = []
    for _ in range(draw(st.integers(1, 7))):
        task = draw(st.integers(0, 2))
        ids = draw(st.lists(st.integers(1, 2), min_size=1, max_size=9))
        count = virtual[task]
        # A prefix stands at the start; rows of a prompt stand where the template says.
        place = 0 if learned_prefix else draw(st.integers(0, min(2, len(ids))))
        numbers = [*([-1] * place), *range(count), *([-1] * (len(ids) - place))]
        real = [*ids[:place], *([0] * count), *ids[place:]]
        in_loss = [draw(st.booleans()) and number < 0 for number in numbers]
        rows.append(sequence(real, numbers, in_loss, task))
    return rows, learned_prefix


def _seen(batch: PackedBatch, place: int, common: Span, own: Span) -> list[tuple[int, int, int]]:
    """Id, virtual row and position of each token that a row's token at `place` sees."""
    places = list(range(common.start, common.start + common.length))
    if place not in places:
        places += range(own.start, place + 1)
    kept = [at for at in places if at <= place]
    columns = (batch.token_ids, batch.virtual_rows, batch.positions)
    return [(int(a[at]), int(b[at]), int(c[at])) for at in kept for a, b, c in [columns]]


@given(micro_batches())
def test_every_target_is_there_once_and_is_predicted_by_all_that_stood_before_it(
    made: tuple[list[TrainingSequence], bool],
) -> None:
    rows, learned_prefix = made

    batch = pack(rows, learned_prefix=learned_prefix)

    found = list(zip(batch.loss_at.tolist(), batch.targets.tolist(), strict=True))
    ordered = [
        (group, span, row)
        for group in batch.groups
        for span, row in zip(
            group.rows, [row for row in rows if row.task == group.task], strict=True
        )
    ]
    assert len(ordered) == len(rows)
    for group, span, row in ordered:
        ids, numbers = row.rendered.token_ids.tolist(), row.rendered.virtual_rows.tolist()
        first = sum(number >= 0 for number in numbers) if learned_prefix else 0
        whole = [*zip(ids, numbers, range(len(ids)), strict=True)][first:]
        assert _seen(batch, span.start + span.length - 1, group.common, span) == whole
        for index in range(first + 1, len(ids)):
            if row.in_loss[index]:
                place, target = found.pop(0)
                assert target == ids[index]
                assert _seen(batch, place, group.common, span) == whole[: index - first]
                assert batch.tasks[place] == row.task
    assert found == []
    assert batch.target_tasks.tolist() == batch.tasks[batch.loss_at].tolist()


@given(micro_batches())
def test_what_the_rows_of_a_task_share_stands_in_the_line_once(
    made: tuple[list[TrainingSequence], bool],
) -> None:
    rows, learned_prefix = made

    batch = pack(rows, learned_prefix=learned_prefix)

    taken: list[int] = []
    for group in batch.groups:
        tokens: list[list[tuple[int, int]]] = []
        for row in (row for row in rows if row.task == group.task):
            ids, virtual = row.rendered.token_ids.tolist(), row.rendered.virtual_rows.tolist()
            first = sum(number >= 0 for number in virtual) if learned_prefix else 0
            tokens.append(list(zip(ids[first:], virtual[first:], strict=True)))
        shared = [
            length
            for length in range(min(map(len, tokens)))  # each row keeps one token at least
            if len({tuple(row[:length]) for row in tokens}) == 1
        ]
        assert group.common.length == (max(shared) if len(tokens) > 1 else 0)
        for span in (group.common, *group.rows):
            taken += range(span.start, span.start + span.length)
    assert taken == list(range(len(batch.token_ids)))


@pytest.mark.parametrize("learned_prefix", [False, True])
def test_a_row_without_a_target_adds_none(learned_prefix: bool) -> None:
    silent = sequence([5, 6, 7], [-1] * 3, [no, no, no], task=0)
    speaking = sequence([5, 6, 8], [-1] * 3, [no, no, yes], task=0)

    batch = pack([silent, speaking], learned_prefix=learned_prefix)

    assert batch.targets.tolist() == [8]
    assert pack([silent], learned_prefix=learned_prefix).targets.tolist() == []
