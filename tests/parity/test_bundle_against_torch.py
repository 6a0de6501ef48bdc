"""The same weights through transformers and through the bundle: logits and greedy tokens agree."""

from pathlib import Path

import numpy as np
import pytest

from pl_compile.artifact.bundle import read_bundle
from pl_compile.driver.export import ExportRequest, export_bundle
from pl_compile.driver.verify import verify_bundle
from pl_compile.errors import FingerprintError
from pl_compile.runtime import Request, Session
from pl_compile.runtime.engines.onnxruntime import OnnxRuntimeEngine
from pl_compile.testing import assert_close, random_table, write_tiny_base
from pl_compile.text.tokenizer import Tokenizer
from pl_compile.training.reference import TorchEngine


@pytest.mark.parametrize("prompts", ["input", "baked"])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_export_agrees_with_torch(
    tiny_bases: dict[str, Path], tmp_path: Path, family: str, prompts: str
) -> None:
    base = tiny_bases[family]
    table = random_table(base, tmp_path / "table.safetensors")

    result = export_bundle(
        ExportRequest(table, base, tmp_path / "bundle", prompts=prompts)  # type: ignore[arg-type]
    )

    assert result.passed == "passed"
    assert [parity.task for parity in result.parity] == ["tone", "ask"]
    for parity in result.parity:
        assert parity.relative_difference < 1e-5
        assert parity.equal_tokens == parity.rows * parity.steps == 2 * 17


def test_an_untied_head_agrees_with_torch(tmp_path: Path) -> None:
    base = write_tiny_base(tmp_path / "base", "llama", tied=False)
    table = random_table(base, tmp_path / "table.safetensors")

    result = export_bundle(ExportRequest(table, base, tmp_path / "bundle"))

    assert result.passed == "passed"


def test_verify_compares_with_torch_on_other_words(
    tiny_bases: dict[str, Path], tmp_path: Path
) -> None:
    base = tiny_bases["llama"]
    table = random_table(base, tmp_path / "table.safetensors")
    export_bundle(ExportRequest(table, base, tmp_path / "bundle"))

    result = verify_bundle(tmp_path / "bundle", base)

    assert result.passed
    assert [len(result.selftests), len(result.parity)] == [2, 2]


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

    def off_by_one_row(self: OnnxRuntimeEngine, ids: np.ndarray, *rest: object) -> np.ndarray:
        virtual = ids >= self.vocab
        shifted = np.where(virtual, self.vocab + (ids - self.vocab + 1) % 3, ids)
        return step(self, shifted, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(OnnxRuntimeEngine, "step", off_by_one_row)

    result = export_bundle(ExportRequest(table, base, tmp_path / "bundle"))

    assert result.passed == "failed"
    assert read_bundle(tmp_path / "bundle").manifest.parity == "failed"


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_mixed_batch_answers_like_torch_one_by_one(
    tiny_bases: dict[str, Path], tmp_path: Path, family: str
) -> None:
    base = tiny_bases[family]
    table = random_table(base, tmp_path / "table.safetensors")
    export_bundle(ExportRequest(table, base, tmp_path / "bundle", measure_parity=False))
    session = Session.open(tmp_path / "bundle")
    entries = read_bundle(tmp_path / "bundle").entries
    alone = Session(Tokenizer.from_folder(base), entries, TorchEngine(base, capacity=96))
    requests = [
        Request("ask", {"question": "who was there at all?", "place": "a café"}, max_tokens=9),
        Request("tone", {"sentence": "the year was cold"}, max_tokens=12, constrain=False),
        Request("ask", {"question": "why?", "place": "b"}, max_tokens=20),
        Request("tone", {"sentence": "a"}, max_tokens=3, constrain=False, use_prompt=False),
    ]

    together = session.generate(requests)

    assert together == alone.generate(requests)


def test_cached_steps_equal_one_long_prompt(tiny_bases: dict[str, Path], tmp_path: Path) -> None:
    base = tiny_bases["llama"]
    table = random_table(base, tmp_path / "table.safetensors")
    export_bundle(ExportRequest(table, base, tmp_path / "bundle", measure_parity=False))
    bundle = read_bundle(tmp_path / "bundle")
    engine = OnnxRuntimeEngine(bundle.base_folder / "model.onnx", bundle.manifest.graph)
    prompt = Session.open(tmp_path / "bundle").prompts["tone"]
    ids = np.random.default_rng(0).integers(0, 390, (1, 30))
    zero = np.zeros(1, np.int64)

    whole = engine.step(ids, zero, zero + 29, [prompt]).copy()
    engine.step(ids[:, :18], zero, zero + 17, [prompt])
    parts = engine.step(ids[:, 18:], zero + 18, zero + 11, [prompt])

    assert_close(parts, whole, relative=1e-5)
