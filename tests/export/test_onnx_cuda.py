"""Target `onnx-cuda`, whose graphs run here on kernels for CPU; and providers by name."""

import importlib.util
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnx
import pytest
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

from pl_compile.cli.main import plc
from pl_compile.config.build import BuildOptions
from pl_compile.driver.export import ExportResult, export_bundle
from pl_compile.driver.export_request import ExportRequest
from pl_compile.driver.verify import verify_bundle
from pl_compile.errors import ArtifactError, ExportError, RequestError
from pl_compile.families.registry import FAMILIES
from pl_compile.runtime import Provider, Request, Session
from pl_compile.runtime.engines.onnxruntime import providers
from pl_compile.runtime.engines.onnxruntime.providers import provider_of
from pl_compile.testing import random_table, write_tiny_base

REQUESTS = [
    Request("tone", {"sentence": "who was there at all?"}, max_tokens=6),
    Request("order", {"request": "lights off"}, max_tokens=6),
]


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("cuda-bases")
    # Random weights with which most tokens agree in 4 bits: not all do.
    return {f: write_tiny_base(root / f, f, seed=8, blocks=True) for f in FAMILIES}


def exported(base: Path, folder: Path, name: str = "bundle", **changes: Any) -> ExportResult:
    table = folder / "table.safetensors"
    if not table.exists():
        random_table(base, table, prefix=True)
    return export_bundle(
        ExportRequest(table, base, folder / name, **{"target": "onnx-cuda", **changes})
    )


@pytest.mark.parametrize(
    ("options", "limit"),
    [
        (BuildOptions("none"), 1e-5),
        (BuildOptions(dtype="float16"), 0.02),
        (BuildOptions("int8", dtype="float16"), 0.1),
        (BuildOptions("int4"), 0.75),  # as of an export: random weights are hard to round
    ],
    ids=["fp32", "fp16", "int8-fp16", "int4"],
)
@pytest.mark.parametrize("family", FAMILIES)
def test_its_graphs_compute_what_torch_does(
    bases: dict[str, Path], tmp_path: Path, family: str, options: BuildOptions, limit: float
) -> None:
    result = exported(bases[family], tmp_path, options=options)

    assert result.verdict == "passed", result.failures
    assert max(parity.relative_difference for parity in result.parity) < limit
    assert verify_bundle(result.bundle).passed
    model = onnx.load(result.bundle / "base" / "model.onnx", load_external_data=False)
    function = next(each for each in model.functions if each.name == "Attention")
    assert "Slice" not in {node.op_type for node in function.node}
    cache = next(value for value in model.graph.input if value.name == "past_key.0")
    half = options.dtype == "float16"
    expected = onnx.TensorProto.FLOAT16 if half else onnx.TensorProto.FLOAT
    assert cache.type.tensor_type.elem_type == expected


def test_it_is_served_on_cuda_unless_somebody_says_otherwise(
    bases: dict[str, Path], tmp_path: Path
) -> None:
    cuda = exported(bases["llama"], tmp_path, measure_parity=False)
    cpu = exported(bases["llama"], tmp_path, "cpu", target="onnx-cpu", measure_parity=False)

    with pytest.raises(ArtifactError, match=r"CUDAExecutionProvider: .*without it.*\[gpu\]"):
        Session.open(cuda.bundle)

    here = Session.open(cuda.bundle, provider=Provider("cpu"))
    assert here.generate(REQUESTS) == Session.open(cpu.bundle).generate(REQUESTS)


@pytest.mark.gpu
@pytest.mark.skipif(
    not os.path.exists("/dev/nvidia0"),
    reason="needs an NVIDIA GPU (/dev/nvidia0); without one: "
    "test_it_is_served_on_cuda_unless_somebody_says_otherwise",
)
def test_on_a_gpu_it_answers_as_on_cpu(bases: dict[str, Path], tmp_path: Path) -> None:
    """Never run by this project. Its sibling without a GPU:
    test_it_is_served_on_cuda_unless_somebody_says_otherwise, on the same graph."""
    bundle = exported(bases["llama"], tmp_path, measure_parity=False).bundle

    on_cpu = Session.open(bundle, provider=Provider("cpu")).generate(REQUESTS)

    assert Session.open(bundle).generate(REQUESTS) == on_cpu


def test_what_onnx_runtime_lacks_on_cuda_is_refused(bases: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="dtype bfloat16; expected float32 or float16"):
        exported(bases["llama"], tmp_path, options=BuildOptions(dtype="bfloat16"))
    with pytest.raises(ExportError, match="max_batch, and a target that has no plan"):
        exported(bases["llama"], tmp_path, options=BuildOptions(max_batch=4))


def test_weights_that_16_bits_do_not_hold_are_refused(tmp_path: Path) -> None:
    base = write_tiny_base(tmp_path / "base", "llama", blocks=True)
    tensors = load_file(base / "model.safetensors")
    tensors["model.norm.weight"][3] = 1e5
    save_file(tensors, base / "model.safetensors")
    options = BuildOptions(dtype="float16")

    with pytest.raises(ExportError, match=r"storing final_norm\.weight in float16: .* to 1e\+05"):
        exported(base, tmp_path, options=options, measure_parity=False)


def test_a_provider_is_read_from_the_command_line() -> None:
    chosen = provider_of("cuda", ("device_id=1", "arena_extend_strategy=kSameAsRequested"))

    assert (chosen.full_name, chosen.device, chosen.device_id) == (
        "CUDAExecutionProvider",
        "cuda",
        1,
    )
    assert provider_of("cpu").device == "cpu"
    for name in ("CPU", "cpuexecutionprovider", "CPUExecutionProvider"):
        assert provider_of(name).full_name == "CPUExecutionProvider"
    assert provider_of("NV-TensorRT-RTX").device == "cuda"
    assert provider_of("QNNExecutionProvider").full_name == "QNNExecutionProvider"
    with pytest.raises(RequestError, match="'fast'; expected name=value"):
        provider_of("cuda", ("fast",))
    with pytest.raises(RequestError, match="device_id=first; expected the number of a GPU"):
        provider_of("cuda", ("device_id=first",))


class _OnCuda:
    """The face of an ONNX Runtime that was built with CUDA."""

    def __init__(self) -> None:
        self.loaded: list[str | None] = []

    def get_available_providers(self) -> list[str]:
        return ["CUDAExecutionProvider", "CPUExecutionProvider"]

    def preload_dlls(self, directory: str | None = None) -> None:
        self.loaded.append(directory)
        print("a library that is not there")


def test_float32_is_float32_on_cuda_and_its_libraries_are_looked_for(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    runtime = _OnCuda()
    for package in ("cu13", "cudnn", "nothing"):
        (tmp_path / "nvidia" / package / ("lib" if package != "nothing" else "bin")).mkdir(
            parents=True
        )
    spec = SimpleNamespace(submodule_search_locations=[str(tmp_path / "nvidia")])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)

    usual = providers.choose(runtime, None, Provider("cuda"))
    given = {"use_tf32": "1", "device_id": "0"}
    asked = providers.choose(runtime, None, Provider("cuda", given))
    on_cpu = providers.choose(runtime, None, Provider("cpu"))

    assert usual == [("CUDAExecutionProvider", {"use_tf32": "0"}), "CPUExecutionProvider"]
    assert asked == [("CUDAExecutionProvider", given), "CPUExecutionProvider"]
    assert on_cpu == ["CPUExecutionProvider"]
    folders = [str(tmp_path / "nvidia" / package / "lib") for package in ("cu13", "cudnn")]
    assert runtime.loaded == [None, *folders] * 2
    said = capsys.readouterr()
    assert not said.out + said.err  # where a command's answer goes


def test_verifying_runs_on_the_provider_that_is_named(
    bases: dict[str, Path], tmp_path: Path
) -> None:
    bundle = exported(bases["llama"], tmp_path).bundle

    verified = CliRunner().invoke(plc, ["verify", str(bundle), "--provider", "cpu"])
    assert verified.exit_code == 0, verified.output
    with pytest.raises(ArtifactError, match=r"CUDAExecutionProvider: .*without it"):
        verify_bundle(bundle, provider=Provider("cuda"))

    ranks = exported(bases["llama"], tmp_path, "ranks", options=BuildOptions(ranks=2)).bundle
    with pytest.raises(RequestError, match="with the provider cuda: files that do not run on a"):
        verify_bundle(ranks, provider=Provider("cuda"))


def test_a_name_that_no_provider_has_is_not_taken_for_one_of_another_build() -> None:
    class Built:
        def get_available_providers(self) -> list[str]:
            return ["CPUExecutionProvider"]

        def get_all_providers(self) -> list[str]:
            return ["CUDAExecutionProvider", "CPUExecutionProvider"]

    with pytest.raises(RequestError, match=r"'cpuu' does not exist\. Did you mean 'cpu'\?"):
        providers.choose(Built(), None, Provider("cpuu"))
    with pytest.raises(RequestError, match=r"'' does not exist\. Known providers: cpu, CPUExec"):
        providers.choose(Built(), None, Provider(""))
    with pytest.raises(ArtifactError, match="was built without it; expected CPUExecutionProvider"):
        providers.choose(Built(), None, Provider("CUDA"))


def test_a_plug_in_that_is_missing_or_offers_nothing_is_refused(
    bases: dict[str, Path], tmp_path: Path
) -> None:
    bundle = exported(bases["llama"], tmp_path, measure_parity=False).bundle
    library = tmp_path / "libnone.so"

    with pytest.raises(ArtifactError, match=r"NvTensorRTRTX.*libnone\.so does not load"):
        Session.open(bundle, provider=Provider("nv-tensorrt-rtx", library=library))


def test_a_session_that_fell_back_to_the_cpu_is_refused() -> None:
    class Fallen:
        def get_providers(self) -> list[str]:
            return ["CPUExecutionProvider"]

    with pytest.raises(ArtifactError, match="runs it on CPUExecutionProvider; expected CUDAExec"):
        providers.check_used(Fallen(), Provider("cuda"), Path("model.onnx"))


def test_a_provider_for_what_does_not_run_on_one_is_refused(
    bases: dict[str, Path], tmp_path: Path
) -> None:
    options = BuildOptions(ranks=2)
    bundle = exported(bases["llama"], tmp_path, options=options, measure_parity=False).bundle

    with pytest.raises(RequestError, match="a bundle that does not run on a provider"):
        Session.open(bundle, provider=Provider("cpu"))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["generate", "b", "--task", "t", "--provider-option", "a=b"], "go with --provider"),
        (["eval", "t.safetensors", "--data", "d", "--provider", "cpu"], "goes with a bundle"),
    ],
)
def test_options_of_no_provider_are_misuse(arguments: list[str], said: str) -> None:
    result = CliRunner().invoke(plc, arguments)

    assert result.exit_code == 2
    assert said in result.output
