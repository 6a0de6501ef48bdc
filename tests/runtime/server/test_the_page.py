"""`docs/server.md` says what the code has: errors, keys, limits, metrics, routes."""

import re
from pathlib import Path
from typing import Any

import click

from pl_compile.cli.main import plc
from pl_compile.runtime.server.faults import FAULTS
from pl_compile.runtime.server.limits import Limits
from pl_compile.runtime.server.openai import WITHOUT_EFFECT, body_schema

pytest_plugins = ["server_fixtures"]

PAGE = (Path(__file__).parents[3] / "docs/server.md").read_text(encoding="utf-8")


def rows_after(heading: str) -> list[list[str]]:
    """The cells of the table under a heading."""
    lines = PAGE.partition(f"\n{heading}\n")[2].partition("\n|---")[2].split("\n\n")[0].splitlines()
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines[1:]]


def test_every_error_is_listed() -> None:
    assert rows_after("## Errors") == [
        [f"`{code}`", str(fault.status), fault.about] for code, fault in FAULTS.items()
    ]


def test_every_key_is_listed() -> None:
    keys = {
        key for row in rows_after("### Keys of a body") for key in re.findall(r"`(\w+)", row[0])
    }
    known = {
        key
        for kind in ("completion", "chat", "classify")
        for key in body_schema(kind, Limits())["properties"]
    }

    assert keys == known
    listed = next(row[0] for row in rows_after("### Keys of a body") if "without effect" in row[1])
    assert tuple(re.findall(r"`(\w+)`", listed)) == WITHOUT_EFFECT


def test_options_have_the_limits_that_the_page_says() -> None:
    command = plc.get_command(click.Context(plc), "serve")
    assert command is not None
    defaults = {param.opts[0]: param.default for param in command.params}
    said = {
        re.findall(r"`(--[\w-]+)", row[1])[0]: row[2]
        for row in rows_after("## Limits")
        if row[1].startswith("`--") and row[2]
    }

    assert said.pop("--max-body") == "1 MiB"
    assert defaults["--max-body"] == 1 << 20
    assert said.pop("--max-batch").startswith("16")
    assert set(said) >= {"--queue", "--timeout", "--queue-timeout", "--max-tokens", "--host"}
    assert said == {
        option: f"{defaults[option]:g}" if option != "--host" else defaults[option]
        for option in said
    }
    limits = Limits()
    assert (limits.queue, limits.max_tokens) == (defaults["--queue"], defaults["--max-tokens"])
    assert limits.request_seconds == defaults["--timeout"]
    assert limits.queue_seconds == defaults["--queue-timeout"]
    assert limits.drain_seconds == defaults["--drain-timeout"]
    assert limits.body_bytes == defaults["--max-body"]


def test_every_metric_and_route_is_listed(shared: Any) -> None:
    shared.post("/v1/completions", model="tone", prompt="x")
    page = shared.client.get("/metrics").text
    families = set(re.findall(r"^# TYPE (plc_\w+) (?!.*_created)", page, flags=re.MULTILINE))
    families = {name for name in families if not name.endswith("_created")}
    named = {name for row in rows_after("## Metrics") for name in re.findall(r"plc_\w+", row[0])}
    paths = shared.client.get("/openapi.json").json()["paths"]
    routes = {
        path for row in rows_after("## Asking") for path in re.findall(r"(/[\w/.]+)`", row[0])
    }

    assert named == families
    assert {path.replace("{model}", "TASK").replace("{task}", "TASK") for path in paths} == routes
