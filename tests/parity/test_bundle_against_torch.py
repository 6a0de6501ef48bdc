"""The same weights through transformers and through the bundle: logits and greedy tokens agree."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pl_compile.artifact.bundle import read_bundle
from pl_compile.artifact.prompt_table import read_prompt_table, write_prompt_table
from pl_compile.config.contract import PromptsMode
from pl_compile.driver.export import export_bundle
from pl_compile.driver.export_request import ExportRequest
from pl_compile.driver.verify import verify_bundle
from pl_compile.errors import FingerprintError
from pl_compile.families.registry import FAMILIES
from pl_compile.runtime import Request, Session
from pl_compile.runtime.engines.onnxruntime.engine import OnnxRuntimeEngine
from pl_compile.runtime.engines.padded import Step
from pl_compile.runtime.served_task import ServedTask
from pl_compile.runtime.stepping import Batch
from pl_compile.testing import assert_close, random_table, write_tiny_base
from pl_compile.text.tokenizer import Tokenizer
from pl_compile.training.base_model import FrozenBase
from pl_compile.training.reference import TorchEngine


@pytest.mark.parametrize("prompts", ["input", "baked"])
@pytest.mark.parametrize("family", FAMILIES)
def test_export_agrees_with_torch(
    tiny_bases: dict[str, Path], tmp_path: Path, family: str, prompts: str
) -> None:
    base = tiny_bases[family]
    table = random_table(base, tmp_path / "table.safetensors", prefix=True)

    result = export_bundle(
        ExportRequest(table, base, tmp_path / "bundle", prompts=prompts)  # type: ignore[arg-type]
    )

    assert result.verdict == "passed"
    assert [parity.task for parity in result.parity] == ["tone", "ask", "order"]
    for parity in result.parity:
        assert parity.relative_difference < 1e-5
        assert parity.equal_tokens == parity.rows * parity.steps == 2 * 17


def test_an_untied_head_agrees_with_torch(tmp_path: Path) -> None:
    base = write_tiny_base(tmp_path / "base", "llama", tied=False)
    table = random_table(base, tmp_path / "table.safetensors")

    result = export_bundle(ExportRequest(table, base, tmp_path / "bundle"))

    assert result.verdict == "passed"


def test_verify_compares_with_torch_on_other_words(
    tiny_bases: dict[str, Path], tmp_path: Path
) -> None:
    base = tiny_bases["llama"]
    table = random_table(base, tmp_path / "table.safetensors", prefix=True)
    export_bundle(ExportRequest(table, base, tmp_path / "bundle"))

    result = verify_bundle(tmp_path / "bundle", base)

    assert result.passed
    assert [len(result.selftests), len(result.parity)] == [3, 3]


def test_verify_refuses_another_base(tiny_bases: dict[str, Path], tmp_path: Path) -> None:
    base = tiny_bases["llama"]
    table = random_table(base, tmp_path / "table.safetensors")
    export_bundle(ExportRequest(table, base, tmp_path / "bundle"))
    other = write_tiny_base(tmp_path / "other", "llama", seed=5)
    fingerprint = read_bundle(tmp_path / "bundle").manifest.base.fingerprint

    with pytest.raises(FingerprintError) as caught:
        verify_bundle(tmp_path / "bundle", other)

    assert fingerprint in str(caught.value)


def test_a_wrong_prompt_row_fails_the_comparison(
    tiny_bases: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = tiny_bases["llama"]
    table = random_table(base, tmp_path / "table.safetensors")
    step = OnnxRuntimeEngine.step

    def off_by_one_row(self: OnnxRuntimeEngine, given: Step) -> Any:
        ids, vocab = given.input_ids, self.vocab
        shifted = np.where(ids >= vocab, vocab + (ids - vocab + 1) % 3, ids)
        return step(self, replace(given, input_ids=shifted))

    monkeypatch.setattr(OnnxRuntimeEngine, "step", off_by_one_row)

    result = export_bundle(ExportRequest(table, base, tmp_path / "bundle"))

    assert result.verdict == "failed"
    assert read_bundle(tmp_path / "bundle").manifest.parity == "failed"


@pytest.mark.parametrize("prompts", ["input", "baked"])
def test_a_bundle_of_prefixes_alone_agrees_with_torch(
    tiny_bases: dict[str, Path], tmp_path: Path, prompts: PromptsMode
) -> None:
    base = tiny_bases["llama"]
    table = random_table(base, tmp_path / "table.safetensors", prefix=True)

    result = export_bundle(
        ExportRequest(table, base, tmp_path / "bundle", tasks=("order",), prompts=prompts)
    )

    assert result.verdict == "passed"
    assert [parity.task for parity in result.parity] == ["order"]
    report = json.loads((tmp_path / "bundle" / "report.json").read_text())
    assert [task["prompt_bytes"] for task in report["tasks"]] == [2 * 2 * 2 * 4 * 8 * 4]


def test_a_prefix_at_the_wrong_place_fails_the_comparison(
    tiny_bases: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = tiny_bases["llama"]
    table = random_table(base, tmp_path / "table.safetensors", prefix=True)
    admit = OnnxRuntimeEngine.admit

    def turned(self: OnnxRuntimeEngine, row: int, prompt: ServedTask) -> int:
        if prompt.prefix_kv is not None:
            prompt = replace(prompt, prefix_kv=np.roll(prompt.prefix_kv, 1, 2))
        return admit(self, row, prompt)

    monkeypatch.setattr(OnnxRuntimeEngine, "admit", turned)

    result = export_bundle(ExportRequest(table, base, tmp_path / "bundle"))

    assert [parity.passed for parity in result.parity] == [True, True, False]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_prefix_that_tokens_would_make_acts_like_these_tokens(
    tiny_bases: dict[str, Path], tmp_path: Path, family: str
) -> None:
    base = FrozenBase(tiny_bases[family])
    table = random_table(tiny_bases[family], tmp_path / "table.safetensors", prefix=True)
    export_bundle(
        ExportRequest(table, tiny_bases[family], tmp_path / "bundle", measure_parity=False)
    )
    bundle = read_bundle(tmp_path / "bundle")
    engine = OnnxRuntimeEngine(bundle.base_folder / "model.onnx", bundle.manifest.graph)
    order = Session.open(tmp_path / "bundle").tasks["order"]
    ids = np.random.default_rng(0).integers(0, 390, 13)
    with torch.no_grad():
        layers = base.model(torch.from_numpy(ids[None, :4]), use_cache=True).cache.layers
    made = torch.stack([torch.stack([layer.keys[0], layer.values[0]]) for layer in layers])

    for each in (engine, TorchEngine(base)):
        batch = Batch(each)
        batch.admit(0, order.without_prefix())
        whole = batch.feed({0: ids})[0].logits.copy()
        batch.admit(1, replace(order, prefix_kv=made.numpy()))
        after = batch.feed({1: ids[4:]})[1].logits

        assert_close(after, whole, relative=1e-5)


def test_a_long_row_and_a_long_prefix_are_compared_in_a_tight_cache(
    tiny_bases: dict[str, Path], tmp_path: Path
) -> None:
    base = tiny_bases["gpt2"]
    path = random_table(base, tmp_path / "table.safetensors", prefix=True)
    table = read_prompt_table(path)
    order = table.entry("order")
    assert order.prefix_kv is not None
    longer = replace(
        order,
        task=replace(order.task, total_virtual_tokens=28),
        prefix_kv=np.tile(order.prefix_kv, (1, 1, 1, 7, 1)),
    )
    write_prompt_table(replace(table, entries={**table.entries, "order": longer}), path)

    result = export_bundle(ExportRequest(path, base, tmp_path / "bundle", capacity=60))

    assert result.verdict == "passed"


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_base_that_is_loaded_already_can_answer(
    tiny_bases: dict[str, Path], tmp_path: Path, precision: str
) -> None:
    base = tiny_bases["llama"]
    table = read_prompt_table(random_table(base, tmp_path / "table.safetensors", prefix=True))
    engine = TorchEngine(FrozenBase(base, precision))
    session = Session.of_entries(Tokenizer.from_folder(base), table.entries, engine)
    requests = [
        Request("order", {"request": "lights off"}, max_tokens=6),
        Request("tone", {"sentence": "cold"}),
    ]

    order, tone = session.generate(requests)

    prompt = session.tasks["order"]
    batch = Batch(engine)
    batch.admit(0, prompt)
    assert batch.feed({0: np.ones(1, int)})[0].logits.dtype == np.float32
    assert order.token_ids
    assert tone.text in ("positive", "negative", "neutral")


@pytest.mark.parametrize("family", FAMILIES)
def test_a_mixed_batch_answers_like_torch_one_by_one(
    tiny_bases: dict[str, Path], tmp_path: Path, family: str
) -> None:
    base = tiny_bases[family]
    table = random_table(base, tmp_path / "table.safetensors", prefix=True)
    export_bundle(ExportRequest(table, base, tmp_path / "bundle", measure_parity=False))
    session = Session.open(tmp_path / "bundle")
    entries = read_bundle(tmp_path / "bundle").entries
    alone = Session.of_entries(Tokenizer.from_folder(base), entries, TorchEngine(base, capacity=96))
    requests = [
        Request("ask", {"question": "who was there at all?", "place": "a café"}, max_tokens=9),
        Request("tone", {"sentence": "the year was cold"}, max_tokens=12, constrain=False),
        Request("order", {"request": "lights off in the kitchen"}, max_tokens=11),
        Request("ask", {"question": "why?", "place": "b"}, max_tokens=20),
        Request("tone", {"sentence": "a"}, max_tokens=3, constrain=False, use_prompt=False),
        Request("order", {"request": "off"}, max_tokens=14),
        Request("order", {"request": "off"}, max_tokens=14, use_prompt=False),
    ]

    together = session.generate(requests)

    assert together == alone.generate(requests)


def test_cached_steps_equal_one_long_prompt(tiny_bases: dict[str, Path], tmp_path: Path) -> None:
    base = tiny_bases["llama"]
    table = random_table(base, tmp_path / "table.safetensors")
    export_bundle(ExportRequest(table, base, tmp_path / "bundle", measure_parity=False))
    bundle = read_bundle(tmp_path / "bundle")
    engine = OnnxRuntimeEngine(bundle.base_folder / "model.onnx", bundle.manifest.graph)
    prompt = Session.open(tmp_path / "bundle").tasks["tone"]
    ids = np.random.default_rng(0).integers(0, 390, 30)
    batch = Batch(engine)
    batch.admit(0, prompt)
    batch.admit(1, prompt)

    whole = batch.feed({0: ids})[0].logits
    batch.feed({1: ids[:18]})
    parts = batch.feed({1: ids[18:]})[1].logits

    assert_close(parts, whole, relative=1e-5)
