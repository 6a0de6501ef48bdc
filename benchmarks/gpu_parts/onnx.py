"""A bundle of `onnx-cuda` on ONNX Runtime's CUDA provider: is it right and in place, and how fast?

float32, float16 and 4 bits are a part each. Numbers are compared on a base of few layers, whose
export is measured on the CPU, too; speed is measured on a base of the usual size. Without a GPU,
the same graphs run on the CPU's provider.
"""

import statistics
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import inference

from gpu_parts.bases import SHORT, SMALL, STAND_IN, llama_base
from gpu_parts.report import Job, MissingError, Report, median_seconds, one_line
from pl_compile.artifact.bundle import MODEL_NAME, Bundle, read_bundle
from pl_compile.checks.parity import probe_rows, self_limit_of, trace
from pl_compile.config.build import BuildOptions
from pl_compile.driver.export import export_bundle
from pl_compile.driver.export_request import ExportRequest
from pl_compile.driver.verify import verify_bundle
from pl_compile.runtime import Request, Session
from pl_compile.runtime.engines.onnxruntime.engine import OnnxRuntimeEngine
from pl_compile.runtime.engines.onnxruntime.graph import available_providers
from pl_compile.runtime.engines.onnxruntime.providers import Provider, load_cuda
from pl_compile.runtime.served_task import ServedTask, tasks_of_bundle
from pl_compile.runtime.stepping import Batch
from pl_compile.testing import random_table
from pl_compile.text.tokenizer import Tokenizer

FORMS = {
    "float32": BuildOptions("none"),
    "float16": BuildOptions("none", dtype="float16"),
    "int4": BuildOptions("int4", dtype="float16"),
}
ROWS = (1, 16, 64)
REQUESTS = [
    Request("tone", {"sentence": "who was there at all?"}, max_tokens=8),
    Request("ask", {"question": "why is it cold?", "place": "the room"}, max_tokens=8),
    Request("order", {"request": "lights off"}, max_tokens=8),
    Request("tone", {"sentence": "a bill"}, max_tokens=8),
]


def run(report: Report, job: Job) -> None:
    """The part, in the form that the job names."""
    if job.on_gpu:
        import torch  # noqa: F401 - it brings CUDA's libraries, as in most programs

        if "CUDAExecutionProvider" not in available_providers():
            import onnxruntime

            raise MissingError(f"onnxruntime {onnxruntime.__version__} was built without CUDA")
    form, provider = job.what, Provider("cuda" if job.on_gpu else "cpu")
    kind = "-int4" if form == "int4" else ""
    checked, timed = (SHORT, SMALL) if job.on_gpu else (STAND_IN, STAND_IN)
    base = llama_base(job.work / f"short{kind}", checked, four_bits=form == "int4")
    bundle = _exported(job, base, form, measured=True)
    _right(report, job, bundle, base, form, provider)
    for name, check in {
        "mixed batch": _same_alone,
        "entries": _in_place,
        "operators on": _placed,
    }.items():
        with report.trying(f"{form}: {name}"):
            check(report, job, bundle, form, provider)
    if job.on_gpu:
        base = llama_base(job.work / f"base{kind}", timed, four_bits=form == "int4")
        bundle = _exported(job, base, form, measured=False)
    with report.trying(f"{form}: speed"):
        _speed(report, job, bundle, form, provider)
    # Last, since a failed capture may leave the provider's stream in disorder.
    with report.trying(f"{form}: CUDA graph"):
        _graph(report, job, bundle, form)


def _exported(job: Job, base: Path, form: str, *, measured: bool) -> Bundle:
    """Exports a bundle. Only if it is `measured` on the CPU, as users' are, has it self-tests."""
    folder = job.work / f"bundle-{form}-{base.name}"
    table = random_table(base, job.work / f"prompts-{base.name}.safetensors", prefix=True)
    request = ExportRequest(
        table,
        base,
        folder,
        target="onnx-cuda",
        options=FORMS[form],
        measure_parity=measured,
    )
    export_bundle(request)
    return read_bundle(folder)


def _right(
    report: Report, job: Job, bundle: Bundle, base: Path, form: str, provider: Provider
) -> None:
    """Runs the self-tests, and compares with torch on the same device."""
    found = verify_bundle(bundle.folder, base, provider=provider, device=job.device)
    for name, results in (("self-tests", found.selftests), ("parity", found.parity)):
        worst = max(results, key=lambda each: each.relative_difference)
        equal = sum(each.equal_tokens for each in results)
        every = sum(each.rows * each.steps for each in results)
        needed = f"at most {worst.tolerance:.0e}, and {worst.tokens_needed:.0%} of the tokens"
        report.expect(
            f"{form}: {name}, largest difference of the largest logit; equal tokens",
            f"{worst.relative_difference:.2e}; {equal} of {every}",
            needed,
            all(each.passed for each in results),
        )


def _same_alone(report: Report, job: Job, bundle: Bundle, form: str, provider: Provider) -> None:
    """Compares rows of a batch that mixes tasks with the same rows alone.

    On a GPU, products of one row and of several round in different ways. So only float32 must give
    the same answers; the others must stay within what a bundle may differ from itself.
    """
    session = Session.open(bundle.folder, provider=provider)
    together = session.generate(REQUESTS)
    alone = [session.generate([request])[0] for request in REQUESTS]
    same = [a.text for a in together] == [b.text for b in alone]
    name = f"{form}: mixed batch, answers to those alone"
    if form == "float32":
        report.expect(name, same, "equal", same)
    else:
        report.figure(name, "equal" if same else "not all equal")

    contract = bundle.manifest.graph
    tokenizer = Tokenizer.from_folder(bundle.folder, vocab=contract.vocab)
    learned = {name: ServedTask.of(e, tokenizer) for name, e in bundle.entries.items()}
    served = tasks_of_bundle(bundle, tokenizer)
    rows = probe_rows(
        learned, tokenizer, vocab=contract.vocab, capacity=contract.capacity, served=served
    )
    mixed = trace(session.engine, rows)
    single = trace(session.engine, rows, follow=mixed.tokens, alone=True)
    limit = self_limit_of(bundle.manifest.precision)
    apart = float(abs(mixed.logits - single.logits).max() / abs(mixed.logits).max())
    report.at_most(f"{form}: mixed batch, logits to those alone", apart, limit.difference)
    equal = float((mixed.logits.argmax(-1) == single.logits.argmax(-1)).mean())
    name = f"{form}: mixed batch, part of the tokens that are equal"
    report.expect(name, equal, f"at least {limit.tokens}", equal >= limit.tokens)
    bits = float((mixed.logits == single.logits).mean())
    report.figure(f"{form}: mixed batch, part of the logits with the same bits", bits)


def _engine(bundle: Bundle, provider: Provider, rows: int = 4) -> OnnxRuntimeEngine:
    return OnnxRuntimeEngine(
        bundle.base_folder / MODEL_NAME,
        bundle.manifest.graph,
        max_batch=rows,
        provider=provider,
        dtype=bundle.manifest.precision.dtype,
    )


def _in_place(report: Report, job: Job, bundle: Bundle, form: str, provider: Provider) -> None:
    """Whether a step writes only its own entries of the caches, and the caches stay in place."""
    import numpy as np

    engine = _engine(bundle, provider)
    bare = inference.IdsAlone(np.zeros((0, bundle.manifest.graph.hidden), np.float32))
    batch = Batch(engine)
    batch.admit(0, bare)
    # A private attribute: only this check needs to know where an engine's caches lie.
    before = [engine._caches.address(i, 0) for i in range(2 * bundle.manifest.graph.layers)]
    batch.feed({0: inference.ids_of(1, 7)[0]})
    held = engine.cached(0, 8)
    batch.feed({0: inference.ids_of(1, 1)[0]})
    later = engine.cached(0, 9)
    after = [engine._caches.address(i, 0) for i in range(len(before))]
    moved = sum(a != b for a, b in zip(before, after, strict=True))
    report.at_most(f"{form}: entries, caches that have moved", moved, 0)
    written = bool(np.abs(held[..., :7, :]).max(axis=-1).all()) and not held[..., 7:, :].any()
    report.expect(f"{form}: entries that 7 tokens have written", written, "7 of 8", written)
    kept = np.array_equal(held[..., :7, :], later[..., :7, :]) and bool(later[..., 7, :].any())
    report.expect(f"{form}: entries that one more token left", kept, "all 7", kept)


def _placed(report: Report, job: Job, bundle: Bundle, form: str, provider: Provider) -> None:
    """How many nodes each provider runs: a node on the CPU costs copies in every step."""
    session = _session(bundle, job, {}, record=True)
    nodes: Counter[str] = Counter()
    left: Counter[str] = Counter()
    for part in session.get_provider_graph_assignment_info():
        for node in part.get_nodes():
            nodes[part.ep_name] += 1
            if part.ep_name != provider.full_name:
                left[node.op_type] += 1
    report.figure(f"{form}: nodes by provider", dict(nodes))
    report.figure(f"{form}: operators elsewhere", dict(left))
    # A cache that another provider updates is copied whole, there and back.
    copied = sorted({"TensorScatter", "Attention", "MatMul", "Gemm"} & set(left))
    name = f"{form}: operators on another provider that move caches or weights"
    report.expect(name, ", ".join(copied) or "none", "none", not copied)


def _session(bundle: Bundle, job: Job, options: dict[str, str], *, record: bool = False) -> Any:
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 3
    if record:
        settings.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    chosen: list[Any] = ["CPUExecutionProvider"]
    if job.on_gpu:
        load_cuda(onnxruntime)
        chosen.insert(0, ("CUDAExecutionProvider", {"use_tf32": "0", **options}))
    path = str(bundle.base_folder / MODEL_NAME)
    return onnxruntime.InferenceSession(path, settings, providers=chosen, enable_fallback=0)


def _graph(report: Report, job: Job, bundle: Bundle, form: str) -> None:
    """A decode step whose inputs stay on the GPU, with a CUDA graph and without."""
    import numpy as np

    options: dict[str, dict[str, str]] = {"plain": {}, "CUDA graph": {"enable_cuda_graph": "1"}}
    logits: dict[str, Any] = {}
    for name, more in options.items():
        try:
            step = _DeviceStep(_session(bundle, job, more), bundle, job.device)
            logits[name] = step.after([[5], [7], [11]])
        except Exception as error:
            if not more:
                raise
            # The provider can capture a CUDA graph only if it runs every node.
            report.figure(f"{form}: CUDA graph", f"not allowed: {one_line(error)}")
            return
        seconds = median_seconds(step.again, 50 if job.on_gpu else 3, lambda: None)
        report.figure(f"{form}: decode step of one row, inputs on the device, {name}: s", seconds)
    apart = float(np.abs(logits["plain"] - logits["CUDA graph"]).max())
    apart /= float(np.abs(logits["plain"]).max())
    report.at_most(f"{form}: logits of the CUDA graph, to those without", apart, 1e-3)


class _DeviceStep:
    """A decode step of one row; everything is bound once to a device's memory."""

    def __init__(self, session: Any, bundle: Bundle, device: str) -> None:
        import numpy as np
        import onnxruntime

        self._session = session
        self._binding = session.io_binding()
        self._values: dict[str, Any] = {}
        sizes = {"batch": 1, "seq": 1, "rows": 1}
        contract = bundle.manifest.graph
        tensors = contract.tensors(bundle.manifest.precision.dtype)
        for name, tensor in tensors.items():
            if tensor.alias is None:
                shape = [sizes[s] if isinstance(s, str) else s for s in tensor.shape]
                zeros = np.zeros(shape, tensor.dtype)
                self._values[name] = onnxruntime.OrtValue.ortvalue_from_numpy(zeros, device, 0)
            else:
                self._values[name] = self._values[tensor.alias]
            bind = "bind_ortvalue_input" if tensor.is_input else "bind_ortvalue_output"
            getattr(self._binding, bind)(name, self._values[name])

    def again(self) -> None:
        """Runs the same step again."""
        self._session.run_with_iobinding(self._binding)
        self._binding.synchronize_outputs()

    def after(self, tokens: Sequence[Sequence[int]]) -> Any:
        """The logits after some tokens, one step each."""
        import numpy as np

        for past, ids in enumerate(tokens):
            self._values["input_ids"].update_inplace(np.asarray([ids], np.int64))
            self._values["past_lengths"].update_inplace(np.asarray([past], np.int64))
            self.again()
        return self._values["logits"].numpy().copy()


def _speed(report: Report, job: Job, bundle: Bundle, form: str, provider: Provider) -> None:
    repeats = 5 if job.on_gpu else 1
    system = inference.Plc(bundle.folder, max(ROWS), provider.name)
    for rows in ROWS if job.on_gpu else ROWS[:2]:
        speeds = [system.decode(rows) for _ in range(repeats + 1)][1:]
        report.figure(f"{form}: decode, {rows} rows: tokens a second", statistics.median(speeds))
    system.prefill(512)
    found = statistics.median(system.prefill(512) for _ in range(repeats))
    report.figure(f"{form}: prefill of 512: tokens a second", 512 / found)
    folded = system.task()
    for name, first in (
        ("folded", folded),
        ("not folded", lambda: system.prefill(inference.OPENING + inference.OWN)),
    ):
        first()
        seconds = statistics.median(first() for _ in range(repeats))
        report.figure(f"{form}: first token, {name}: s", seconds)
