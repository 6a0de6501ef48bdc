"""`plc serve`."""

from functools import partial
from pathlib import Path

import click

from pl_compile.cli.finite import FiniteRange
from pl_compile.cli.provider import chosen_provider, provider_options
from pl_compile.cli.terminal import json_option, need_extra, print_json
from pl_compile.config.sizes import MOST

_seconds = FiniteRange(min=0, min_open=True)


@click.command("serve", epilog="Example: plc serve bundle --port 8000")
@click.argument(
    "bundles", metavar="BUNDLE...", nargs=-1, required=True, type=click.Path(path_type=Path)
)
@click.option("--host", default="127.0.0.1", show_default=True, help="0.0.0.0 is every network.")
@click.option(
    "--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="0: a free one."
)
@click.option(
    "--max-batch",
    "--batch",
    "max_batch",
    type=click.IntRange(1, MOST["max_batch"]),
    help="Rows that step together. [default: 16, or what a plan was built for]",
)
@click.option("--threads", type=click.IntRange(1), help="Of the engine. [default: all cores]")
@click.option(
    "--context-mib",
    type=click.IntRange(0, MOST["context_mib"]),
    metavar="N",
    help="Most MiB kept of prompts, for later ones that begin alike; 0 shares nothing. "
    "[default: an eighth of the cache]",
)
@click.option(
    "--queue",
    type=click.IntRange(0),
    default=64,
    show_default=True,
    help="Most requests that wait for a slot.",
)
@click.option(
    "--max-tokens",
    type=click.IntRange(1),
    default=4096,
    show_default=True,
    help="Most tokens that a request may ask for.",
)
@click.option(
    "--max-body",
    type=click.IntRange(1),
    default=1 << 20,
    show_default=True,
    help="Most bytes of a request.",
)
@click.option(
    "--queue-timeout",
    type=_seconds,
    default=60.0,
    show_default=True,
    help="Seconds until a request's first token.",
)
@click.option(
    "--timeout",
    type=_seconds,
    default=300.0,
    show_default=True,
    help="Seconds until a request's end.",
)
@click.option(
    "--drain-timeout",
    type=_seconds,
    default=30.0,
    show_default=True,
    help="Seconds for requests under way when a signal ends the server.",
)
@click.option(
    "--api-key-file",
    type=click.Path(path_type=Path),
    help="Its line is the key for /v1; or set PLC_API_KEY.",
)
@click.option(
    "--admin-key-file",
    type=click.Path(path_type=Path),
    help="Its line is the key for /admin, which is off without one; or set PLC_ADMIN_KEY.",
)
@click.option(
    "--playground/--no-playground",
    default=True,
    show_default=True,
    help="Whether / is a page to try the tasks on.",
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
    bundles: tuple[Path, ...],
    host: str,
    port: int,
    max_batch: int | None,
    threads: int | None,
    context_mib: int | None,
    queue: int,
    max_tokens: int,
    max_body: int,
    queue_timeout: float,
    timeout: float,
    drain_timeout: float,
    api_key_file: Path | None,
    admin_key_file: Path | None,
    playground: bool,
    drafts: bool,
    provider: str | None,
    provider_pairs: tuple[str, ...],
    provider_library: Path | None,
    as_json: bool,
) -> None:
    """Answer requests over HTTP, by OpenAI's routes: a task is a model.

    Several bundles must have the same base. Their tasks are served together; one that is damaged
    is logged, and the others serve.
    """
    need_extra("serve", "starlette", "uvicorn", "prometheus_client")
    from pl_compile.runtime import Session
    from pl_compile.runtime.server.limits import Limits
    from pl_compile.runtime.server.run import Listening, Place, open_intact, serve
    from pl_compile.runtime.server.service import Keys, read_key

    chosen = chosen_provider(provider, provider_pairs, provider_library)
    limits = Limits(
        queue=queue,
        max_tokens=max_tokens,
        body_bytes=max_body,
        queue_seconds=queue_timeout,
        request_seconds=timeout,
        drain_seconds=drain_timeout,
    )

    keys = Keys(
        api=read_key(api_key_file, "PLC_API_KEY"), admin=read_key(admin_key_file, "PLC_ADMIN_KEY")
    )

    def open_session() -> Session:
        return open_intact(
            bundles,
            partial(
                Session.open,
                max_batch=max_batch,
                threads=threads,
                provider=chosen,
                context_mib=context_mib,
                drafts=drafts,
            ),
        )

    def announce(listening: Listening) -> None:
        if as_json:
            print_json(vars(listening))
        else:
            tasks = ", ".join(listening.tasks[:20]) + (" …" if len(listening.tasks) > 20 else "")
            click.echo(f"listening on {listening.url} (tasks: {tasks})")
            if playground:
                click.echo(f"try them in a browser: {listening.url}/")

    cut = serve(
        open_session,
        bundles=bundles,
        place=Place(host, port),
        limits=limits,
        keys=keys,
        announce=announce,
        playground=playground,
    )
    if cut:
        raise click.ClickException(f"{cut} requests were cut short.")
