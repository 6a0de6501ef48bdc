"""What `plc export` can build for. Each target is described here, once.

Exporters, engines, `plc doctor`, help texts, errors and the tables of docs/targets.md follow from
these rows. To add a target: a file in `exporters/`, an engine in `runtime/engines/` where none runs
its files, and a row.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pl_compile.config.contract import Dtype, PromptsMode

Runner = Literal["onnxruntime", "openvino", "tensorrt"]

# Short names of ONNX Runtime's execution providers.
PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
    "nv-tensorrt-rtx": "NvTensorRTRTXExecutionProvider",
}

# The file of the forms that ran on a GPU; `benchmarks/proven.py` writes it.
PROOFS = Path(__file__).with_name("proven.jsonl")


@dataclass(frozen=True)
class Tried:
    """The forms of a target that were built or run on machines without a GPU.

    Each field but the first is a cell of the table in docs/targets.md: "run" (built, run and
    compared with torch), "built" (no device ran it), "not served", or empty where it was not tried.

    Attributes:
        gpu: compute capabilities that it was built for; empty for a target on CPU.
        float32: with this dtype.
        float16: with this dtype.
        bfloat16: with this dtype.
        few_bits: with weights of 8 and of 4 bits.
        ranks: with the base divided.
    """

    gpu: str = ""
    float32: str = ""
    float16: str = ""
    bfloat16: str = ""
    few_bits: str = ""
    ranks: str = ""


@dataclass(frozen=True)
class Target:
    """A target.

    Attributes:
        name: as `--target` takes it and a manifest has it.
        runs_on: what runs its bundles, in a few words.
        to_build: what exporting for it needs.
        to_run: what running it needs.
        runner: the folder of `runtime/engines/` that runs it. Bundles of "tensorrt" hold a plan.
        package: that the runner imports.
        extra: that installs the package; empty where the base install does.
        oldest: version of the package; empty where setup.cfg alone says it.
        checked_with: the extra that lets a machine without a GPU compute its files; empty where the
            base install does.
        on_gpu: whether it runs on one. Each rank has a GPU of its own then.
        provider: of ONNX Runtime, by default; empty where it is not the runner.
        dtypes: of activations and caches.
        blocks: inputs that may share a scale; empty where the exporter looks at each weight.
        ranks: whether a base can be divided.
        prompts: how prompts enter by default.
        own_kernels: whether its graphs call this project's kernels.
        ragged: whether rows of its graphs are ragged (`config/contract.py`); not where the base is
            divided.
        usual_gpus: compute capabilities that a plan is built for by default, beside newer ones;
            empty where it is built for the GPU of the machine.
        wrapped_for: the provider of ONNX Runtime that loads its plans from an ONNX file; empty
            where there is none.
        tried: what was built and run without a GPU. What a GPU has run is in `proofs`.
    """

    name: str
    runs_on: str
    to_build: str
    to_run: str
    runner: Runner
    package: str
    tried: tuple[Tried, ...]
    extra: str = ""
    oldest: str = ""
    checked_with: str = ""
    on_gpu: bool = False
    provider: str = ""
    dtypes: tuple[Dtype, ...] = ("float32",)
    blocks: tuple[int, ...] = ()
    ranks: bool = True
    prompts: PromptsMode = "input"
    own_kernels: bool = False
    ragged: bool = False
    usual_gpus: tuple[str, ...] = ()
    wrapped_for: str = ""

    @property
    def has_plan(self) -> bool:
        """Whether its bundles hold a TensorRT plan."""
        return self.runner == "tensorrt"


@dataclass(frozen=True)
class Proof:
    """A form of a target that ran on a GPU, every result as expected.

    Attributes:
        target: its name.
        form: "float32", "int4", …
        where: the GPU.
        when: the day, as ISO 8601 writes it.
        versions: of the driver and the packages.
    """

    target: str
    form: str
    where: str
    when: str
    versions: str


_ROWS = (
    Target(
        "onnx-cpu",
        runs_on="ONNX Runtime, CPU",
        to_build="extra `export`",
        to_run="nothing more",
        runner="onnxruntime",
        package="onnxruntime",
        provider="cpu",
        tried=(Tried(float32="run", few_bits="run", ranks="run"),),
    ),
    Target(
        "native-cpu",
        runs_on="ONNX Runtime with this project's kernels, CPU",
        to_build="extra `export`",
        to_run="g++ or Clang when `pl-compile` is installed; without it bundles run, slower",
        runner="onnxruntime",
        package="onnxruntime",
        provider="cpu",
        blocks=(32, 64),
        own_kernels=True,
        ragged=True,
        tried=(Tried(float32="run", few_bits="run", ranks="run"),),
    ),
    Target(
        "openvino",
        runs_on="OpenVINO, CPU",
        to_build="extra `export`",
        to_run="extra `openvino`",
        runner="openvino",
        package="openvino",
        extra="openvino",
        oldest="2026.4",
        checked_with="openvino",
        ranks=False,
        tried=(Tried(float32="run", few_bits="run"),),
    ),
    Target(
        "onnx-cuda",
        runs_on="ONNX Runtime on CUDA",
        to_build="extra `export`",
        to_run="extra `gpu`, NVIDIA's driver; or `--provider cpu`",
        runner="onnxruntime",
        package="onnxruntime",
        extra="gpu",
        on_gpu=True,
        provider="cuda",
        dtypes=("float32", "float16"),
        tried=(
            Tried(
                "any that ONNX Runtime's kernels take",
                float32="built",
                float16="built",
                few_bits="built",
                ranks="built",
            ),
        ),
    ),
    Target(
        "tensorrt-rtx",
        runs_on="TensorRT for RTX",
        to_build="extra `tensorrt-rtx`; no GPU, no driver",
        to_run="extra `tensorrt-rtx` of the same version, driver, a GPU that it serves",
        runner="tensorrt",
        package="tensorrt_rtx",
        extra="tensorrt-rtx",
        checked_with="tensorrt-rtx",
        on_gpu=True,
        dtypes=("float32", "float16", "bfloat16"),
        prompts="baked",
        usual_gpus=("8.0", "8.6", "8.9"),
        wrapped_for=PROVIDERS["nv-tensorrt-rtx"],
        tried=(
            Tried("8.0, 8.6, 8.9, 12.0, 12.1, and its usual set", *["built"] * 5),
            Tried(
                "7.5",
                float16="built",
                few_bits="int8 with float16: built",
                ranks="built, float16",
            ),
            Tried("8.7, 9.0, 10.0, 11.0", *["not served"] * 5),
        ),
    ),
    Target(
        "tensorrt",
        runs_on="TensorRT",
        to_build="extra `tensorrt`, 10.15 or newer, on the GPU that will run it",
        to_run="the same machine",
        runner="tensorrt",
        package="tensorrt",
        extra="tensorrt",
        checked_with="tensorrt-rtx",
        on_gpu=True,
        dtypes=("float32", "float16", "bfloat16"),
        prompts="baked",
        tried=(Tried("that of the machine"),),
    ),
)

TARGETS = {target.name: target for target in _ROWS}
PLAN_TARGETS = {name: target for name, target in TARGETS.items() if target.has_plan}


def proofs() -> list[Proof]:
    """What ran on a GPU."""
    lines = PROOFS.read_text(encoding="utf-8").splitlines()
    return [Proof(**json.loads(line)) for line in lines]
