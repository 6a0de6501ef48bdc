"""The check of a GPU, without one: its parts on stand-ins, and what it makes of parts that fail."""

import json
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Any

import pytest

HOME = Path(__file__).parents[2]


@pytest.fixture
def gpu_check(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script as a module."""
    monkeypatch.syspath_prepend(str(HOME / "benchmarks"))
    import gpu_check

    return gpu_check


def test_every_part_is_tried_here(gpu_check: ModuleType) -> None:
    (mark,) = (
        mark
        for mark in test_a_part_passes_on_its_stand_ins.pytestmark  # type: ignore[attr-defined]
        if mark.name == "parametrize"
    )

    assert mark.args[1] == [part.name for part in gpu_check.PARTS]


def lines_of(output: Path) -> list[dict[str, Any]]:
    text = (output / "results.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "part",
    [
        "machine",
        "train",
        "large",
        "onnx-float32",
        "onnx-float16",
        "onnx-int4",
        "peft",
        "cuda",
        "nccl",
        "tensorrt-float32",
        "tensorrt-float16",
    ],
)
def test_a_part_passes_on_its_stand_ins(tmp_path: Path, part: str) -> None:
    script = HOME / "benchmarks" / "gpu_check.py"
    command = [sys.executable, str(script), "--stand-ins", "--output", str(tmp_path)]

    done = subprocess.run(
        [*command, "--parts", part, "--seconds", "800", "--limit", "850"],
        capture_output=True,
        text=True,
    )

    *results, end = lines_of(tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert end["ended"] == "done" or (part.startswith("tensorrt") and end["ended"] == "missing")
    assert all(result.get("ok") is not False for result in results)
    assert len(results) > 1 or end["ended"] == "missing"
    assert "No GPU: all results are of stand-ins" in done.stdout
    assert f"| {part} | {end['ended']} |" in (tmp_path / "table.md").read_text(encoding="utf-8")


PARTS = {
    "well": "report.figure('speed', 2.5)\n    report.expect('sum', 3, '3', True)",
    "wrong": "report.at_most('difference', float('nan'), 0.1)",
    "broken": "report.figure('before', 1)\n    raise ValueError('no\\nsense')",
    "lacking": "import nothing_of_that_name",
    "mistaken": "from json import nothing_of_that_name",
    "killed": "import os, signal\n    os.kill(os.getpid(), signal.SIGSEGV)",
    "hanging": "report.figure('begun', 1)\n    import time\n    time.sleep(600)",
    "talking": "print('not JSON')\n    report.figure('said', 1)",
}


def run(
    gpu_check: ModuleType,
    folder: Path,
    *names: str,
    code_of: Mapping[str, str] = MappingProxyType({}),
    **options: Any,
) -> list[dict[str, Any]]:
    """Runs parts of `PARTS`, and others that are given, as the script runs its own."""
    import gpu_parts

    package = folder / "made" / "gpu_parts"
    package.mkdir(parents=True, exist_ok=True)
    own = Path(str(gpu_parts.__file__)).parent
    for name in ("__init__", "__main__", "report"):
        text = (own / f"{name}.py").read_text(encoding="utf-8")
        (package / f"{name}.py").write_text(text, encoding="utf-8")
    for name in names:
        code = f"def run(report, job):\n    {code_of.get(name, PARTS.get(name))}\n"
        (package / f"{name}.py").write_text(code, encoding="utf-8")
    parts = [gpu_check.Part(name, 12 if name == "hanging" else 60, "it") for name in names]
    options = {"limit": 300, "gpu": False, "search": [folder / "made"], **options}
    passed = gpu_check.check(folder / "out", parts=parts, **options)
    found = lines_of(folder / "out")
    assert passed == all(
        line.get("ended", "done") in ("done", "missing") and line.get("ok") is not False
        for line in found
    )
    return found


def test_a_part_that_goes_wrong_says_so_in_a_line_and_the_next_one_runs(
    gpu_check: ModuleType, tmp_path: Path
) -> None:
    found = run(gpu_check, tmp_path, *PARTS)

    ends = {line["part"]: line for line in found if "ended" in line}
    assert {name: end["ended"] for name, end in ends.items()} == {
        "well": "done",
        "wrong": "done",
        "broken": "failed",
        "lacking": "missing",
        "mistaken": "failed",
        "killed": "failed",
        "hanging": "out of time",
        "talking": "done",
    }
    assert ends["broken"]["why"] == "ValueError: no sense"
    assert "nothing_of_that_name" in ends["lacking"]["why"]
    assert "signal SIGSEGV, nothing was shown before" in ends["killed"]["why"]
    assert ends["hanging"]["why"] == "its limit of 12 s, after: begun"
    results = {line["name"]: line for line in found if "name" in line}
    assert list(results) == ["speed", "sum", "difference", "before", "begun", "said"]
    assert results["difference"]["ok"] is False  # NaN is at most nothing
    table = (tmp_path / "out" / "table.md").read_text(encoding="utf-8")
    assert "| wrong | difference | nan | at most 0.1 | **not** |" in table
    assert "not JSON" in (tmp_path / "out" / "log.txt").read_text(encoding="utf-8")


def test_another_call_goes_on_where_the_last_one_ended(
    gpu_check: ModuleType, tmp_path: Path
) -> None:
    run(gpu_check, tmp_path, "well", "broken")
    path = tmp_path / "out" / "results.jsonl"
    with path.open("a", encoding="utf-8") as file:
        file.write('{"part": "well", "na')  # of a machine that was taken away
    before = len(gpu_check.Record(path).lines)
    gpu_check.check(
        tmp_path / "out",
        parts=[gpu_check.Part(name, 60, "it") for name in ("well", "broken")],
        limit=300,
        gpu=False,
        search=[tmp_path / "made"],
    )

    record = gpu_check.Record(path)
    assert {line["part"] for line in record.lines[before:]} == {"broken"}
    assert [line["part"] for line in record.latest("cpu")] == ["well"] * 3 + ["broken"] * 2
    assert record.latest("cuda") == []  # results of stand-ins do not count for a GPU
    assert record.ended("well", "cuda") == ""


def test_no_time_left_is_said_of_each_part_that_does_not_run(
    gpu_check: ModuleType, tmp_path: Path
) -> None:
    found = run(gpu_check, tmp_path, "well", "wrong", limit=5)

    assert [line["ended"] for line in found] == ["out of time"] * 2
    assert found[0]["why"] == "the limit of 5 s for all"


def test_a_part_ends_with_the_call_that_started_it(
    gpu_check: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[subprocess.Popen[bytes]] = []

    def interrupted(process: subprocess.Popen[bytes], *rest: Any) -> None:
        started.append(process)
        raise KeyboardInterrupt

    monkeypatch.setattr(gpu_check, "_read", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(gpu_check, tmp_path, "hanging")

    with started[0] as process:
        assert process.wait(20) == -signal.SIGKILL


def test_wheels_that_are_not_there_are_a_line_and_parts_run_without_them(
    gpu_check: ModuleType, tmp_path: Path
) -> None:
    (tmp_path / "wheels").mkdir()

    found = run(gpu_check, tmp_path, "well", wheels=tmp_path / "wheels")

    assert found[0]["part"] == "wheels"
    assert found[0]["why"].endswith("are not used: " + f"{tmp_path / 'wheels'}: no wheels there")
    assert found[-1]["ended"] == "done"


def test_a_wheel_in_pieces_is_put_together_and_used(gpu_check: ModuleType, tmp_path: Path) -> None:
    wheel = tmp_path / "brought-1.0-py3-none-any.whl"
    write_wheel(wheel, "brought")
    data = wheel.read_bytes()
    for number in range(3):
        folder = tmp_path / "wheels" / f"part{number}"
        folder.mkdir(parents=True)
        third = -(-len(data) // 3)
        piece = data[number * third : (number + 1) * third]
        (folder / f"{wheel.name}.{number:02}").write_bytes(piece)
    using = "import brought\n    report.figure('brought', brought.VALUE)"

    found = run(gpu_check, tmp_path, "using", code_of={"using": using}, wheels=tmp_path / "wheels")

    assert found[0]["why"] == f"{tmp_path / 'wheels'} are used"
    assert found[1]["value"] == 7


def write_wheel(path: Path, name: str) -> None:
    """A wheel with one module, which has a VALUE of 7."""
    import zipfile

    info = f"{name}-1.0.dist-info"
    files = {
        f"{name}.py": "VALUE = 7\n",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\n"
        "Tag: py3-none-any\n",
    }
    files[f"{info}/RECORD"] = "".join(f"{each},,\n" for each in [*files, f"{info}/RECORD"])
    with zipfile.ZipFile(path, "w") as archive:
        for each, text in files.items():
            archive.writestr(each, text)


def test_copies_to_the_host_are_counted_in_a_trace(gpu_check: ModuleType) -> None:
    from gpu_parts.train import bytes_to_host

    events: list[dict[str, Any]] = [
        {"cat": "gpu_memcpy", "name": "Memcpy DtoH (Device -> Pageable)", "args": {"bytes": 24}},
        {"cat": "gpu_memcpy", "name": "Memcpy HtoD (Pageable -> Device)", "args": {"bytes": 99}},
        {"cat": "kernel", "name": "DtoH"},
        {"cat": "gpu_memcpy", "name": "Memcpy DtoH (Device -> Pinned)", "args": {"bytes": 8}},
        {"name": "process_name", "args": {"name": "python"}},
    ]

    assert bytes_to_host(events) == 32
