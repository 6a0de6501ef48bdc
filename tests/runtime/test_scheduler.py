"""The scheduler by itself: every request gets a slot, in order, and rows stay neighbours."""

from hypothesis import given
from hypothesis import strategies as st

from pl_compile.runtime.scheduler import Scheduler

# How many turns each request steps before it is finished, and how many slots there are.
LIVES = st.lists(st.integers(1, 9), max_size=30)
SLOTS = st.integers(1, 7)


@given(LIVES, SLOTS)
def test_every_request_steps_until_it_is_finished_whatever_the_others_do(
    lives: list[int], slots: int
) -> None:
    scheduler, stepped = Scheduler(range(len(lives)), slots), [0] * len(lives)

    while turn := scheduler.turn():
        assert turn.stepping
        for slot, request in turn.stepping.items():
            stepped[request] += 1
            if stepped[request] == lives[request]:
                scheduler.finish([slot])

    assert stepped == lives
    assert scheduler.turn() is None


@given(LIVES, SLOTS)
def test_requests_are_admitted_once_each_in_their_order_as_soon_as_a_slot_is_free(
    lives: list[int], slots: int
) -> None:
    scheduler, left = Scheduler(range(len(lives)), slots), dict(enumerate(lives))
    admitted: list[int] = []
    running = 0

    while turn := scheduler.turn():
        admitted += turn.admitted.values()
        running += len(turn.admitted)
        assert running == slots or len(admitted) == len(lives)
        for slot, request in turn.stepping.items():
            left[request] -= 1
            if not left[request]:
                scheduler.finish([slot])
                running -= 1

    assert admitted == list(range(len(lives)))


@given(LIVES, SLOTS)
def test_a_slot_holds_one_request_at_a_time_and_rows_are_found_where_they_were_moved(
    lives: list[int], slots: int
) -> None:
    """By a mirror of the cache that does what each turn says, and nothing else."""
    scheduler, left = Scheduler(range(len(lives)), slots), dict(enumerate(lives))
    held: dict[int, int] = {}

    while turn := scheduler.turn():
        for slot, request in turn.admitted.items():
            assert slot not in held
            held[slot] = request
        if turn.kept is not None:
            assert turn.kept == sorted(turn.kept)
            held = {slot: held[old] for slot, old in enumerate(turn.kept)}
        assert sorted(held) == list(range(len(held)))  # neighbours, from the first slot on
        assert len(held) <= slots
        assert all(held[slot] == request for slot, request in turn.stepping.items())
        for slot, request in turn.stepping.items():
            left[request] -= 1
            if not left[request]:
                scheduler.finish([slot])
                del held[slot]


def test_those_that_come_in_step_by_themselves_and_then_all_together() -> None:
    scheduler = Scheduler("abcd", slots=3)

    turns = [scheduler.turn(), scheduler.turn()]
    scheduler.finish([1])
    turns += [scheduler.turn(), scheduler.turn()]
    scheduler.finish([0])
    turns.append(scheduler.turn())

    assert [turn and (turn.admitted, turn.kept, turn.stepping) for turn in turns] == [
        ({0: "a", 1: "b", 2: "c"}, None, {0: "a", 1: "b", 2: "c"}),
        ({}, None, {0: "a", 1: "b", 2: "c"}),
        ({1: "d"}, None, {1: "d"}),
        ({}, None, {0: "a", 1: "d", 2: "c"}),
        ({}, [1, 2], {0: "d", 1: "c"}),
    ]
