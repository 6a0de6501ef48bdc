"""Several bundles in one session, and tasks that come and go while it answers."""

import itertools
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pl_compile.artifact.files import sha256_of
from pl_compile.artifact.prompt_table import read_prompt_table
from pl_compile.config.build import BuildOptions
from pl_compile.driver.export import export_bundle
from pl_compile.driver.export_request import ExportRequest
from pl_compile.driver.tasks import rename_task
from pl_compile.errors import ArtifactError, FingerprintError, RequestError
from pl_compile.runtime import Request, Session
from pl_compile.runtime.engines.onnxruntime.engine import OnnxRuntimeEngine
from pl_compile.runtime.requests import Event
from pl_compile.testing import random_table, sign_bundle, write_tiny_base

ASK = Request("ask", {"question": "why?", "place": "a field"}, max_tokens=12, min_tokens=12)
TONE = Request("tone", {"sentence": "so cold"}, max_tokens=12, min_tokens=12, constrain=False)


def renamed(request: Request, task: str) -> Request:
    return Request(task, request.fields, max_tokens=12, min_tokens=12, constrain=request.constrain)


@pytest.fixture(scope="module")
def exported(tiny_bases: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Exports a table with other rows for each `seed`, its tasks renamed with a suffix."""
    root = tmp_path_factory.mktemp("more")

    def export(
        name: str, *, seed: int, suffix: str = "", base: Path | None = None, **how: Any
    ) -> Path:
        if (root / name).exists():
            return root / name / "bundle"
        base = base or tiny_bases["llama"]
        path = random_table(base, root / name / "table.safetensors", seed=seed)
        for task in list(read_prompt_table(path).entries) if suffix else ():
            rename_task(path, task, f"{task}{suffix}")
        options = {"capacity": 80, "fold": "always", "measure_parity": False, **how}
        export_bundle(ExportRequest(path, base, root / name / "bundle", **options))
        return root / name / "bundle"

    return export


@pytest.fixture(scope="module")
def blocks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base that the kernels of `native-cpu` take."""
    return write_tiny_base(tmp_path_factory.mktemp("blocks") / "base", "llama", blocks=True)


@pytest.fixture(scope="module")
def first(exported: Callable[..., Path]) -> Path:
    return exported("first", seed=1)


@pytest.fixture(scope="module")
def second(exported: Callable[..., Path]) -> Path:
    return exported("second", seed=2, suffix="-2")


def test_bundles_of_one_base_are_served_by_one_engine(
    first: Path, second: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Any] = []
    begin = OnnxRuntimeEngine.__init__

    def noted(self: Any, *arguments: Any, **more: Any) -> None:
        made.append(self)
        begin(self, *arguments, **more)

    alone = [
        *Session.open(first).generate([ASK, TONE]),
        *Session.open(second).generate([renamed(ASK, "ask-2"), renamed(TONE, "tone-2")]),
    ]
    monkeypatch.setattr(OnnxRuntimeEngine, "__init__", noted)

    session = Session.open(first, second)

    requests = [ASK, TONE, renamed(ASK, "ask-2"), renamed(TONE, "tone-2")]
    assert list(session.tasks) == ["tone", "ask", "tone-2", "ask-2"]
    assert session.generate(requests) == alone
    assert len({result.token_ids for result in alone}) == 4
    assert len(made) == 1


def test_two_tasks_of_one_name_are_refused(first: Path, exported: Callable[..., Path]) -> None:
    other = exported("clash", seed=3)

    with pytest.raises(RequestError) as refused:
        Session.open(first, other)

    assert str(refused.value) == (
        f"opening the bundle {other}: 'tone', 'ask': a task of this name is served already; "
        "expected tasks of other names. Remove the one that is served first, or rename one and "
        "export it again."
    )


def test_another_base_is_refused_by_what_differs(
    first: Path, exported: Callable[..., Path], tmp_path: Path
) -> None:
    base = write_tiny_base(tmp_path / "base", "llama", seed=9)
    others = {
        "the base's fingerprint": exported("base", seed=2, suffix="-2", base=base),
        "capacity: 64; expected 80": exported("capacity", seed=2, suffix="-2", capacity=64),
        "prompts: baked; expected input": exported("baked", seed=2, suffix="-2", prompts="baked"),
    }
    session = Session.open(first)

    for said, other in others.items():
        with pytest.raises(FingerprintError, match=said):
            Session.open(first, other)
        with pytest.raises(FingerprintError, match=said):
            session.add_tasks(other)
    assert list(session.tasks) == ["tone", "ask"]


def test_baked_bundles_are_served_alone(exported: Callable[..., Path], tmp_path: Path) -> None:
    baked = exported("baked", seed=2, suffix="-2", prompts="baked")
    session = Session.open(baked)
    session.remove_task("tone-2")

    with pytest.raises(FingerprintError, match="a graph that holds the prompts of its own tasks"):
        session.add_tasks(baked, ["tone-2"])


def test_another_base_file_or_tokenizer_is_refused(
    first: Path, second: Path, tmp_path: Path
) -> None:
    session = Session.open(first)
    for name, said in (("base/model.onnx", "the files in base/"), ("tokenizer.json", "tokenizer")):
        other = tmp_path / name.replace("/", "-")
        shutil.copytree(second, other)
        path = other / name
        path.write_bytes(path.read_bytes() + b" ")
        sign_bundle(other)

        with pytest.raises(FingerprintError, match=said):
            session.add_tasks(other)


def test_a_task_that_comes_anew_has_its_new_content(
    first: Path, exported: Callable[..., Path], tmp_path: Path
) -> None:
    """The bundle was exported again in its place."""
    place = tmp_path / "bundle"
    shutil.copytree(first, place)
    session = Session.open(place)
    old = session.generate([TONE])
    new = exported("new", seed=7)
    shutil.rmtree(place)
    shutil.copytree(new, place)

    with pytest.raises(RequestError, match="'tone': a task of this name is served already"):
        session.add_tasks(place, ["tone"])
    session.remove_task("tone")
    with pytest.raises(RequestError, match="task 'tone' does not exist"):
        session.generate([TONE])
    assert session.add_tasks(place, ["tone"]) == ("tone",)

    assert session.generate([TONE]) == Session.open(new).generate([TONE])
    assert session.generate([TONE]) != old
    assert session.generate([ASK]) == Session.open(first).generate([ASK])


def test_requests_of_a_removed_task_end_normally(first: Path, second: Path) -> None:
    session = Session.open(first, second, max_batch=1)
    expected = session.generate([ASK, TONE])
    events = session.stream([ASK, TONE])  # one runs, one waits
    seen = [next(events)]

    session.remove_task("tone")
    session.remove_task("ask")

    seen += events
    results = {event.index: event.result for event in seen if event.result is not None}
    assert [results[0], results[1]] == expected
    assert list(session.tasks) == ["tone-2", "ask-2"]
    with pytest.raises(RequestError, match="task 'tone' does not exist"):
        session.remove_task("tone")


def test_a_damaged_task_is_refused_and_the_others_serve(
    first: Path, second: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    shutil.copytree(second, other)
    path = other / "tasks/tone-2/folded_kv.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    session = Session.open(first)
    expected = session.generate([ASK, TONE])

    with pytest.raises(ArtifactError, match=r"tasks/tone-2/folded_kv\.safetensors has sha256"):
        session.add_tasks(other)
    with pytest.raises(ArtifactError, match="task 'nobody' does not exist"):
        session.add_tasks(second, ["ask-2", "nobody"])

    assert list(session.tasks) == ["tone", "ask"]
    assert session.generate([ASK, TONE]) == expected


@pytest.mark.parametrize(
    ("tasks", "read", "not_read"),
    [
        ((), "tasks/tone-2/prompt.safetensors", ("base/",)),
        (("ask-2",), "tasks/ask-2/folded_kv.safetensors", ("base/", "tasks/tone-2/")),
    ],
)
def test_files_of_the_base_and_of_other_tasks_are_not_read(
    first: Path,
    second: Path,
    monkeypatch: pytest.MonkeyPatch,
    tasks: tuple[str, ...],
    read: str,
    not_read: tuple[str, ...],
) -> None:
    """A base may be many gigabytes, a bundle may have a thousand tasks: manifests have the sums."""
    seen: list[str] = []

    def noted(path: Path) -> str:
        seen.append(path.relative_to(second).as_posix())
        return sha256_of(path)

    session = Session.open(first)
    monkeypatch.setattr("pl_compile.artifact.file_sums.sha256_of", noted)
    session.add_tasks(second, tasks)

    assert read in seen
    assert not [name for name in seen if name.startswith(not_read)]


def test_a_damaged_task_does_not_keep_another_one_out(
    first: Path, second: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    shutil.copytree(second, other)
    path = other / "tasks/tone-2/task.json"
    path.write_bytes(path.read_bytes().replace(b"tone", b"gone"))
    session = Session.open(first)

    assert session.add_tasks(other, ["ask-2"]) == ("ask-2",)
    with pytest.raises(ArtifactError, match=r"tasks/tone-2/task\.json has sha256"):
        session.add_tasks(other, ["tone-2"])

    request = renamed(ASK, "ask-2")
    assert session.generate([request]) == Session.open(second).generate([request])


@pytest.mark.parametrize("target", ["onnx-cpu", "native-cpu"])
@settings(max_examples=10, deadline=None)
@given(steps=st.lists(st.tuples(st.sampled_from(["add", "remove"]), st.integers(0, 9))))
def test_no_answer_depends_on_tasks_that_come_and_go(
    target: str, steps: list[tuple[str, int]], exported: Callable[..., Path], blocks: Path
) -> None:
    how = {"target": target, "options": BuildOptions("none"), "base": blocks}
    one = exported(f"one-{target}", seed=1, **how)
    two = exported(f"two-{target}", seed=2, suffix="-2", **how)
    requests = [ASK, TONE, ASK]
    with Session.open(one, max_batch=2) as session:
        expected = session.generate(requests)
        events = session.stream(requests)
        seen: list[Event] = []
        for step, count in steps:
            seen += itertools.islice(events, count)
            if step == "add" and "ask-2" not in session.tasks:
                session.add_tasks(two, ["ask-2"])
            elif step == "remove" and "ask-2" in session.tasks:
                session.remove_task("ask-2")
        seen += events

    results = {event.index: event.result for event in seen if event.result is not None}
    assert [results[index] for index in range(3)] == expected


def test_tasks_come_and_go_while_threads_ask(first: Path, second: Path) -> None:
    session = Session.open(first, max_batch=2)
    expected = session.generate([ASK])
    over, answers, errors = threading.Event(), [], []

    def ask() -> None:
        try:
            while not over.is_set():
                answers.append(session.generate([ASK]))
        except RequestError as error:
            errors.append(error)

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    for _ in range(5):
        session.add_tasks(second)
        session.generate([renamed(TONE, "tone-2")])
        session.remove_task("tone-2")
        session.remove_task("ask-2")
    over.set()
    for thread in threads:
        thread.join()

    assert errors == []
    assert len(answers) >= 2
    assert all(answer == expected for answer in answers)


def test_sessions_that_cannot_take_tasks_say_so(first: Path, second: Path, tmp_path: Path) -> None:
    closed = Session.open(first)
    closed.close()
    opened = Session.open(first)
    plain = Session(opened.tokenizer, opened.tasks, opened.engine)

    with pytest.raises(RequestError, match="one that was closed"):
        closed.add_tasks(second)
    with pytest.raises(RequestError, match="one that was closed"):
        closed.remove_task("tone")
    with pytest.raises(RequestError, match=r"a session without a bundle; expected Session\.open"):
        plain.add_tasks(second)
    with pytest.raises(RequestError, match="bundle 3, expected a path"):
        Session.open(first, 3)  # type: ignore[arg-type]
    with pytest.raises(ArtifactError, match="there is no such folder"):
        Session.open(first, tmp_path / "nothing")
