"""A strange base is refused wherever a base is read; logits that are not numbers never pass."""

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from pl_compile.artifact.prompt_table import read_prompt_table
from pl_compile.checks.parity import Limit, ProbeRow, Trace, compare
from pl_compile.config.strict_json import with_null
from pl_compile.driver.bring_in import PeftImport, import_peft
from pl_compile.driver.evaluate import session_on_table
from pl_compile.driver.export import export_bundle
from pl_compile.driver.export_request import ExportRequest
from pl_compile.driver.forecast import forecast_export
from pl_compile.driver.verify import verify_bundle
from pl_compile.errors import BaseModelError
from pl_compile.importers.peft import write_peft_adapter
from pl_compile.testing import random_table, tiny_run, write_tiny_base
from pl_compile.training.base_model import FrozenBase
from pl_compile.training.run import run_training
from pl_compile.weights.bases import find_base

NORM = "model.norm.weight"
HEAD = "lm_head.weight"


def quantise(base: Path) -> None:
    """As bitsandbytes saves 8 bits, with a config that does not say so."""
    tensors = load_file(base / "model.safetensors")
    name = "model.layers.0.mlp.up_proj.weight"
    tensors[name] = tensors[name].to(torch.int8)
    save_file(tensors, base / "model.safetensors")


def untie(base: Path) -> None:
    tensors = load_file(base / "model.safetensors")
    save_file({**tensors, HEAD: torch.ones(397, 24)}, base / "model.safetensors")


def spoil(base: Path) -> None:
    tensors = load_file(base / "model.safetensors")
    tensors[NORM][0] = torch.nan
    save_file(tensors, base / "model.safetensors")


def turn_around(base: Path) -> None:
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**config, "is_causal": False}))


@pytest.mark.parametrize(
    ("break_it", "named"),
    [(quantise, "(I8)"), (untie, HEAD), (spoil, NORM), (turn_around, "'is_causal' is False")],
)
def test_every_reader_of_a_base_refuses_it_by_name(
    tmp_path: Path, break_it: Callable[[Path], None], named: str
) -> None:
    base = write_tiny_base(tmp_path / "base", "llama")
    table = random_table(base, tmp_path / "table.safetensors")
    tone = read_prompt_table(table)
    write_peft_adapter(tone, "tone", tmp_path / "adapter", str(base))
    request = ExportRequest(table, base, tmp_path / "bundle", ("tone",), measure_parity=False)
    export_bundle(request)
    config = tiny_run(tmp_path / "data", base)
    break_it(base)
    readers: dict[str, Callable[[], object]] = {
        "train": lambda: run_training(config, tmp_path / "run"),
        "import": lambda: import_peft(
            PeftImport(tmp_path / "adapter", tmp_path / "new", "tone", "{a} {b}")
        ),
        "export": lambda: export_bundle(request),
        "verify": lambda: verify_bundle(tmp_path / "bundle", base),
        "evaluate": lambda: session_on_table(table, base),
    }
    if break_it is not spoil:  # the numbers are looked at where all of them are read
        readers["plan"] = lambda: forecast_export(request)
        readers["reference"] = lambda: FrozenBase(base)
    for name, read in readers.items():
        with pytest.raises(BaseModelError) as error:
            read()
        assert named in str(error.value), name
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("key", "value"),
    [("use_cache", "yes"), ("initializer_range", 3.0), ("id2label", {"a": "b"}), ("to_dict", 3)],
)
def test_what_transformers_alone_refuses_is_one_error(
    tiny_bases: dict[str, Path], tmp_path: Path, key: str, value: object
) -> None:
    base = tmp_path / "base"
    shutil.copytree(tiny_bases["llama"], base)
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**config, key: value}))

    with pytest.raises(BaseModelError, match=r"loading the base .*: transformers .* refuses it: "):
        FrozenBase(base)


def test_a_base_for_which_there_is_no_memory_is_not_said_to_be_wrong(
    tiny_bases: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", full)

    with pytest.raises(BaseModelError, match="there is not enough memory for it in torch"):
        FrozenBase(tiny_bases["llama"])


def test_a_mistake_of_ours_is_not_blamed_on_a_base(
    tiny_bases: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    # What transformers calls while it loads, and what our own call of it may get wrong.
    def ours(*_: object, **__: object) -> None:
        find_base([])  # type: ignore[arg-type]

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", ours)
    with pytest.raises((TypeError, AttributeError)):
        FrozenBase(tiny_bases["llama"])

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", lambda: None)
    with pytest.raises(TypeError, match="unexpected keyword argument"):
        FrozenBase(tiny_bases["llama"])


@pytest.mark.parametrize("number", [np.nan, np.inf])
def test_logits_that_are_not_finite_agree_with_nothing(number: float) -> None:
    logits = np.full((2, 1, 3), number, np.float32)
    logits[0] = 1.0
    trace = Trace(logits, logits.argmax(-1))
    row = ProbeRow("tone", None, None, None, {})  # type: ignore[arg-type]

    (result,) = compare([row], trace, trace, "itself", Limit(1e9, 0.1))

    assert not result.passed
    assert (result.equal_tokens, result.is_number) == (1, False)
    assert result.finding == (
        "has, compared with itself, logits that are not finite numbers, and 1 of 2 tokens agree"
    )
    assert with_null(asdict(result))["max_abs_difference"] is None


@pytest.mark.parametrize("factor", [0.0, 1e38])
def test_a_base_whose_logits_mean_nothing_fails_and_says_so(tmp_path: Path, factor: float) -> None:
    """Weights of zeros, and weights that are finite while what they compute is not."""
    base = write_tiny_base(tmp_path / "base", "llama")
    tensors = load_file(base / "model.safetensors")
    for name in tensors:
        if factor == 0 or name.endswith(("up_proj.weight", "gate_proj.weight")):
            tensors[name] *= factor
    save_file(tensors, base / "model.safetensors")
    table = random_table(base, tmp_path / "table.safetensors")

    result = export_bundle(ExportRequest(table, base, tmp_path / "bundle", target="onnx-cpu"))

    assert result.verdict == "failed"
    said = "changes nothing" if factor == 0 else "logits that are not finite numbers, and 0 of"
    assert said in " ".join(result.failures)
    report = (tmp_path / "bundle" / "report.json").read_text()
    json.loads(report, parse_constant=lambda name: pytest.fail(f"{name} in a report"))
    verified = verify_bundle(tmp_path / "bundle")
    assert verified.passed is (factor == 0)
    assert ("task 'tone' has no self-test" in " ".join(verified.failures)) is (factor != 0)
