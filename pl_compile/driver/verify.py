"""Is a bundle what it says, and does it compute what the reference computes?

It checks the sums of all files and the self-test vectors of every task. If the base is given, it
compares every task with torch in one mixed batch.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pl_compile.artifact.bundle import Bundle, read_bundle
from pl_compile.checks.arithmetic import computed_alike
from pl_compile.checks.checking_engine import checking_engine
from pl_compile.checks.parity import (
    Parity,
    compare,
    limit_of,
    parity_failures,
    probe_rows,
    run_selftest,
    self_limit_of,
    trace,
    trace_reference,
    windows_not_compared,
)
from pl_compile.config.decoder import DecoderConfig
from pl_compile.config.targets import PLAN_TARGETS
from pl_compile.errors import ExportError, FingerprintError
from pl_compile.families.registry import smallest_window
from pl_compile.progress import SILENT, Progress
from pl_compile.runtime.engines.engine import Engine
from pl_compile.runtime.engines.onnxruntime.providers import CPU, Provider
from pl_compile.runtime.engines.opening import check_plans, check_target
from pl_compile.runtime.served_task import ServedTask, learned_tasks, tasks_of_bundle
from pl_compile.text.tokenizer import Tokenizer
from pl_compile.training.compare_tokens import TokenCheck, compare_tokens, token_failures
from pl_compile.weights.fingerprint import fingerprint_base
from pl_compile.weights.open_base import open_base


@dataclass(frozen=True)
class VerifyResult:
    """What was checked.

    Attributes:
        bundle: its folder.
        files: how many files have the sums that the manifest states.
        selftests: one comparison per task that has vectors.
        parity: one comparison per task with torch; empty without a reference.
        tokens: one comparison per task with the tokens of transformers' own tokenizer; empty
            likewise.
        not_compared: what of the base the comparison with torch could not show, as sentences.
        passed: whether every comparison passed.
        failures: what was beyond its limit, as sentences.
    """

    bundle: Path
    files: int
    selftests: tuple[Parity, ...]
    parity: tuple[Parity, ...]
    tokens: tuple[TokenCheck, ...]
    not_compared: tuple[str, ...]
    passed: bool
    failures: tuple[str, ...]


def verify_bundle(
    folder: Path,
    reference: Path | None = None,
    *,
    flavour: str | None = None,
    provider: Provider | None = None,
    device: str = "cpu",
    progress: Progress = SILENT,
) -> VerifyResult:
    """Checks a bundle.

    Args:
        folder: the bundle.
        reference: the Hugging Face folder of its base, to compare with torch.
        flavour: for a bundle for TensorRT, whose parser says what the graph means: "tensorrt-rtx"
            or "tensorrt". If None, the bundle's own, or the other if that is not installed.
        provider: ONNX Runtime's provider that runs the bundle; the CPU's if None.
        device: the device on which torch computes the reference.
        progress: receives messages.

    Raises:
        ArtifactError: a file is missing, altered or unreadable, a prefix does not fit its template,
            or one was folded from something else.
        FingerprintError: `reference` is another base.
        ExportError: TensorRT is not installed, or refuses the graph of a bundle for it.
        RequestError: a provider that does not exist, or for a bundle that does not run on one.
    """
    progress.say(f"checking the files of {folder}")
    bundle = read_bundle(folder)
    if reference is not None:
        config = check_reference(bundle, reference)
    contract = bundle.manifest.graph
    tokenizer = Tokenizer.from_folder(bundle.folder, vocab=contract.vocab)
    served = tasks_of_bundle(bundle, tokenizer)  # raises if a session could not render them
    learned = learned_tasks(bundle.entries, tokenizer)
    target, precision = bundle.manifest.target, bundle.manifest.precision
    _check_flavour(bundle, flavour)
    check_target(bundle)
    check_plans(bundle)
    same_kernels = computed_alike(target, bundle.manifest.toolchain)
    same_device = provider in (None, CPU)  # an export computes the vectors on the CPU
    limit = self_limit_of(precision, same_kernels=same_kernels, same_device=same_device)
    selftests = []
    parity: list[Parity] = []
    tokens: list[TokenCheck] = []
    not_compared: tuple[str, ...] = ()
    with checking_engine(
        bundle.base_folder,
        target,
        contract,
        precision.cache_dtype,
        quantization=precision.quantization,
        flavour=flavour,
        provider=provider,
        prefix_bits=precision.prefix_bits,
    ) as engine:
        vectors = {name: arrays for name in served if (arrays := bundle.selftest(name))}
        if vectors:
            with progress.bar("self-tests", len(vectors)) as bar:
                for name, arrays in vectors.items():
                    prompts = learned[name], served[name]
                    selftests.append(run_selftest(engine, arrays, name, *prompts, limit))
                    bar.advance(note=name)
        if reference is not None:
            parity, tokens, not_compared = _with_torch(
                bundle, engine, learned, served, tokenizer, reference, config, device, progress
            )
    failures = [*token_failures(tokens), *parity_failures([*selftests, *parity])]
    if bundle.manifest.parity == "failed":
        known = {test.task for test in selftests}
        failures += [
            f"task '{name}' has no self-test: its numbers were not finite when it was exported"
            for name in served
            if name not in known
        ]
    return VerifyResult(
        folder,
        len(bundle.files),
        tuple(selftests),
        tuple(parity),
        tuple(tokens),
        not_compared,
        not failures,
        tuple(failures),
    )


def _check_flavour(bundle: Bundle, flavour: str | None) -> None:
    target = bundle.manifest.target
    if flavour is None or flavour == target:
        return
    if flavour not in PLAN_TARGETS or target not in PLAN_TARGETS:
        raise ExportError(
            f"verifying {bundle.folder} as target {flavour}",
            found=f"a bundle for {target}",
            expected=f"one for {' or '.join(PLAN_TARGETS)}, and one of them as --target",
            fix="Leave --target out.",
        )


def check_reference(bundle: Bundle, reference: Path) -> DecoderConfig:
    """The config of the base `reference`.

    Raises:
        FingerprintError: the bundle was not compiled from it.
    """
    checkpoint, config = open_base(reference)
    found = fingerprint_base(checkpoint, config)
    expected = bundle.manifest.base.fingerprint
    if found != expected:
        raise FingerprintError(
            f"comparing the bundle {bundle.folder} with {reference}",
            found=f"fingerprint {found}",
            expected=f"{expected} ('{bundle.manifest.base.name}')",
            fix="Give the base that the bundle was exported from.",
        )
    return config


def _with_torch(
    bundle: Bundle,
    engine: Engine,
    learned: Mapping[str, ServedTask],
    served: Mapping[str, ServedTask],
    tokenizer: Tokenizer,
    reference: Path,
    config: DecoderConfig,
    device: str,
    progress: Progress,
) -> tuple[list[Parity], list[TokenCheck], tuple[str, ...]]:
    progress.say("importing torch")
    from pl_compile.training.reference import TorchEngine, reference_name

    contract = bundle.manifest.graph
    window = smallest_window(config)
    rows = probe_rows(
        learned,
        tokenizer,
        vocab=contract.vocab,
        capacity=contract.capacity,
        served=served,
        window=window,
        seed=1,  # other words than in the export, whose words the self-tests have
    )
    progress.say("loading the reference (torch)")
    expected = trace_reference(
        TorchEngine(reference, config=config, device=device), rows, progress=progress
    )
    actual = trace(engine, rows, follow=expected.tokens, label="bundle", progress=progress)
    limit = limit_of(bundle.manifest.precision)
    parity = compare(rows, expected, actual, reference_name(), limit)
    return parity, compare_tokens(rows, reference), windows_not_compared(rows, window)
