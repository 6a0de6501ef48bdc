"""Scores of a bundle as it is served, and of the floats that its weights came from."""

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

from pl_compile.artifact.bundle import EXACT, Precision
from pl_compile.driver.compile_base import float_engine
from pl_compile.driver.evaluate import EvalOptions, TaskScore, same_answers, score_examples
from pl_compile.driver.export_inputs import ExportInputs
from pl_compile.progress import Progress
from pl_compile.report.model import Effect
from pl_compile.runtime.engines.engine import Engine
from pl_compile.runtime.served_task import ServedTask
from pl_compile.runtime.session import Session
from pl_compile.weights.load import Weights


def score_bundle(
    inputs: ExportInputs,
    engine: Engine,
    served: Mapping[str, ServedTask],
    precision: Precision,
    weights: Weights,
    progress: Progress,
) -> tuple[Effect, ...]:
    """What the bundle's way of storing weights costs each task that has examples.

    Args:
        inputs: of the export, with the examples.
        engine: the compiled base.
        served: the tasks as the bundle serves them.
        precision: how its numbers are stored.
        weights: the floats that they came from.
        progress: receives messages.

    Raises:
        RequestError: examples that cannot be served.
        AnswerError: logits of answers that are not finite numbers.
    """

    def scores(by: Engine, prompts: Mapping[str, ServedTask], stored: str) -> list[TaskScore]:
        progress.say(f"scoring {stored}")
        session = Session(inputs.tokenizer, prompts, by)
        options = EvalOptions(baseline=False)
        return score_examples(session, inputs.to_score, options, progress=progress)

    own = scores(engine, served, precision.stored)
    if precision.stored == EXACT:
        return tuple(_effect(mine, None, EXACT) for mine in own)
    with TemporaryDirectory(prefix="plc-floats-") as folder:
        floats = float_engine(inputs.recipe, weights, Path(folder))
        # Each folds its own openings: a prefix belongs to the weights that computed it.
        prompts = {
            name: prompt.folded(floats) if served[name] is not prompt else prompt
            for name, prompt in inputs.tasks.items()
        }
        exact = scores(floats, prompts, EXACT)
    return tuple(
        _effect(mine, other, precision.stored) for mine, other in zip(own, exact, strict=True)
    )


def _effect(mine: TaskScore, other: TaskScore | None, stored: str) -> Effect:
    return Effect(
        mine.task,
        mine.metric,
        mine.examples,
        stored,
        mine.with_prompt,
        None if other is None else other.with_prompt,
        None if other is None else same_answers(mine.predictions, other.predictions),
    )
