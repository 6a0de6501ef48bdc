"""From prompt table and base to bundle: the page that reads like the flow.

table -> base -> choices -> contract -> plan -> weights -> main graph -> passes -> target's files ->
tasks -> folded prefixes -> checks -> report -> manifest
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir
from typing import Any

from pl_compile import __version__
from pl_compile.artifact.bundle import (
    EXACT,
    NOTHING_LOST,
    REPORT,
    REPORT_PAGE,
    Manifest,
    Precision,
    files_of_bundle,
    read_bundle,
    sum_of_base,
    task_folder,
    write_json,
    write_labels,
    write_manifest,
    write_task,
)
from pl_compile.artifact.files import check_replaceable, folder_written_whole, resolved, sha256_of
from pl_compile.artifact.folded_prefix import (
    FOLDED_NAME,
    FoldedPrefix,
    write_folded,
)
from pl_compile.artifact.plan_record import PlanRecord
from pl_compile.artifact.prompt_table import (
    TaskEntry,
    check_prefix,
    check_squares,
    read_prompt_table,
)
from pl_compile.artifact.selftest import SELFTEST_NAME
from pl_compile.artifact.tensors import tensor_bytes
from pl_compile.checks.arithmetic import kernels_of
from pl_compile.checks.bundle_checks import Checks, check_bundle
from pl_compile.checks.checking_engine import (
    can_check,
    checking_engine,
    how_to_check,
    why_unchecked,
)
from pl_compile.checks.lint import TaskLint, lint_tasks
from pl_compile.checks.parity import Parity
from pl_compile.checks.right_answers import check_answers, first_of_each_task
from pl_compile.config.build import AUTO, DEFAULT_CANDIDATES, BuildOptions, Choice, FoldMode
from pl_compile.config.contract import GraphContract, PromptsMode
from pl_compile.config.decoder import DecoderConfig
from pl_compile.config.targets import TARGETS
from pl_compile.driver.calibrate import calibration_prompts, measure_moments
from pl_compile.driver.choose import choose
from pl_compile.driver.compile_base import (
    BaseRecipe,
    CompiledBase,
    compile_base,
    float_engine,
)
from pl_compile.driver.costs import BaseCost, TaskCost, base_cost, task_costs
from pl_compile.driver.disk_and_memory import check_room
from pl_compile.driver.evaluate import EvalOptions, TaskScore, evaluate, same_answers
from pl_compile.errors import ConfigError, ExportError
from pl_compile.exporters.exporter import Exporter
from pl_compile.passes.pipeline import dumped_files
from pl_compile.passes.quantize_weights import WeightError
from pl_compile.progress import SILENT, Progress
from pl_compile.quantize.moments import Moments
from pl_compile.quantize.scheme import LOSSLESS
from pl_compile.report.page import report_page
from pl_compile.runtime.engines.engine import Engine
from pl_compile.runtime.session import Session
from pl_compile.runtime.task_prompt import TaskPrompt, identity_of, prompts_of_bundle
from pl_compile.text.examples import read_examples
from pl_compile.text.render import notes_on
from pl_compile.text.tokenizer import Tokenizer
from pl_compile.training.compare_tokens import TokenCheck
from pl_compile.weights.checkpoint import Checkpoint
from pl_compile.weights.identity import identify_base
from pl_compile.weights.names import Weights, load_weights
from pl_compile.weights.open_base import open_base

DEFAULT_CAPACITY = 1024

# What making a bundle takes beside its files: the runtime's libraries, and room for a step.
_MEMORY_BESIDE = 400 << 20


@dataclass(frozen=True)
class ExportRequest:
    """What to compile.

    Attributes:
        table: the prompt table.
        base: the Hugging Face folder it was trained on.
        output: the bundle; one that is there is replaced at the end.
        tasks: which tasks of the table; all if empty.
        target: a key of `config.targets.TARGETS`; `AUTO` for the fastest on this machine's CPU.
        prompts: "input" (tasks can be added later) or "baked" (constants of the graph); what suits
            the target if None.
        capacity: longest sequence a row can hold, virtual tokens and answer included; 1,024, or
            what the base was made for if that is less, if None.
        options: how weights are stored and tokens are chosen.
        fold: whether the constant heads of templates become prefixes.
        calibrate: data files whose examples say which errors of weights matter.
        evaluate: data files to score the bundle on, beside the floats that its weights came from.
        dump_passes: a folder that gets the graph as text after each pass.
        measure_parity: whether the bundle is compared with torch, where torch is installed.
    """

    table: Path
    base: Path
    output: Path
    tasks: tuple[str, ...] = ()
    target: str = AUTO
    prompts: PromptsMode | None = None
    capacity: int | None = None
    options: BuildOptions = field(default_factory=BuildOptions)
    fold: FoldMode = "auto"
    calibrate: tuple[Path, ...] = ()
    evaluate: tuple[Path, ...] = ()
    dump_passes: Path | None = None
    measure_parity: bool = True

    def __post_init__(self) -> None:
        """Refuses options that contradict each other."""
        whys = {
            "none": "nothing is quantised",
            AUTO: "quantize auto, which leaves no error that examples could weigh",
        }
        if self.calibrate and self.options.quantize in whys:
            raise ConfigError(
                "reading the build options",
                found=f"data to calibrate on, and {whys[self.options.quantize]}",
                fix="Add --quantize int4 or int8, or leave it out.",
            )


@dataclass(frozen=True)
class ExportPlan:
    """What will be compiled, worked out before anything is built.

    Attributes:
        target: of the export.
        choices: of "target" and "quantize": what was asked for, what is built, and why.
        passes: names of the target's passes, in order.
        base: cost of the base.
        tasks: cost of each task, and whether it is folded.
    """

    target: str
    choices: Mapping[str, Choice]
    passes: tuple[str, ...]
    base: BaseCost
    tasks: tuple[TaskCost, ...]

    @property
    def disk_bytes(self) -> int:
        """About what the bundle will take."""
        return self.base.file_bytes + sum(t.folded_bytes + t.prompt_bytes for t in self.tasks)


@dataclass(frozen=True)
class Effect:
    """What storing the weights as a bundle does cost a task.

    Attributes:
        task: its name.
        metric: which one.
        examples: how many.
        stored: how the bundle stores its weights: "int4", "float32", …
        scores: the metric's numbers with the bundle, in percent.
        float32: the same with the floats that its weights came from; None where it has those.
        same_answers: percent of the examples that both answer alike; None likewise.
    """

    task: str
    metric: str
    examples: int
    stored: str
    scores: dict[str, float]
    float32: dict[str, float] | None
    same_answers: float | None


@dataclass(frozen=True)
class ExportResult:
    """What was compiled.

    Attributes:
        bundle: its folder.
        tasks: in order.
        plan: what it costs, and what was folded.
        parity: one comparison with torch per task; empty where it was not measured.
        tokens: one per task with the tokens of transformers' own tokenizer; likewise.
        passed: "passed", "failed" or "not measured".
        failures: what was beyond its limit, as sentences.
        size_bytes: of the whole bundle.
        seconds: wall time by step.
        plans: one record for each TensorRT plan.
        effect: scores of each task, where data to evaluate on was given.
    """

    bundle: Path
    tasks: tuple[str, ...]
    plan: ExportPlan
    parity: tuple[Parity, ...]
    tokens: tuple[TokenCheck, ...]
    passed: str
    failures: tuple[str, ...]
    size_bytes: int
    seconds: dict[str, float]
    plans: tuple[PlanRecord, ...] = ()
    effect: tuple[Effect, ...] = ()


@dataclass(frozen=True)
class _Source:
    """What an export starts from."""

    checkpoint: Checkpoint
    recipe: BaseRecipe
    identity: Any
    entries: tuple[TaskEntry, ...]
    tokenizer: Tokenizer
    prompts: Mapping[str, TaskPrompt]
    plan: ExportPlan
    check_base: Any


def plan_export(request: ExportRequest, *, progress: Progress = SILENT) -> ExportPlan:
    """What an export would make and cost; nothing is written.

    No weight is read but by `--quantize auto`, which looks at them: `progress` is told.

    Raises:
        PlcError: as for `export_bundle`, but for what only the weights can show.
    """
    return _read(request, progress).plan


def export_bundle(request: ExportRequest, *, progress: Progress = SILENT) -> ExportResult:
    """Compiles a bundle; it is there whole or not at all.

    A bundle whose numbers differ from the reference is still written, marked "failed".

    Raises:
        ArtifactError: the table cannot be read or has no such task, a prefix does not fit base and
            template, or the disk refuses.
        ConfigError: a template that cannot be parsed.
        DataError: data for calibration or evaluation that cannot be read.
        FingerprintError: the table was trained on another base.
        BaseModelError: the base cannot be read.
        ExportError: the target, the capacity, the disk or the memory cannot hold it.
    """
    check_replaceable(request.output, files_of_bundle)
    clock = _Clock()
    source = _read(request, progress)
    options, target = source.recipe.options, source.recipe.exporter.target
    _say_notes(source, progress)
    _check_room(request, options, source.plan)
    progress.say(f"reading {request.base}")
    checkpoint, config = source.checkpoint, source.recipe.config
    identity = identify_base(source.identity.name, checkpoint, config)
    source.check_base(identity, str(request.base))
    weights = load_weights(checkpoint, config)
    clock.lap("read")

    moments = _calibrate(request, source, weights, progress)
    clock.lap("calibrate")
    with folder_written_whole(request.output, ours=files_of_bundle) as staging:
        progress.say(f"building the graph for {target}, prompts {source.recipe.contract.prompts}")
        (staging / "base").mkdir()
        compiled = compile_base(
            source.recipe,
            weights,
            staging / "base",
            moments=moments,
            dump_to=request.dump_passes,
            progress=progress,
        )
        clock.lap("graph")
        lint = lint_tasks(
            source.entries,
            source.prompts,
            source.recipe.config,
            source.recipe.contract,
            weights["embedding.weight"],
            request.base,
            source.tokenizer,
        )
        for each in lint:
            for finding in each.findings:
                progress.say(f"task '{each.task}': {finding}")
        precision = _precision(options, moments, compiled.weight_errors)
        (staging / "tokenizer.json").write_text(source.tokenizer.text, encoding="utf-8")
        for entry in source.entries:
            write_task(staging, entry)
            write_labels(staging, entry.task.taskname, source.prompts[entry.task.taskname].trie)
        with _engine(staging, source, precision) as engine:
            served = _fold(staging, source, engine, precision)
            clock.lap("write")

            effect = _evaluate(request, source, engine, served, precision, weights, progress)
            clock.lap("evaluate")
            del weights
            checks = check_bundle(
                engine,
                source.prompts,
                served,
                source.tokenizer,
                precision=precision,
                base=request.base if _has_reference(request, target, progress) else None,
                progress=progress,
            )
        _write_selftests(staging, checks)
        clock.lap("checks")

        report = _report(source, compiled, precision, lint, effect, checks, clock)
        write_json(staging / REPORT, report)
        (staging / REPORT_PAGE).write_text(report_page(report), encoding="utf-8")
        manifest = Manifest(
            base=source.identity,
            target=target,
            graph=source.recipe.contract,
            tasks=tuple(source.prompts),
            toolchain={
                "plc": __version__,
                **source.recipe.exporter.describe(),
                **kernels_of(target),
            },
            parity=checks.passed,
            precision=precision,
        )
        progress.say("summing up")
        write_manifest(staging, manifest)
        _read_back(staging, source)
    size = sum(path.stat().st_size for path in request.output.rglob("*") if path.is_file())
    return ExportResult(
        request.output,
        manifest.tasks,
        source.plan,
        checks.torch,
        checks.tokens,
        checks.passed,
        checks.failures,
        size,
        clock.laps,
        compiled.plans,
        effect,
    )


def _say_notes(source: _Source, progress: Progress) -> None:
    """Tells what was chosen and why, and what of the texts the tokenizer cannot write."""
    for name, choice in source.plan.choices.items():
        if choice.reason:
            progress.say(f"{name} {choice.chosen}: {choice.reason}")
    templates = [prompt.renderer.template for prompt in source.prompts.values()]
    for note in notes_on(source.tokenizer, templates):
        progress.say(note)


def _report(
    source: _Source,
    compiled: CompiledBase,
    precision: Precision,
    lint: Sequence[TaskLint],
    effect: Sequence[Effect],
    checks: Checks,
    clock: "_Clock",
) -> dict[str, Any]:
    """What `report.json` holds."""
    return {
        "parity": checks.passed,
        "failures": list(checks.failures),
        "target": source.recipe.exporter.target,
        "choices": {name: asdict(choice) for name, choice in source.plan.choices.items()},
        "base": asdict(source.identity),
        "precision": asdict(precision),
        "prompts": source.recipe.contract.prompts,
        "ranks": source.recipe.contract.ranks,
        "plans": [asdict(record) for record in compiled.plans],
        "sampling": source.recipe.options.sampling,
        "checks": checks.record(),
        "lint": [asdict(finding) for finding in lint],
        "cost": asdict(source.plan.base),
        "tasks": [asdict(cost) for cost in source.plan.tasks],
        "passes": [asdict(record) for record in compiled.passes],
        "weight_errors": [asdict(error) for error in compiled.weight_errors],
        "effect": [asdict(each) for each in effect],
        "seconds": clock.laps,
    }


def _read_back(staging: Path, source: _Source) -> None:
    """Raises what a runtime would raise: such a bundle is not left behind."""
    written = read_bundle(staging, sums=False)
    prompts_of_bundle(written, source.tokenizer)
    for name in source.prompts:
        written.selftest(name)


def _read(request: ExportRequest, progress: Progress) -> _Source:
    """All that is small, checked."""
    table = read_prompt_table(request.table)
    names = dict.fromkeys(request.tasks or table.entries)  # a task named twice is one task
    entries = tuple(table.entry(name) for name in names)
    checkpoint, config = open_base(request.base)
    chosen = choose(
        request.target,
        request.options,
        config,
        checkpoint,
        lambda exporter: _contract(request, exporter, config, entries),
        progress=progress,
    )
    exporter, contract, options = chosen.exporter, chosen.contract, chosen.options
    fold, reason = _fold_mode(request, exporter.target)
    tokenizer = Tokenizer.from_folder(request.base, vocab=config.vocab)
    prompts = {}
    for number, entry in enumerate(entries):
        name = entry.task.taskname
        check_prefix(entry, config, f"exporting task '{name}'")
        check_squares(entry, f"exporting task '{name}'")
        # What a session could not render is not written.
        prompts[name] = TaskPrompt.of(entry, tokenizer, number)
    _check_files(request, prompts)
    has_plans = TARGETS[exporter.target].has_plan and not options.defer_build
    base = base_cost(config, contract, options, has_plans=has_plans)
    plan = ExportPlan(
        exporter.target,
        {"target": chosen.target, "quantize": chosen.quantize},
        tuple(each.name for each in exporter.passes(config, contract, options, None, [])),
        base,
        tuple(
            replace(cost, reason=reason or cost.reason)
            for cost in task_costs(base, entries, prompts, contract, fold)
        ),
    )
    return _Source(
        checkpoint=checkpoint,
        recipe=BaseRecipe(exporter, config, contract, options, chosen.shards, entries),
        identity=table.base,
        entries=entries,
        tokenizer=tokenizer,
        prompts=prompts,
        plan=plan,
        check_base=table.check_base,
    )


def _fold_mode(request: ExportRequest, target: str) -> tuple[FoldMode, str]:
    """Whether heads are folded, and why not where this machine cannot compute them."""
    if can_check(target):
        return request.fold, ""
    why = why_unchecked(target)
    for asked, name in (
        (request.fold == "always", "--fold always"),
        (request.evaluate, "--evaluate"),
    ):
        if asked:
            raise ExportError(
                f"exporting for {target} with {name}",
                found=why,
                fix=how_to_check(target),
            )
    return "never", why


def _check_files(request: ExportRequest, prompts: Mapping[str, TaskPrompt]) -> None:
    """Raises if data cannot be read, or dumps cannot be written, before anything long begins."""
    templates = {name: prompt.renderer.template for name, prompt in prompts.items()}
    if request.calibrate:
        read_examples(request.calibrate, templates, answers=False)
    if request.evaluate:
        to_score = read_examples(request.evaluate, templates, answers=False)
        check_answers(first_of_each_task(to_score, None), templates, EvalOptions().metric)
    dumps = request.dump_passes
    if dumps is None:
        return
    option = "--dump-passes"
    if resolved(dumps).is_relative_to(resolved(request.output)):
        raise ConfigError(
            f"dumping passes to {dumps}",
            found=f"a folder inside of the bundle {request.output}",
            fix=f"Choose another {option}.",
        )
    check_replaceable(dumps, dumped_files, option=option, in_place=True)


def _check_room(request: ExportRequest, options: BuildOptions, plan: ExportPlan) -> None:
    floats = 4 * plan.base.parameters
    memory = 2 * floats + plan.base.weight_bytes + _MEMORY_BESIDE
    check_room(request.output, disk_bytes=int(1.05 * plan.disk_bytes), memory_bytes=memory)
    is_exact = options.quantization == "none" and options.dtype == EXACT
    # The floats are built too, for that time; where the bundle has them, it is scored alone.
    if request.calibrate or (request.evaluate and not is_exact):
        beside = Path(gettempdir()) / "plc"
        check_room(beside, disk_bytes=int(1.05 * floats), memory_bytes=memory + floats)


def _contract(
    request: ExportRequest,
    exporter: Exporter,
    config: DecoderConfig,
    entries: Sequence[TaskEntry],
) -> GraphContract:
    prompts = request.prompts or TARGETS[exporter.target].prompts
    capacity = request.capacity
    if capacity is None:
        capacity = min(DEFAULT_CAPACITY, config.positions)
    longest = max(entry.task.total_virtual_tokens for entry in entries)
    if not longest + 2 <= capacity <= config.positions:
        raise ExportError(
            "sizing the cache",
            found=f"capacity {capacity}",
            expected=f"{longest + 2} (virtual tokens, a token, an answer) to {config.positions} "
            "(positions of the base)",
            fix="Choose another --capacity.",
        )
    candidates = 0
    if request.options.sampling == "graph":
        candidates = min(request.options.candidates or DEFAULT_CANDIDATES, config.vocab)
    return GraphContract(
        layers=config.layers,
        kv_heads=config.kv_heads,
        head_dim=config.head_dim,
        hidden=config.hidden,
        vocab=config.vocab,
        capacity=capacity,
        prompts=prompts,
        baked_tasks=tuple(e.task.taskname for e in entries) if prompts == "baked" else (),
        candidates=candidates,
        ranks=request.options.ranks,
    )


def _calibrate(
    request: ExportRequest, source: _Source, weights: Weights, progress: Progress
) -> Moments | None:
    if not request.calibrate:
        return None
    rows = calibration_prompts(
        request.calibrate,
        source.prompts,
        capacity=source.recipe.contract.capacity,
        vocab=source.recipe.config.vocab,
        progress=progress,
    )
    return measure_moments(
        source.recipe.exporter,
        source.recipe.config,
        source.recipe.contract,
        weights,
        rows,
        progress=progress,
    )


@contextmanager
def _engine(staging: Path, source: _Source, precision: Precision) -> Iterator[Engine | None]:
    """What computes heads and is compared; None where nothing on this machine can."""
    target = source.recipe.exporter.target
    if not can_check(target):
        yield None
        return
    with checking_engine(
        staging / "base", target, source.recipe.contract, precision.dtype
    ) as engine:
        yield engine


def _precision(
    options: BuildOptions, moments: Moments | None, errors: Sequence[WeightError]
) -> Precision:
    if options.quantization == "none":
        return Precision(dtype=options.dtype)
    if moments is not None:
        method = f"GPTQ on {moments.tokens} tokens"
    elif all(error.largest_block_error <= LOSSLESS for error in errors):
        method = NOTHING_LOST
    else:
        method = "round to nearest"
    return Precision(
        dtype=options.dtype,
        quantization=options.quantization,
        block=options.scale_block,
        method=method,
    )


def _fold(
    staging: Path, source: _Source, engine: Engine | None, precision: Precision
) -> dict[str, TaskPrompt]:
    """The tasks as they are served: heads computed by the very files that will serve them."""
    files = [path for path in (staging / "base").rglob("*") if path.is_file()]
    sums = {path.relative_to(staging).as_posix(): sha256_of(path) for path in files}
    served = dict(source.prompts)
    for entry, cost in zip(source.entries, source.plan.tasks, strict=True):
        if not cost.folded:
            continue
        assert engine is not None
        name = entry.task.taskname
        prompt = source.prompts[name]
        served[name] = prompt.folded(engine)
        kv = served[name].prefix_kv
        assert kv is not None
        identity = identity_of(
            entry,
            prompt,
            base=source.identity.fingerprint,
            graph=sum_of_base(sums),
            precision=precision,
        )
        write_folded(task_folder(staging, name) / FOLDED_NAME, FoldedPrefix(kv, identity))
    return served


def _evaluate(
    request: ExportRequest,
    source: _Source,
    engine: Engine | None,
    served: Mapping[str, TaskPrompt],
    precision: Precision,
    weights: Weights,
    progress: Progress,
) -> tuple[Effect, ...]:
    """Scores of the bundle as it is served, and of the floats that its weights came from."""
    if not request.evaluate:
        return ()
    assert engine is not None

    def scores(by: Engine, prompts: Mapping[str, TaskPrompt], stored: str) -> list[TaskScore]:
        progress.say(f"scoring {stored}")
        session = Session(source.tokenizer, prompts, by)
        return evaluate(session, request.evaluate, EvalOptions(baseline=False), progress=progress)

    own = scores(engine, served, precision.stored)
    exact: list[TaskScore] | list[None] = [None] * len(own)
    if precision.stored != EXACT:
        with TemporaryDirectory(prefix="plc-floats-") as folder:
            floats = float_engine(source.recipe, weights, Path(folder))
            # Each folds its own heads: a prefix that others computed would not be these weights'.
            prompts = {
                name: prompt.folded(floats) if served[name] is not prompt else prompt
                for name, prompt in source.prompts.items()
            }
            exact = scores(floats, prompts, EXACT)
    return tuple(
        Effect(
            mine.task,
            mine.metric,
            mine.examples,
            precision.stored,
            mine.with_prompt,
            None if other is None else other.with_prompt,
            None if other is None else same_answers(mine.predictions, other.predictions),
        )
        for mine, other in zip(own, exact, strict=True)
    )


def _has_reference(request: ExportRequest, target: str, progress: Progress) -> bool:
    if not request.measure_parity:
        return False
    if not can_check(target):
        progress.say(f"parity is not measured: {why_unchecked(target)}")
        return False
    if find_spec("torch") is None or find_spec("transformers") is None:
        progress.say("parity is not measured: torch and transformers are not installed")
        return False
    return True


def _write_selftests(staging: Path, checks: Checks) -> None:
    for name, arrays in checks.selftests.items():
        path = task_folder(staging, name) / SELFTEST_NAME
        path.write_bytes(tensor_bytes(arrays))
    for result, tokens in zip(checks.torch, checks.tokens, strict=True):
        record = {**asdict(result), "tokens": asdict(tokens)}
        write_json(task_folder(staging, result.task) / "parity.json", record)


class _Clock:
    """Wall time by step."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.laps[name] = round(now - self._last, 3)
        self._last = now
