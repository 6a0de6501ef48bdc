"""The right answers of examples to score, checked before the model answers anything.

In: examples as read, and the metric that was asked for. Out: the metric of a task, and a text or a
list of texts for each example; or an error that lists the places of all examples that cannot be
scored.
"""

from collections.abc import Iterable, Mapping, Sequence

from pl_compile.errors import DataError, list_problems
from pl_compile.metrics import Reference, choose_metric, reference_problem
from pl_compile.text.examples import Example, choice_problem
from pl_compile.text.template import Template


def first_of_each_task(examples: Iterable[Example], limit: int | None) -> dict[str, list[Example]]:
    """Examples by task, tasks in the order of first use: the first `limit` of each, or all."""
    by_task: dict[str, list[Example]] = {}
    for example in examples:
        by_task.setdefault(example.taskname, []).append(example)
    return {task: mine[:limit] for task, mine in by_task.items()}


def check_answers(
    by_task: Mapping[str, Sequence[Example]], templates: Mapping[str, Template], metric: str
) -> None:
    """Refuses examples that could only count as wrong, or could not be counted at all.

    Args:
        by_task: the examples to score.
        templates: of these tasks.
        metric: a key of `METRICS`, or "auto".

    Raises:
        DataError: examples without an answer, with an answer that is not one of the task's choices,
            or with one that the metric cannot take: all of them, with their places.
    """
    problems = []
    for task, examples in by_task.items():
        template = templates[task]
        field = template.answer_field or ""
        labels = [choice.strip() for choice in template.task.choices]
        given = [example for example in examples if example.fields.get(field) is not None]
        answers = [right_answer(example, template) for example in given]
        chosen = metric_for(answers, template, metric)
        problems += [
            f"{example.where} has no answer field '{template.answer_field}'"
            for example in examples
            if example.fields.get(field) is None
        ]
        for example, answer in zip(given, answers, strict=True):
            found = [choice_problem(_stripped(answer), labels), reference_problem(chosen, answer)]
            if any(found):
                problems.append(f"{example.where}: {'; '.join(filter(None, found))}")
    if problems:
        raise DataError(
            "reading the examples to score",
            found=list_problems(problems),
            fix="Correct these examples, or give the file that holds the right answers.",
        )


def metric_for(answers: Sequence[Reference], template: Template, metric: str) -> str:
    """The metric of a task: the one that was asked for, or the one that fits these answers."""
    return choose_metric(answers, template.task.choices) if metric == "auto" else metric


def right_answer(example: Example, template: Template) -> Reference:
    """The right answer of an example that has one; a list where several are right."""
    answer = example.fields[template.answer_field or ""]
    return [str(text) for text in answer] if isinstance(answer, list) else str(answer)


def _stripped(answer: Reference) -> Reference:
    """An answer without the blanks at its ends, which no metric counts."""
    return answer.strip() if isinstance(answer, str) else [text.strip() for text in answer]
