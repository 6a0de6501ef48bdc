"""Random lives of rows on an engine in Python, as lines for `engine_program.cc` and its answers."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

import numpy as np

from pl_compile.config.contract import GraphContract
from pl_compile.config.sampling import IN_GRAPH
from pl_compile.runtime import Sampling
from pl_compile.runtime.engines.engine import NO_TOKENS, Engine, Feed, Rows
from pl_compile.runtime.sampling import Draw


@dataclass(frozen=True, eq=False)
class Prompt:
    """The prompt of rows of ids."""

    name: str
    rows: Any
    prefix_kv: Any
    task_id: int


@dataclass
class Row:
    """What a slot holds.

    Attributes:
        prompt: it began with.
        ids: of its own prompt.
        begin: entries that stand before them.
        past: entries that it holds.
        is_shared: whether `share` was called.
    """

    prompt: Prompt
    ids: Any
    begin: int
    past: int
    is_shared: bool = False

    @property
    def is_new(self) -> bool:
        """Whether nothing was fed."""
        return self.is_shared and self.past < self.begin + len(self.ids)


@dataclass
class Script:
    """Lines, and what the engine in Python answers to each.

    Args:
        engine: in Python.
        contract: of its graph.
        seed: of what happens.
        tasks: baked ones.
    """

    engine: Engine
    contract: GraphContract
    seed: int
    tasks: int = 1
    lines: list[str] = field(default_factory=list)
    expected: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Begins with some prompts."""
        self.random, self.numbers = Random(self.seed), np.random.default_rng(self.seed)
        self.rows: Rows = self.engine.rows()
        self.live: dict[int, Row] = {}
        self.fed: set[int] = set()
        self.prompts: list[Prompt] = []
        self.named = self.shared = 0
        self.contexts = [self.numbers.integers(0, self.engine.vocab, 130) for _ in range(2)]
        self.say("open", f"{self.engine.piece},{self.one('branches')},{self.one('together')}")
        for length in (0, 0, 0, 5, 16, 37):
            self.new_prompt(length)

    def one(self, name: str) -> int:
        """An attribute that not all engines have."""
        return int(getattr(self.engine, name, False))

    def say(self, line: str, answer: object) -> None:
        """Notes a line."""
        self.lines.append(line)
        self.expected.append(str(answer))

    def new_prompt(self, length: int) -> None:
        """Makes a prompt with a prefix of some length."""
        c, numbers = self.contract, self.numbers
        rows = numbers.standard_normal((self.random.randint(1, 5), c.hidden), np.float32)
        prefix = None
        if length:
            shape = (c.layers, 2, c.kv_heads, length, c.head_dim)
            prefix = numbers.standard_normal(shape, np.float32)
        self.named += 1
        task = self.random.randrange(self.tasks)
        prompt = Prompt(f"p{self.named}", rows, prefix, task)
        self.prompts.append(prompt)
        text = "-" if prefix is None else prefix.tobytes().hex()
        self.say(f"prompt {prompt.name} {task} {rows.tobytes().hex()} {length} {text}", "done")

    def run(self, steps: int) -> None:
        """Some steps, with rows that come and go."""
        for _ in range(steps):
            for slot in range(self.engine.max_batch):
                if slot not in self.live and self.random.random() < 0.5:
                    self.admit(slot)
            self.share_again()
            chosen = [slot for slot in self.live if self.random.random() < 0.7]
            self.random.shuffle(chosen)
            self.step(chosen)
            self.end_some()
            if self.random.random() < 0.05:
                self.replace_prompt()
        self.end_some(1.0)

    def admit(self, slot: int) -> None:
        """Begins a row, and shares what it can."""
        prompt = self.random.choice(self.prompts)
        length = self.rows.admit(slot, prompt)
        self.say(f"admit {slot} {prompt.name}", length)
        if length and self.random.random() < 0.1:  # a prompt that is no longer than its prefix
            self.live[slot] = Row(prompt, self.some_ids(1), length - 1, length - 1)
            return
        context = self.random.choice(self.contexts).copy()
        if self.random.random() < 0.5:  # the same place, so that other rows of others stand there
            context[2] = self.engine.vocab
        ids = np.append(
            context[: self.random.randint(0, 130)], self.some_ids(self.random.randint(1, 9))
        )
        row = self.live[slot] = Row(prompt, ids, length, length)
        if self.random.random() < 0.8:
            row.is_shared = True
            self.share(slot)

    def some_ids(self, count: int) -> Any:
        """Ids of the vocabulary."""
        return self.numbers.integers(0, self.engine.vocab, count)

    def share(self, slot: int) -> None:
        """Shares what others have computed."""
        row = self.live[slot]
        found = self.rows.share(slot, row.ids)
        self.shared += found
        row.past = row.begin + found
        self.say(f"share {slot} {listed(row.ids)}", found)

    def share_again(self) -> None:
        """Shares again what was fed nothing, and compares such rows."""
        waiting = [s for s, row in self.live.items() if row.is_shared and s not in self.fed]
        for slot in waiting:
            if self.random.random() < 0.3:
                self.share(slot)
            other = self.random.choice(waiting)
            if other != slot:
                self.say(f"alike {slot} {other}", int(self.rows.alike(slot, other)))

    def step(self, slots: Sequence[int]) -> None:
        """One step."""
        feeds = [self.feed(slot) for slot in slots]
        if not feeds:
            return
        self.fed.update(slots)
        answers = []
        for feed, (logits, token) in zip(feeds, self.rows.step(feeds), strict=True):
            answers.append(f"{-1 if token is None else token}:{logits.tobytes().hex()}")
            row = self.live[feed.slot]
            kept = len(feed.ids)
            if feed.parents is not None:
                kept = 0
            elif feed.past >= row.begin + len(row.ids):
                kept = self.random.randint(1, kept)  # a draft, of which some tokens are right
            row.past = feed.past + kept
        self.say(" ".join(["step", *map(line_of, feeds)]), " ".join(answers))

    def feed(self, slot: int) -> Feed:
        """The next tokens of a row: of its prompt, or after it."""
        row, random = self.live[slot], self.random
        done = row.past - row.begin
        parents = None
        if done < len(row.ids):
            ids = row.ids[done : done + random.choice([1, 7, 40, 200])]
        else:
            room = self.engine.capacity - row.past
            ids = self.some_ids(min(room, random.choice([1, 1, 1, 2, 5])))
            if self.engine.branches and len(ids) > 1 and random.random() < 0.5:
                parents = np.asarray([random.randint(-1, k - 1) for k in range(len(ids))])
        wanted = None
        if random.random() < 0.3:
            count = random.randint(1, len(ids))
            wanted = np.asarray(sorted(random.sample(range(len(ids)), min(count, 4))))
        looked_at = random.choice([None, NO_TOKENS, self.some_ids(5)])
        draw = None
        if self.engine.candidates and random.random() < 0.7:
            top_k = random.randint(1, self.engine.candidates)
            heat = random.choice([0.0, 0.7, 1.5])
            sampling = Sampling(temperature=heat, top_k=top_k, top_p=0.9)
            noise = self.numbers.gumbel(size=top_k).astype(np.float32)
            draw = Draw(sampling, noise)
        return Feed(slot, ids, row.past, row.prompt, draw, wanted, parents, looked_at)

    def end_some(self, chance: float = 0.15) -> None:
        """Retires rows: some, and those that have no room."""
        over = [
            slot
            for slot, row in self.live.items()
            if row.past >= self.engine.capacity or self.random.random() < chance
        ]
        if not over:
            return
        if self.random.random() < 0.2:
            self.rows.clear(over)
            self.say(f"clear {listed(over)}", "done")
        self.rows.retire(over)
        self.say(f"retire {listed(over)}", "done")
        for slot in over:
            del self.live[slot]
        self.fed.difference_update(over)

    def replace_prompt(self) -> None:
        """Takes a prompt away, whose numbers leave memory with its last row, and makes another."""
        gone = self.prompts.pop(self.random.randrange(len(self.prompts)))
        self.say(f"forget {gone.name}", "done")
        self.new_prompt(self.random.choice([0, 5, 16, 37]))


def listed(numbers: Any) -> str:
    return ",".join(map(str, numbers))


def line_of(feed: Feed) -> str:
    """A feed as the program reads it."""

    def of(numbers: Any) -> str:
        return "-" if numbers is None else listed(numbers)

    looked_at = "none" if feed.looked_at is NO_TOKENS else of(feed.looked_at)
    draw = "-"
    if feed.draw is not None:
        sampling = feed.draw.sampling
        parts = [np.float32(getattr(sampling, name)) for name in ("temperature", "top_p", "min_p")]
        heat, top_p, min_p = (part.tobytes().hex() for part in parts)
        noise = feed.draw.noise.tobytes().hex()
        draw = f"{heat}/{sampling.top_k}/{top_p}/{min_p}/{noise}"
    parts_of_line = [feed.slot, feed.past, of(feed.ids), of(feed.wanted), of(feed.parents)]
    return ":".join([*map(str, parts_of_line), looked_at, draw])


assert set(IN_GRAPH) == {"temperature", "top_k", "top_p", "min_p"}  # what a draw's line has
