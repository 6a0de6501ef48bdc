"""The documentation's commands parse, its links lead somewhere."""

import dataclasses
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import click
import pytest

from pl_compile.cli.main import COMMANDS, plc
from pl_compile.config.read import build, read_yaml
from pl_compile.config.task import TaskConfig
from pl_compile.config.train import TrainConfig
from pl_compile.families.registry import FAMILIES
from pl_compile.text.template import parse_template
from pl_compile.training.read_config import read_train_config

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
EXAMPLES = sorted((ROOT / "examples").glob("*/*"))


def commands_in(text: str) -> list[str]:
    """Every `plc …` in backquotes, after "Example: ", or on a line of its own in a script."""
    text = text.replace("\\\n", "")  # a long line of a script goes on in the next
    quoted = re.findall(r"`(plc [a-z][^`…]+)`", text)
    own_line = re.findall(r"^(?:Example: |# *)?(plc [a-z][^\n]*)$", text, flags=re.MULTILINE)
    return [re.sub(r"\s+(\[|> ).*", "", command) for command in quoted + own_line]


def documented_commands() -> list[str]:
    scripts = [path for path in EXAMPLES if path.suffix in (".sh", ".yaml", ".md")]
    texts = [path.read_text(encoding="utf-8") for path in [*PAGES, *scripts]]
    texts += [str(plc.get_command(click.Context(plc), name).epilog or "") for name in COMMANDS]  # type: ignore[union-attr]
    found = sorted({command for text in texts for command in commands_in(text)})
    assert len(found) >= 30
    return found


@pytest.mark.parametrize("line", documented_commands())
def test_documented_command_parses(line: str) -> None:
    _, name, *arguments = shlex.split(line)
    command = plc.get_command(click.Context(plc), name)
    assert command is not None, f"{line}: no command '{name}'"
    while isinstance(command, click.Group) and arguments:
        command = command.commands[arguments.pop(0)]

    if arguments and "CONFIG.yaml" not in line:
        command.make_context(name, arguments)


def test_the_page_on_bases_lists_every_family_and_no_other() -> None:
    page = (ROOT / "docs/importing.md").read_text(encoding="utf-8")
    table = page.partition("| family | `model_type` | what is computed |\n|---|---|---|\n")[2]

    assert table.partition("\n\n")[0].splitlines() == [
        f"| {family.title} | `{name}` | {family.docs} |" for name, family in FAMILIES.items()
    ]


def test_the_readme_names_every_family() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    named = re.search(r"The families are (.*?)[;.]\s", readme)
    assert named is not None

    *titles, last = (family.title for family in FAMILIES.values())
    assert re.sub(r" \(.*?\)", "", named[1]) == f"{', '.join(titles)} and {last}"


def test_every_command_is_in_the_readme() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")

    assert [name for name in COMMANDS if f"plc {name}" not in readme] == []


def links_in(page: Path) -> list[tuple[str, str]]:
    """The file and the place in it (either may be empty) that each link of a page names."""
    text = re.sub(r"```.*?```|`[^`]*`", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    return re.findall(r"\]\((?!https?:)([^)#]*)#?([^)]*)\)", text)


def places_in(page: Path) -> set[str]:
    """What a link to a page may name after `#`: its headings, as GitHub writes them, and ids."""
    text = page.read_text(encoding="utf-8")
    headings = re.findall(r"^#+ (.*)$", text, flags=re.MULTILINE)
    slugs = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
    return slugs | set(re.findall(r'<a id="([^"]+)">', text))


def test_links_lead_to_files() -> None:
    links = [(page, name) for page in PAGES for name, _ in links_in(page) if name]

    assert len(links) >= 5
    assert [name for page, name in links if not (page.parent / name).exists()] == []


def test_links_lead_to_places_that_are_there() -> None:
    links = [
        (page, page.parent / name if name else page, place)
        for page in PAGES
        for name, place in links_in(page)
        if place
    ]

    assert len(links) >= 20
    assert [(page.name, place) for page, file, place in links if place not in places_in(file)] == []


def test_the_template_in_the_docs_is_valid(tmp_path: Path) -> None:
    text = (ROOT / "docs/templates.md").read_text(encoding="utf-8")
    block = re.search(r"```yaml\n(.*?)```", text, re.DOTALL)
    assert block is not None
    path = tmp_path / "task.yaml"
    path.write_text(block[1], encoding="utf-8")

    template = parse_template(build(TaskConfig, read_yaml(path), doing="reading the docs"))

    assert template.input_fields == ("context", "question")


def test_example_configs_are_valid() -> None:
    configs = [path for path in EXAMPLES if path.suffix == ".yaml"]

    assert len(configs) >= 3
    for path in configs:
        config = read_train_config(path)
        # The data of others is not in the repository; ours is.
        if "quickstart" in path.parts:
            assert [p for p in config.data.train if not p.is_file()] == []


def keys_of(kind: Any, path: str = "") -> list[str]:
    """The dotted keys of a config, mappings that hold others left out."""
    keys = []
    for name, hint in get_type_hints(kind).items():
        options = (hint, *get_args(hint))  # one of them may be None
        inner = [option for option in options if dataclasses.is_dataclass(option)]
        is_mapping = bool(inner) and get_origin(hint) is not tuple
        keys += keys_of(inner[0], f"{path}{name}.") if is_mapping else [f"{path}{name}"]
    return keys


def test_every_training_key_is_documented() -> None:
    page = (ROOT / "docs/training.md").read_text(encoding="utf-8")
    keys = keys_of(TrainConfig)

    assert len(keys) > 50
    assert [key for key in keys if f"`{key}`" not in page] == []


def test_every_documented_training_key_exists() -> None:
    page = (ROOT / "docs/training.md").read_text(encoding="utf-8")
    named = re.findall(r"^\| (`[^|]*`) \|", page, flags=re.MULTILINE)
    sections = {field.name for field in dataclasses.fields(TrainConfig)}
    keys = [key for cell in named for key in re.findall(r"`([a-z_.]+)`", cell)]
    known = {*keys_of(TrainConfig), *sections}

    assert [key for key in keys if key.split(".")[0] in sections and key not in known] == []


def test_help_answers_without_the_heavy_libraries() -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "pl_compile.cli", "--help"],
        capture_output=True,
        text=True,
        check=True,
    )

    imported = {line.rsplit("|", 1)[-1].strip() for line in done.stderr.splitlines()}
    assert imported & {"numpy", "torch", "onnx", "onnxruntime", "transformers"} == set()
