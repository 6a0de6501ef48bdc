"""What `--target auto` and `--quantize auto` come to, and why: decided before anything long begins.

target      `native-cpu` where its kernels run here on the processor's own integer instructions and
            take the base; else `onnx-cpu`. Never a target for a GPU: none was ever run by this
            project, so nobody knows which is faster.
quantize    4 or 8 bits where the weights lose nothing by it, else floats. A base that was published
            in blocks of 4 or 8 bits (llama.cpp's Q4_0, Q4_1, Q8_0) and became floats for its
            checkpoint is stored as it was. Every weight is looked at, one at a time; the first that
            would lose something settles it, which for a base that was published as floats is the
            very first.
"""

import math
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

from pl_compile.checkpoints.checkpoint import Checkpoint
from pl_compile.config.build import AUTO, BuildOptions, Choice
from pl_compile.config.contract import GraphContract
from pl_compile.config.decoder import DecoderConfig
from pl_compile.config.ranks import Shard, shards
from pl_compile.errors import ExportError
from pl_compile.exporters import exporter_for
from pl_compile.exporters.exporter import Exporter
from pl_compile.exporters.rounding import rounded_weights
from pl_compile.progress import SILENT, Progress
from pl_compile.quantize.scheme import LOSSLESS, error_on_full_range
from pl_compile.runtime.kernels import instruction_set
from pl_compile.weights.load import load_weight

_FAST, _ANYWHERE = "native-cpu", "onnx-cpu"


@dataclass(frozen=True)
class Chosen:
    """What is built, all of it decided.

    Attributes:
        exporter: of the target.
        options: as they were given, with the way weights are stored.
        contract: of the whole base's graph.
        shards: the parts of all ranks.
        target: what `--target` came to.
        quantize: what `--quantize` came to.
    """

    exporter: Exporter
    options: BuildOptions
    contract: GraphContract
    shards: tuple[Shard, ...]
    target: Choice
    quantize: Choice


def choose(
    target: str,
    options: BuildOptions,
    config: DecoderConfig,
    checkpoint: Checkpoint,
    contract_of: Callable[[Exporter], GraphContract],
    *,
    progress: Progress = SILENT,
) -> Chosen:
    """Decides what was left to the export, and checks that all of it can be built.

    Args:
        target: a key of `config.targets.TARGETS`, or `AUTO`.
        options: of the export.
        config: of the base.
        checkpoint: of the base; its weights are read where `options.quantize` is `AUTO` and could
            be anything but floats.
        contract_of: the contract of the whole base's graph for a target.
        progress: who is told.

    Raises:
        ExportError: no target of that name, or it cannot hold the base as asked.
        BaseModelError: a weight that was looked at cannot be read.
    """
    asked = options.quantize
    given = replace(options, quantize="none") if asked == AUTO else options
    chosen = _choose_target(target, given, config, contract_of)
    exporter = exporter_for(chosen.chosen)
    contract = contract_of(exporter)
    quantize = Choice(asked, asked)
    if asked == AUTO:
        given, reason = _without_loss(exporter, given, config, contract, checkpoint, progress)
        quantize = Choice(AUTO, given.quantization, reason)
    parts = _divided(exporter, given, config, contract)
    return Chosen(exporter, given, contract, parts, chosen, quantize)


def _choose_target(
    asked: str,
    options: BuildOptions,
    config: DecoderConfig,
    contract_of: Callable[[Exporter], GraphContract],
) -> Choice:
    if asked != AUTO:
        return Choice(asked, asked)
    try:
        found = instruction_set()
    except OSError as error:
        return Choice(AUTO, _ANYWHERE, f"the kernels of {_FAST} do not load: {error}")
    if found is None:
        return Choice(AUTO, _ANYWHERE, f"the kernels of {_FAST} are not built: see plc doctor")
    if found == "portable":
        why = f"{_FAST} would run on its portable kernels, which are slow"
        if os.environ.get("PLC_KERNELS"):
            why += ": PLC_KERNELS asks for them"
        return Choice(AUTO, _ANYWHERE, why)
    fast = exporter_for(_FAST)
    try:
        _divided(fast, options, config, contract_of(fast))
    except ExportError as error:
        return Choice(AUTO, _ANYWHERE, f"{_FAST} does not take it: {_in_short(error)}")
    return Choice(AUTO, _FAST, f"its kernels run here, on {found}")


def _without_loss(
    exporter: Exporter,
    options: BuildOptions,
    config: DecoderConfig,
    contract: GraphContract,
    checkpoint: Checkpoint,
    progress: Progress,
) -> tuple[BuildOptions, str]:
    """The options with the fewest bits that lose nothing, and why these."""
    if exporter.target != _FAST:
        return options, f"what {exporter.target} rounds loses something; --quantize int8 rounds it"
    found = []
    tried: tuple[Literal["int4", "int8"], ...] = ("int4", "int8")
    for quantize in tried:
        rounded = replace(options, quantize=quantize)
        try:
            _divided(exporter, rounded, config, contract)
        except ExportError as error:
            return options, f"blocks do not fit: {_in_short(error)}"
        largest = 0.0
        stored = rounded_weights(config, rounded, native=True)
        with progress.bar(f"trying {quantize}", len(stored)) as bar:
            # Tables last: a layer's first weight settles most bases, and is the quicker to read.
            for name, (scheme, along) in sorted(stored.items(), key=lambda item: item[1][1]):
                weight = load_weight(checkpoint, config, name)
                change = error_on_full_range(weight if along == 0 else weight.T, scheme)
                if not change <= LOSSLESS:
                    found.append(
                        f"a block of {name} would change by {change:.1%} in {scheme.bits} bits"
                    )
                    break
                largest = max(largest, change)
                bar.advance(note=name)
            else:
                return rounded, (
                    "the base was published so: no block of weights changes by more than "
                    f"{_rounded_up(largest)} of its norm; activations are rounded to 8 bits inside "
                    "products: --evaluate measures it, --quantize none avoids it"
                )
    return options, f"rounding would lose something: {', '.join(found)}"


def _divided(
    exporter: Exporter, options: BuildOptions, config: DecoderConfig, contract: GraphContract
) -> tuple[Shard, ...]:
    """The parts of all ranks, once the target takes each of them; else it raises `ExportError`."""
    block = options.block_or_default if options.quantization != "none" else 0
    parts = shards(config, options.ranks, block=block)
    for shard in parts:
        exporter.check(shard.of(config), contract.of_rank(shard.rank), options)
    return parts


def _rounded_up(part: float) -> str:
    """A number in one digit that is not less."""
    if part == 0:
        return "0"
    digit = 10.0 ** math.floor(math.log10(part))
    return f"{math.ceil(part / digit) * digit:.1g}"


def _in_short(error: ExportError) -> str:
    return f"{error.found}; expected {error.expected}" if error.expected else error.found
