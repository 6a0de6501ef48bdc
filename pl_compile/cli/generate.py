"""`plc generate`."""

import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from pl_compile.cli.finite import FiniteRange
from pl_compile.cli.provider import chosen_provider, provider_options
from pl_compile.cli.terminal import (
    InputPath,
    OutputPath,
    TerminalProgress,
    json_option,
    print_json,
    print_table,
)
from pl_compile.config.sampling import SAMPLING_NUMBERS
from pl_compile.config.sizes import MOST
from pl_compile.errors import AnswerError, RequestError


def sampling_options(command: Callable[..., None]) -> Callable[..., None]:
    """An option for each number of `config.sampling`."""
    for row in reversed(SAMPLING_NUMBERS):
        limits: Any = click.FloatRange(row.least, row.most, min_open=row.above)
        if row.kind is int:
            limits = click.IntRange(int(row.least))
        option = "--" + row.name.replace("_", "-")
        command = click.option(
            option, type=limits, default=row.default, show_default=True, help=row.help
        )(command)
    return command


@click.command(
    "generate",
    epilog="Example: plc generate bundle --task ticket --field message='Where is my parcel?'",
)
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--task", help="The task of one request.")
@click.option("--field", "fields", multiple=True, metavar="NAME=VALUE", help="A field of it.")
@click.option(
    "--input",
    "source",
    type=InputPath(path_type=Path, allow_dash=True),
    help="Requests as JSONL: taskname and fields, any mix of tasks, and options of a line's own; "
    "- is standard input.",
)
@click.option(
    "--output",
    type=OutputPath(path_type=Path, allow_dash=True),
    help="Answers as JSONL; a table if left out. - is standard output.",
)
@click.option(
    "--max-tokens",
    type=click.IntRange(min=1),
    default=64,
    show_default=True,
    help="Longest answer.",
)
@click.option(
    "--min-tokens",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Shortest answer.",
)
@sampling_options
@click.option(
    "--logit-bias",
    multiple=True,
    metavar="TEXT=NUMBER",
    help="For a task with choices: a number to add to the logit of the token with this text.",
)
@click.option("--stop", multiple=True, help="A text that ends an answer.")
@click.option(
    "--bad-word", "bad_words", multiple=True, help="A text that no answer contains, in words too."
)
@click.option(
    "--timeout",
    type=FiniteRange(0, min_open=True),
    help="Seconds after which an answer ends as it is, waiting included.",
)
@click.option(
    "--log-probs",
    type=click.IntRange(0, MOST["log_probs"]),
    help="With --json or --output: the log probability of each token, and of so many likeliest.",
)
@click.option(
    "--batch",
    type=click.IntRange(1, MOST["max_batch"]),
    help="Rows that step together. [default: 16, or what a plan was built for]",
)
@click.option(
    "--probabilities",
    is_flag=True,
    help="For a task with choices: show the probability of each instead of an answer.",
)
@click.option(
    "--drafts",
    is_flag=True,
    help="Greedy answers draft what followed the same tokens before: the same answers, in fewer "
    "steps where they repeat their prompt (native-cpu with rounded weights).",
)
@provider_options
@json_option
def command(
    bundle: Path,
    task: str | None,
    fields: tuple[str, ...],
    source: Path | None,
    output: Path | None,
    max_tokens: int,
    min_tokens: int,
    logit_bias: tuple[str, ...],
    stop: tuple[str, ...],
    bad_words: tuple[str, ...],
    timeout: float | None,
    log_probs: int | None,
    batch: int | None,
    probabilities: bool,
    drafts: bool,
    provider: str | None,
    provider_pairs: tuple[str, ...],
    provider_library: Path | None,
    as_json: bool,
    **sampling: Any,
) -> None:
    """Answer one request (--task, --field), or a mixed file of them (--input, --output)."""
    if (task is None) == (source is None):
        raise click.UsageError("Give either --task with --field, or --input.")
    if source is not None and fields:
        raise click.UsageError("--field goes with --task.")
    if source is None and output is not None:
        raise click.UsageError("--output goes with --input.")
    if (
        source is not None
        and output is not None
        and source.exists()
        and output.is_file()
        and output.samefile(source)
    ):
        raise click.UsageError("--output is --input: the requests would be lost.")
    if log_probs is not None and not as_json and output is None and not probabilities:
        raise click.UsageError("--log-probs goes with --json or --output.")
    from pl_compile.driver.answer_file import check_output, record_of
    from pl_compile.runtime import Request, Session
    from pl_compile.text.template import literal_escapes

    texts = {f"--stop {text}": text for text in stop}
    texts |= {f"--bad-word {text}": text for text in bad_words}
    for line in literal_escapes(texts):
        TerminalProgress().say(line)
    chosen = chosen_provider(provider, provider_pairs, provider_library)
    options: dict[str, Any] = {
        "max_tokens": max_tokens,
        "min_tokens": min_tokens,
        "stop": stop,
        "bad_words": bad_words,
        "timeout": timeout,
        "log_probs": log_probs,
        "sampling": _parse_sampling(sampling, logit_bias),
    }
    if probabilities:
        _refuse_others(source)
    if source is not None:
        if output is not None:
            check_output(output)
        session = Session.open(bundle, max_batch=batch, provider=chosen, drafts=drafts)
        _answer_file(session, source, output, options, as_json)
        return
    request = Request(str(task), _parse_fields(fields), **options)
    if probabilities:
        session = Session.open(bundle, max_batch=batch, provider=chosen)
        _score(session, request, as_json)
        _note_cut(session, request)
        return
    session = Session.open(bundle, max_batch=1, provider=chosen, drafts=drafts)
    result = session.generate([request])[0] if as_json else _shown(session, request)
    if as_json:
        print_json({"task": result.task, "text": result.text, **record_of(result)})
    if result.finish_reason == "timeout":
        TerminalProgress().say(f"the answer is not finished: {timeout:g} s were over")
    _note_cut(session, request)


def _shown(session: Any, request: Any) -> Any:
    """Prints an answer as it is written; gives its result."""
    for event in session.stream([request]):
        click.echo(event.text, nl=False)
        sys.stdout.flush()
        result = event.result
    click.echo()
    return result


def _note_cut(session: Any, request: Any) -> None:
    """Says on standard error how much of a field was cut from an answered request."""
    cut = session.check(request)
    if cut:
        field = session.tasks[request.task].renderer.template.task.truncate_field
        fits = f"to fit the bundle's {session.engine.capacity} tokens"
        TerminalProgress().say(f"field '{field}' was cut by {cut} tokens {fits}")


def _refuse_others(source: Path | None) -> None:
    """Refuses options of files and sampling beside `--probabilities`, where they have no effect."""
    if source is not None:
        raise click.UsageError("--probabilities goes with --task.")
    context = click.get_current_context()
    taken = {"bundle", "task", "fields", "batch", "probabilities", "as_json"}
    taken |= {"provider", "provider_pairs", "provider_library"}
    for name in set(context.params) - taken:
        if context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE:
            raise click.UsageError(f"--{name.replace('_', '-')} does not go with --probabilities.")


def _score(session: Any, request: Any, as_json: bool) -> None:
    """Prints the probability of each choice, the likeliest first."""
    (scores,) = session.score([request])
    ranked = sorted(scores, key=lambda score: -score.probability)
    if as_json:
        print_json({"task": request.task, "labels": [vars(score) for score in ranked]})
        return
    print_table(
        f"Labels of {request.task}",
        ["label", "probability", "log-probability"],
        [[s.label, f"{s.probability:.4f}", f"{s.log_probability:.3f}"] for s in ranked],
    )


def _answer_file(
    session: Any, source: Path, output: Path | None, options: dict[str, Any], as_json: bool
) -> None:
    """Answers a file; to JSONL where --output names one, else as a table or JSON."""
    from pl_compile.driver.answer_file import answer_file, write_answers

    failed = None
    try:
        answers = answer_file(session, source, options, progress=TerminalProgress())
    except AnswerError as error:
        # It is reported after the other answers were written.
        answers, failed = list(error.results), error
    if output is not None:
        write_answers(answers, output)
        count = len(answers) - len(failed.places if failed else ())
        click.echo(f"wrote {count} answers to {output}", err=True)
    if as_json:
        print_json({"answers": [answer.record() for answer in answers]})
    elif output is None:
        rows = [
            [
                answer.request.task,
                " | ".join(str(value) for value in answer.request.fields.values()),
                "(none)" if answer.result is None else answer.result.text,
                "" if answer.expected is None else str(answer.expected).strip(),
            ]
            for answer in answers
        ]
        print_table(f"Answers to {source}", ["task", "input", "answer", "expected"], rows)
    results = [answer.result for answer in answers if answer.result is not None]
    late = sum(result.finish_reason == "timeout" for result in results)
    if late:
        TerminalProgress().say(f"{late} of {len(answers)} answers are not finished: timeout")
    if failed is not None:
        raise failed


def _parse_sampling(numbers: dict[str, Any], bias: tuple[str, ...]) -> Any:
    from pl_compile.config.sampling import Sampling

    try:
        sampling = Sampling(**numbers, logit_bias=_parse_bias(bias))
    except RequestError as error:
        raise click.UsageError(error.found) from error
    idle = sorted(sampling.changed & {"min_p", "top_k", "top_p"})
    if idle and sampling.temperature == 0:
        options = ", ".join("--" + name.replace("_", "-") for name in idle)
        click.echo(f"{options}: no effect at --temperature 0, which is greedy", err=True)
    return sampling


def _parse_bias(pairs: tuple[str, ...]) -> dict[str, float]:
    bias: dict[str, float] = {}
    for pair in pairs:
        text, _, number = pair.rpartition("=")
        try:
            value = float(number)
        except ValueError:
            value = math.nan
        if not text or math.isnan(value):
            raise click.UsageError(f"--logit-bias {pair}: expected TEXT=NUMBER, -100 to 100.")
        if text in bias:
            raise click.UsageError(f"--logit-bias {text} is given twice.")
        bias[text] = value
    return bias


def _parse_fields(fields: tuple[str, ...]) -> dict[str, str]:
    from pl_compile.text.field_value import is_field_value

    values: dict[str, str] = {}
    for field in fields:
        name, equals, value = field.partition("=")
        if not equals or not name:
            raise click.UsageError(f"--field {field}: expected NAME=VALUE.")
        if not is_field_value(field):  # Python keeps bytes that are not UTF-8 as half surrogates
            raise click.UsageError(f"--field {field!r}: not UTF-8.")
        if name in values:
            raise click.UsageError(f"--field {name} is given twice.")
        values[name] = value
    return values
