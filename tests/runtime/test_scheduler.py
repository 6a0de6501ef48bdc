"""The scheduler by itself: every request gets a slot, in order, and keeps it to its end."""

import weakref

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from pl_compile.runtime.scheduler import Scheduler, Turn


class Requests(RuleBasedStateMachine):
    """Any order of arrivals, withdrawals and turns, beside a mirror that does what turns say."""

    @initialize(
        slots=st.integers(1, 5),
        piece=st.integers(1, 4),
        more=st.integers(0, 6),
        rush=st.integers(0, 20),
        anywhere=st.booleans(),
    )
    def begin(self, slots: int, piece: int, more: int, rush: int, anywhere: bool) -> None:
        self.slots, self.budget = slots, piece + more
        self.piece = None if anywhere else piece
        self.rush = max(rush, self.budget)
        self.scheduler: Scheduler[int] = Scheduler(
            slots, piece=self.piece, budget=self.budget, rush=rush
        )
        self.held: dict[int, int] = {}  # what the cache holds, by slot
        self.queue: list[tuple[int, int]] = []  # priority and number, in the order of admission
        self.prompt: dict[int, int] = {}  # tokens that are left, by request
        self.life: dict[int, int] = {}  # turns after the prompt
        self.order: dict[int, tuple[int, int]] = {}  # of the queue
        self.begun: set[int] = set()  # requests that were fed
        self.count = 0

    @rule(tokens=st.integers(1, 11), life=st.integers(1, 6), priority=st.integers(-1, 1))
    def submit(self, tokens: int, life: int, priority: int) -> None:
        self.scheduler.submit(self.count, tokens, priority)
        self.queue.append((-priority, self.count))
        self.queue.sort()
        self.prompt[self.count], self.life[self.count] = tokens, life
        self.order[self.count] = (-priority, self.count)
        self.count += 1

    @precondition(lambda self: self.prompt)
    @rule(data=st.data())
    def withdraw(self, data: st.DataObject) -> None:
        request = data.draw(st.sampled_from(sorted(self.prompt)))
        slot = self.scheduler.withdraw(request)
        assert slot == next((s for s, each in self.held.items() if each == request), None)
        if slot is None:
            self.queue = [each for each in self.queue if each[1] != request]
        else:
            del self.held[slot]
        del self.prompt[request], self.life[request]

    @rule()
    def turn(self) -> None:
        self._admit()
        self._shorten()
        turn = self.scheduler.turn(self._alike)
        if not self.prompt:
            assert turn is None
            return
        assert turn is not None
        assert {slot: self.held[slot] for slot in turn.tokens} == turn.stepping
        self._feed(turn)
        over = [slot for slot, request in turn.stepping.items() if not self.life[request]]
        self.scheduler.finish(over)
        for slot in over:
            request = self.held.pop(slot)
            del self.prompt[request], self.life[request]

    def _admit(self) -> None:
        """The first of the queue, as soon as a slot is free."""
        free = self.slots - len(self.held)
        first, self.queue = self.queue[:free], self.queue[free:]
        admitted = self.scheduler.admit()
        assert sorted(admitted.values()) == sorted(number for _, number in first)
        for slot, request in admitted.items():
            assert slot not in self.held
            assert slot < self.slots
            self.held[slot] = request

    def _shorten(self) -> None:
        """Every second request that was fed nothing turns out to have less to be fed."""
        begun = {request for request in self.held.values() if request in self.begun}
        assert set(self.scheduler.not_begun.values()) == set(self.held.values()) - begun
        for slot, request in self.scheduler.not_begun.items():
            assert self.held[slot] == request
            if request % 2 and self.prompt[request] > 1:
                self.prompt[request] -= 1
                self.scheduler.shorten(slot, self.prompt[request])

    def _alike(self, slot: int, other: int) -> bool:
        """Every fifth request begins like every other fifth one."""
        assert slot != other
        assert self.held[slot] not in self.begun
        return self.held[slot] % 5 == self.held[other] % 5 == 0

    def _feed(self, turn: Turn[int]) -> None:
        prompts = {request for request in self.held.values() if self.prompt[request]}
        answers = set(self.held.values()) - prompts
        stepping = set(turn.stepping.values())
        assert answers <= stepping  # an answer never waits
        fed = stepping & prompts
        assert bool(fed) == bool(prompts)
        most = self.rush if len(answers) < len(prompts) else self.budget
        given = sum(turn.tokens.values()) - len(answers)
        assert given <= most
        # Those before others in the queue are fed first, as many as there is room for. One that was
        # not begun waits for one before it that begins alike.
        order = sorted(prompts, key=lambda request: self.order[request])
        fives = [request for request in order if request % 5 == 0]
        order = [each for each in order if each not in fives[1:] or each in self.begun]
        assert fed == set(order[: len(fed)])
        if len(fed) < len(order):
            next_one = min(self.piece or 1, self.prompt[order[len(fed)]])
            assert given + next_one > most
        self.begun |= stepping
        for slot, request in turn.stepping.items():
            if request in prompts:
                is_cut = self.piece is None and given == most
                assert is_cut or turn.tokens[slot] == min(self.piece or most, self.prompt[request])
                self.prompt[request] -= turn.tokens[slot]
            else:
                assert turn.tokens[slot] == 1
                self.life[request] -= 1

    @invariant()
    def nothing_is_lost(self) -> None:
        if hasattr(self, "scheduler"):
            assert len(self.scheduler) == len(self.prompt)
            assert self.scheduler.running == len(self.held)


Requests.TestCase.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
TestRequests = Requests.TestCase


@given(st.lists(st.integers(1, 9), max_size=30), st.integers(1, 7), st.integers(1, 30))
def test_every_request_steps_until_it_is_finished_whatever_the_others_do(
    lives: list[int], slots: int, prompt: int
) -> None:
    scheduler: Scheduler[int] = Scheduler(slots, piece=8, budget=8)
    left, unfed = list(lives), [prompt] * len(lives)
    for request in range(len(lives)):
        scheduler.submit(request, prompt)

    turns = 0
    while scheduler.admit() or scheduler.running:
        turn = scheduler.turn()
        assert turn is not None
        turns += 1
        for slot, request in turn.stepping.items():
            if unfed[request]:
                unfed[request] -= turn.tokens[slot]
            else:
                left[request] -= 1
                if not left[request]:
                    scheduler.finish([slot])

    assert not any(left)
    # Nobody starves: each turn feeds a prompt or gives a token to each that answers.
    assert turns <= len(lives) * -(-prompt // 8) + sum(lives)


def test_requests_that_were_withdrawn_are_not_kept() -> None:
    """Whatever goes before them: those of a low priority might never come to the front."""

    class Asked:
        pass

    scheduler: Scheduler[Asked] = Scheduler(1, piece=4, budget=4)
    for _ in range(2):  # one runs, one waits
        scheduler.submit(Asked(), 4, priority=1)
        scheduler.turn()
    left = []
    for _ in range(50):
        asked = Asked()
        scheduler.submit(asked, 4)
        scheduler.withdraw(asked)
        left.append(weakref.ref(asked))
        del asked

    assert sum(each() is not None for each in left) <= 2


def test_who_comes_in_is_fed_beside_those_that_answer() -> None:
    scheduler: Scheduler[str] = Scheduler(3, piece=8, budget=8)
    for request in "abcd":
        scheduler.submit(request, 2)

    turns = []
    for over in ([], [], [1], [], [0]):
        scheduler.finish(over)
        admitted, turn = scheduler.admit(), scheduler.turn()
        assert turn is not None
        turns.append((admitted, turn.stepping, turn.tokens))

    assert turns == [
        ({0: "a", 1: "b", 2: "c"}, {0: "a", 1: "b", 2: "c"}, {0: 2, 1: 2, 2: 2}),
        ({}, {0: "a", 1: "b", 2: "c"}, {0: 1, 1: 1, 2: 1}),
        ({1: "d"}, {0: "a", 1: "d", 2: "c"}, {0: 1, 1: 2, 2: 1}),
        ({}, {0: "a", 1: "d", 2: "c"}, {0: 1, 1: 1, 2: 1}),
        ({}, {1: "d", 2: "c"}, {1: 1, 2: 1}),
    ]


def test_a_rush_of_prompts_is_fed_at_once_as_long_as_no_more_rows_write() -> None:
    scheduler: Scheduler[int] = Scheduler(9, piece=8, budget=8, rush=24)
    for request in range(9):
        scheduler.submit(request, 6)
    scheduler.admit()

    turns = [scheduler.turn() for _ in range(4)]

    # 4 prompts of 9, beside none that write; 4 of 5, beside 4; then one, beside 8.
    assert [list(turn.tokens.values()) for turn in turns if turn] == [
        [6] * 4,
        [1] * 4 + [6] * 4,
        [1] * 8 + [6],
        [1] * 9,
    ]


def test_prompts_that_may_be_cut_anywhere_come_one_after_the_other() -> None:
    scheduler: Scheduler[str] = Scheduler(3, piece=None, budget=8, rush=20)
    for request, tokens in {"long": 30, "short": 7, "third": 7}.items():
        scheduler.submit(request, tokens)
    scheduler.admit()

    turns = [scheduler.turn() for _ in range(3)]

    assert [turn.tokens for turn in turns if turn] == [
        {0: 20},
        {0: 10, 1: 7, 2: 3},
        {0: 1, 1: 1, 2: 4},
    ]


def test_a_long_prompt_keeps_no_answer_waiting_for_more_than_a_piece() -> None:
    scheduler: Scheduler[str] = Scheduler(3, piece=8, budget=8)
    scheduler.submit("short", 3)
    scheduler.admit()
    first = scheduler.turn()
    scheduler.submit("long", 20)
    scheduler.submit("urgent", 5, priority=1)
    scheduler.admit()

    turns = [scheduler.turn() for _ in range(5)]

    assert first is not None
    assert first.tokens == {0: 3}
    # "urgent" came last, and is in slot 1.
    assert [turn and turn.tokens for turn in turns] == [
        {0: 1, 1: 5},
        {0: 1, 1: 1, 2: 8},
        {0: 1, 1: 1, 2: 8},
        {0: 1, 1: 1, 2: 4},
        {0: 1, 1: 1, 2: 1},
    ]
