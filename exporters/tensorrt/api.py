"""The few functions through which all else uses TensorRT: its package, parsing, guards, plans.

One code for `tensorrt_rtx` and `tensorrt`, whose Python interfaces are the same but for a few
names; where they differ, `hasattr` decides. Building needs no GPU with `tensorrt_rtx`; nothing here
runs a plan, and no plan was ever run by this project.

Two things that the parser accepts are silently compiled to something else: it ignores
`nonpad_kv_seqlen` of ONNX's Attention, and takes `is_causal` for alignment at the upper left. A
third, a collective whose number of ranks is missing, becomes one of a single rank. So what was
parsed is looked at before it is built.
"""

import importlib
import resource
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pl_compile.artifact.plan_record import AttentionForm
from pl_compile.config.targets import PLAN_TARGETS
from pl_compile.errors import ExportError

# TensorRT finds no more than this many largest values.
MOST_CANDIDATES = 3840


def parser_for(target: str) -> str | None:
    """The flavour whose parser reads a target's files on this machine; None if there is none.

    That is the target's own, else the other. A package may be installed and not start: TensorRT
    does not without a GPU.
    """
    for flavour in (target, *PLAN_TARGETS):
        try:
            trt = importlib.import_module(PLAN_TARGETS[flavour].package)
            if trt.Builder(logger_of(trt, [])) is not None:
                return flavour
        except (ImportError, OSError, RuntimeError, TypeError):
            continue
    return None


def has_collectives(trt: Any) -> bool:
    """Whether this TensorRT has a layer for sums over ranks (from 10.16 on)."""
    return hasattr(trt.LayerType, "DIST_COLLECTIVE")


def tensorrt_module(target: str, doing: str = "") -> Any:
    """The Python package of a target.

    Args:
        target: the flavour.
        doing: for the error; "building for" it, in an export, if empty.

    Raises:
        ExportError: it is not installed, or does not load.
    """
    package = PLAN_TARGETS[target].package
    try:
        return importlib.import_module(package)
    except (ImportError, OSError) as error:
        elsewhere = "" if doing else "; or leave plans to the device: plc export --defer-build"
        raise ExportError(
            doing or f"building for {target}",
            found=str(error),
            expected=f"the package {package}",
            fix=f"pip install 'pl-compile[{PLAN_TARGETS[target].extra}]'{elsewhere}.",
        ) from error


@dataclass(frozen=True)
class ParsedNetwork:
    """What TensorRT made of an ONNX file. The network is valid as long as the others are held.

    Attributes:
        trt: the package.
        network: an `INetworkDefinition`.
        builder: its builder.
        parser: its parser.
        log: what TensorRT said, `(severity, text)`.
    """

    trt: Any
    network: Any
    builder: Any
    parser: Any
    log: list[tuple[str, str]]


def parse(
    model: Path,
    target: str,
    *,
    ranks: int = 1,
    attention: AttentionForm = "mask",
    masks: int = 0,
) -> ParsedNetwork:
    """Parses an ONNX file and checks what became of it.

    Args:
        model: the file; its data lies beside it.
        target: "tensorrt-rtx" or "tensorrt".
        ranks: how many ranks its collectives are for.
        attention: how its attentions are told what a token sees.
        masks: how many of them keep their masks in the form "lower_right".

    Raises:
        ExportError: the package is missing, the parser refuses the file, or `check_network` does.
    """
    trt = tensorrt_module(target, f"parsing {model} with {target}")
    log: list[tuple[str, str]] = []
    logger = logger_of(trt, log)
    try:
        builder = trt.Builder(logger)
    except (RuntimeError, TypeError):  # how bindings say that there is none
        builder = None
    if builder is None:
        raise ExportError(
            f"starting TensorRT's builder for {target}",
            found="; ".join(text for _, text in log)[:1000] or "no builder, and no reason",
            fix="It may need a GPU: use --defer-build, and plc build on the device.",
        )
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(model)):
        errors = [str(parser.get_error(index)) for index in range(parser.num_errors)]
        raise ExportError(
            f"parsing {model} with TensorRT",
            found="; ".join(errors)[:1000],
            expected="operators that it takes",
            fix="This is a mistake of the exporter: report it.",
        )
    parsed = ParsedNetwork(trt, network, builder, parser, log)
    check_network(parsed, ranks=ranks, attention=attention, masks=masks)
    return parsed


def check_network(
    parsed: ParsedNetwork,
    *,
    ranks: int = 1,
    attention: AttentionForm = "mask",
    masks: int = 0,
) -> None:
    """Marks attentions decomposable, and refuses what would be compiled to something else.

    Args:
        parsed: the network.
        ranks: how many its collectives are for.
        attention: the form of its attentions.
        masks: how many attentions, those with a window, keep their masks in "lower_right".

    Raises:
        ExportError: an attention of another form than was asked for, another number of masks, a
            cache without a fixed capacity, a collective of another number of ranks, none where
            there must be some, or too many candidates.
    """
    trt = parsed.trt
    kinds = {layer.type for layer in layers_of(parsed)}
    # A plugin checks its number itself: nothing reads it back.
    collectives = [getattr(trt.LayerType, n, None) for n in ("DIST_COLLECTIVE", "PLUGIN_V3")]
    if ranks > 1 and kinds.isdisjoint(collectives):
        raise _wrong_network(f"no collective, and {ranks} ranks", "sums over all ranks")
    masked = 0
    for layer in layers_of(parsed):
        kind = layer.type
        if kind == trt.LayerType.ATTENTION_INPUT:
            masked += _check_attention(trt, layer, attention)
        elif kind == trt.LayerType.KV_CACHE_UPDATE and -1 in tuple(layer.get_input(0).shape)[1:]:
            shape = tuple(layer.get_input(0).shape)
            raise _wrong(layer, f"a cache of shape {shape}", "a fixed capacity")
        elif kind == getattr(trt.LayerType, "DIST_COLLECTIVE", None):
            found = typed(trt, layer).num_ranks
            if found != ranks:
                raise _wrong(layer, f"a collective of {found} ranks", f"{ranks}")
        elif kind == trt.LayerType.TOPK and typed(trt, layer).k > MOST_CANDIDATES:
            raise _wrong(layer, f"{layer.k} candidates", f"at most {MOST_CANDIDATES}")
    if attention == "lower_right" and masked != masks:
        raise _wrong_network(f"{masked} attentions with a mask", f"{masks}, those with a window")


def _check_attention(trt: Any, layer: Any, form: AttentionForm) -> bool:
    """Checks one, and returns whether it has a mask."""
    attention = typed(trt, layer).attention
    # Else only the types and head sizes that have a fused kernel would build.
    attention.decomposable = True
    masked, causal = attention.mask is not None, attention.causal_kind.name
    has_lengths = getattr(attention, "key_value_lengths", None) is not None
    by_mask = masked and causal == "NONE" and not has_lengths
    by_lengths = not masked and causal == "LOWER_RIGHT" and has_lengths
    # Where lengths are asked for, windows keep their masks.
    if not (by_mask or (by_lengths and form == "lower_right")):
        found = f"an attention with causal kind {causal} and {'a' if masked else 'no'} mask"
        expected = {
            "mask": "a mask alone: TensorRT drops lengths, and aligns elsewhere",
            "lower_right": "LOWER_RIGHT with the rows' lengths, or a mask",
        }[form]
        raise _wrong(layer, found, expected)
    return masked


def _wrong(layer: Any, found: str, expected: str) -> ExportError:
    return _wrong_network(found, expected, of=layer.name)


def _wrong_network(found: str, expected: str, *, of: str = "the graph") -> ExportError:
    return ExportError(
        f"checking what TensorRT made of {of}",
        found=found,
        expected=expected,
        fix="It would be compiled to something else: report it, it is a mistake of the exporter.",
    )


def layers_of(parsed: ParsedNetwork) -> Iterator[Any]:
    """All layers, in the network's order, which is not that of the data."""
    for index in range(parsed.network.num_layers):
        yield parsed.network.get_layer(index)


def typed(trt: Any, layer: Any) -> Any:
    """A layer as an object of its own class: `get_layer` gives one without the class's settings."""
    name = "".join(part.capitalize() for part in layer.type.name.split("_"))
    names = {"KvCacheUpdate": "KVCacheUpdate", "Softmax": "SoftMax", "Topk": "TopK"}
    names |= {"Elementwise": "ElementWise"}
    own = getattr(trt, f"I{names.get(name, name)}Layer", None)
    if own is not None:
        layer.__class__ = own
    return layer


@dataclass(frozen=True)
class PlanOptions:
    """How a plan is built.

    Attributes:
        max_batch: rows of a step at most.
        capacity: tokens of a step at most.
        compute_capabilities: such as "8.6"; TensorRT's own choice if empty.
    """

    max_batch: int
    capacity: int
    compute_capabilities: tuple[str, ...] = ()


@dataclass(frozen=True)
class Plan:
    """A built engine.

    Attributes:
        data: what TensorRT deserialises.
        seconds: that building took.
        layers: how many of each kind the parsed network has.
        version: of the package.
        peak_memory_bytes: of this process, up to the end of the build.
    """

    data: bytes
    seconds: float
    layers: dict[str, int]
    version: str
    peak_memory_bytes: int


def build_plan(
    parsed: ParsedNetwork, options: PlanOptions, *, said: Callable[[str], None] = lambda _: None
) -> Plan:
    """Builds a plan with two profiles, for prompts and for single tokens, that share weights.

    Args:
        parsed: a checked network.
        options: sizes and processors.
        said: gets the names of TensorRT's own phases.

    Raises:
        ExportError: TensorRT cannot build it here; its own words are in the message.
    """
    trt = parsed.trt
    logger_of(trt, parsed.log)
    config = parsed.builder.create_builder_config()
    _set_capabilities(trt, config, options.compute_capabilities)
    for seqs in ((1, min(128, options.capacity), options.capacity), (1, 1, 1)):
        config.add_optimization_profile(_profile(parsed, options.max_batch, seqs))
    stopped = threading.Event()
    config.progress_monitor = _monitor(trt, said, stopped)
    started = time.perf_counter()
    begun = threading.Event()

    def build() -> Any:
        begun.wait()
        if stopped.is_set():
            return None
        return parsed.builder.build_serialized_network(parsed.network, config)

    # In a thread of its own: TensorRT drops what is raised in its callbacks, and with it Ctrl-C.
    with ThreadPoolExecutor(1) as thread:
        try:
            building = thread.submit(build)
            # Only now: a Ctrl-C within `submit` could leave a thread that nobody waits for.
            begun.set()
            data = building.result()
        except BaseException:
            stopped.set()
            begun.set()
            raise
    if data is None:
        errors = [text for severity, text in parsed.log if severity in ("ERROR", "INTERNAL_ERROR")]
        raise ExportError(
            "building a TensorRT plan",
            found="; ".join(errors)[:1000] or "no plan, and no reason",
            fix="Try another precision, or other GPUs.",
        )
    seconds = time.perf_counter() - started
    return Plan(
        data=bytes(data),
        seconds=round(seconds, 3),
        layers=dict(sorted(Counter(layer.type.name for layer in layers_of(parsed)).items())),
        version=trt.__version__,
        peak_memory_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    )


def _profile(parsed: ParsedNetwork, max_batch: int, seqs: tuple[int, int, int]) -> Any:
    profile = parsed.builder.create_optimization_profile()
    batches = (1, min(4, max_batch), max_batch)
    for index in range(parsed.network.num_inputs):
        tensor = parsed.network.get_input(index)
        if -1 not in tuple(tensor.shape):
            continue
        shapes = [
            [
                size if size != -1 else batches[which] if axis == 0 else seqs[which]
                for axis, size in enumerate(tensor.shape)
            ]
            for which in range(3)
        ]
        profile.set_shape(tensor.name, *shapes)
    return profile


def check_capabilities(trt: Any, wanted: Sequence[str]) -> None:
    """Raises `ExportError` unless a TensorRT can build for these GPUs on a machine without them."""
    if not wanted:
        return
    if not hasattr(trt, "ComputeCapability"):
        raise ExportError(
            "choosing compute capabilities",
            found=f"{', '.join(wanted)}, and a TensorRT that builds for the GPU it runs on",
            fix="Leave them out, and build on the device.",
        )
    known = [_as_typed(n) for n in trt.ComputeCapability.__members__ if n.startswith("SM")]
    unknown = [each for each in wanted if each not in known]
    if unknown:
        raise ExportError(
            "choosing compute capabilities",
            found=f"'{unknown[0]}'",
            expected=", ".join(known),
            fix="Give --compute-capability once for each. Other GPUs need --target tensorrt, built "
            "on them.",
        )


def _set_capabilities(trt: Any, config: Any, wanted: Sequence[str]) -> None:
    check_capabilities(trt, wanted)
    if wanted:
        config.num_compute_capabilities = len(wanted)
    for index, text in enumerate(wanted):
        name = f"SM{text.replace('.', '')}"
        config.set_compute_capability(trt.ComputeCapability.__members__[name], index)


def _as_typed(name: str) -> str:
    """SM86 as 8.6, SM120 as 12.0."""
    return f"{name[2:-1]}.{name[-1]}"


# TensorRT keeps the first logger of a process for all that follows: it writes into this one's list.
_loggers: dict[Any, Any] = {}


def logger_of(trt: Any, log: list[tuple[str, str]]) -> Any:
    """The logger of a package, which writes into `log` from here on."""
    if trt.ILogger not in _loggers:

        class Logger(trt.ILogger):  # type: ignore[misc]
            def __init__(self) -> None:
                trt.ILogger.__init__(self)
                self.lines: list[tuple[str, str]] = []

            def log(self, severity: Any, text: str) -> None:
                if int(severity) <= int(trt.ILogger.WARNING):
                    self.lines.append((str(severity).rpartition(".")[2], text))

        _loggers[trt.ILogger] = Logger()
    _loggers[trt.ILogger].lines = log
    return _loggers[trt.ILogger]


def _monitor(trt: Any, said: Callable[[str], None], stopped: threading.Event) -> Any:
    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, name: str, parent: str | None, steps: int) -> None:
            said(name)

        def step_complete(self, name: str, step: int) -> bool:
            return not stopped.is_set()  # which ends the build where it is not

        def phase_finish(self, name: str) -> None:
            return None

    return Monitor()
