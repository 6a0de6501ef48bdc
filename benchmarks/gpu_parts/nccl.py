"""NCCL with one rank, and the operator over it in a graph of ONNX Runtime.

One GPU cannot hold two ranks of a communicator, so each sum has one addend. This shows that every
function has the expected name, takes its arguments, and runs on the provider's stream. Without a
GPU the operator's form for CPUs runs, in a group of one.
"""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from gpu_parts.report import Job, Report
from pl_compile.graph.builder import DIST_DOMAIN, GraphBuilder
from pl_compile.runtime import kernels
from pl_compile.runtime.engines.onnxruntime.providers import load_cuda
from pl_compile.runtime.kernels import rank_sums

_ROOT = Path(__file__).resolve().parents[2]

# A communicator must outlive all sessions.
_held: list[Any] = []


def run(report: Report, job: Job) -> None:
    """The part."""
    if kernels.library_path() is None:
        _build(job)
    report.expect("the C++ kernels", str(kernels.library_path()), "built", True)
    if job.on_gpu:
        from pl_compile.runtime.engines.ranks.nccl import capsule_of, communicator_of, unique_id
        from pl_compile.runtime.engines.tensorrt.cuda import Cuda

        Cuda(0)  # NCCL takes the current GPU
        communicator = communicator_of(0, 1, unique_id())
        _held.append(communicator)
        address = int(communicator.ptr)
        report.expect("a communicator of one rank", address, "an address", address != 0)
        capsule = repr(capsule_of(address))
        report.expect("its capsule for TensorRT", capsule, "ncclComm_t", "ncclComm_t" in capsule)
        rank_sums.use_communicator(address)
    else:
        memory = job.work / "meeting"
        memory.write_bytes(bytes(rank_sums.group_bytes(1)))
        rank_sums.join_group(memory, 0, 1)
    kinds = {"float32": ir.DataType.FLOAT}
    if job.on_gpu:
        kinds["float16"] = ir.DataType.FLOAT16
    for name, kind in kinds.items():
        with report.trying(f"sums of {name}"):
            _sums(report, job, name, kind)


def _build(job: Job) -> None:
    """Compiles the kernels into the checkout, as an installation does."""
    command = [sys.executable, "setup.py", "--quiet", "build_ext", "--inplace"]
    done = subprocess.run(
        command, cwd=_ROOT, capture_output=True, text=True, timeout=max(job.left, 1)
    )
    if kernels.library_path() is None:
        raise RuntimeError(f"the C++ kernels are not built: {done.stderr[-300:]}")


def _sums(report: Report, job: Job, name: str, kind: ir.DataType) -> None:
    import onnxruntime

    g = GraphBuilder({})
    x = g.input("x", kind, ["n"])
    what: dict[str, Any] = {"collective_operation": "all_reduce", "reduce_op": "sum"}
    y = g.op("DistCollective", [x], "sum", domain=DIST_DOMAIN, root=-1, nb_rank=1, **what)
    g.output(y, "y", kind, ["n"])
    path = job.work / f"sum-{name}.onnx"
    ir.save(g.model("sum"), path)
    options = onnxruntime.SessionOptions()
    kernels.register(options)
    providers = ["CPUExecutionProvider"]
    if job.on_gpu:
        load_cuda(onnxruntime)
        providers.insert(0, "CUDAExecutionProvider")
    session = onnxruntime.InferenceSession(
        str(path), options, providers=providers, enable_fallback=0
    )
    used = session.get_providers()[0]
    report.expect(f"sums of {name}: provider", used, providers[0], used == providers[0])
    differing = 0
    for size in (1, 0, 262145, 3):
        given = np.random.default_rng(size).normal(size=size).astype(name)
        (found,) = session.run(None, {"x": given})
        differing += int((found != given).sum())
    report.at_most(f"numbers of {name} that a sum over one rank changes", differing, 0)
