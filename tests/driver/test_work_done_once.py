"""What is expensive is done once in an export: reading, summing, parsing, making a tokenizer."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest

from pl_compile.artifact import file_sums
from pl_compile.artifact.bundle import read_bundle
from pl_compile.checkpoints.safetensors import SafetensorsCheckpoint
from pl_compile.config.build import BuildOptions
from pl_compile.driver import choose
from pl_compile.driver.export import export_bundle
from pl_compile.driver.export_request import ExportRequest
from pl_compile.testing import random_table, tiny_examples, write_jsonl, write_tiny_base
from pl_compile.text import examples
from pl_compile.text.tokenizer import Tokenizer


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any, str, int], Counter[str]]:
    """Counts the calls of a function by the last part of an argument."""

    def count(where: Any, name: str, argument: int) -> Counter[str]:
        calls: Counter[str] = Counter()
        function = getattr(where, name)

        def counting(*arguments: Any, **named: Any) -> Any:
            calls[Path(str(arguments[argument])).name] += 1
            return function(*arguments, **named)

        monkeypatch.setattr(where, name, counting)
        return calls

    return count


def test_an_export_reads_sums_and_parses_everything_once(
    tmp_path: Path, counted: Callable[[Any, str, int], Counter[str]]
) -> None:
    base = write_tiny_base(tmp_path / "base", "gpt2", blocks=True)
    table = random_table(base, tmp_path / "table.safetensors")
    data = [
        write_jsonl(tmp_path / f"{name}.jsonl", tiny_examples(4)) for name in ("learn", "score")
    ]
    tensors = counted(SafetensorsCheckpoint, "tensor", 1)
    sums = counted(file_sums, "sha256_of", 0)
    parsed = counted(examples, "read_utf8", 0)
    tokenizers = counted(Tokenizer, "__init__", 0)

    result = export_bundle(
        ExportRequest(
            table,
            base,
            tmp_path / "bundle",
            target="onnx-cpu",
            options=BuildOptions("int4", block=16),
            fold="always",
            calibrate=(data[0],),
            evaluate=(data[1],),
            measure_parity=False,
        )
    )

    assert tensors == dict.fromkeys(SafetensorsCheckpoint(base).names, 1)
    assert parsed == {"learn.jsonl": 1, "score.jsonl": 1}
    assert sum(tokenizers.values()) == 1
    summed = Counter(Path(name).name for name in read_bundle(result.bundle, sums=False).files)
    assert sums == summed


@pytest.mark.parametrize("published", ["q4_1", "q8_0"])
def test_weights_that_are_looked_at_to_choose_are_not_read_again(
    tmp_path: Path,
    counted: Callable[[Any, str, int], Counter[str]],
    monkeypatch: pytest.MonkeyPatch,
    published: Literal["q4_1", "q8_0"],
) -> None:
    """8 bits are tried after 4, and the winner's weights are loaded."""
    monkeypatch.setattr(choose, "instruction_set", lambda: "avx2")
    base = write_tiny_base(tmp_path / "base", "llama", blocks=True, published=published)
    table = random_table(base, tmp_path / "table.safetensors")
    tensors = counted(SafetensorsCheckpoint, "tensor", 1)

    result = export_bundle(ExportRequest(table, base, tmp_path / "b", measure_parity=False))

    assert result.forecast.choices["quantize"].chosen == f"int{published[1]}"
    assert tensors == dict.fromkeys(SafetensorsCheckpoint(base).names, 1)


def test_sums_that_were_noted_are_those_of_the_files(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"one")
    noted = file_sums.records_of(tmp_path)
    (tmp_path / "b").write_bytes(b"two")

    assert file_sums.records_of(tmp_path, noted=noted) == file_sums.records_of(tmp_path)
    assert set(file_sums.records_of(tmp_path, noted=noted, left_out={"a"})) == {"b"}
