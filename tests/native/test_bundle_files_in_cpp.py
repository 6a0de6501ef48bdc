"""The native runtime reads the files of a bundle as Python does, and refuses what it refuses."""

import hashlib
import json
import os
import random
import shutil
import struct
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from native_programs import FUZZER, SANITIZED, built, fuzz
from safetensors.numpy import save

from pl_compile.artifact.bundle import (
    Bundle,
    Manifest,
    Precision,
    read_bundle,
    write_labels,
    write_manifest,
    write_task,
)
from pl_compile.artifact.folded_prefix import (
    FoldedPrefix,
    PrefixIdentity,
    sum_of_array,
    write_folded,
)
from pl_compile.artifact.prompt_table import BaseIdentity, TaskEntry, entry_from_record
from pl_compile.config.contract import GraphContract
from pl_compile.config.strict_json import read_json_object
from pl_compile.config.task import TaskConfig
from pl_compile.driver.export import export_bundle
from pl_compile.driver.export_request import ExportRequest
from pl_compile.errors import ArtifactError, ConfigError, PlcError
from pl_compile.runtime.served_task import POSITIONS, tasks_of_bundle
from pl_compile.testing import random_table, sign_bundle, write_tiny_base
from pl_compile.text.label_trie import LabelTrie
from pl_compile.text.render import SequenceRules
from pl_compile.text.template import Field, Text, Virtual, parse_template
from pl_compile.text.tokenizer import Tokenizer

pytestmark = pytest.mark.timeout(1200)  # most of it goes into compiling

HIDDEN, VOCAB, CAPACITY = 6, 11, 17
BASE = BaseIdentity("tiny", "5eed" * 16, HIDDEN, VOCAB)
GRAPH = GraphContract(
    layers=2, kv_heads=3, head_dim=4, hidden=HIDDEN, vocab=VOCAB, capacity=CAPACITY, prompts="input"
)
LAYOUT = "1a70" * 16
SELFTEST = {
    "input_ids": np.asarray([[VOCAB, VOCAB + 1, 4, 0], [2, VOCAB, 5, 6]]),
    "lengths": np.asarray([3, 4]),
    "tokens": np.asarray([[1, 2], [3, 4], [5, 6]]),
    "logit_ids": np.asarray([0, 9]),
    "logits": np.zeros((3, 2, 2), np.float32),
}


class Program:
    """The reader, which answers one line after another: files may change between them."""

    def __init__(self, path: Path) -> None:
        self._process = subprocess.Popen(
            [path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, encoding="utf-8"
        )

    def ask(self, line: str) -> tuple[bool, Any]:
        """Whether what the line names is read; and what it is, or why not."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        assert answer, f"the program ended: {line[:2000]}"
        kind, _, text = answer.partition(" ")
        return kind == "ok", json.loads(text)

    def close(self) -> None:
        self._process.communicate()
        assert self._process.returncode == 0


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("native_bundles")


@pytest.fixture(scope="module")
def program(folder: Path) -> Iterator[Program]:
    """With sanitizers: it ends at the first wrong step, which is a failure."""
    made = Program(built(folder, "bundle_program.cc", *SANITIZED))
    yield made
    made.close()


def in_hex(data: bytes | str) -> str:
    return (data.encode() if isinstance(data, str) else data).hex() or "-"


# JSON


def shown(value: Any) -> Any:
    """A value as the program shows it."""
    if isinstance(value, float):
        return {"bits": struct.unpack("<Q", struct.pack("<d", value))[0]}
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 2**63:
        return shown(float(value))
    if isinstance(value, list):
        return [shown(each) for each in value]
    if isinstance(value, dict):
        return {"object": [[key, shown(each)] for key, each in value.items()]}
    return value


_TEXTS = ["", "a", "é", "😀", "\x00", 'q"\\/\b\f\n\r\t', "\u2028", "a" * 40, "\x7f", "\ufeff"]
_NUMBERS = [
    *("0", "-0", "1", "-1", "9223372036854775807", "9223372036854775808", "-9223372036854775808"),
    *("-9223372036854775807", "1" + "0" * 308, "1" + "0" * 309, "0.1", "-0.0", "1e5", "1E+2"),
    *("1e-5", "5e-324", "2e-324", "3e-324", "1e-999", "-1e-400", "1e308", "1.8e308", "1e309"),
    *("-1e999", "0e999", "0.000e99999999999999999999", "1e99999999999999999999"),
    *("1e-99999999999999999999", "2.2250738585072011e-308", "123456789.123456789e-20"),
    *("0." + "0" * 400 + "1e401", "0." + "0" * 400 + "1", "1" + "0" * 400 + "e-400"),
    *("1.7976931348623157e308", "1.7976931348623159e308", "4.9406564584124654e-324"),
    *(
        "01",
        "1.",
        ".5",
        "1e",
        "1e+",
        "-",
        "+1",
        "0x1",
        "NaN",
        "Infinity",
        "-Infinity",
        "1_0",
        "--1",
    ),
]


def _json_text(generator: random.Random, depth: int) -> str:
    kind = generator.randrange(8 if depth else 5)
    blank = generator.choice(["", "", " ", "\n", "\t\r "])
    if kind == 0:
        return generator.choice(_NUMBERS[:38])
    if kind == 1:
        return repr(generator.uniform(-1, 1) * 10 ** generator.randint(-320, 308))
    if kind in (2, 3):
        return json.dumps(generator.choice(_TEXTS), ensure_ascii=generator.random() < 0.5)
    if kind == 4:
        return generator.choice(["true", "false", "null", "[]", "{}"])
    items = [_json_text(generator, depth - 1) for _ in range(generator.randrange(5))]
    if kind == 5:
        return f"[{blank}{f',{blank}'.join(items)}{blank}]"
    keys = generator.choices(["a", "b", "ab", "é", "", "\\u0061"], k=len(items))
    if generator.random() < 0.7:
        keys = [f"{key}{place}" for place, key in enumerate(keys)]
    pairs = [f'"{key}"{blank}:{item}' for key, item in zip(keys, items, strict=True)]
    return f"{{{blank}{f',{blank}'.join(pairs)}{blank}}}"


def _spoiled(generator: random.Random, data: bytes) -> bytes:
    if not data:
        return b"\xff"
    place = generator.randrange(len(data))
    how = generator.randrange(4)
    if how == 0:
        return data[:place]
    if how == 1:
        return (
            data[:place]
            + generator.choice(b'"{}[],:\\0-.e \x00\x1f\xff\xc3').to_bytes(1, "little")
            + (data[place + 1 :])
        )
    if how == 2:
        return data[:place] + data[place + 1 :]
    extra = [b"\\ud800", b"\\udc00", b"\\ud83d\\ude00", b"\\u12", b"\\x", b",", b"]", b"}", b"NaN"]
    return data[:place] + generator.choice(extra) + data[place:]


def json_texts() -> list[bytes]:
    generator = random.Random(1)
    found = [text.encode() for text in _NUMBERS]
    found += [f"[{text}, {text}]".encode() for text in _NUMBERS]
    found += [b"", b" ", b"\xef\xbb\xbf{}", b"\xef\xbb\xbf\xef\xbb\xbf{}", b"{} {}", b'"\\ud800"']
    found += [
        b'"\\udfff\\ud800"',
        b'"\\ud83d\\ude00"',
        b'"\\ud83d\\ud83d\\ude00"',
        b'"\\uD83D\\uDE00"',
    ]
    found += [b'{"a": 1, "\\u0061": 2}', b'"\xed\xa0\x80"', b'"\xf4\x90\x80\x80"', b"[1,]", b"{,}"]
    found += [
        b"[" * 200 + b"]" * 200,
        b'{"":' * 100 + b"1" + b"}" * 100,
        b"\xff\xfe{\0}\0",
        b"\x00",
    ]
    for _ in range(700):
        text = _json_text(generator, 4).encode()
        found += [text, _spoiled(generator, text)]
    return found


def test_json_is_read_and_refused_as_in_python(program: Program, tmp_path: Path) -> None:
    path, kinds = tmp_path / "it.json", Counter[bool]()
    for text in json_texts():
        path.write_bytes(b'{"it":' + text + b"}" if not text.startswith(b"\xef") else text)
        try:
            content = read_json_object(path, ArtifactError, "reading it")
            expected: Any = (True, shown(content))
        except ArtifactError:
            expected = (False, None)
        found, value = program.ask(f"json {path}")
        assert (found, value if found else None) == expected, (text, value)
        assert found or value.startswith("reading it: "), value
        kinds[found] += 1
    assert min(kinds[True], kinds[False]) > 200, kinds


def test_json_that_is_hostile_is_refused_in_little_time(program: Program, tmp_path: Path) -> None:
    path = tmp_path / "it.json"

    def ask(data: bytes) -> tuple[bool, Any]:
        path.write_bytes(data)
        return program.ask(f"json {path}")

    many = b"{" + b",".join(b'"%07d":0' % number for number in range(100_000))
    assert ask(many + b"}")[0]
    found, why = ask(many + b"," + many[1:10] + b":1}")
    assert not found
    assert "the key '0000000' twice" in why
    found, why = ask(b"[" * 100_000)
    assert not found
    assert "nested too deep at line 1, column " in why
    found, why = ask(b"[1" + b" " * (16 << 20) + b"]")
    assert not found
    assert "16 MiB" in why
    found, why = ask("[1,\n é, 2]".encode())
    assert not found
    assert "no value at line 2, column 2; expected JSON." in why


def test_texts_and_sums_are_written_as_in_python(program: Program) -> None:
    generator = random.Random(2)
    for text in [*_TEXTS, "".join(map(chr, range(0x300))), "\uffff\U0010ffff\U00010000"]:
        assert program.ask(f"text {in_hex(text)}") == (True, text)
    for size in [*range(130), 1000, 100_000]:
        data = generator.randbytes(size)
        line = f"sum {in_hex(data)} {generator.randrange(1, 200)}"
        assert program.ask(line) == (True, hashlib.sha256(data).hexdigest()), size


# Tensors


def _tensors(header: Any, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def _entry(dtype: Any = "F32", shape: Any = (2,), offsets: Any = (0, 8), **more: Any) -> Any:
    return {"a": {"dtype": dtype, "shape": shape, "data_offsets": offsets, **more}}


def test_tensors_are_those_that_the_library_reads(program: Program) -> None:
    arrays: dict[str, Any] = {
        "b": np.arange(6, dtype=np.float32).reshape(2, 3),
        "a": np.asarray([[1], [2**40]]),
        "none": np.zeros((0, 4), np.float32),
        "one": np.full((), 3, np.float32),
        "é": np.asarray([True, False]),
    }
    found, tensors = program.ask(f"tensors {in_hex(save(arrays, {'x': 'é'}))}")

    assert found
    kinds = {"float32": "F32", "int64": "I64", "bool": "BOOL"}
    expected = {
        name: [kinds[str(a.dtype)], [*a.shape], hashlib.sha256(a.tobytes()).hexdigest()]
        for name, a in arrays.items()
    }
    assert {name: rest for name, *rest in tensors} == expected


@pytest.mark.parametrize(
    ("file", "said"),
    [
        (b"", "cut short: 0 bytes"),
        (b"\x00" * 8, "its end, where a value should be"),
        (b"\xff" * 20, "a header of 18446744073709551615 bytes"),
        (_tensors({})[:-1], "cut short: a header of 2 bytes, 1 left"),
        (_tensors([]), "a header that is a list of 0"),
        (_tensors(b" {}"), "an object, at its start"),
        (_tensors(_entry(), bytes(7)), "bytes 0 to 8; expected places among the file's 7"),
        (_tensors(_entry(), bytes(9)), "9 bytes of tensors; expected 8 by its header"),
        (_tensors(_entry(offsets=(1, 9)), bytes(9)), "bytes of 'a' F32 [2] elsewhere"),
        (_tensors(_entry(offsets=(8, 0)), bytes(8)), "bytes 8 to 0"),
        (_tensors(_entry(offsets=(0, 4)), bytes(4)), "4 bytes; expected 8, by its dtype"),
        (_tensors(_entry(offsets=(0, -8)), bytes(8)), "no data_offsets"),
        (_tensors(_entry(offsets=(0, 8, 8)), bytes(8)), "no data_offsets"),
        (_tensors(_entry(shape=(2.0,)), bytes(8)), "no shape"),
        (_tensors(_entry(shape=(-2,)), bytes(8)), "no shape"),
        (_tensors(_entry(shape=(2**62, 4)), bytes(8)), "more numbers than can be counted"),
        (_tensors(_entry(dtype="F33"), bytes(8)), "its dtype is 'F33'"),
        (_tensors(_entry(more=1), bytes(8)), "4 keys"),
        (_tensors({"a": 1}), "its dtype is missing"),
        (_tensors({"__metadata__": {"a": 1}}), "__metadata__ with 'a' 1"),
        (_tensors({"__metadata__": []}), "__metadata__ that is a list of 0"),
        (_tensors(b'{"a":1,"a":1}'), "the key 'a' twice"),
    ],
)
def test_a_damaged_file_of_tensors_is_refused(file: bytes, said: str, program: Program) -> None:
    found, why = program.ask(f"tensors {in_hex(file)}")

    assert not found
    assert why.startswith("reading it")
    assert said in why
    assert "; expected " in why


# Templates and records


def record(**changes: Any) -> dict[str, Any]:
    task = {
        "taskname": "mood",
        "prompt_template": "<|VIRTUAL_PROMPT_0|>{text} is {label}",
        "total_virtual_tokens": 3,
    }
    outer = {"task": task, "bos_id": None, "eos_id": 1, "method": "random"}
    for key, value in changes.items():
        (task if key in TaskConfig.__dataclass_fields__ else outer)[key] = value
    return outer


def entry_of(plain: Any, learned: np.ndarray | None = None) -> TaskEntry:
    total = plain["task"].get("total_virtual_tokens")
    count = total if type(total) is int and 0 < total <= 10**6 else 1
    rows = np.zeros((count, HIDDEN), np.float32) if learned is None else learned
    return entry_from_record(plain, rows, "mood", base=BASE, doing="reading")


def shown_task(entry: TaskEntry) -> list[Any]:
    task, rules, template = entry.task, entry.rules, parse_template(entry.task)
    segments: list[list[Any]] = []
    for segment in template.segments:
        match segment:
            case Virtual(start, count):
                segments.append([start, count])
            case Text(text):
                segments.append(["text", text])
            case Field(name):
                segments.append(["field", name])
    answer = ["field", template.answer_field]
    place = segments.index(answer) if answer in segments else len(segments)
    return [
        *(task.taskname, task.total_virtual_tokens, list(task.choices), task.whitespace),
        *(task.truncate_field, task.answer.span if task.answer else None),
        *(rules.bos_id, rules.eos_id, list(rules.end_ids), segments, template.answer_field, place),
        list(template.input_fields),
    ]


def expect_as_python(program: Program, plain: Any) -> bool:
    try:
        expected: Any = (True, shown_task(entry_of(plain)))
    except (ArtifactError, ConfigError):
        expected = (False, None)
    found, value = program.ask(f"task {VOCAB} {in_hex('mood')} {in_hex(json.dumps(plain))}")
    assert (found, value if found else None) == expected, (plain, value)
    return found


_PARTS = [
    *("<|VIRTUAL_PROMPT_0|>", "<|VIRTUAL_PROMPT_1|>", "<|VIRTUAL_PROMPT_00|>", "<|VIRTUAL_PROMPT_"),
    *("<|VIRTUAL_PROMPT_|>", f"<|VIRTUAL_PROMPT_{'9' * 5000}|>", "<|VIRTUAL_PROMPT_٣|>", "{a}"),
    *("{b}", "{label}", "{{", "}}", "{", "}", "{}", "{ }", "{\x1f}", "{\u3000\n}", "{taskname}"),
    *(
        " ",
        "  ",
        "\n",
        "text",
        "é😀",
        "{a b}",
        "{{a}}",
        "{{{a}}}",
        "{a\n}",
        "{é}",
        "\x00",
        "{\x00}",
    ),
]
_FORMATS = [
    *("x!r", "x!s:", "x!a:>3", "x!q", "x!r\n", "x!r:a\nb", "!r", ":>3", "x:", "x:>10", "x:é>10"),
    *(
        "x:\n>1",
        "x:a:b",
        "x:10",
        "x:.2f",
        "x:.f",
        "x:+#010,.3e",
        "x:٣",
        "x:=",
        "x:<<5",
        "x:é",
        "x:d",
    ),
    *(
        "x:,",
        "x:_",
        "x:1_000",
        "x: 3%",
        "x:3 %",
        "x:b3",
        "a:b!r",
        "a!r:b",
        "x:>>",
        "x:^^^",
        "x:==1d",
    ),
    *(
        "x:\U0001e950",
        "x:\U0001d7ff.3",
        "x!",
        "x!r!r",
        "x:-",
        "x:- 3",
        "x:#",
        "x:0",
        "x\ny:3",
        "x:3\n",
    ),
]


def test_formats_are_told_from_names_as_in_python(program: Program) -> None:
    generator, kinds = random.Random(4), Counter[bool]()
    parts = [*"x!:rsa<>=^+- #0123,_.fé٣%\n"]
    fields = _FORMATS + ["x" + "".join(generator.choices(parts, k=6)) for _ in range(600)]
    # Digits 0 of several scripts, and numbers that are no digits.
    points = (0x660, 0x7C0, 0x966, 0xE50, 0xFF10, 0x11066, 0x1D7CE, 0x1E950, 0xB2, 0x2167, 0x4E00)
    fields += [f"x:{chr(point)}" for point in points]
    for field in fields:
        plain = record(prompt_template=f"<|VIRTUAL_PROMPT_0|>{{{field}}} {{label}}")
        kinds[expect_as_python(program, plain)] += 1
    assert min(kinds[True], kinds[False]) > 40, kinds


def test_templates_are_parsed_as_in_python(program: Program) -> None:
    generator, kinds = random.Random(5), Counter[bool]()
    for trial in range(2500):
        parts = generator.choices(_PARTS, k=generator.randrange(7))
        if trial % 4:
            parts = ["<|VIRTUAL_PROMPT_0|>", *[p for p in parts if "VIRTUAL" not in p], "{label}"]
        changes: dict[str, Any] = {"prompt_template": "".join(parts)}
        options: dict[str, list[Any]] = {
            "total_virtual_tokens": [3, 5, 0, 10**6 + 1],
            "virtual_token_splits": [[], [3], [1, 2], [2, 3], [0, 3], [-1, 4], [2**62, 2**62]],
            "truncate_field": [None, "a", "label", "b", ""],
            "answer_field": [None, "label", "a", "x", ""],
            "answer_only_loss": [True, False],
            "answer": [None, {"span": "a"}, {"span": "label"}, {"span": "nowhere"}],
        }
        for key, values in options.items():
            if generator.random() < 0.3:
                changes[key] = generator.choice(values)
        kinds[expect_as_python(program, record(**changes))] += 1
    assert min(kinds[True], kinds[False]) > 300, kinds


_WRONG: list[Any] = [
    None,
    True,
    0,
    -1,
    1,
    2,
    3,
    11,
    2**63,
    1.5,
    "",
    "x",
    [],
    {},
    [1],
    ["x"],
    {"x": 1},
]


def test_records_are_read_and_refused_as_in_python(program: Program) -> None:
    changes: list[dict[str, Any]] = [
        {key: value}
        for key in (*TaskConfig.__dataclass_fields__, "bos_id", "eos_id", "end_ids", "rendering")
        for value in _WRONG
    ]
    changes += [{"choices": list(pair)} for pair in ("ab", "aa", ["a", " a"], ["a", "a\x1f\u3000"])]
    changes += [
        {"choices": [text]} for text in ("\u2003", "\x85", "\u200b", " a ", "\u180e", "\x1c")
    ]
    changes += [{"choices": ["a"], "answer": {"span": "text"}}, {"answer": {"span": "text"}}]
    changes += [
        {"taskname": name} for name in ("mood", "_mood", "__mood", "-mood", "mo.od", "m" * 65)
    ]
    changes += [{"end_ids": [2, 3]}, {"end_ids": [2, 2]}, {"end_ids": [1]}, {"end_ids": [10, 11]}]
    changes += [{"total_virtual_tokens": total} for total in (10**6, 10**6 + 1)]
    changes += [{"eos_id": None, "end_ids": [1]}, {"whitespace": "nemo"}, {"unknown": 1}]
    kinds = Counter(expect_as_python(program, record(**each)) for each in changes)
    for missing in ("task", "bos_id", "eos_id", "method", "end_ids"):
        plain = record(end_ids=[])
        del plain[missing]
        if missing == "task":
            assert not program.ask(f"task {VOCAB} {in_hex('mood')} {in_hex(json.dumps(plain))}")[0]
        else:
            expect_as_python(program, plain)
    assert min(kinds[True], kinds[False]) > 20, kinds


def test_an_error_about_a_template_has_all_problems(program: Program) -> None:
    plain = record(prompt_template="é{ {} {x!r} {taskname}", truncate_field="q")

    found, why = program.ask(f"task {VOCAB} {in_hex('mood')} {in_hex(json.dumps(plain))}")

    assert not found
    with pytest.raises(ArtifactError) as python:
        entry_of(plain)
    for line in str(python.value).splitlines():
        if "character" in line or "markers" in line or "taskname'" in line:
            assert line.split("template of task")[-1].strip(" .") in why


def test_labels_are_read_and_refused_as_in_python(program: Program) -> None:
    generator, kinds = random.Random(6), Counter[bool]()
    choices = ("good", "bad", "go")
    sound = LabelTrie.of(choices, [[1, 2, 1], [3], [1, 4]], fixed=True)
    for trial in range(600):
        plain: dict[str, Any] = {key: value for key, value in vars(sound).items() if key != "texts"}
        plain = json.loads(json.dumps(plain))
        for _ in range(trial % 3):
            key = generator.choice([*plain])
            if key in ("parents", "tokens", "ends") and plain[key]:
                place = generator.randrange(len(plain[key]))
                plain[key][place] = generator.choice(
                    [-1, 0, 1, 2, 3, 4, 5, 10, 11, 2**31, 2**40, 1.0]
                )
            elif generator.random() < 0.3:
                plain[key] = generator.choice([[], True, False, ["good"], None])
        try:
            given: dict[str, Any] = {
                k: tuple(v) if isinstance(v, list) else v for k, v in plain.items()
            }
            trie = LabelTrie(**given)
            sizes = [*trie.parents, *trie.tokens, *trie.ends]
            typed = all(type(size) is int for size in sizes) and type(trie.fixed) is bool
            trie.check()
            expected = typed and max(trie.tokens) < VOCAB and trie.labels == choices
        except (ValueError, TypeError):
            expected = False
        line = f"labels {VOCAB} {in_hex(json.dumps(choices))} {in_hex(json.dumps(plain))}"
        found, value = program.ask(line)
        assert found == expected, (plain, value)
        assert not found or value == [*plain.values()]
        kinds[found] += 1
    assert min(kinds[True], kinds[False]) > 100, kinds


# Bundles


def _write(folder: Path) -> Path:
    """A bundle with all kinds of files; its graph is none."""
    generator = np.random.default_rng(0)
    (folder / "base").mkdir(parents=True)
    (folder / "base/model.onnx").write_bytes(b"not really a graph")
    (folder / "base/model.onnx.data").write_bytes(bytes(100))
    for name in ("tokenizer.json", "report.json"):
        (folder / name).write_text("{}", encoding="utf-8")
    rows = generator.normal(size=(3, HIDDEN)).astype(np.float32)
    prefix = generator.normal(size=(2, 2, 3, 4, 4)).astype(np.float32)
    template = "<|VIRTUAL_PROMPT_0|>{text} is {label}"
    mood = TaskConfig("mood", template, 3, choices=("good", "bad"))
    steep = TaskConfig("steep", template, 4, truncate_field="text")
    entries = [
        TaskEntry(mood, rows, SequenceRules(2, 1, (3,), 2), "p-tuning"),
        TaskEntry(
            steep, np.zeros((0, HIDDEN), np.float32), SequenceRules(None, 1), "prefix", prefix
        ),
    ]
    for entry in entries:
        write_task(folder, entry)
    tree = LabelTrie.of(mood.choices, [[4, 1], [5, 6, 1]], fixed=True)
    write_labels(folder, "mood", tree)
    (folder / "tasks/mood/selftest.safetensors").write_bytes(save(SELFTEST))
    (folder / "tasks/mood/parity.json").write_text("{}", encoding="utf-8")
    manifest = Manifest(BASE, "native-cpu", GRAPH, ("mood", "steep"), {"numpy": "2"}, "passed")
    manifest = replace(manifest, precision=Precision(quantization="int8", block=32, method="plain"))
    write_manifest(folder, manifest)
    opened = read_bundle(folder)
    identity = PrefixIdentity(
        BASE.fingerprint, opened.base_sum, sum_of_array(rows), LAYOUT, POSITIONS, "float32", "int8"
    )
    kv = generator.normal(size=(2, 2, 3, 5, 4)).astype(np.float32)
    write_folded(folder / "tasks/mood/folded_kv.safetensors", FoldedPrefix(kv, identity))
    write_manifest(folder, manifest)
    return folder


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _write(tmp_path_factory.mktemp("sound") / "bundle")


@pytest.fixture
def bundle(sound: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sound, tmp_path / "bundle"))


def as_python(bundle: Bundle) -> list[Any]:
    """A bundle as the program shows it; what Python reads only when asked is asked for."""
    manifest, graph = bundle.manifest, bundle.manifest.graph
    tasks = []
    for name, entry in bundle.entries.items():
        folded, trie, vectors = bundle.folded(name), bundle.labels(name), bundle.selftest(name)
        prefixed = entry.prefix_kv is not None
        if prefixed and not parse_template(entry.task).opens_with_all_virtual_tokens:
            raise ArtifactError("serving it", found="a marker that is not at the start")
        sum_of = hashlib.sha256
        tasks.append(
            [
                *(shown_task(entry), sum_of(entry.learned.tobytes()).hexdigest(), prefixed),
                folded
                and [
                    sum_of(folded.kv.tobytes()).hexdigest(),
                    folded.kv.shape[3],
                    folded.identity.prompt,
                ],
                trie
                and [
                    *map(list, (trie.labels, trie.parents, trie.tokens, trie.ends)),
                    trie.fixed,
                ],
                vectors["input_ids"].reshape(-1).tolist() if vectors else None,
                vectors["tokens"].reshape(-1).tolist() if vectors else None,
            ]
        )
    sizes = [graph.layers, graph.kv_heads, graph.head_dim, graph.hidden, graph.vocab]
    sizes += [graph.capacity, int(graph.prompts == "baked"), graph.candidates]
    sizes += [int(graph.rows == "ragged"), int(graph.logit_tiles), manifest.precision.prefix_bits]
    sizes += [manifest.precision.cache_bits, manifest.kernels]
    return [
        *(manifest.base.fingerprint, bundle.base_sum, manifest.target, sizes),
        *(list(graph.sampling_inputs), manifest.precision.method or ""),
        *(manifest.toolchain.get("kernels", ""), "tokenizer.tables" in bundle.files, *tasks),
    ]


def test_a_bundle_says_the_same_in_both_languages(sound: Path, program: Program) -> None:
    assert program.ask(f"open {sound} -") == (True, as_python(read_bundle(sound)))


def test_a_folded_prefix_of_another_origin_is_refused(bundle: Path, program: Program) -> None:
    assert program.ask(f"prompt {bundle} mood {LAYOUT} 5") == (True, [3, 5, 0])
    assert program.ask(f"prompt {bundle} steep - 0") == (True, [0, 4, 1])

    found, why = program.ask(f"prompt {bundle} mood {'0' * 64} 5")
    assert not found
    assert f"computed from layout {LAYOUT}, not {'0' * 64}. Export" in why
    found, why = program.ask(f"prompt {bundle} mood {LAYOUT} 6")
    assert not found
    assert why.endswith("in " + f"{bundle}: 5 positions; expected 6. Export the bundle again.")

    (bundle / "base/model.onnx").write_bytes(b"another graph")
    sign_bundle(bundle)
    found, why = program.ask(f"prompt {bundle} mood {LAYOUT} 5")
    assert not found
    assert "computed from graph " in why
    found, why = program.ask(f"prompt {bundle} moods {LAYOUT} 5")
    assert not found
    assert "task 'moods' does not exist. Known tasks: mood, steep." in why


def files_of(bundle: Path) -> list[str]:
    return sorted(p.relative_to(bundle).as_posix() for p in bundle.rglob("*") if p.is_file())


def test_a_file_that_was_cut_or_changed_is_named(bundle: Path, program: Program) -> None:
    for name in files_of(bundle):
        path = bundle / name
        data = path.read_bytes()
        cuts = [data[:size] for size in {0, 1, len(data) // 2, len(data) - 1} if size < len(data)]
        flips = [
            data[:at] + bytes([data[at] ^ 0x11]) + data[at + 1 :]
            for at in {0, len(data) // 2, len(data) - 1}
        ]
        for changed in [*cuts, *flips]:
            path.write_bytes(changed)
            found, why = program.ask(f"open {bundle} -")
            if name == "manifest.json":  # it has no sum, and may say something else
                expect_same(bundle, program, Counter())
                continue
            assert found == (name == "report.json"), (name, why)
            assert found or name in why, why
        path.unlink()
        found, why = program.ask(f"open {bundle} -")
        assert found or name in why
        path.write_bytes(data)
    assert program.ask(f"open {bundle} -")[0]


def test_a_sum_of_the_weights_may_be_left_out(bundle: Path, program: Program) -> None:
    (bundle / "base/model.onnx.data").write_bytes(b"\1" * 100)
    assert program.ask(f"open {bundle} weights")[0]
    found, why = program.ask(f"open {bundle} -")
    assert not found
    assert "base/model.onnx.data has sha256" in why
    assert why.endswith("again.")

    (bundle / "base/model.onnx.data").write_bytes(b"\1" * 99)
    assert "has 99 bytes, expected 100" in program.ask(f"open {bundle} weights")[1]


def test_a_damaged_file_with_a_right_sum_does_no_harm(bundle: Path, program: Program) -> None:
    generator, kinds = random.Random(7), Counter[bool]()
    names = [name for name in files_of(bundle) if name.startswith("tasks/")]
    for name in names:
        path = bundle / name
        data = path.read_bytes()
        for _ in range(25):
            at = generator.randrange(min(len(data), 600))
            changed = generator.choice(
                [data[:at], data[:at] + generator.randbytes(1) + data[at + 1 :], data + b"\0"]
            )
            path.write_bytes(changed)
            sign_bundle(bundle)
            expect_same(bundle, program, kinds)
        path.write_bytes(data)
    assert min(kinds[True], kinds[False]) > 10, kinds


def expect_same(bundle: Path, program: Program, kinds: Counter[bool]) -> None:
    """Both languages read the bundle as the same, or refuse it."""
    try:
        expected: Any = (True, as_python(read_bundle(bundle)))
        why = ""
    except PlcError as error:
        expected, why = (False, None), str(error)
    found, value = program.ask(f"open {bundle} failed")
    assert (found, value if found else None) == expected, (value, why)
    kinds[found] += 1


_VALUES: list[Any] = [None, True, False, 0, 1, -1, 2, 17, 300, 1 << 16, 1 << 31, 1 << 63, 10**30]
_VALUES += [0.5, 1e308, "", "x", "mood", "../x", "/x", "a\\b", "float16", "int4", "none", "baked"]
_VALUES += ["ragged", "\x00", "{", [], {}, [[]], [1], ["x"], {"x": 1}, ["temperature", "min_p"]]


def _altered(content: Any, generator: random.Random) -> None:
    """Changes one place of a tree of lists and dicts."""
    holder = content
    while True:
        if not holder:
            return
        key = generator.choice([*holder] if isinstance(holder, dict) else range(len(holder)))
        inner = holder[key]
        if not isinstance(inner, dict | list) or not inner or generator.random() < 0.2:
            break
        holder = inner
    how = generator.choice(["replace", "replace", "remove", "more", "shift"])
    if how == "remove":
        del holder[key]
    elif how == "more" and isinstance(holder, list):
        holder.append(inner)
    elif how == "more":
        holder[f"{key}x"] = inner
    elif how == "shift" and type(inner) is int:
        holder[key] = inner + generator.choice([-2, -1, 1, 2])
    elif how == "shift" and isinstance(inner, str):
        holder[key] = generator.choice([inner[1:], inner * 2, inner.upper(), f"./{inner}"])
    else:
        holder[key] = generator.choice(_VALUES)


@pytest.mark.parametrize(
    "name",
    ["manifest.json", "tasks/mood/task.json", "tasks/steep/task.json", "tasks/mood/labels.json"],
)
def test_an_altered_bundle_is_read_or_refused_as_in_python(
    name: str, bundle: Path, program: Program
) -> None:
    generator, kinds = random.Random(8), Counter[bool]()
    path = bundle / name
    text = path.read_text(encoding="utf-8")
    for _ in range(350 if name == "manifest.json" else 100):
        content = json.loads(text)
        _altered(content, generator)
        path.write_text(json.dumps(content), encoding="utf-8")
        if name != "manifest.json":
            sign_bundle(bundle)
        elif content.get("target") != "native-cpu" or '"ranks": 1,' not in path.read_text():
            continue  # Python runs others, too
        expect_same(bundle, program, kinds)
    assert kinds[True] > 0, kinds
    assert kinds[False] > 40, kinds


def test_what_another_runtime_serves_is_refused(bundle: Path, program: Program) -> None:
    path = bundle / "manifest.json"
    text = path.read_text(encoding="utf-8")
    content = json.loads(text)
    for target, ranks in (("openvino", 1), ("tensorrt", 1), ("native-cpu", 2)):
        content["target"], content["graph"]["ranks"] = target, ranks
        path.write_text(json.dumps(content), encoding="utf-8")
        found, why = program.ask(f"open {bundle} -")
        assert not found
        assert "expected one of onnx-cpu, native-cpu and onnx-cuda, with one rank" in why
    path.write_text(text.replace('"passed"', '"failed"'), encoding="utf-8")
    assert "parity failed" in program.ask(f"open {bundle} -")[1]
    assert program.ask(f"open {bundle} failed")[0]
    path.write_text(text.replace('"version": 1', '"version": 2'), encoding="utf-8")
    assert "version 2; expected 1" in program.ask(f"open {bundle} -")[1]
    assert "there is no such folder" in program.ask(f"open {bundle}x -")[1]
    assert "no manifest.json" in program.ask(f"open {bundle}/tasks -")[1]


def _link(bundle: Path) -> None:
    (bundle / "base/model.onnx").rename(bundle.parent / "model.onnx")
    (bundle / "base/model.onnx").symlink_to(bundle.parent / "model.onnx")


def _folder_link(bundle: Path) -> None:
    (bundle / "tasks/mood").rename(bundle.parent / "mood")
    (bundle / "tasks/mood").symlink_to(bundle.parent / "mood")


_ODD: dict[str, tuple[Callable[[Path], Any], str]] = {
    "link": (_link, "base/model.onnx is a link"),
    "folder link": (_folder_link, "tasks/mood is a link"),
    "pipe": (lambda b: os.mkfifo(b / "pipe"), "pipe is a pipe, a device or a socket"),
    "other": (lambda b: (b / "notes.txt").write_text("x"), "notes.txt is not in the manifest"),
    "name": (
        lambda b: Path(os.fsdecode(bytes(b) + b"/\xff")).write_text("x"),
        "\ufffd is not in the manifest",
    ),
    "model": (lambda b: (b / "base/x").mkdir(), ""),
}


@pytest.mark.parametrize("kind", _ODD)
def test_what_is_no_file_of_the_bundle_is_refused(
    kind: str, bundle: Path, program: Program
) -> None:
    change, said = _ODD[kind]
    change(bundle)
    expect_same(bundle, program, Counter())
    found, why = program.ask(f"open {bundle} -")
    assert found == (said == "")
    assert found or said in why


@pytest.fixture(scope="module")
def exported_from(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A base and a table."""
    folder = tmp_path_factory.mktemp("exported")
    base = write_tiny_base(folder / "base", "llama", blocks=True)
    return base, random_table(base, folder / "table.safetensors", prefix=True)


@pytest.mark.parametrize("target", ["onnx-cpu", "native-cpu"])
def test_exported_bundles_are_read(
    target: str, exported_from: tuple[Path, Path], tmp_path: Path, program: Program
) -> None:
    base, table = exported_from
    request = ExportRequest(
        *(table, base, tmp_path / "bundle"),
        target=target,
        capacity=60,
        fold="always",
        measure_parity=False,
    )
    folder = export_bundle(request).bundle
    opened = read_bundle(folder)

    assert program.ask(f"open {folder} -") == (True, as_python(opened))

    served = tasks_of_bundle(opened, Tokenizer.from_folder(folder))
    folded = [name for name in served if opened.folded(name) is not None]
    assert folded
    for name in folded:
        opening = served[name].renderer.opening()
        layout = json.dumps([opening.token_ids.tolist(), opening.virtual_rows.tolist()])
        layout = hashlib.sha256(layout.encode()).hexdigest()
        found, value = program.ask(f"prompt {folder} {name} {layout} {len(opening)}")
        assert found, value
        assert value[1] == len(opening)


def test_a_fuzzer_finds_nothing_in_a_few_seconds(sound: Path, folder: Path, tmp_path: Path) -> None:
    program = built(folder, "fuzz_bundle.cc", *FUZZER)
    seeds = tmp_path / "seeds"
    seeds.mkdir()
    task = sound / "tasks/mood"
    first: Sequence[bytes] = [
        b'\0[1e-3, {"a": "\\ud83d\\ude00"}, true]',
        b"\1" + (task / "folded_kv.safetensors").read_bytes(),
        b"\1" + (task / "selftest.safetensors").read_bytes(),
        b"\2" + (sound / "manifest.json").read_bytes(),
        b"\3" + (task / "task.json").read_bytes(),
        b"\4" + (task / "labels.json").read_bytes(),
        "\5<|VIRTUAL_PROMPT_0|>{a:é>3} {{ }} {b}".encode(),
    ]
    for number, data in enumerate(first):
        (seeds / str(number)).write_bytes(data)

    fuzz(program, seeds)
