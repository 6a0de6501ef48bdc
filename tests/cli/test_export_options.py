"""The options of `plc export` follow from the request: their names, order, defaults and choices."""

from pathlib import Path
from typing import Annotated, Any, Literal

import click
import pytest
from click.testing import CliRunner

from pl_compile.cli.build import command as build_command
from pl_compile.cli.export import command
from pl_compile.cli.options import given_for, option_of
from pl_compile.config.build import BuildOptions

# As they were before they followed from the fields: whoever calls the command counts on them.
OPTIONS: list[tuple[str, Any, tuple[str, ...]]] = [
    ("--task", (), ()),
    ("--prompts", None, ()),
    ("--base", None, ()),
    ("--target", "auto", ()),
    ("--output", Path("bundle"), ()),
    ("--prompts-mode", None, ("input", "baked")),
    ("--capacity", None, ()),
    ("--dtype", "float32", ("float32", "float16", "bfloat16")),
    ("--tp-size", 1, ()),
    ("--max-batch", None, ()),
    ("--compute-capability", (), ()),
    ("--ep-context", False, ()),
    ("--defer-build", False, ()),
    ("--quantize", "auto", ("auto", "none", "int8", "int4")),
    ("--block", None, ()),
    ("--table-bits", None, ("0", "4", "8")),
    ("--calibrate", (), ()),
    ("--evaluate", (), ()),
    ("--fold", "auto", ("auto", "always", "never")),
    ("--fold-mib", None, ()),
    ("--prefix-bits", 32, ("32", "8")),
    ("--cache-bits", 32, ("32", "16")),
    ("--sampling", "host", ("host", "graph")),
    ("--candidates", None, ()),
    ("--triton", False, ()),
    ("--dump-passes", None, ()),
    ("--dry-run", False, ()),
    ("--no-parity", False, ()),
    ("--json", False, ()),
]


def test_names_order_defaults_and_choices_are_those_of_earlier_releases() -> None:
    given_nothing = command.make_context("export", []).params

    found = [
        (
            option.opts[0],
            given_nothing[str(option.name)],
            tuple(getattr(option.type, "choices", ())),
        )
        for option in command.params
    ]

    assert found == OPTIONS
    assert all(option.help for option in command.params if isinstance(option, click.Option))


def test_both_commands_have_the_same_options_of_plans() -> None:
    names = ("max_batch", "compute_capabilities", "ep_context")
    ours, theirs = (
        [param.to_info_dict() for param in each.params if param.name in names]
        for each in (command, build_command)
    )

    assert len(ours) == 3
    assert ours == theirs


class Taken:
    """Options as a command gets them."""

    size: Annotated[int | None, "How many."] = None
    bits: Annotated[Literal[4, 8] | None, "Of a number."] = None
    paths: Annotated[tuple[Path, ...], "Which."] = ()
    is_loud: Annotated[bool, "Whether."] = False


@pytest.mark.parametrize(
    ("arguments", "name", "value"),
    [
        (("--size", "3"), "size", 3),
        (("--bits", "8"), "bits", 8),
        ((), "bits", None),
        (("--paths", "a", "--paths", "b"), "paths", (Path("a"), Path("b"))),
        (("--is-loud",), "is_loud", True),
    ],
)
def test_a_value_has_the_type_of_its_field(
    arguments: tuple[str, ...], name: str, value: Any
) -> None:
    taken: dict[str, Any] = {}

    @click.command
    @option_of(Taken, "size")
    @option_of(Taken, "bits")
    @option_of(Taken, "paths")
    @option_of(Taken, "is_loud")
    def listening(**given: Any) -> None:
        taken.update(given)

    result = CliRunner().invoke(listening, arguments)

    assert result.exit_code == 0, result.output
    assert taken[name] == value
    assert type(taken[name]) is type(value)


def test_what_is_given_becomes_the_dataclass_and_what_is_no_field_is_left_out() -> None:
    given = {"quantize": "int4", "block": 64, "table_bits": 4, "target": "native-cpu"}

    assert given_for(BuildOptions, given) == BuildOptions("int4", block=64, table_bits=4)
