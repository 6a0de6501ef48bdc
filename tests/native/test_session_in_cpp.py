"""Sessions of the native runtime answer as Python's do."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from native_programs import FUZZER, PLAIN, SANITIZED, THREADS, answers, built, fuzz
from safetensors.numpy import load_file, save_file
from session_scripts import Asked, check, random_asked, read, said
from test_engine_in_cpp import onnxruntime_library

from pl_compile.config.build import BuildOptions
from pl_compile.driver.export import export_bundle
from pl_compile.driver.export_request import ExportRequest
from pl_compile.errors import PlcError
from pl_compile.runtime import Session, kernels
from pl_compile.testing import random_table, sign_bundle, write_tiny_base

pytestmark = pytest.mark.timeout(1200)  # most of it goes into compiling

CAPACITY = 160
TASKS: tuple[dict[str, Any], ...] = (
    {
        "taskname": "tone",
        "prompt_template": "<|VIRTUAL_PROMPT_0|> {sentence} sentiment:{label}",
        "total_virtual_tokens": 3,
        "truncate_field": "sentence",
        "choices": ["positive", "negative", "neutral", "negative but funny", "posit"],
    },
    {
        "taskname": "touching",  # blanks at a field's end move into the choice
        "prompt_template": "<|VIRTUAL_PROMPT_0|>Is it {sentence}{label}",
        "total_virtual_tokens": 2,
        "choices": ["yes", "no", "no idea"],
    },
    {
        "taskname": "ask",
        "prompt_template": (
            "Q: {question} <|VIRTUAL_PROMPT_0|> in {place}<|VIRTUAL_PROMPT_1|>: {answer}"
        ),
        "total_virtual_tokens": 5,
        "virtual_token_splits": [3, 2],
        "truncate_field": "question",
    },
    {
        "taskname": "say",
        "prompt_template": "<|VIRTUAL_PROMPT_0|> {text} => {answer}",
        "total_virtual_tokens": 20,
        "truncate_field": "text",
    },
    {
        "taskname": "copy",
        "prompt_template": "<|VIRTUAL_PROMPT_0|> {text}\n{question} => {answer}",
        "total_virtual_tokens": 3,
        "truncate_field": "text",
        "answer": {"span": "text"},
    },
)
MORE = ({**TASKS[0], "taskname": "more"}, {**TASKS[3], "taskname": "more_to_say"})
FIELDS = {
    "tone": ("sentence",),
    "touching": ("sentence",),
    "ask": ("question", "place"),
    "say": ("text",),
    "copy": ("text", "question"),
    "order": ("request",),
}
CLOSED = {"tone", "touching"}

BUNDLES: dict[str, tuple[str, BuildOptions, dict[str, Any]]] = {
    "int4": ("native-cpu", BuildOptions("int4"), {}),
    "int8 chooses": ("native-cpu", BuildOptions("int8", sampling="graph", candidates=20), {}),
    "none": ("native-cpu", BuildOptions("none"), {}),
    "onnx": ("onnx-cpu", BuildOptions("none"), {"fold": "never"}),
}

needs_kernels = pytest.mark.skipif(
    kernels.library_path() is None,
    reason="needs the C++ kernels (g++ or Clang); without them: test_session_in_cpp on onnx-cpu",
)
EACH_BUNDLE = pytest.mark.parametrize(
    "name",
    [
        "onnx",
        *(pytest.param(each, marks=needs_kernels) for each in ("int4", "int8 chooses", "none")),
    ],
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("native_session")


@pytest.fixture(scope="module")
def export(folder: Path) -> Callable[..., Path]:
    """Exports tiny tasks: all of them, or those of another table for the same base."""
    base = write_tiny_base(folder / "base", "llama", seed=8, blocks=True)
    config = json.loads((base / "config.json").read_text(encoding="utf-8"))
    config["max_position_embeddings"] = 300
    config["eos_token_id"] = 300  # one that this base does not write after each token
    (base / "config.json").write_text(json.dumps(config), encoding="utf-8")
    tables = {
        "all": random_table(base, folder / "table.safetensors", prefix=True, tasks=TASKS),
        "more": random_table(base, folder / "more.safetensors", seed=4, tasks=MORE),
    }

    def bundle(name: str, tasks: str = "all") -> Path:
        target, options, changes = BUNDLES[name]
        place = folder / f"{name.replace(' ', '_')}_{tasks}"
        if not place.exists():
            request = ExportRequest(
                tables[tasks],
                base,
                place,
                target=target,
                options=options,
                capacity=CAPACITY,
                measure_parity=tasks == "all" and name in ("int4", "onnx"),
                **changes,
            )
            export_bundle(request)
        return place

    return bundle


def program(folder: Path, bundle: Path, *options: str, build: tuple[str, ...] = PLAIN) -> list[str]:
    library = kernels.library_path()
    made = built(folder, "session_program.cc", *build, kernels=library)
    return [str(made), str(bundle), str(onnxruntime_library()), *options]


def asked_of(seed: int, count: int) -> list[Asked]:
    random = Random(seed)
    return [random_asked(random, FIELDS, closed=CLOSED) for _ in range(count)]


def script_of(asked: list[Asked], seed: int) -> tuple[list[str], set[int]]:
    """Lines that submit, step and cancel at random times; and which requests are cancelled."""
    random, lines, cancelled = Random(seed), [], set()
    for place, one in enumerate(asked):
        lines.append(one.line())
        if random.random() < 0.4:
            lines.append(f"step {random.randint(1, 6)}")
        if random.random() < 0.1:
            cancelled.add(number := random.randint(0, place))
            lines.append(f"cancel {number}")
    order = list(range(len(asked)))
    random.shuffle(order)
    return [*lines, *(f"result {place}" for place in order)], cancelled


def same_words(refused: str, error: PlcError) -> bool:
    """Whether the program refuses with Python's words; what to do next may differ."""
    kind, _, words = refused.split()
    expected = f"serving a request: {error.found}"
    return kind == "refused" and read(words).startswith(expected)


@EACH_BUNDLE
@pytest.mark.parametrize("drafts", [False, True])
def test_answers_are_those_of_python(
    folder: Path, export: Callable[..., Path], name: str, drafts: bool
) -> None:
    bundle, count = export(name), 140
    asked = asked_of(len(name) + drafts, count)
    with Session.open(bundle, max_batch=5, threads=1, drafts=drafts) as session:
        expected = [one.expected(session) for one in asked]
    assert sum(not isinstance(each, PlcError) for each in expected) > count // 2
    lines, cancelled = script_of(asked, count + drafts)
    command = program(folder, bundle, "max_batch=5", f"drafts={int(drafts)}")
    found = dict(zip(enumerate(lines), answers(command, lines), strict=True))
    results = {line.split()[1]: answer for (_, line), answer in found.items() if "result" in line}
    submitted = [answer for (_, line), answer in found.items() if line.startswith("submit")]
    for place, (one, hoped, accepted) in enumerate(zip(asked, expected, submitted, strict=True)):
        if isinstance(hoped, PlcError):
            assert same_words(accepted, hoped), (one, accepted, hoped)
            continue
        assert accepted == "ok", (one, read(accepted.split()[2]))
        answer = results[str(place)]
        if place in cancelled and answer.startswith("error 9"):
            continue
        check(answer, hoped)


def results_of(found: list[str], lines: list[str]) -> dict[int, str]:
    """The answers by the places of their requests."""
    pairs = zip(lines, found, strict=True)
    return {int(line.split()[1]): said_ for line, said_ in pairs if line.startswith("result")}


def test_requests_that_cannot_be_followed_are_refused(
    folder: Path, export: Callable[..., Path]
) -> None:
    refused: list[tuple[str, str]] = [
        ("max_tokens=0", "min_tokens 0, max_tokens 0"),
        ("min_tokens=9 max_tokens=3", "min_tokens 9, max_tokens 3"),
        ("min_tokens=-1", "min_tokens -1"),
        ("temperature=-1", "temperature -1.0, expected a finite number"),
        ("temperature=nan", "temperature nan"),
        ("top_k=-1", "top_k -1"),
        ("top_p=0", "top_p 0.0"),
        ("min_p=1.5", "min_p 1.5"),
        ("repetition_penalty=0", "repetition_penalty 0.0"),
        ("no_repeat_ngram=-2", "no_repeat_ngram -2"),
        ("timeout=-1", "timeout -1.0"),
        ("timeout=inf", "timeout inf"),
        ("log_probs=21", "log_probs 21"),
        ("log_probs=-2", "log_probs -2"),
        ("stop=", "a stop text that is empty"),
        ("stop=ff", "a stop text that is not UTF-8"),
        ("bad_words=", "bad_words"),
        (f"bad_words={said('a' + chr(0xFFFD))}", "U+FFFD"),
        (f"bias={said('y')}:1 bias={said('y')}:2", "'y' stands there twice"),
        (f"bias={said('y')}:nan", "logit_bias 'y': nan"),
        ("field=ff:00", "a field's name is not UTF-8"),
        (f"field={said('nothing')}:00", "field 'nothing' is not in the template"),
        (f"field={said('text')}:00", "field 'text' is given twice"),
        ("kind=1", "task 'say' has no choices"),
    ]
    begin = f"submit task={said('say')} field={said('text')}:{said('a fox')}"
    lines = [f"{begin} {options}" for options, _ in refused]
    lines += [
        f"submit task={said('nobody')}",
        f"submit task={said('say')}",
        f"submit task={said('say')} field={said('text')}:ff",
        "selftest nobody",
        "remove nobody",
        f"{begin} max_tokens=3",
        "result 27",
    ]
    found = answers(program(folder, export("onnx")), lines)
    for line, expected in zip(
        found,
        [
            *(words for _, words in refused),
            "'nobody' does not exist",
            "'text' is missing",
            "UTF-8",
            "'nobody' does not exist. Known tasks: tone",
            "'nobody'",
        ],
        strict=False,
    ):
        kind, _, message = line.split()
        assert kind == "refused"
        assert expected in read(message)
    assert found[-2] == "ok"
    assert found[-1].startswith("answer")


def test_time_that_is_over_ends_requests(folder: Path, export: Callable[..., Path]) -> None:
    tone = f"submit task={said('tone')} field={said('sentence')}:{said('a fox')} timeout=1e-9"
    say = f"submit task={said('say')} field={said('text')}:{said('a fox')} timeout=1e-9"
    lines = [say, tone, f"{tone} kind=2", "result 0", "result 1", "result 2"]
    found = answers(program(folder, export("onnx")), lines)[3:]
    assert found[0].split()[:5] == ["answer", "-", "-", "-", "timeout"]
    assert found[1].split()[:5] == ["answer", "-", "-", "-", "timeout"]
    assert found[2].startswith("error 5")
    assert "its time is over: timeout 1e-09 seconds" in read(found[2].split()[2])


def test_tasks_come_and_go(folder: Path, export: Callable[..., Path]) -> None:
    bundle, more = export("onnx"), export("onnx", "more")
    asked = [Asked("more", {"sentence": "a lazy dog"}, "all"), Asked("more_to_say", {"text": "x"})]
    asked[1].options["max_tokens"] = 30
    with Session.open(more, threads=1) as session:
        expected = [one.expected(session) for one in asked]
    lines = [
        asked[0].line(),  # 0: not yet
        f"add {more}",
        *(one.line() for one in asked),  # 1 and 2
        f"add {more}",
        "step 2",
        "remove more",
        "remove more_to_say",
        "tasks",
        asked[0].line(),
        "result 1",
        "result 2",
        f"add {export('onnx', 'all')}",
        f"add {more}/nothing",
    ]
    found = answers(program(folder, bundle), lines)
    assert "task 'more' does not exist" in read(found[0].split()[2])
    assert found[1:4] == ["ok"] * 3
    assert "'more', 'more_to_say': a task of this name is served already" in read(
        found[4].split()[2]
    )
    assert found[6:8] == ["ok", "ok"]
    assert found[8].startswith(
        "tone:sentence,:positive,negative,neutral,negative but funny,posit,;"
    )
    assert "more" not in found[8]
    assert found[9].startswith("refused 5")
    check(found[10], expected[0])
    check(found[11], expected[1])
    assert "a task of this name is served already" in read(found[12].split()[2])
    assert "there is no such folder" in read(found[13].split()[2])


def test_another_base_is_refused(folder: Path, export: Callable[..., Path], tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(export("onnx", "more"), other)
    manifest = json.loads((other / "manifest.json").read_text(encoding="utf-8"))
    manifest["base"]["fingerprint"] = "0" * 64
    (other / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    [found] = answers(program(folder, export("onnx")), [f"add {other}"])
    assert "the base's fingerprint: another one" in read(found.split()[2])


def test_numbers_that_are_not_finite_fail_their_request_alone(
    folder: Path, export: Callable[..., Path], tmp_path: Path
) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(export("onnx"), broken)
    path = broken / "tasks" / "order" / "prefix_kv.safetensors"
    prefix = load_file(path)["prefix_kv"]
    save_file({"prefix_kv": np.copysign(np.float32(3e38), prefix)}, path)
    sign_bundle(broken)
    asked = Asked("ask", {"question": "the fox", "place": "old oaks"})
    with Session.open(export("onnx"), threads=1) as session:
        expected = asked.expected(session)
    lines = [
        Asked("order", {"request": "a fox"}).line(),
        asked.line(),
        "result 1",
        "result 0",
        asked.line(),
        "result 2",
    ]
    found = answers(program(folder, broken), lines)
    assert found[3].startswith("error 6")
    assert "task 'order': logits that are not finite numbers" in read(found[3].split()[2])
    check(found[2], expected)
    check(found[5], expected)


@EACH_BUNDLE
def test_bundles_check_themselves(
    folder: Path, export: Callable[..., Path], tmp_path: Path, name: str
) -> None:
    lines = [f"selftest {task}" for task in FIELDS]
    found = answers(program(folder, export(name)), lines)
    assert set(found) <= {"rows 0", "rows 2"}
    assert name not in ("onnx", "int4") or set(found) == {"rows 2"}
    if name != "onnx":
        return
    other = tmp_path / "other"
    shutil.copytree(export(name), other)
    path = other / "tasks" / "say" / "selftest.safetensors"
    arrays = load_file(path)
    arrays["logits"] = arrays["logits"] + abs(arrays["logits"]).max() / 50
    save_file(arrays, path)
    sign_bundle(other)
    found = answers(
        program(folder, other), [*lines, Asked("say", {"text": "a"}).line(), "result 0"]
    )
    assert found[0] == "rows 2"
    assert found[3].startswith("refused 6")
    assert "logits differ by 0.02" in read(found[3].split()[2])
    assert found[-1].startswith("answer")


def test_texts_become_tokens_and_back(folder: Path, export: Callable[..., Path]) -> None:
    bundle = export("onnx")
    with Session.open(bundle, threads=1) as session:
        text = "Naïve foxes <|end|> sleep 🦊 "
        ids = session.tokenizer.encode(text, opens=True, markup=False)
        back = session.tokenizer.decode(ids)
    lines = [f"encode {said(text)}", f"decode {','.join(map(str, ids))}"]
    found = answers(program(folder, bundle), lines)
    assert found == [f"ids {' '.join(map(str, ids))}", said(back)]


def test_bundles_without_tables_are_refused(
    folder: Path, export: Callable[..., Path], tmp_path: Path
) -> None:
    other = tmp_path / "other"
    shutil.copytree(export("onnx"), other)
    (other / "tokenizer.tables").unlink()
    sign_bundle(other)
    [found] = answers(program(folder, other), ["tasks"])
    assert "it has no tokenizer.tables; expected tables" in read(found.split()[2])
    path = other / "manifest.json"
    manifest = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(
        json.dumps({**manifest, "no_tokenizer_tables": "a strange rule"}), encoding="utf-8"
    )
    [found] = answers(program(folder, other), ["tasks"])
    assert "could not be written as tables (a strange rule)" in read(found.split()[2])


def test_where_memory_runs_out_requests_end_and_the_session_begins_anew(
    folder: Path, export: Callable[..., Path]
) -> None:
    asked = [
        Asked("say", {"text": "a fox " * 30}, options={"max_tokens": 6, "log_probs": 2}),
        Asked("tone", {"sentence": "a fox"}, "all"),
        Asked("copy", {"text": "a lazy fox", "question": "who"}, options={"max_tokens": 9}),
    ]
    with Session.open(export("onnx"), threads=1) as session:
        expected = [one.expected(session) for one in asked]
    lines, failed = [], 0
    for starved in range(60):
        lines += [one.line() for one in asked]
        lines += [f"step {starved % 4}"] if starved % 4 else []
        lines.append(f"starve {starved * 3}")
        lines += [f"result {3 * starved + place}" for place in range(3)]
    found = answers(program(folder, export("onnx"), "max_batch=2"), lines)
    for place, answer in results_of(found, lines).items():
        if answer.startswith("error 8") or answer.startswith("error 4"):
            failed += 1
        else:
            check(answer, expected[place % 3])
    assert failed > 30


def test_a_session_is_closed_while_a_thread_waits(
    folder: Path, export: Callable[..., Path]
) -> None:
    asked = Asked("say", {"text": "a fox"})
    found = answers(program(folder, export("onnx")), [asked.line(), "close"])
    assert found[1] in ("error 1 and is closed", "answer and is closed")


@pytest.mark.parametrize("build", [PLAIN, THREADS, SANITIZED], ids=["plain", "threads", "memory"])
def test_threads_share_a_session(
    folder: Path, export: Callable[..., Path], build: tuple[str, ...]
) -> None:
    bundle, more = export("onnx"), export("onnx", "more")
    lines = [one.line() for one in asked_of(3, 40)]
    lines = [*lines, *(f"result {place}" for place in range(40)), f"threads 2 {more}", "close"]
    found = answers(program(folder, bundle, "max_batch=4", build=build), lines)
    _, same, _, other = found[-2].split()
    assert (int(same) > 40, other) == (True, "0")


def test_a_fuzzer_of_requests_finds_nothing_in_a_few_seconds(
    export: Callable[..., Path], folder: Path, tmp_path: Path
) -> None:
    bundle = export("onnx")
    program = built(folder, "fuzz_requests.cc", *FUZZER)
    seeds = tmp_path / "seeds"
    seeds.mkdir()
    random = Random(1)
    for number in range(20):
        (seeds / str(number)).write_bytes(random.randbytes(300) + bytes([97 + number]) * 100)

    fuzz(program, seeds, PLC_BUNDLE=str(bundle))
