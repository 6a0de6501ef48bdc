"""What an export found: the content of `report.json`, with a type for each part.

A report is written as `dataclasses.asdict` gives it, with null for numbers that are not finite.
`report_of` reads it back. It also reads reports of earlier releases, which lack later fields.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from pl_compile.artifact.bundle import Precision, Verdict
from pl_compile.artifact.plan_record import PlanRecord
from pl_compile.artifact.prompt_table import BaseIdentity
from pl_compile.checks.bundle_checks import Comparisons
from pl_compile.checks.lint import TaskLint
from pl_compile.config.build import Choice
from pl_compile.config.contract import PromptsMode, SamplingMode
from pl_compile.errors import PlcError
from pl_compile.passes.pipeline import PassRecord
from pl_compile.passes.quantize_weights import WeightError


@dataclass(frozen=True)
class BaseCost:
    """What the base costs.

    Attributes:
        parameters: numbers of the base; a tied LM head counts once.
        weight_bytes: of the compiled weights, scales included; of all ranks.
        file_bytes: of the target's files; a plan holds the weights a second time.
        operations_per_token: multiplications and additions for a token in the layers.
        kv_bytes_per_token: of a cache entry in all layers.
        cache_bytes_per_row: of a row's whole cache.
    """

    parameters: int
    weight_bytes: int
    file_bytes: int
    operations_per_token: int
    kv_bytes_per_token: int
    cache_bytes_per_row: int


@dataclass(frozen=True)
class TaskCost:
    """What a task costs, and whether its opening is folded.

    Attributes:
        task: its name.
        virtual_tokens: of its prompt.
        prompt_bytes: of its rows, or of its learned prefix.
        head_tokens: of its opening, virtual tokens included; the name is of earlier releases.
        saved_tokens: tokens that folding saves in each prefill; 0 if the task is not folded.
        folded_bytes: of the folded prefix; 0 if the task is not folded.
        break_even_tokens: openings shorter than this are faster to compute than to copy.
        tasks_per_gib: how many prefixes of this size a GiB holds; None if the task is not folded.
        folded: whether its opening is folded.
        reason: why, or why not.
    """

    task: str
    virtual_tokens: int
    prompt_bytes: int
    head_tokens: int
    saved_tokens: int
    folded_bytes: int
    break_even_tokens: int
    tasks_per_gib: int | None
    folded: bool
    reason: str


@dataclass(frozen=True)
class Effect:
    """What a bundle's way of storing the weights costs a task.

    Attributes:
        task: its name.
        metric: which one.
        examples: how many.
        stored: how the bundle stores its weights: "int4", "float32", …
        scores: the metric's numbers with the bundle, in percent.
        float32: the same with the floats that its weights came from; None if the bundle has these
        floats.
        same_answers: percent of the examples that both answer alike; None in the same case.
    """

    task: str
    metric: str
    examples: int
    stored: str
    scores: Mapping[str, float]
    float32: Mapping[str, float] | None
    same_answers: float | None


@dataclass(frozen=True, kw_only=True)
class Report:
    """All that an export found. The order of the fields is that of the file.

    Attributes:
        parity: the outcome of the comparisons.
        failures: what was beyond its limit, as sentences.
        target: what the bundle was built for.
        choices: of "target", "quantize" and "fold": what was asked for, what was built, and why.
        base: which base it was compiled from.
        precision: how its numbers are stored.
        prompts: whether prompts are an input of the graph or constants of it.
        ranks: how many ranks share the base.
        plans: one record for each TensorRT plan.
        sampling: who chooses the next token.
        checks: all comparisons.
        lint: what looks wrong with each task.
        cost: of the base.
        tasks: cost of each task.
        passes: what each pass did.
        weight_errors: what rounding did to each weight.
        effect: scores of each task, where data to evaluate on was given.
        seconds: wall time by step.
    """

    parity: Verdict
    failures: tuple[str, ...]
    target: str
    choices: Mapping[str, Choice] = field(default_factory=dict)
    base: BaseIdentity
    precision: Precision
    prompts: PromptsMode
    ranks: int = 1
    plans: tuple[PlanRecord, ...] = ()
    sampling: SamplingMode
    checks: Comparisons
    lint: tuple[TaskLint, ...]
    cost: BaseCost
    tasks: tuple[TaskCost, ...]
    passes: tuple[PassRecord, ...]
    weight_errors: tuple[WeightError, ...]
    effect: tuple[Effect, ...] = ()
    seconds: Mapping[str, float]


def report_of(record: Mapping[str, Any]) -> Report:
    """The report in a record, which may be of an earlier release.

    Raises:
        ValueError: the record is not a report of an export.
    """
    try:
        report: Report = _read(Report, _as_now(record))
    except (LookupError, TypeError, AttributeError, PlcError) as error:
        raise ValueError(f"not a report of an export ({error})") from error
    return report


def _as_now(record: Mapping[str, Any]) -> dict[str, Any]:
    """A record with scores as exports write them now; older ones listed them by form of storage."""
    stored = record["precision"]["quantization"]
    effect = [
        row if "scores" in row else {**row, "stored": stored, "scores": row[stored]}
        for row in record["effect"]
    ]
    return {**record, "effect": effect}


def _read(kind: Any, value: Any) -> Any:
    """A value of plain data as a `kind`; keys without a field are left out."""
    if isinstance(kind, type) and is_dataclass(kind):
        hints = get_type_hints(kind)
        named = [each.name for each in fields(kind) if each.name in value]
        return kind(**{name: _read(hints[name], value[name]) for name in named})
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        (some,) = (each for each in arguments if each is not NoneType)
        return None if value is None else _read(some, value)
    if origin is tuple:
        return tuple(_read(arguments[0], each) for each in _checked(list, value))
    if origin in (Mapping, dict):
        return {key: _read(arguments[1], each) for key, each in _checked(dict, value).items()}
    if kind is float:
        return math.inf if value is None else float(_checked((int, float), value))
    if origin is Literal:
        if value not in arguments:
            raise TypeError(f"{value!r:.40} in place of one of {arguments}")
        return value
    return value if kind is Any else _checked(kind, value)


def _checked(kind: Any, value: Any) -> Any:
    if not isinstance(value, kind):
        raise TypeError(f"{value!r:.40} in place of {kind}")
    return value
