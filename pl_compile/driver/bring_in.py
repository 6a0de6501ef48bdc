"""Imports prompts that others trained, or those of a training checkpoint, into a prompt table."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

from pl_compile.artifact.prompt_table import PromptTable, TaskEntry, check_squares
from pl_compile.checks.lint import opening_left_out
from pl_compile.config.decoder import DecoderConfig
from pl_compile.config.task import TaskConfig
from pl_compile.driver.tasks import merge_into
from pl_compile.errors import (
    BaseModelError,
    ConfigError,
    PlcError,
    list_problems,
    unknown_name,
)
from pl_compile.importers.peft import PeftAdapter, read_peft_adapter
from pl_compile.importers.run_checkpoint import read_checkpoint_table
from pl_compile.progress import SILENT, Progress
from pl_compile.runtime.served_task import ServedTask
from pl_compile.text.end_tokens import end_tokens, tokens_named
from pl_compile.text.notes import notes_on
from pl_compile.text.render import SequenceRules
from pl_compile.text.template import (
    Field,
    Template,
    literal_escapes,
    parse_template,
    texts_of,
    without_input,
)
from pl_compile.text.tokenizer import Tokenizer
from pl_compile.training.compare_tokens import notes_on_tokens
from pl_compile.weights.bases import find_base
from pl_compile.weights.fingerprint import fingerprint_base, identify_base
from pl_compile.weights.open_base import open_base

_MARKER = "<|VIRTUAL_PROMPT_0|>"
_ANY_MARKER = "<|VIRTUAL_PROMPT_"


@dataclass(frozen=True)
class PeftImport:
    """What to bring in.

    Attributes:
        adapter: a folder that PEFT's `save_pretrained` wrote.
        output: the table; made if it is not there, else the task is added to it.
        taskname: what the task is to be called.
        template: the text around the fields. The virtual tokens come first, whether their marker is
            written or not.
        choices: the closed set of answers; if empty, answers are open.
        truncate_field: the field that is cut when a request is too long.
        base: name or folder of the base; if None, the one that the adapter names.
        end_tokens: the tokens that end an answer; if empty, all that the base's files name.
        allow_pickle: whether an `adapter_model.bin` may be read, as weights only.
    """

    adapter: Path
    output: Path
    taskname: str
    template: str
    choices: Sequence[str] = ()
    truncate_field: str | None = None
    base: str | None = None
    allow_pickle: bool = False
    end_tokens: Sequence[str] = ()


def import_peft(request: PeftImport, *, progress: Progress = SILENT) -> PromptTable:
    """Adds an adapter's prompt to a table and returns the table.

    Any of the base's end tokens ends its answers, unless the request names them. PEFT puts virtual
    tokens before a BOS: if the adapter was trained with a BOS, the template has it as text. The
    text after the virtual tokens is tokenised as transformers does it.

    Args:
        request: what to bring in.
        progress: told of what the tokenizer cannot write, of a backslash where a line end may be
            meant, of a task without input, of choices that are never answered, of an opening token
            that the template lacks, of an adapter that was saved with another tokenizer or trained
            on another base, and, if transformers is installed, of prompts that it gives other
            tokens.

    Raises:
        ArtifactError: an adapter or a table that cannot be read, an adapter for another base, a
            task of that name that the table has already, or a disk that refuses the file.
        BaseModelError: there is no such base, or its files name an end token that it does not have.
        DataError: the base has no row for a token of the template or of a choice.
        ConfigError: a wrong template, one that does not open with all virtual tokens, or an end
            token that the base does not have.
        FingerprintError: the table belongs to another base.
    """
    unpickle = None
    if request.allow_pickle:
        from pl_compile.training.pickled import tensors_of_pickle

        unpickle = tensors_of_pickle
    adapter = read_peft_adapter(request.adapter, unpickle=unpickle)
    task = _task(request, adapter.virtual)
    for line in literal_escapes(texts_of(task)):
        progress.say(line)
    name = request.base or adapter.base
    if not name:
        raise BaseModelError(
            f"looking for the base of {request.adapter}",
            found="the adapter does not name its base",
            fix="Name the base with --base.",
        )
    folder = find_base(name)
    checkpoint, config = open_base(folder)
    tokenizer = Tokenizer.from_folder(folder, vocab=config.vocab)
    if request.end_tokens:
        ends = tokens_named(request.end_tokens, tokenizer, config.vocab)
    else:
        ends = end_tokens(folder, tokenizer, config.vocab)
    rules = SequenceRules(None, ends[0] if ends else None, ends[1:], tokenizer.rendering)
    entry = _entry(adapter, task, config, rules)
    # A task that no session could render is not imported.
    check_squares(entry, f"importing task '{task.taskname}'")
    prompt = ServedTask.of(entry, tokenizer)
    for note in notes_on(tokenizer, [prompt.renderer.template]):
        progress.say(note)
    if no_input := without_input(prompt.renderer.template):
        progress.say(no_input)
    left_out = opening_left_out(prompt, tokenizer)
    if left_out:
        progress.say(f"task '{task.taskname}': {left_out}")
    if find_spec("transformers") is not None:
        for note in notes_on_tokens([prompt.renderer], folder):
            progress.say(note)
    for problem in prompt.trie.problems() if prompt.trie else ():
        progress.say(f"task '{task.taskname}': {problem}")
    base = identify_base(name, checkpoint, config)
    for note in (
        _on_its_tokenizer(request.adapter, tokenizer),
        _on_its_base(adapter, folder, base.fingerprint),
    ):
        if note:
            progress.say(note)
    return merge_into(request.output, PromptTable(base, {task.taskname: entry}))


def import_checkpoint(checkpoint: Path, output: Path) -> PromptTable:
    """Adds the prompts that a training checkpoint holds to a table and returns the table.

    Raises:
        ArtifactError: a checkpoint or a table that cannot be read, a checkpoint without prompts, a
            task that both have, or a disk that refuses the file.
        FingerprintError: they belong to different bases.
    """
    return merge_into(output, read_checkpoint_table(checkpoint))


def _on_its_tokenizer(adapter: Path, tokenizer: Tokenizer) -> str:
    """A note if the tokenizer saved with the adapter differs from the base's; else empty."""
    if not (adapter / "tokenizer.json").is_file():
        return ""
    try:
        difference = Tokenizer.from_folder(adapter).difference(tokenizer)
    except PlcError as error:
        return f"the tokenizer beside the adapter is not compared: {error}"
    if not difference:
        return ""
    return (
        f"the tokenizer beside the adapter is not the base's, which is used: {difference}. "
        "If it was trained with its own, save that with the base and import the adapter again."
    )


def _on_its_base(adapter: PeftAdapter, folder: Path, fingerprint: str) -> str:
    """A note if the base that the adapter names is on this machine and differs; else empty."""
    if not adapter.base:
        return ""
    try:
        named = find_base(adapter.base)
        if named.resolve() == folder.resolve():
            return ""
        if fingerprint_base(*open_base(named)) == fingerprint:
            return ""
    except PlcError:
        return ""  # it is not here, or cannot be read as a base
    return (
        f"the adapter names {adapter.base} as its base, whose weights differ from those of "
        f"{folder}: on these it does not answer as it was trained to"
    )


def _task(request: PeftImport, virtual: int) -> TaskConfig:
    # No text follows that could take over the blanks at its end.
    request = replace(request, template=request.template.rstrip(" "))
    marked = _ANY_MARKER in request.template
    task = TaskConfig(
        taskname=request.taskname,
        prompt_template=request.template if marked else _MARKER + request.template,
        total_virtual_tokens=virtual,
        choices=tuple(request.choices),
        truncate_field=request.truncate_field,
        whitespace="transformers",
    )
    doing = f"importing task '{request.taskname}'"
    if marked and (
        request.template.count(_ANY_MARKER) > 1 or not request.template.startswith(_MARKER)
    ):
        raise ConfigError(
            doing,
            found="virtual tokens that are not all at the start of the template",
            expected="all of them before everything else, as PEFT had them in training",
            fix=f"Write {_MARKER} once, at the start, or leave it out.",
        )
    # Further checks of a config's template are made below, with this command's words.
    alone = replace(task, answer_only_loss=False, truncate_field=None)
    if not marked:  # so errors count characters from the start of the user's text
        parse_template(replace(alone, prompt_template=request.template + _MARKER))
    problems = _template_problems(parse_template(alone), request)
    if problems:
        raise ConfigError(doing, found=list_problems(problems))
    return task


def _template_problems(template: Template, request: PeftImport) -> list[str]:
    """Why a template cannot be served: no answer at its end, or no such field to cut."""
    fields, cut = template.fields, request.truncate_field
    if not fields:
        return ["a template without a field: write the answer as {name} at its end"]
    problems = []
    if not isinstance(template.segments[-1], Field):
        problems.append(
            f"a template that ends in {request.template[-12:]!r}: write the answer as {{name}} at "
            "its end"
        )
    if cut is not None and cut not in fields:
        found, fix = unknown_name(cut, fields, what="field")
        problems.append(f"the field to cut: {found}. {fix}")
    elif cut is not None and cut == template.answer_field:
        problems.append(f"the field to cut, '{cut}', is the answer, which is never cut")
    return problems


def _entry(
    adapter: PeftAdapter, task: TaskConfig, config: DecoderConfig, rules: SequenceRules
) -> TaskEntry:
    learned = adapter.learned(config)
    prefix = learned if adapter.is_prefix else None
    rows = learned[:0].reshape(0, config.hidden) if adapter.is_prefix else learned
    method = f"{adapter.method} (PEFT)"
    return TaskEntry(task, rows, rules, method, prefix)
