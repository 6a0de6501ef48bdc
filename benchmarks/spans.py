"""How many passes copied answers take, and how right they are, with and without the restriction.

    python benchmarks/spans.py BUNDLE DATA.jsonl [--task squad] [--limit 100] [--max-tokens 32]

DATA.jsonl has rows as `plc eval` reads them: `taskname`, fields, and the right answer or a list of
them. Each row is asked alone, greedily, three times: held to its field; held to it without drafts,
token by token; and free. Prints as JSON, for each: passes of the model after the prompt (the pass
that ends the prompt is not counted, since every answer has it) and tokens, per answer; exact match
and F1. The first two are refused unless their answers are the same. Nothing is timed.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pl_compile.checks.right_answers import right_answer
from pl_compile.driver.ask import checked_requests
from pl_compile.metrics.squad import squad_scores
from pl_compile.runtime import Request, Result, Session
from pl_compile.runtime.requests import Event
from pl_compile.text.examples import read_examples


def answered(session: Session, request: Request, *, drafts: bool) -> tuple[Result, int]:
    """An answer, and the passes after its prompt."""
    row = session.prepare(request)
    row.branches = row.branches and drafts
    events: list[Event] = []
    session.submit([row], lambda brought: events.extend(event for _, event in brought if event))
    passes = 0
    while row.is_live:
        passes += bool(events)
        session.advance()
    (result,) = [event.result for event in events if event.result is not None]
    return result, passes


def measured(
    session: Session, requests: Sequence[Request], answers: Sequence[Any], *, drafts: bool
) -> tuple[dict[str, float], list[Result]]:
    """The numbers of some requests, and their answers."""
    pairs = [answered(session, request, drafts=drafts) for request in requests]
    results = [result for result, _ in pairs]
    scores = squad_scores([result.text for result in results], answers)
    count = len(pairs)
    numbers = {
        "passes_per_answer": sum(passes for _, passes in pairs) / count,
        "tokens_per_answer": sum(len(result.token_ids) for result in results) / count,
        "exact_match": scores["exact_match"],
        "f1": scores["f1"],
    }
    return {name: round(value, 2) for name, value in numbers.items()}, results


def report(session: Session, task: str, data: Path, *, limit: int, max_tokens: int) -> Any:
    """The numbers of a task, by how it was asked."""
    templates = {name: each.renderer.template for name, each in session.tasks.items()}
    rows = read_examples([data], templates, answers=False)
    examples = [each for each in rows if each.taskname == task][:limit]
    options = {"max_tokens": max_tokens, "stop": ("\n",)}
    requests = checked_requests(session, [(each, options) for each in examples], doing="asking")
    answers = [right_answer(each, templates[task]) for each in examples]
    drafted, same = measured(session, requests, answers, drafts=True)
    one_by_one, others = measured(session, requests, answers, drafts=False)
    if same != others:
        raise SystemExit("answers with drafts differ from those without")
    free = [replace(request, constrain=False) for request in requests]
    return {
        "answers": len(examples),
        "drafts": session.engine.branches,
        "copied": drafted,
        "copied, token by token": one_by_one,
        "free": measured(session, free, answers, drafts=False)[0],
    }


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--task", default="squad")
    parser.add_argument("--limit", type=int, default=100)
    parser.add_argument("--max-tokens", type=int, default=32)
    given = parser.parse_args()
    with Session.open(given.bundle, max_batch=1) as session:
        found = report(
            session, given.task, given.data, limit=given.limit, max_tokens=given.max_tokens
        )
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
