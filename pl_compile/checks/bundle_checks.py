"""All comparisons of a new bundle: with torch, and with itself.

In: the compiled base, and the tasks as they were learned and as they are served. Out: `Checks`, for
the report, with a verdict, and the self-test vectors that the bundle carries.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pl_compile.artifact.bundle import Precision, Verdict
from pl_compile.checks.liveness import Liveness, liveness
from pl_compile.checks.parity import (
    Limit,
    Parity,
    ProbeRow,
    Trace,
    compare,
    limit_of,
    parity_failures,
    probe_rows,
    self_limit_of,
    selftest_arrays,
    trace,
    trace_reference,
    windows_not_compared,
)
from pl_compile.config.decoder import DecoderConfig
from pl_compile.families.registry import smallest_window
from pl_compile.progress import SILENT, Progress
from pl_compile.runtime.engines.engine import Engine
from pl_compile.runtime.served_task import ServedTask
from pl_compile.shapes import Int64
from pl_compile.text.tokenizer import Tokenizer
from pl_compile.training.compare_tokens import TokenCheck, compare_tokens, token_failures


@dataclass(frozen=True)
class Comparisons:
    """What was compared, with a result per task.

    Attributes:
        torch: the bundle as it is served, with torch in float32; empty if that was left out.
        not_compared: what of the base no prompt could show, as sentences.
        tokens: the same prompts' tokens, with those of transformers' own tokenizer.
        folded: served after folded prefixes, with prompts that are computed whole.
        alone: rows in mixed batches, with each row alone.
        live: whether each prompt makes a difference.
    """

    torch: tuple[Parity, ...] = ()
    not_compared: tuple[str, ...] = ()
    tokens: tuple[TokenCheck, ...] = ()
    folded: tuple[Parity, ...] = ()
    alone: tuple[Parity, ...] = ()
    live: tuple[Liveness, ...] = ()


@dataclass(frozen=True)
class Checks:
    """The outcome of all comparisons.

    Attributes:
        comparisons: all of them.
        selftests: vectors of each task whose logits are finite numbers.
        verdict: "passed", "failed", or "not measured" where torch was left out.
        failures: what was beyond its limit, as sentences.
    """

    comparisons: Comparisons
    selftests: Mapping[str, Mapping[str, NDArray[Any]]]
    verdict: Verdict
    failures: tuple[str, ...]


def check_bundle(
    engine: Engine | None,
    learned: Mapping[str, ServedTask],
    served: Mapping[str, ServedTask],
    tokenizer: Tokenizer,
    *,
    precision: Precision,
    base: Path | None,
    config: DecoderConfig,
    progress: Progress = SILENT,
) -> Checks:
    """Compares.

    Args:
        engine: the compiled base; None if nothing here can run it (then `base` is None, too).
        learned: the tasks as they were learned.
        served: the tasks as the bundle serves them.
        tokenizer: the base's.
        precision: of the bundle's numbers; it decides what still counts as the same.
        base: the Hugging Face folder for torch; if None, all comparisons are left out.
        config: of the base.
        progress: receives messages.

    Raises:
        ExportError: a template that leaves no room for a comparison.
        DataError: a template with tokens that the base has no embeddings of.
        BaseModelError: torch cannot load the base.
    """
    if base is None or engine is None:
        return Checks(Comparisons(), {}, "not measured", ())
    window = smallest_window(config)
    rows = probe_rows(
        learned,
        tokenizer,
        vocab=engine.vocab,
        capacity=engine.capacity,
        served=served,
        window=window,
    )
    not_compared = windows_not_compared(rows, window)
    for each in not_compared:
        progress.say(each)
    expected, reference = _reference_trace(base, config, rows, engine.capacity, progress)
    itself = _against_itself(engine, rows, expected.tokens, self_limit_of(precision), progress)
    comparisons = Comparisons(
        torch=tuple(compare(rows, expected, itself.mixed, reference, limit_of(precision))),
        not_compared=not_compared,
        tokens=tuple(compare_tokens(rows, base)),
        folded=itself.folded,
        alone=itself.alone,
        live=tuple(liveness(engine, rows, learned)),
    )
    failures = _failures(comparisons)
    # Any machine can repeat torch's float32 numbers. Of rounded weights it can only repeat what
    # this bundle computes, after the bundle's own tokens.
    exact = (precision.quantization, precision.cache_dtype) == ("none", "float32")
    kept = expected if exact else trace(engine, rows)
    vectors = {name: selftest_arrays(rows, kept, name) for name in learned}
    return Checks(
        comparisons,
        # Vectors that are not finite could check nothing, and readers refuse them.
        {name: arrays for name, arrays in vectors.items() if np.isfinite(arrays["logits"]).all()},
        "failed" if failures else "passed",
        failures,
    )


def _reference_trace(
    base: Path,
    config: DecoderConfig,
    rows: Sequence[ProbeRow],
    capacity: int,
    progress: Progress,
) -> tuple[Trace, str]:
    """Torch's results for the rows, and its name. Its copy of the base is freed on return."""
    progress.say("importing torch")
    from pl_compile.training.reference import TorchEngine, reference_name

    progress.say("loading the reference (torch)")
    reference = TorchEngine(base, config=config, capacity=capacity)
    return trace_reference(reference, rows, progress=progress), reference_name()


@dataclass(frozen=True)
class _AgainstItself:
    """The bundle as it is served, compared with itself served in other ways."""

    mixed: Trace
    folded: tuple[Parity, ...]
    alone: tuple[Parity, ...]


def _against_itself(
    engine: Engine, rows: Sequence[ProbeRow], follow: Int64, limit: Limit, progress: Progress
) -> _AgainstItself:
    mixed = trace(engine, rows, follow=follow, label="bundle", progress=progress)
    whole = trace(
        engine, rows, follow=follow, folded=False, label="bundle, not folded", progress=progress
    )
    alone = trace(
        engine, rows, follow=follow, alone=True, label="bundle, row by row", progress=progress
    )
    return _AgainstItself(
        mixed,
        tuple(compare(rows, whole, mixed, "the same, not folded", limit)),
        tuple(compare(rows, alone, mixed, "the same, row by row", limit)),
    )


def _failures(found: Comparisons) -> tuple[str, ...]:
    """What was beyond its limit, as sentences."""
    return (
        *parity_failures([*found.torch, *found.folded, *found.alone]),
        *token_failures(found.tokens),
        *(
            f"the prompt of task '{result.task}' changes nothing"
            for result in found.live
            if not result.is_live
        ),
    )
