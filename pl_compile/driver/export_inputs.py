"""The inputs of an export: all small things, read once and checked before anything is built.

In: an `ExportRequest`. Out: `ExportInputs`: table, base, tokenizer, tasks, data, and what was
chosen for them. No weight is read, except by `--quantize auto`, which looks at them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from pl_compile.artifact.files import check_replaceable, resolved
from pl_compile.artifact.prompt_table import (
    PromptTable,
    TaskEntry,
    check_prefix,
    check_squares,
    read_prompt_table,
)
from pl_compile.checkpoints.checkpoint import Checkpoint
from pl_compile.checks.checking_engine import can_check, how_to_check, why_unchecked
from pl_compile.config.build import DEFAULT_CANDIDATES, BuildOptions, Choice, FoldMode
from pl_compile.config.contract import GraphContract
from pl_compile.config.decoder import DecoderConfig
from pl_compile.config.sampling import IN_GRAPH
from pl_compile.config.targets import TARGETS
from pl_compile.driver.choose import choose
from pl_compile.driver.compile_base import BaseRecipe
from pl_compile.driver.evaluate import EvalOptions, read_to_score
from pl_compile.driver.export_request import ExportRequest
from pl_compile.errors import ConfigError, ExportError
from pl_compile.exporters.exporter import Exporter
from pl_compile.passes.pipeline import dumped_files
from pl_compile.progress import Progress
from pl_compile.runtime.served_task import ServedTask, learned_tasks
from pl_compile.text.examples import Example, read_examples
from pl_compile.text.tokenizer import Tokenizer

DEFAULT_CAPACITY = 1024


@dataclass(frozen=True)
class ExportInputs:
    """What an export starts from.

    Attributes:
        table: the prompt table, with only the tasks to export.
        recipe: how the base is compiled.
        choices: of "target" and "quantize": what was asked for, what is built, and why.
        tokenizer: the base's.
        tasks: as they were learned, by name.
        fold: whether openings become prefixes.
        fold_reason: why openings do not become prefixes if no engine here could compute them; else
            empty.
        fold_mib: most MiB of all folded prefixes; the target's if None.
        to_calibrate: examples that show which errors of weights matter.
        to_score: examples of each task that the bundle is scored on.
    """

    table: PromptTable
    recipe: BaseRecipe
    choices: Mapping[str, Choice]
    tokenizer: Tokenizer
    tasks: Mapping[str, ServedTask]
    fold: FoldMode
    fold_reason: str
    fold_mib: int | None
    to_calibrate: Sequence[Example]
    to_score: Mapping[str, Sequence[Example]]

    @property
    def target(self) -> str:
        """The target's name."""
        return self.recipe.exporter.target


def read_inputs(
    request: ExportRequest, checkpoint: Checkpoint, config: DecoderConfig, progress: Progress
) -> ExportInputs:
    """Reads and checks.

    Args:
        request: what is exported.
        checkpoint: the base's tensors.
        config: of the base.
        progress: who is told.

    Raises:
        PlcError: as for `export_bundle`, except for errors that only the weights can show.
    """
    whole = read_prompt_table(request.table)
    table = whole.with_only(request.tasks or whole.entries)
    entries = tuple(table.entries.values())
    chosen = choose(
        request.target,
        request.options,
        config,
        checkpoint,
        lambda exporter: _contract(request, exporter, config, entries),
        progress=progress,
    )
    contract = _with_logit_tiles(chosen.contract, chosen.options)
    fold, fold_reason = _fold_mode(request, chosen.exporter.target)
    tokenizer = Tokenizer.from_folder(request.base, vocab=config.vocab)
    for name, entry in table.entries.items():
        check_prefix(entry, config, f"exporting task '{name}'")
        check_squares(entry, f"exporting task '{name}'")
    # A task that no session could render is not exported.
    tasks = learned_tasks(table.entries, tokenizer)
    templates = {name: task.renderer.template for name, task in tasks.items()}
    calibrate, evaluate = request.calibrate, request.evaluate
    to_calibrate = read_examples(calibrate, templates, answers=False) if calibrate else ()
    to_score = read_to_score(evaluate, templates, EvalOptions()) if evaluate else {}
    _check_dumps(request)
    return ExportInputs(
        table=table,
        recipe=BaseRecipe(
            chosen.exporter, config, contract, chosen.options, chosen.shards, entries
        ),
        choices={"target": chosen.target, "quantize": chosen.quantize},
        tokenizer=tokenizer,
        tasks=tasks,
        fold=fold,
        fold_reason=fold_reason,
        fold_mib=request.fold_mib,
        to_calibrate=to_calibrate,
        to_score=to_score,
    )


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
    contract = GraphContract(
        layers=config.layers,
        kv_heads=config.kv_heads,
        head_dim=config.head_dim,
        hidden=config.hidden,
        vocab=config.vocab,
        capacity=capacity,
        prompts=prompts,
        baked_tasks=tuple(e.task.taskname for e in entries) if prompts == "baked" else (),
        candidates=candidates,
        sampling_inputs=tuple(IN_GRAPH) if candidates else (),
        ranks=request.options.ranks,
        rows="ragged"
        if TARGETS[exporter.target].ragged and request.options.ranks == 1
        else "padded",
    )
    if request.capacity is None and TARGETS[exporter.target].has_plan:
        # Of one head, so for each rank, however many it has.
        unit = replace(contract, kv_heads=1).capacity_unit(request.options.dtype)
        if capacity - capacity % unit >= longest + 2:
            return replace(contract, capacity=capacity - capacity % unit)
    return contract


def _with_logit_tiles(contract: GraphContract, options: BuildOptions) -> GraphContract:
    """The contract, with that input where the kernels of ragged rows compute the LM head."""
    in_blocks = options.quantization != "none" and options.table_bits_or_default > 0
    return replace(contract, logit_tiles=contract.rows == "ragged" and in_blocks)


def _fold_mode(request: ExportRequest, target: str) -> tuple[FoldMode, str]:
    """Whether openings are folded, and why not if this machine cannot compute them."""
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


def _check_dumps(request: ExportRequest) -> None:
    """Raises if dumps cannot be written."""
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
