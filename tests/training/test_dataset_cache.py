import ast
import inspect
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pl_compile.config.task import TaskConfig
from pl_compile.errors import DataError
from pl_compile.testing import TASKS, Told, tiny_examples, write_jsonl
from pl_compile.text.examples import read_examples
from pl_compile.text.render import Rendered, Renderer, SequenceRules
from pl_compile.text.template import parse_template
from pl_compile.text.tokenizer import Tokenizer
from pl_compile.training.data import cache
from pl_compile.training.data.cache import cached, dataset_key, datasets_folder
from pl_compile.training.data.dataset import SkipReport, TrainingSequence, render_examples

Made = tuple[list[TrainingSequence], SkipReport]

KEY = {"tokenizer": "5eed", "data": "a"}


def sequence(length: int, *, task: int = 0, where: str = "file.jsonl:3") -> TrainingSequence:
    ids = np.arange(length, dtype=np.int64) * 1000
    rows = np.where(ids > 2000, ids, -1)
    return TrainingSequence(task, Rendered(ids, rows, length // 2), ids % 3000 == 0, where)


MADE: Made = (
    [sequence(4), sequence(1, task=7), sequence(9)],
    SkipReport(5, {"too long": ["a:1"]}, ["a:2"], "ü", {"a:3": 4}, 9),
)


def plain(made: Made) -> object:
    """Something that can be compared, with types."""
    sequences, report = made
    return report, [
        (
            each.task,
            each.where,
            each.rendered.answer_start,
            *(
                (array.dtype, array.tolist())
                for array in (each.rendered.token_ids, each.rendered.virtual_rows, each.in_loss)
            ),
        )
        for each in sequences
    ]


class Maker:
    """Counts how often it had to work."""

    def __init__(self, made: Made = MADE) -> None:
        self.made = made
        self.calls = 0

    def __call__(self) -> Made:
        self.calls += 1
        return self.made


def only_file(folder: Path) -> Path:
    (path,) = folder.iterdir()
    return path


def test_all_modules_that_make_tokens_of_texts_are_in_the_key() -> None:
    imported = set()
    for module in cache._CODE:
        for node in ast.walk(ast.parse(inspect.getsource(module))):
            if isinstance(node, ast.ImportFrom) and node.module == "pl_compile.config":
                imported |= {f"{node.module}.{each.name}" for each in node.names}
            elif isinstance(node, ast.ImportFrom):
                imported.add(str(node.module))
    rooms = ("pl_compile.config.", "pl_compile.text.")

    assert {name for name in imported if name.startswith(rooms)} <= {
        module.__name__ for module in cache._CODE
    }


def test_the_second_time_nothing_is_made(tmp_path: Path) -> None:
    make = Maker()

    first = cached(KEY, make, tmp_path)
    second = cached(dict(reversed(KEY.items())), make, tmp_path)

    assert make.calls == 1
    assert plain(first) == plain(second) == plain(MADE)


def test_arrays_that_come_back_may_be_written_to(tmp_path: Path) -> None:
    cached(KEY, Maker(), tmp_path)

    sequences, _ = cached(KEY, Maker(), tmp_path)
    sequences[0].rendered.token_ids[0] = 3
    sequences[0].in_loss[0] = False

    assert plain(cached(KEY, Maker(), tmp_path)) == plain(MADE)


@st.composite
def sequences(draw: st.DrawFn) -> TrainingSequence:
    length = draw(st.integers(0, 12))
    ids = draw(st.lists(st.integers(0, 2**31 - 1), min_size=length, max_size=length))
    rows = draw(st.lists(st.integers(-1, 2**20), min_size=length, max_size=length))
    loss = draw(st.lists(st.booleans(), min_size=length, max_size=length))
    rendered = Rendered(
        np.asarray(ids, np.int64), np.asarray(rows, np.int64), draw(st.integers(0, length))
    )
    where = draw(st.text(st.characters()))  # half surrogates too: a path may have them
    return TrainingSequence(
        draw(st.integers(0, 2**31 - 1)), rendered, np.asarray(loss, np.bool_), where
    )


REPORTS = st.builds(
    SkipReport, st.integers(0), st.dictionaries(st.text(), st.lists(st.text(), max_size=3))
)


@given(st.lists(sequences(), max_size=5), REPORTS)
def test_what_comes_back_is_what_went_in(
    tmp_path_factory: pytest.TempPathFactory, made: list[TrainingSequence], report: SkipReport
) -> None:
    folder = tmp_path_factory.mktemp("cache")
    cached(KEY, lambda: (made, report), folder)

    assert plain(cached(KEY, Maker(), folder)) == plain((made, report))


PARTS = st.dictionaries(st.text(max_size=3), st.text(max_size=3), max_size=3)


@given(PARTS, PARTS)
def test_only_the_very_same_key_parts_hit(
    tmp_path_factory: pytest.TempPathFactory, one: dict[str, str], other: dict[str, str]
) -> None:
    folder = tmp_path_factory.mktemp("cache")
    make = Maker()

    cached(one, make, folder)
    cached(other, make, folder)

    assert make.calls == (1 if one == other else 2)


def _flip(data: bytes) -> bytes:
    return data[:-20] + bytes([data[-20] ^ 1]) + data[-19:]


@pytest.mark.parametrize(
    "damage",
    [
        _flip,
        lambda data: data[:-1],
        lambda data: data[:100],
        lambda data: b"",
        lambda data: b"\xff" * 64,
        lambda data: data + b"\0",
    ],
)
def test_a_damaged_file_is_made_again(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    cached(KEY, Maker(), tmp_path)
    path = only_file(tmp_path)
    path.write_bytes(damage(path.read_bytes()))
    make = Maker()

    assert plain(cached(KEY, make, tmp_path)) == plain(MADE)
    assert plain(cached(KEY, make, tmp_path)) == plain(MADE)
    assert make.calls == 1


def test_a_file_under_the_name_of_another_is_not_trusted(tmp_path: Path) -> None:
    cached(KEY, Maker(), tmp_path)
    path = only_file(tmp_path)
    other: Made = ([sequence(3)], SkipReport())
    cached({"data": "b"}, lambda: other, tmp_path)
    (second,) = set(tmp_path.iterdir()) - {path}
    second.replace(path)

    assert plain(cached(KEY, Maker(), tmp_path)) == plain(MADE)


def test_what_cannot_be_made_is_not_kept(tmp_path: Path) -> None:
    def fails() -> Made:
        raise DataError("rendering", found="nothing")

    with pytest.raises(DataError):
        cached(KEY, fails, tmp_path)

    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_told_and_stops_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    listener = Told()

    made = cached(KEY, Maker(), tmp_path / "file" / "cache", progress=listener)

    assert plain(made) == plain(MADE)
    assert len(listener.lines) == 1
    assert listener.lines[0].startswith("the rendered examples are not kept for the next run: ")


def test_the_files_that_were_not_used_for_longest_go(tmp_path: Path) -> None:
    def keep(name: str, max_bytes: int = 1 << 20) -> int:
        make = Maker()
        cached({"name": name}, make, tmp_path, max_bytes=max_bytes)
        return make.calls

    keep("a")
    size = only_file(tmp_path).stat().st_size
    for name in "abc":
        keep(name)
    for path in tmp_path.iterdir():  # as if all that was long ago
        os.utime(path, (1, 1))
    assert keep("b") == 0  # used just now
    (tmp_path / "notes.txt").write_text("x" * 5000)  # not ours
    half_written = tmp_path / f".{'0' * 64}.safetensors.0badcafe"
    half_written.write_bytes(bytes(size))
    os.utime(half_written, (1, 1))

    keep("d", max_bytes=2 * size)

    assert not half_written.exists()
    assert (tmp_path / "notes.txt").exists()
    assert sum(path.suffix == ".safetensors" for path in tmp_path.iterdir()) == 2
    assert [keep(name) for name in "bdac"] == [0, 0, 1, 1]


def test_what_is_larger_than_all_may_be_is_not_kept(tmp_path: Path) -> None:
    assert plain(cached(KEY, Maker(), tmp_path, max_bytes=100)) == plain(MADE)

    assert list(tmp_path.iterdir()) == []


def test_processes_at_once_end_with_one_whole_file(tmp_path: Path) -> None:
    code = """
import sys
from pathlib import Path
import numpy as np
from pl_compile.text.render import Rendered
from pl_compile.training.data.cache import cached
from pl_compile.training.data.dataset import SkipReport, TrainingSequence
ids = np.arange(50_000)
made = ([TrainingSequence(0, Rendered(ids, ids, 3), ids > 3, "w")], SkipReport(1))
for _ in range(20):
    sequences, report = cached({"a": "b"}, lambda: made, Path(sys.argv[1]))
    assert (sequences[0].rendered.token_ids == ids).all() and report == made[1]
    for path in Path(sys.argv[1]).glob("*.safetensors"):
        path.unlink(missing_ok=True)
cached({"a": "b"}, lambda: made, Path(sys.argv[1]))
"""
    processes = [
        subprocess.Popen([sys.executable, "-c", code, tmp_path], stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]

    for process in processes:
        _, err = process.communicate()
        assert process.returncode == 0, err
    assert len(list(tmp_path.iterdir())) <= 1


def test_the_default_folder_is_beside_the_bases(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PLC_CACHE", str(tmp_path))
    cached(KEY, Maker())

    assert datasets_folder() == tmp_path / "datasets"
    assert only_file(tmp_path / "datasets").suffix == ".safetensors"


# The key of real examples


def renderers(base: Path, **changes: object) -> dict[str, Renderer]:
    tokenizer = Tokenizer.from_folder(base)
    tasks = [TaskConfig(**{**spec, **changes}) for spec in TASKS]  # type: ignore[arg-type]
    rules = SequenceRules(None, 1)
    return {task.taskname: Renderer(parse_template(task), tokenizer, rules) for task in tasks}


def test_rendered_examples_come_back(tiny_bases: dict[str, Path], tmp_path: Path) -> None:
    base = tiny_bases["llama"]
    path = write_jsonl(tmp_path / "data.jsonl", tiny_examples(20))
    made = renderers(base)

    def make() -> Made:
        templates = {name: renderer.template for name, renderer in made.items()}
        return render_examples(read_examples([path], templates), made, max_length=30)

    key = dataset_key(Tokenizer.from_folder(base), made, [path], max_length=30, min_length=1)

    assert plain(cached(key, make, tmp_path / "cache")) == plain(make())
    assert plain(cached(key, Maker(), tmp_path / "cache")) == plain(make())


def test_every_cause_of_another_result_is_in_the_key(
    tiny_bases: dict[str, Path], tmp_path: Path
) -> None:
    base = tiny_bases["llama"]
    tokenizer = Tokenizer.from_folder(base)
    data = write_jsonl(tmp_path / "data.jsonl", tiny_examples(4))
    copy = write_jsonl(tmp_path / "copy.jsonl", tiny_examples(4))
    spaced = Tokenizer(tokenizer.text + " ")
    of_a_base = Tokenizer(tokenizer.text, vocab=397)
    made = renderers(base)
    other_rules = {
        name: Renderer(each.template, tokenizer, SequenceRules(0, 1)) for name, each in made.items()
    }

    keys = [
        dataset_key(tokenizer, made, [data], max_length=30, min_length=1),
        dataset_key(tokenizer, made, [data], max_length=31, min_length=1),
        dataset_key(tokenizer, made, [data], max_length=30, min_length=2),
        dataset_key(tokenizer, made, [copy], max_length=30, min_length=1),
        dataset_key(tokenizer, made, [data, copy], max_length=30, min_length=1),
        dataset_key(tokenizer, made, [copy, data], max_length=30, min_length=1),
        dataset_key(spaced, made, [data], max_length=30, min_length=1),
        dataset_key(of_a_base, made, [data], max_length=30, min_length=1),
        dataset_key(tokenizer, other_rules, [data], max_length=30, min_length=1),
        dataset_key(
            tokenizer, renderers(base, whitespace="nemo"), [data], max_length=30, min_length=1
        ),
        dataset_key(tokenizer, dict(reversed(made.items())), [data], max_length=30, min_length=1),
    ]
    write_jsonl(data, tiny_examples(4, seed=1))
    keys.append(dataset_key(tokenizer, made, [data], max_length=30, min_length=1))

    assert len({str(key) for key in keys}) == len(keys)
