"""What questions on one context wait for their first token, with its entries shared and without.

    python benchmarks/contexts.py BUNDLE [--task NAME] [--tokens 300] [--questions 8] [--turns 5]
                                         [--threads 2]

BUNDLE is of target `native-cpu`, with weights in 8 or 4 bits, and a capacity for the context. Each
turn has another context of about `--tokens` tokens, and questions of a few words after it. They are
asked one after the other, and then all at once on another context. Both ways of a session take
turns, so that what else the machine does falls on both alike. Prints as JSON, for both, the medians
over the turns of the mean and of the longest time to a first token in seconds, and what part of
them with sharing is.
"""

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pl_compile.driver.bench.texts import most_words, words
from pl_compile.runtime import Request, Session

QUESTION_WORDS = 6


@dataclass(frozen=True)
class Questions:
    """Requests on one context.

    Attributes:
        task: its name.
        field: that holds context and question; other fields are empty.
        fields: of the template.
        context_words: of the context.
        count: how many questions.
    """

    task: str
    field: str
    fields: Sequence[str]
    context_words: int
    count: int

    @classmethod
    def of(cls, session: Session, task: str | None, tokens: int, count: int) -> "Questions":
        """Those of a task, the first one of the session if None."""
        name = task or next(iter(session.tasks))
        renderer = session.tasks[name].renderer
        fields = renderer.template.input_fields
        # The first field: what stands before it is the same for all requests anyway.
        empty = len(renderer.prompt(dict.fromkeys(fields, "")))

        def length(number: int) -> int:
            texts = {**dict.fromkeys(fields, ""), fields[0]: words(number, 0)}
            return len(renderer.prompt(texts)) - empty

        return cls(name, fields[0], fields, most_words(tokens, length), count)

    def requests(self, seed: int) -> list[Request]:
        """The questions on a context; another seed gives another one."""
        context = words(self.context_words, seed)
        return [
            Request(
                self.task,
                {
                    **dict.fromkeys(self.fields, ""),
                    self.field: f"{context} {words(QUESTION_WORDS, -1 - number)}",
                },
                max_tokens=1,
                constrain=False,
            )
            for number in range(self.count)
        ]


def first_tokens(session: Session, requests: Sequence[Request]) -> list[float]:
    """Seconds from the submission of all requests to the first token of each."""
    began, found = time.perf_counter(), dict[int, float]()
    for event in session.stream(requests):
        found.setdefault(event.index, time.perf_counter() - began)
    return list(found.values())


def one_by_one(session: Session, requests: Sequence[Request]) -> list[float]:
    """Seconds to the first token of each request, asked when the one before is answered."""
    return [seconds for request in requests for seconds in first_tokens(session, [request])]


WAYS = {"one by one": one_by_one, "all at once": first_tokens}


def measure(sessions: dict[str, Session], questions: Questions, turns: int) -> dict[str, Any]:
    """Medians by way, by figure and by session."""
    seconds: dict[tuple[str, str], list[list[float]]] = {}
    for turn in range(turns + 1):
        names = list(sessions) if turn % 2 else list(sessions)[::-1]
        for place, (way, ask) in enumerate(WAYS.items()):
            requests = questions.requests(len(WAYS) * turn + place)
            for name in names:
                found = ask(sessions[name], requests)
                if turn:  # the first turn warms up
                    seconds.setdefault((way, name), []).append(found)
    figures: dict[str, Any] = {}
    for way in WAYS:
        for figure, of in (("mean", statistics.mean), ("longest", max)):
            medians = {
                name: statistics.median(of(found) for found in seconds[way, name])
                for name in sessions
            }
            part = medians["shared"] / medians["alone"]
            figures[f"{way}, {figure}"] = {**medians, "part": round(part, 3)}
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--task")
    parser.add_argument("--tokens", type=int, default=300, help="of a context")
    parser.add_argument("--questions", type=int, default=8)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--threads", type=int)
    given = parser.parse_args()
    slots = {"max_batch": given.questions, "threads": given.threads}
    with (
        Session.open(given.bundle, **slots) as shared,
        Session.open(given.bundle, **slots, context_mib=0) as alone,
    ):
        if shared.load.shared is None:
            parser.error(f"requests to {given.bundle} share nothing: see docs/serving.md")
        questions = Questions.of(shared, given.task, given.tokens, given.questions)
        figures = measure({"shared": shared, "alone": alone}, questions, given.turns)
        use = shared.load.shared
        assert use is not None
        found = {"task": questions.task, "seconds": figures, "tokens not computed": use.tokens}
        print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
