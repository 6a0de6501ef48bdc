import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save

from pl_compile.artifact.bundle import (
    Manifest,
    is_bundle,
    read_bundle,
    task_folder,
    write_manifest,
    write_task,
)
from pl_compile.artifact.file_sums import FileRecord
from pl_compile.artifact.prompt_table import BaseIdentity, TaskEntry
from pl_compile.artifact.selftest import check_selftest
from pl_compile.config.contract import GraphContract
from pl_compile.config.task import TaskConfig
from pl_compile.errors import ArtifactError
from pl_compile.text.render import SequenceRules

HIDDEN, VOCAB = 6, 11
MANIFEST = Manifest(
    base=BaseIdentity("tiny", "5eed" * 16, HIDDEN, VOCAB),
    target="onnx-cpu",
    graph=GraphContract(
        layers=2, kv_heads=3, head_dim=4, hidden=HIDDEN, vocab=VOCAB, capacity=17, prompts="input"
    ),
    tasks=("mood", "squad"),
    toolchain={"numpy": "2.0"},
    parity="passed",
)
MODEL = b"not really a graph"
# Two rows, three steps; of the ids, VOCAB and VOCAB + 1 are rows of the prompt.
SELFTEST = {
    "input_ids": np.asarray([[VOCAB, VOCAB + 1, 4, 0], [2, VOCAB, 5, 6]]),
    "lengths": np.asarray([3, 4]),
    "tokens": np.asarray([[1, 2], [3, 4], [5, 6]]),
    "logit_ids": np.asarray([0, 9]),
    "logits": np.zeros((3, 2, 2), np.float32),
}
COPY_AGAIN = "Copy the bundle again, or export it again."

Tamper = Callable[[Callable[[dict[str, Any]], None]], None]


def _entry(name: str, total: int) -> TaskEntry:
    rows = np.arange(total * HIDDEN, dtype=np.float32).reshape(total, HIDDEN)
    task = TaskConfig(name, "<|VIRTUAL_PROMPT_0|>{text} is {label}", total)
    return TaskEntry(task, rows, SequenceRules(None, 1), "p-tuning")


def _write(folder: Path) -> Path:
    (folder / "base").mkdir(parents=True)
    (folder / "base" / "model.onnx").write_bytes(MODEL)
    (folder / "tokenizer.json").write_text("{}", encoding="utf-8")
    (folder / "report.json").write_text("{}", encoding="utf-8")
    write_task(folder, _entry("mood", 3))
    write_task(folder, _entry("squad", 5))
    (task_folder(folder, "mood") / "selftest.safetensors").write_bytes(save(SELFTEST))
    (task_folder(folder, "mood") / "parity.json").write_text("{}", encoding="utf-8")
    write_manifest(folder, MANIFEST)
    return folder


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return _write(tmp_path / "bundle")


@pytest.fixture
def tamper(bundle: Path) -> Tamper:
    """Changes the manifest."""

    def change(edit: Callable[[dict[str, Any]], None]) -> None:
        path = bundle / "manifest.json"
        content = json.loads(path.read_text(encoding="utf-8"))
        edit(content)
        path.write_text(json.dumps(content), encoding="utf-8")

    return change


def refusal(bundle: Path) -> str:
    with pytest.raises(ArtifactError) as error:
        read_bundle(bundle)
    return str(error.value)


def _sum(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


# A good one


def test_a_bundle_comes_back_as_it_was_written(bundle: Path) -> None:
    opened = read_bundle(bundle)

    assert opened.base_folder == bundle / "base"
    assert {name: getattr(opened.manifest, name) for name in vars(MANIFEST)} == vars(MANIFEST)
    assert list(opened.entries) == ["mood", "squad"]
    for name, total in (("mood", 3), ("squad", 5)):
        expected = _entry(name, total)
        assert opened.entry(name).rows.tobytes() == expected.rows.tobytes()
        assert replace(opened.entry(name), rows=expected.rows) == expected


def test_every_file_but_the_manifest_is_in_it_with_sum_and_size(bundle: Path) -> None:
    files = read_bundle(bundle).files

    assert set(files) == {
        "base/model.onnx",
        "tokenizer.json",
        "tasks/mood/parity.json",
        "tasks/mood/task.json",
        "tasks/mood/prompt.safetensors",
        "tasks/mood/selftest.safetensors",
        "tasks/squad/task.json",
        "tasks/squad/prompt.safetensors",
    }
    assert files["base/model.onnx"] == FileRecord(_sum(MODEL), len(MODEL))


def test_the_vectors_of_a_self_test_are_found_where_there_are_some(bundle: Path) -> None:
    opened = read_bundle(bundle)

    found = opened.selftest("mood")
    assert {name: array.tolist() for name, array in found.items()} == {
        name: array.tolist() for name, array in SELFTEST.items()
    }
    assert opened.selftest("squad") == {}


def test_an_unknown_task_lists_the_known_ones(bundle: Path) -> None:
    with pytest.raises(ArtifactError) as error:
        read_bundle(bundle).entry("moody")

    assert str(error.value) == (
        f"looking into the bundle {bundle}: task 'moody' does not exist. "
        "Did you mean 'mood'? Known tasks: mood, squad."
    )


# Damaged files


def test_an_altered_byte_is_found_with_both_sums(bundle: Path) -> None:
    altered = MODEL.replace(b"really", b"Really")
    (bundle / "base" / "model.onnx").write_bytes(altered)

    assert refusal(bundle) == (
        f"opening the bundle {bundle}: base/model.onnx has sha256 {_sum(altered)}, "
        f"expected {_sum(MODEL)}. {COPY_AGAIN}"
    )


def test_a_file_that_was_cut_short_is_found_with_both_sizes(bundle: Path) -> None:
    (bundle / "base" / "model.onnx").write_bytes(MODEL[:-5])

    assert refusal(bundle) == (
        f"opening the bundle {bundle}: base/model.onnx has {len(MODEL) - 5} bytes, "
        f"expected {len(MODEL)}. {COPY_AGAIN}"
    )


def test_a_missing_file_is_named(bundle: Path) -> None:
    (bundle / "tokenizer.json").unlink()

    assert refusal(bundle) == (
        f"opening the bundle {bundle}: tokenizer.json is missing. {COPY_AGAIN}"
    )


def test_all_damaged_files_stand_in_one_message(bundle: Path) -> None:
    (bundle / "tokenizer.json").unlink()
    (bundle / "tasks/mood/parity.json").write_text("{ }")
    (bundle / "base" / "model.onnx").write_bytes(bytes(len(MODEL)))

    assert refusal(bundle).splitlines() == [
        f"opening the bundle {bundle}: 3 problems:",
        f"  - base/model.onnx has sha256 {_sum(bytes(len(MODEL)))}, expected {_sum(MODEL)}",
        "  - tasks/mood/parity.json has 3 bytes, expected 2",
        "  - tokenizer.json is missing.",
        COPY_AGAIN,
    ]


def test_names_and_sizes_are_compared_where_sums_are_not(bundle: Path) -> None:
    (bundle / "base" / "model.onnx").write_bytes(bytes(len(MODEL)))
    assert read_bundle(bundle, sums=False).entries

    (bundle / "base" / "model.onnx").write_bytes(b"")
    with pytest.raises(ArtifactError, match="has 0 bytes"):
        read_bundle(bundle, sums=False)


def test_a_folder_in_place_of_a_file_is_found(bundle: Path) -> None:
    (bundle / "tasks/mood/parity.json").unlink()
    (bundle / "tasks/mood/parity.json").mkdir()

    assert "tasks/mood/parity.json is missing" in refusal(bundle)


def test_a_file_in_place_of_a_folder_is_found(bundle: Path, tamper: Tamper) -> None:
    shutil.rmtree(bundle / "tasks")
    (bundle / "tasks").write_bytes(b"x")
    tamper(lambda m: m["files"].update({"tasks": {"sha256": _sum(b"x"), "size_bytes": 1}}))

    assert "is missing" in refusal(bundle)


def test_a_report_may_be_altered_or_gone_since_no_runtime_reads_it(bundle: Path) -> None:
    (bundle / "report.json").write_text("{ }")
    (bundle / "report.html").write_text("more")

    read_bundle(bundle)
    (bundle / "report.json").unlink()
    read_bundle(bundle)


# Ways out of the folder


def test_a_file_that_is_a_link_is_refused_even_with_the_right_bytes(
    bundle: Path, tmp_path: Path
) -> None:
    outside = tmp_path / "model.onnx"
    outside.write_bytes(MODEL)
    (bundle / "base" / "model.onnx").unlink()
    (bundle / "base" / "model.onnx").symlink_to(outside)

    text = refusal(bundle)

    assert text.startswith(f"opening the bundle {bundle}: base/model.onnx ")


def test_a_folder_that_is_a_link_is_refused_even_with_the_right_bytes(
    bundle: Path, tmp_path: Path
) -> None:
    outside = tmp_path / "outside"
    (bundle / "base").rename(outside)
    (bundle / "base").symlink_to(outside)

    text = refusal(bundle)

    assert "base" in text.removeprefix(f"opening the bundle {bundle}")


@pytest.mark.parametrize("outside", ["../secret", "base/../../secret", "base\\..\\..\\secret"])
def test_a_path_that_climbs_out_is_refused_alone(
    bundle: Path, tamper: Tamper, tmp_path: Path, outside: str
) -> None:
    (tmp_path / "secret").write_bytes(b"s")
    (bundle / "tokenizer.json").unlink()
    tamper(lambda m: m["files"].update({outside: {"sha256": _sum(b"s"), "size_bytes": 1}}))

    assert refusal(bundle) == (
        f"opening the bundle {bundle}: the path '{outside}' leaves the folder; "
        "expected paths inside the bundle. Do not use this bundle; export it again."
    )


def test_a_path_from_the_root_is_refused(bundle: Path, tamper: Tamper, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"s")
    tamper(lambda m: m["files"].update({str(secret): {"sha256": _sum(b"s"), "size_bytes": 1}}))

    assert f"the path '{secret}' leaves the folder" in refusal(bundle)


@pytest.mark.parametrize("name", ["../../outside", "/", "..", "mood/../mood", ""])
def test_a_task_whose_name_is_a_path_is_refused(bundle: Path, tamper: Tamper, name: str) -> None:
    tamper(lambda m: m["tasks"].append(name))

    assert refusal(bundle) == (
        f"reading task '{name}' of the bundle {bundle}: task.json is not in the manifest."
    )


# Manifests


def test_a_folder_without_a_manifest_is_no_bundle(tmp_path: Path) -> None:
    assert refusal(tmp_path) == (
        f"opening the bundle {tmp_path}: no manifest.json; expected a folder that 'plc export' "
        "wrote."
    )


@pytest.mark.parametrize("version", [2, 0, "1", None, 1.0, True])
def test_another_version_is_refused_with_both_numbers(
    bundle: Path, tamper: Tamper, version: object
) -> None:
    tamper(lambda m: m.update(version=version))

    assert refusal(bundle) == (
        f"opening the bundle {bundle}: version {version}; expected 1. "
        "Use the release of plc that wrote it, or a newer one."
    )


@pytest.mark.parametrize("text", ["{}", '{"format": "other", "version": 1}'])
def test_a_manifest_of_another_format_is_refused(bundle: Path, text: str) -> None:
    (bundle / "manifest.json").write_text(text, encoding="utf-8")

    assert refusal(bundle) == (
        f"opening the bundle {bundle}: manifest.json of another format; expected plc.bundle."
    )


@pytest.mark.parametrize(
    "data",
    [b"", b"{", b"\xff\xfe", b"[" * 100_000, b"[]", b"null"],
    ids=["empty", "cut short", "no UTF-8", "too deep", "an array", "null"],
)
def test_a_manifest_that_is_no_json_is_refused(bundle: Path, data: bytes) -> None:
    (bundle / "manifest.json").write_bytes(data)

    assert refusal(bundle).startswith(f"opening the bundle {bundle}, manifest.json: ")


def test_an_unknown_key_of_the_manifest_is_refused_with_the_near_one(
    bundle: Path, tamper: Tamper
) -> None:
    tamper(lambda m: m.update(parities="passed"))

    text = refusal(bundle)

    assert text.startswith(f"opening the bundle {bundle}: damaged manifest.json: ")
    assert "unknown key 'parities'. Did you mean 'parity'?" in text


@pytest.mark.parametrize(
    ("edit", "complaint"),
    [
        (lambda m: m.pop("files"), "'files' is missing"),
        (lambda m: m["graph"].pop("hidden"), "'graph.hidden' is missing"),
        (lambda m: m["graph"].update(layers="2"), "'graph.layers' is '2', expected a whole number"),
        (lambda m: m["graph"].update(prompts="x"), "'graph.prompts' is 'x', expected one of input"),
        (lambda m: m.update(tasks="mood"), "'tasks' is 'mood', expected a list"),
        (lambda m: m["graph"].update(hidden=7), "a graph of hidden 7, vocab 11; expected hidden 6"),
        (lambda m: m["graph"].update(vocab=9), "vocab 9; expected hidden 6, vocab 11, as its base"),
        (lambda m: m.update(parity="great"), "'parity' is 'great', expected one of passed, failed"),
        (lambda m: m.update(tasks=["mood", "mood"]), "task 'mood' is named twice"),
        (lambda m: m.update(tasks=[]), "no task is named"),
        (lambda m: m["toolchain"].update(numpy=2), "'toolchain.numpy' is 2, expected text"),
        (lambda m: m["graph"].update(layers=10**30), "expected a number of 64 bits at most"),
        (lambda m: m["graph"].update(layers=10**9), "layers 1000000000, expected 1 to 16384"),
        (lambda m: m["graph"].update(capacity=2**40), "capacity 1099511627776, expected 1 to"),
        (lambda m: m["graph"].update(ranks=10**15), "ranks 1000000000000000, exp"),
        (lambda m: m["graph"].update(ranks=300), "ranks 300; expected at most the 3 key and value"),
        (lambda m: m["graph"].update(ranks=2), "ranks 2, and 'base/rank0/model.onnx' is missing"),
        (lambda m: m["precision"].update(block=32), "block 32, method None, quantization none"),
        (
            lambda m: m["precision"].update(quantization="int4"),
            "block None, method None, quantization int4",
        ),
        (lambda m: m.update(files=[]), "'files' is a list of 0, expected a mapping"),
        (lambda m: m["files"].update(x=3), "'files.x' is 3, expected a mapping"),
        (
            lambda m: m["files"]["tokenizer.json"].update(size_bytes="2"),
            "'files.tokenizer.json.size_bytes' is '2', expected a whole number",
        ),
    ],
)
def test_a_damaged_manifest_is_refused_with_what_was_expected(
    bundle: Path, tamper: Tamper, edit: Callable[[dict[str, Any]], None], complaint: str
) -> None:
    tamper(edit)

    text = refusal(bundle)

    assert "manifest.json" in text
    assert complaint in text


def test_a_manifest_that_programs_read_differently_is_refused(bundle: Path) -> None:
    path = bundle / "manifest.json"
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace('"parity"', '"parity": "failed", "parity"'), encoding="utf-8")

    assert refusal(bundle).startswith(
        f"opening the bundle {bundle}, manifest.json: the key 'parity' is given twice: line "
    )


def test_a_manifest_without_end_is_not_read_to_it(bundle: Path) -> None:
    with (bundle / "manifest.json").open("r+b") as file:
        file.truncate(1 << 40)  # takes no room on the disk

    assert "manifest.json: more than 16 MiB, which no file of this kind has" in refusal(bundle)
    assert not is_bundle(bundle)


def test_a_value_of_a_million_letters_is_not_shown_whole(bundle: Path, tamper: Tamper) -> None:
    tamper(lambda m: m.update(parity="k" * 1_000_000))

    assert len(refusal(bundle)) < 8100


def test_graphs_of_ranks_that_the_manifest_does_not_count_are_refused(bundle: Path) -> None:
    (bundle / "base/rank0").mkdir()
    (bundle / "base/rank0/model.onnx").write_bytes(MODEL)
    write_manifest(bundle, MANIFEST)

    assert "'base/rank0/model.onnx' is one too many" in refusal(bundle)


# What is no file


@pytest.mark.parametrize("name", ["manifest.json", "base/model.onnx", "report.json", "new"])
def test_a_pipe_is_refused_and_not_waited_for(bundle: Path, name: str) -> None:
    (bundle / name).unlink(missing_ok=True)
    os.mkfifo(bundle / name)

    assert f"{name}" in (text := refusal(bundle))
    assert "a pipe, a device or a socket" in text
    assert not is_bundle(bundle) or name != "manifest.json"


@pytest.mark.parametrize("name", ["manifest.json", "tokenizer.json", "tasks/mood/task.json"])
def test_a_device_is_refused(bundle: Path, name: str) -> None:
    (bundle / name).unlink()
    (bundle / name).symlink_to("/dev/zero")

    assert name in refusal(bundle)


def test_a_link_that_the_manifest_does_not_list_is_refused(bundle: Path, tmp_path: Path) -> None:
    (bundle / "extra").symlink_to(tmp_path)

    assert refusal(bundle) == f"opening the bundle {bundle}: extra is a link. {COPY_AGAIN}"


def test_a_file_that_cannot_be_read_is_named(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Path.open

    def denied(path: Path, *arguments: Any, **keywords: Any) -> Any:
        if path.name == "model.onnx":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return real(path, *arguments, **keywords)

    monkeypatch.setattr(Path, "open", denied)

    assert refusal(bundle) == (
        f"opening the bundle {bundle}: base/model.onnx cannot be read (Permission denied). "
        f"{COPY_AGAIN}"
    )


def test_a_folder_that_cannot_be_listed_is_named(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.scandir

    def denied(path: Path) -> Any:
        if Path(path).name == "tasks":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", denied)

    assert "tasks/ cannot be read (Permission denied)" in refusal(bundle)


@pytest.mark.parametrize("file", ["tokenizer.json", "tasks/mood/selftest.safetensors"])
def test_a_file_that_the_manifest_does_not_list_is_not_trusted(
    bundle: Path, tamper: Tamper, file: str
) -> None:
    tamper(lambda m: m["files"].pop(file))
    (bundle / file).write_bytes(save({"input_ids": np.arange(9)}))

    with pytest.raises(ArtifactError) as error:
        read_bundle(bundle).selftest("mood")

    assert file in str(error.value)


# Tasks


def test_a_task_that_the_manifest_has_no_files_of_is_refused(bundle: Path, tamper: Tamper) -> None:
    tamper(lambda m: m["tasks"].append("topic"))

    assert refusal(bundle) == (
        f"reading task 'topic' of the bundle {bundle}: task.json is not in the manifest."
    )


def _rewrite(bundle: Path, file: str, data: bytes) -> None:
    """Changes a file and makes the manifest fit."""
    (bundle / file).write_bytes(data)
    write_manifest(bundle, MANIFEST)


@pytest.mark.parametrize("shape", [(3, HIDDEN + 1), (4, HIDDEN), (3 * HIDDEN,)])
def test_a_prompt_of_a_wrong_shape_is_refused_with_both(
    bundle: Path, shape: tuple[int, ...]
) -> None:
    prompt = np.zeros(shape, np.float32)
    _rewrite(bundle, "tasks/mood/prompt.safetensors", save({"prompt": prompt}))

    assert refusal(bundle) == (
        f"reading task 'mood' of the bundle {bundle}: rows of 'mood': float32 {shape}; "
        f"expected float32 (3, {HIDDEN})."
    )


def test_a_prompt_of_another_precision_is_refused(bundle: Path) -> None:
    prompt = np.zeros((3, HIDDEN), np.float64)
    _rewrite(bundle, "tasks/mood/prompt.safetensors", save({"prompt": prompt}))

    assert f"rows of 'mood': float64 (3, {HIDDEN}); expected float32" in refusal(bundle)


def test_a_prompt_under_another_name_is_refused(bundle: Path) -> None:
    prompt = np.zeros((3, HIDDEN), np.float32)
    _rewrite(bundle, "tasks/mood/prompt.safetensors", save({"rows": prompt}))

    text = refusal(bundle)

    assert text == (
        f"reading task 'mood' of the bundle {bundle}: tensors ['rows'] in prompt.safetensors; "
        "expected 'prompt' alone."
    )


def test_a_prompt_that_is_no_safetensors_is_refused(bundle: Path) -> None:
    _rewrite(bundle, "tasks/mood/prompt.safetensors", b"\x80\x04 a pickle would run code")

    text = refusal(bundle)

    assert "prompt.safetensors" in text
    assert "not safetensors: such a file begins with a length, which is too large here" in text


@pytest.mark.parametrize(
    "spec",
    [
        b"",
        b"[]",
        b"3",
        b"{}",
        b'{"task": 3, "bos_id": null, "eos_id": null, "method": "m"}',
        b'{"task": {"taskname": "mood"}, "bos_id": null, "eos_id": null, "method": "m"}',
    ],
)
def test_a_damaged_task_is_refused_by_name(bundle: Path, spec: bytes) -> None:
    _rewrite(bundle, "tasks/mood/task.json", spec)

    assert refusal(bundle).startswith(f"reading task 'mood' of the bundle {bundle}")
    assert "task.json" in refusal(bundle)


@pytest.mark.parametrize(("key", "value"), [("bos_id", "0"), ("eos_id", [1]), ("method", 3)])
def test_notes_of_a_task_of_a_wrong_type_are_refused(bundle: Path, key: str, value: object) -> None:
    spec = json.loads((bundle / "tasks/mood/task.json").read_text(encoding="utf-8"))
    _rewrite(bundle, "tasks/mood/task.json", json.dumps({**spec, key: value}).encode())

    assert key in refusal(bundle)


def test_a_task_in_the_folder_of_another_is_refused_with_both_names(bundle: Path) -> None:
    squad = (bundle / "tasks/squad/task.json").read_bytes()
    mood = (bundle / "tasks/mood/task.json").read_bytes()
    assert squad != mood
    _rewrite(bundle, "tasks/mood/task.json", mood.replace(b'"mood"', b'"muted"'))

    text = refusal(bundle)

    assert "'mood'" in text
    assert "'muted'" in text


def test_a_task_that_holds_half_of_a_surrogate_pair_is_refused(bundle: Path) -> None:
    text = (bundle / "tasks/mood/task.json").read_text(encoding="utf-8")
    _rewrite(bundle, "tasks/mood/task.json", text.replace(" is ", "\\ud800").encode())

    assert "task.json: " in (said := refusal(bundle))
    assert "half of a surrogate pair" in said


def test_a_template_that_cannot_be_parsed_is_refused(bundle: Path) -> None:
    text = (bundle / "tasks/mood/task.json").read_text(encoding="utf-8")
    _rewrite(bundle, "tasks/mood/task.json", text.replace("{text}", "{text").encode())

    assert refusal(bundle).startswith(
        f"reading task 'mood' of the bundle {bundle}: the template of task 'mood': "
    )


def test_virtual_tokens_that_no_cache_holds_are_refused(bundle: Path, tamper: Tamper) -> None:
    tamper(lambda m: m["graph"].update(capacity=6))

    assert refusal(bundle) == (
        f"reading task 'squad' of the bundle {bundle}: 5 virtual tokens, and a capacity of 6; "
        "expected room for a token and an answer after them."
    )


# Self-tests, whose sums are right


def test_vectors_of_a_prefix_start_after_it() -> None:
    prefix = np.zeros((2, 2, 3, 8, 4), np.float32)
    entry = replace(_entry("mood", 8), rows=np.zeros((0, HIDDEN), np.float32), prefix_kv=prefix)
    arrays: dict[str, Any] = {**SELFTEST, "input_ids": np.asarray([[1, 4, 3, 0], [2, 9, 5, 6]])}

    check_selftest(arrays, entry, MANIFEST.graph, "checking")
    with pytest.raises(ArtifactError, match="lengths of 3 to 4, expected 1 to 3"):
        check_selftest(arrays, entry, replace(MANIFEST.graph, capacity=13), "checking")
    with pytest.raises(ArtifactError, match="input_ids of 2 to 11, expected 0 to 10"):
        check_selftest({**arrays, "input_ids": arrays["input_ids"] + 2}, entry, MANIFEST.graph, "")


def _changed(name: str, place: tuple[int, ...], value: float) -> dict[str, Any]:
    array = SELFTEST[name].copy()
    array[place] = value
    return {name: array}


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (_changed("input_ids", (0, 0), VOCAB + 3), f"input_ids of 0 to {VOCAB + 3}, expected 0 to"),
        (_changed("input_ids", (1, 1), -1), f"input_ids of -1 to {VOCAB + 1}, expected 0 to"),
        (_changed("lengths", (0,), 0), "lengths of 0 to 4, expected 1 to 4"),
        (_changed("lengths", (1,), 5), "lengths of 3 to 5, expected 1 to 4"),
        (_changed("lengths", (1,), 1 << 62), "lengths of 3 to 4611686018427387904, expected 1 to"),
        (_changed("tokens", (2, 1), VOCAB), f"tokens of 1 to {VOCAB}, expected 0 to {VOCAB - 1}"),
        (_changed("logit_ids", (0,), -2), "logit_ids of -2 to 9, expected 0 to"),
        (_changed("logits", (0, 0, 0), np.nan), "logits that are not finite numbers"),
        (_changed("logits", (0, 0, 0), np.inf), "logits that are not finite numbers"),
        ({"input_ids": SELFTEST["input_ids"].astype(np.float64)}, "input_ids float64 [2, 4]"),
        ({"lengths": SELFTEST["lengths"].astype(np.int32)}, "lengths int32 [2]"),
        ({"logits": SELFTEST["logits"].astype(np.float16)}, "logits float16 [3, 2, 2]"),
        ({name: array[:0] for name, array in SELFTEST.items()}, "input_ids int64 [0, 4]"),
        ({"lengths": SELFTEST["lengths"][:1]}, "lengths int64 [1], expected int64 [rows]"),
        ({"tokens": SELFTEST["tokens"][:2]}, "logits float32 [3, 2, 2], expected float32 [steps"),
        ({"logit_ids": SELFTEST["logit_ids"][:, None]}, "logit_ids int64 [2, 1], expected int64 ["),
        ({"more": np.zeros(1)}, "tensors input_ids, lengths, logit_ids, logits, more, tokens, exp"),
        (
            {"tokens": np.zeros((513, 2), int), "logits": np.zeros((513, 2, 2), np.float32)},
            "2 rows of 513 steps, expected at most 1024",
        ),
        (
            {"tokens": np.zeros((15, 2), int), "logits": np.zeros((15, 2, 2), np.float32)},
            "lengths of 3 to 4, expected 1 to 3",  # 14 tokens follow, and 17 are the capacity
        ),
        (
            {"tokens": np.zeros((18, 2), int), "logits": np.zeros((18, 2, 2), np.float32)},
            "18 steps, expected at most 17, which the cache holds",
        ),
    ],
)
def test_vectors_that_cannot_be_run_are_refused(
    bundle: Path, change: dict[str, Any], complaint: str
) -> None:
    name = "tasks/mood/selftest.safetensors"
    _rewrite(bundle, name, save({**SELFTEST, **change}))

    with pytest.raises(ArtifactError) as error:
        read_bundle(bundle).selftest("mood")

    assert str(error.value).startswith(f"reading {bundle / name}: ")
    assert complaint in str(error.value)


@pytest.mark.parametrize("missing", list(SELFTEST))
def test_vectors_that_are_not_all_there_are_refused(bundle: Path, missing: str) -> None:
    kept = {name: array for name, array in SELFTEST.items() if name != missing}
    _rewrite(bundle, "tasks/mood/selftest.safetensors", save(kept))

    with pytest.raises(ArtifactError, match=f"expected .*{missing}"):
        read_bundle(bundle).selftest("mood")


@pytest.mark.parametrize("name", [".DS_Store", "base/desktop.ini", "tasks/mood/notes.txt"])
def test_a_file_that_another_program_left_is_to_be_moved(bundle: Path, name: str) -> None:
    (bundle / name).write_bytes(b"x")

    assert refusal(bundle).endswith(
        f"{name} is not in the manifest. Move elsewhere what the manifest does not name: another "
        "program may have put it there."
    )

    (bundle / "base" / "model.onnx").unlink()
    assert refusal(bundle).endswith(COPY_AGAIN)
