"""Bundles of `onnx-cuda` on ONNX Runtime's CUDA provider: right, in place, and how fast.

In float32, float16 and 4 bits. Without a GPU, the same graphs on the CPU's provider.
"""

import statistics
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import inference

from gpu_parts.bases import SMALL, STAND_IN, llama_base
from gpu_parts.report import Job, MissingError, Report, median_seconds, waiter
from pl_compile.artifact.bundle import MODEL_NAME, Bundle, read_bundle
from pl_compile.config.build import BuildOptions
from pl_compile.driver.export import ExportRequest, export_bundle
from pl_compile.driver.parity import probe_rows, trace
from pl_compile.driver.verify import verify_bundle
from pl_compile.runtime import Request, Session
from pl_compile.runtime.engines.onnxruntime import OnnxRuntimeEngine, available_providers
from pl_compile.runtime.engines.providers import Provider
from pl_compile.runtime.task_prompt import TaskPrompt, prompts_of_bundle
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
    """The part."""
    if job.on_gpu and "CUDAExecutionProvider" not in available_providers():
        import onnxruntime

        raise MissingError(f"onnxruntime {onnxruntime.__version__} here was built without CUDA")
    provider = Provider("cuda" if job.on_gpu else "cpu")
    shape = SMALL if job.on_gpu else STAND_IN
    base = llama_base(job.work / "base", shape)
    rounded = llama_base(job.work / "base-int4", shape, four_bits=True)
    for form, options in FORMS.items():
        with report.trying(form):
            of = rounded if form == "int4" else base
            bundle = _exported(job, of, form, options)
            _right(report, job, bundle, of, form, provider)
            _same_alone(report, bundle, form, provider)
            _in_place(report, bundle, form, provider)
            _placed(report, job, bundle, form)
            with report.trying(f"{form}: CUDA graph"):
                _graph(report, job, bundle, form)
            _speed(report, job, bundle, form, provider)
    with report.trying("transformers with PEFT"):
        _peft(report, job, base)


def _exported(job: Job, base: Path, form: str, options: BuildOptions) -> Bundle:
    folder = job.work / f"bundle-{form}"
    table = random_table(base, job.work / f"prompts-{base.name}.safetensors", prefix=True)
    request = ExportRequest(table, base, folder, target="onnx-cuda", options=options)
    export_bundle(request)
    return read_bundle(folder)


def _right(
    report: Report, job: Job, bundle: Bundle, base: Path, form: str, provider: Provider
) -> None:
    """Self-tests, and parity with torch on the same device."""
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


def _same_alone(report: Report, bundle: Bundle, form: str, provider: Provider) -> None:
    """Rows of a batch that mixes tasks, beside the same rows alone: tokens, and bits."""
    session = Session.open(bundle.folder, provider=provider)
    together = session.generate(REQUESTS)
    alone = [session.generate([request])[0] for request in REQUESTS]
    same = [a.text for a in together] == [b.text for b in alone]
    report.expect(f"{form}: answers of a mixed batch, to those alone", same, "equal", same)

    contract = bundle.manifest.graph
    tokenizer = Tokenizer.from_folder(bundle.folder, vocab=contract.vocab)
    learned = {name: TaskPrompt.of(e, tokenizer) for name, e in bundle.entries.items()}
    served = prompts_of_bundle(bundle, tokenizer)
    rows = probe_rows(
        learned, tokenizer, vocab=contract.vocab, capacity=contract.capacity, served=served
    )
    engine = session.engine
    mixed = trace(engine, rows)
    single = trace(engine, rows, follow=mixed.tokens, alone=True)
    bits = float((mixed.logits == single.logits).mean())
    report.figure(f"{form}: logits of a mixed batch that are the same bits alone", bits)
    apart = float(abs(mixed.logits - single.logits).max() / abs(mixed.logits).max())
    report.figure(f"{form}: the largest difference between them, of the largest logit", apart)


def _engine(bundle: Bundle, provider: Provider, rows: int = 4) -> OnnxRuntimeEngine:
    return OnnxRuntimeEngine(
        bundle.base_folder / MODEL_NAME,
        bundle.manifest.graph,
        max_batch=rows,
        provider=provider,
        dtype=bundle.manifest.precision.dtype,
    )


def _in_place(report: Report, bundle: Bundle, form: str, provider: Provider) -> None:
    """Whether what a step gives back lies where it was read."""
    import numpy as np

    engine = _engine(bundle, provider)
    bare = inference.IdsAlone(np.zeros((0, bundle.manifest.graph.hidden), np.float32))
    zero = np.zeros(1, np.int64)
    engine.step(inference.ids_of(1, 7), zero, zero + 6, [bare])
    held = engine.cached(8)
    # Private: no engine tells where its caches lie, and nothing but this check would ask.
    addresses = [engine._caches.address(index, 0) for index in range(len(held) * 2)]
    outputs = engine._binding.get_outputs()[: len(addresses)]
    moved = sum(o.data_ptr() != a for o, a in zip(outputs, addresses, strict=True))
    report.at_most(f"{form}: caches that a step has moved", moved, 0)
    written = (
        bool(np.abs(held[:, :, :, :7]).min(axis=(1, 2, 4)).all()) and not held[..., 7:, :].any()
    )
    report.expect(f"{form}: entries that 7 tokens have written", written, "7", written)


def _placed(report: Report, job: Job, bundle: Bundle, form: str) -> None:
    """Which provider runs how many nodes: one left on the CPU costs copies in every step."""
    session = _session(bundle, job, {}, record=True)
    nodes: Counter[str] = Counter()
    left: Counter[str] = Counter()
    for part in session.get_provider_graph_assignment_info():
        for node in part.get_nodes():
            nodes[part.ep_name] += 1
            if job.on_gpu and part.ep_name != "CUDAExecutionProvider":
                left[node.op_type] += 1
    report.figure(f"{form}: nodes by provider", dict(nodes))
    if left:
        report.figure(f"{form}: operators that are not on CUDA", dict(left))


def _session(bundle: Bundle, job: Job, options: dict[str, str], *, record: bool = False) -> Any:
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 3
    if record:
        settings.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    chosen: list[Any] = ["CPUExecutionProvider"]
    if job.on_gpu:
        onnxruntime.preload_dlls()
        chosen.insert(0, ("CUDAExecutionProvider", {"use_tf32": "0", **options}))
    path = str(bundle.base_folder / MODEL_NAME)
    return onnxruntime.InferenceSession(path, settings, providers=chosen, enable_fallback=0)


def _graph(report: Report, job: Job, bundle: Bundle, form: str) -> None:
    """A decode step whose inputs stay on the GPU, with a CUDA graph and without."""
    import numpy as np

    options: dict[str, dict[str, str]] = {"plain": {}, "CUDA graph": {"enable_cuda_graph": "1"}}
    logits: dict[str, Any] = {}
    for name, more in options.items():
        step = _DeviceStep(_session(bundle, job, more), bundle, job.device)
        logits[name] = step.after([[5], [7], [11]])
        seconds = median_seconds(step.again, 50 if job.on_gpu else 3, lambda: None)
        report.figure(f"{form}: decode step of one row, inputs on the device, {name}: s", seconds)
    apart = float(np.abs(logits["plain"] - logits["CUDA graph"]).max())
    apart /= float(np.abs(logits["plain"]).max())
    report.at_most(f"{form}: logits of the CUDA graph, to those without", apart, 1e-3)


class _DeviceStep:
    """A decode step of one row, everything bound once to a device's memory."""

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
        """The step, as it was before."""
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
        ("not folded", lambda: system.prefill(inference.HEAD + inference.OWN)),
    ):
        first()
        seconds = statistics.median(first() for _ in range(repeats))
        report.figure(f"{form}: first token, {name}: s", seconds)


def _peft(report: Report, job: Job, base: Path) -> None:
    """`generate` of transformers with a prompt of PEFT's, on the same ids."""
    import torch
    import train_vs_peft

    dtype = torch.float16 if job.on_gpu else torch.float32
    model = train_vs_peft.peft_model(base).to(job.device, dtype).eval()
    model.config.use_cache = True
    wait = waiter(job.device)
    steps = inference.STEPS if job.on_gpu else 2

    def generate(rows: int, prompt: int, count: int) -> None:
        ids = torch.from_numpy(inference.ids_of(rows, prompt)).to(job.device)
        model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=count,
            min_new_tokens=count,
            do_sample=False,
            pad_token_id=1,
        )

    repeats = 5 if job.on_gpu else 1
    for rows in ROWS if job.on_gpu else ROWS[:1]:
        first, whole = (
            median_seconds(partial(generate, rows, inference.PROMPT, count), repeats, wait)
            for count in (1, steps + 1)
        )
        name = f"transformers with PEFT, {str(dtype).rpartition('.')[2]}: decode, {rows} rows"
        report.figure(f"{name}: tokens a second", rows * steps / (whole - first))
    own = median_seconds(lambda: generate(1, inference.HEAD + inference.OWN, 1), repeats, wait)
    report.figure("transformers with PEFT: first token: s", own)
