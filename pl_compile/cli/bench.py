"""`plc bench`."""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pl_compile.cli.finite import FiniteRange
from pl_compile.cli.options import Command
from pl_compile.cli.provider import chosen_provider, provider_options
from pl_compile.cli.terminal import TerminalProgress, json_option, print_json, print_table
from pl_compile.config.sizes import MOST

if TYPE_CHECKING:
    from pl_compile.driver.bench.bundle import BundleReport
    from pl_compile.driver.bench.machine import Machine
    from pl_compile.driver.bench.numbers import Percentiles, Spread
    from pl_compile.driver.bench.server import ServerReport

_OF_BUNDLE = {"batch", "repeat", "threads", "provider", "provider_pairs", "provider_library"}
_OF_SERVER = {"clients", "rate", "requests", "open_ended", "api_key", "timeout"}

# Others that take more of the processors than this are said in the table.
_MUCH = 0.05


def _counts_option(name: str, most: int, about: str) -> Callable[[Command], Command]:
    """An option that takes numbers from 1 to `most`, with commas between them."""
    kind: Any = click.IntRange(1, most)

    def counts(
        context: click.Context, parameter: click.Parameter, given: str | None
    ) -> tuple[int, ...]:
        numbers = given.split(",") if given else ()
        return tuple(kind.convert(each, parameter, context) for each in numbers)

    return click.option(name, metavar="N,N,…", callback=counts, help=about)


@click.command("bench", epilog="Example: plc bench bundle --batch 1,4,16")
@click.argument("bundle", type=click.Path(path_type=Path), required=False)
@click.option("--server", metavar="URL", help="Measure a server instead, at http://HOST:PORT.")
@click.option(
    "--task",
    "tasks",
    multiple=True,
    help="Only this one; may be repeated. [default: the first 4; all of a server]",
)
@_counts_option(
    "--input-tokens",
    MOST["capacity"],
    "About how many tokens the fields of a prompt have. [default: 64,512; 64 of a server]",
)
@click.option(
    "--tokens",
    type=click.IntRange(min=2),
    help="Tokens of an answer. [default: 64; 32 of a server]",
)
@_counts_option(
    "--batch",
    MOST["max_batch"],
    "Rows that step together. [default: 1,4,16, as far as there are slots]",
)
@click.option(
    "--repeat",
    type=click.IntRange(min=1),
    default=5,
    show_default=True,
    help="How often a bundle is measured; figures are medians.",
)
@click.option("--threads", type=click.IntRange(min=1), help="Of the engine. [default: all cores]")
@click.option(
    "--clients",
    type=click.IntRange(1, 1024),
    default=8,
    show_default=True,
    help="That ask a server, each one thing after the other.",
)
@click.option(
    "--rate",
    type=FiniteRange(min=0.001),
    help="Ask a server so often a second, whatever comes back, instead of with --clients.",
)
@click.option(
    "--requests",
    type=click.IntRange(min=1),
    help="To a server, in all. [default: 8 for each client; 64 at a --rate]",
)
@click.option(
    "--open-ended",
    is_flag=True,
    help="Let a server end answers before --tokens, and send it no key that OpenAI's lacks.",
)
@click.option("--api-key", envvar="PLC_API_KEY", default="", help="Of a server. [PLC_API_KEY]")
@click.option(
    "--timeout",
    type=FiniteRange(min=0, min_open=True),
    default=60.0,
    show_default=True,
    help="Seconds that a server may be silent.",
)
@provider_options
@json_option
def command(
    bundle: Path | None,
    server: str | None,
    tasks: tuple[str, ...],
    input_tokens: tuple[int, ...],
    tokens: int | None,
    batch: tuple[int, ...],
    repeat: int,
    threads: int | None,
    clients: int,
    rate: float | None,
    requests: int | None,
    open_ended: bool,
    api_key: str,
    timeout: float,
    provider: str | None,
    provider_pairs: tuple[str, ...],
    provider_library: Path | None,
    as_json: bool,
) -> None:
    """Measure BUNDLE in this process, or a server with --server.

    First token, time between tokens, tokens a second, memory. Answers have a fixed length. A server
    may be `plc serve` or any other that speaks OpenAI's protocol.
    """
    if (bundle is None) == (server is None):
        raise click.UsageError("Give either BUNDLE or --server.")
    _refuse(
        _OF_BUNDLE if bundle is None else _OF_SERVER, "BUNDLE" if bundle is None else "--server"
    )
    if bundle is not None:
        from pl_compile.driver.bench.bundle import BundleLoad, bench_bundle

        report = bench_bundle(
            bundle,
            BundleLoad(tasks, batch, input_tokens, tokens or 64, repeat),
            threads=threads,
            provider=chosen_provider(provider, provider_pairs, provider_library),
            progress=TerminalProgress(),
        )
        if as_json:
            print_json(asdict(report))
        else:
            _show_bundle(report)
        return
    from pl_compile.driver.bench.client import Address
    from pl_compile.driver.bench.server import ServerLoad, bench_server

    if len(input_tokens) > 1:
        raise click.UsageError("--input-tokens takes one number with --server.")
    if rate is not None and _is_given("clients"):
        raise click.UsageError("--rate goes without --clients: nobody waits for an answer.")
    load = ServerLoad(
        tasks=tasks,
        clients=clients,
        rate=rate,
        requests=requests or (8 * clients if rate is None else 64),
        input_tokens=input_tokens[0] if input_tokens else 64,
        tokens=tokens or 32,
        fixed=not open_ended,
    )
    address = Address.of(str(server), api_key=api_key, timeout=timeout)
    found = bench_server(address, load, progress=TerminalProgress())
    if as_json:
        print_json(asdict(found))
    else:
        _show_server(found)


def _is_given(name: str) -> bool:
    source = click.get_current_context().get_parameter_source(name)
    return source is click.core.ParameterSource.COMMANDLINE


def _refuse(names: set[str], goes_with: str) -> None:
    """Refuses options that have no effect here."""
    for parameter in click.get_current_context().command.params:
        if parameter.name in names and _is_given(str(parameter.name)):
            raise click.UsageError(f"{parameter.opts[0]} goes with {goes_with}.")


def _show_bundle(report: "BundleReport") -> None:
    subject, ran = report.bundle, report.runs_on
    what = [subject.target, subject.precision, ran.instruction_set or ran.provider or ""]
    click.echo(f"{subject.name}: {subject.base}, {', '.join(filter(None, what))}")
    parts = [
        f"compute capability {ran.gpu}" if ran.gpu else f"{ran.threads or 'all'} threads",
        f"{ran.slots} slots of {subject.capacity}",
        f"{subject.size_mib:.0f} MiB of files, open in {report.open_seconds:.2f} s",
    ]
    click.echo(", ".join(parts))
    _show_machine(report.machine, report.versions)
    print_table(
        f"One prompt alone: medians of {report.load.repeat}, least and most",
        ["task", "prompt", "of it held", "first token, ms", "prompt tokens/s"],
        [
            [
                each.task,
                str(each.prompt_tokens),
                str(each.prefix_tokens),
                _shown(each.first_token_seconds, 1000),
                _shown(each.prefill_tokens_per_second),
            ]
            for each in report.prompts
        ],
    )
    print_table(
        f"Rows that are decoded together, {report.load.tokens} tokens each",
        ["rows", "tokens/s", "between tokens, p50, ms", "p95, ms"],
        [
            [
                str(each.batch),
                _shown(each.tokens_per_second),
                _shown(each.between_tokens_p50_seconds, 1000),
                _shown(each.between_tokens_p95_seconds, 1000),
            ]
            for each in report.decode
        ],
    )
    if report.memory is not None and report.opened is not None:
        click.echo(
            f"memory, MiB: {report.opened.resident_mib:.0f} when opened, "
            f"{report.memory.resident_mib:.0f} at the end, {report.memory.peak_mib:.0f} at most"
        )
    if report.other_load is not None and report.other_load > _MUCH:
        click.echo(
            f"other processes took {report.other_load:.0%} of the processors meanwhile: "
            "the figures are lower than on a quiet machine",
            err=True,
        )


def _show_server(report: "ServerReport") -> None:
    load, figures = report.load, report.figures
    kind = "plc serve" if report.ours else "another server"
    asked = f"{load.clients} clients" if load.rate is None else f"{load.rate:g} requests a second"
    click.echo(f"{report.url} ({kind}): {', '.join(load.tasks)}; {asked}")
    _show_machine(report.machine, report.versions)
    rows: list[tuple[str, Percentiles | None]] = [
        ("first token", figures.first_token),
        ("between tokens", figures.between_tokens),
        ("for each token after the first", figures.per_token),
        ("whole request", figures.latency),
    ]
    print_table(
        f"{figures.answered} answers in {figures.seconds:.1f} s, times in ms",
        ["", "p50", "p95", "p99", "most"],
        [
            [name, *(f"{1000 * n:.1f}" for n in (each.p50, each.p95, each.p99, each.most))]
            for name, each in rows
            if each is not None
        ],
    )
    prompt = "" if figures.prompt_tokens is None else f"prompts of {figures.prompt_tokens:.0f}, "
    click.echo(
        f"{figures.tokens_per_second:.1f} tokens/s, {figures.requests_per_second:.2f} requests/s; "
        f"{prompt}answers of {figures.written_tokens:.1f} tokens"
    )
    for kind, count in figures.errors.items():
        click.echo(
            f"failed: {count} of {load.requests}: {kind} ({figures.examples[kind]})", err=True
        )
    if report.client_load > 0.5:
        click.echo(
            f"this client kept {report.client_load:.1f} processors busy itself: the server may be "
            "faster than that",
            err=True,
        )


def _show_machine(machine: "Machine", versions: dict[str, str]) -> None:
    memory = "" if machine.memory_mib is None else f", {machine.memory_mib / 1024:.0f} GiB"
    name = machine.processor or machine.architecture
    click.echo(f"{name}, {machine.usable_cores} of {machine.cores} cores{memory}, {machine.system}")
    click.echo(", ".join(f"{name} {version}" for name, version in versions.items()))


def _shown(spread: "Spread", factor: float = 1) -> str:
    """A median with its spread, with three digits."""
    numbers: Sequence[float] = (spread.median, spread.least, spread.most)
    median, least, most = (_digits(factor * number) for number in numbers)
    return f"{median} ({least} - {most})"


def _digits(number: float) -> str:
    return f"{number:.0f}" if number >= 100 else f"{number:.3g}"
