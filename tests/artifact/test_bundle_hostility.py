import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save

from pl_compile.artifact.bundle import (
    FileRecord,
    Manifest,
    read_bundle,
    task_folder,
    write_manifest,
    write_task,
)
from pl_compile.artifact.prompt_table import BaseIdentity, TaskEntry
from pl_compile.config.contract import GraphContract
from pl_compile.config.task import TaskConfig
from pl_compile.errors import ArtifactError

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
    return TaskEntry(task, rows, None, 1, "p-tuning")


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


def test_a_folder_in_place_of_a_file_is_found(bundle: Path) -> None:
    (bundle / "tasks/mood/parity.json").unlink()
    (bundle / "tasks/mood/parity.json").mkdir()

    assert "tasks/mood/parity.json is missing" in refusal(bundle)


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


@pytest.mark.parametrize("version", [2, 0, "1", None])
def test_another_version_is_refused_with_both_numbers(
    bundle: Path, tamper: Tamper, version: object
) -> None:
    tamper(lambda m: m.update(version=version))

    assert refusal(bundle) == (
        f"opening the bundle {bundle}: version {version}; expected 1. "
        "Use the release of plc that wrote it, or a newer one."
    )


@pytest.mark.parametrize("text", ["[]", "{}", '{"format": "other", "version": 1}', "null"])
def test_a_manifest_of_another_format_is_refused(bundle: Path, text: str) -> None:
    (bundle / "manifest.json").write_text(text, encoding="utf-8")

    assert refusal(bundle) == (
        f"opening the bundle {bundle}: manifest.json of another format; expected plc.bundle."
    )


@pytest.mark.parametrize(
    "data",
    [b"", b"{", b"\xff\xfe", b"[" * 100_000],
    ids=["empty", "cut short", "no UTF-8", "too deep"],
)
def test_a_manifest_that_is_no_json_is_refused(bundle: Path, data: bytes) -> None:
    (bundle / "manifest.json").write_bytes(data)

    assert refusal(bundle).startswith(f"opening the bundle {bundle}: manifest.json: ")


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
    assert "deserializing header" in text


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

    assert refusal(bundle).startswith(f"reading task 'mood' of the bundle {bundle}: damaged")


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
