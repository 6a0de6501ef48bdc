"""Runs passes one after the other: verifies, times and prints between them.

In: a model and the literal list of a target. Out: the model in its last form, and a record of each
pass for the report. Each target writes its own list (`exporters/`).
"""

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import onnx_ir as ir

from pl_compile.errors import PlcError
from pl_compile.passes.graph_pass import GraphPass
from pl_compile.passes.verify import verify_model
from pl_compile.progress import SILENT, Progress
from pl_compile.quantize.scheme import Scheme


@dataclass(frozen=True)
class PassRecord:
    """What a pass did.

    Attributes:
        name: of the pass.
        options: its fields that say something in a report.
        modified: whether it changed the model.
        seconds: wall time.
        nodes: of the main graph, afterwards.
        weight_bytes: of all initializers, afterwards.
    """

    name: str
    options: dict[str, Any]
    modified: bool
    seconds: float
    nodes: int
    weight_bytes: int


def run_passes(
    model: ir.Model,
    passes: Sequence[GraphPass],
    *,
    dump_to: Path | None = None,
    progress: Progress = SILENT,
) -> list[PassRecord]:
    """Runs the passes in their order, in place.

    Args:
        model: the main graph.
        passes: the list of a target.
        dump_to: a folder that gets the model as text before the first pass and after each.
        progress: who is told.

    Raises:
        PlcError: what a pass refuses of its input.
        onnx_ir.passes.PassError: a pass broke the model or its promise: a mistake of ours.
    """
    verify_model(model)
    if dump_to is not None:
        dump_to.mkdir(parents=True, exist_ok=True)
        for old in dump_to.glob("[0-9][0-9]-*.onnx.txt"):
            old.unlink()
        _dump(model, dump_to / "00-main-graph.onnx.txt")
    records: list[PassRecord] = []
    with progress.bar("passes", len(passes)) as bar:
        for number, each in enumerate(passes, 1):
            records.append(_run_pass(model, each, records))
            if dump_to is not None:
                _dump(model, dump_to / f"{number:02}-{each.name}.onnx.txt")
            bar.advance(note=each.name)
    if dump_to is not None:
        text = json.dumps([asdict(record) for record in records], indent=2)
        (dump_to / "passes.json").write_text(text + "\n", encoding="utf-8")
    return records


def _run_pass(model: ir.Model, each: GraphPass, earlier: Sequence[PassRecord]) -> PassRecord:
    started = time.perf_counter()
    try:
        result = each(model)
        verify_model(model)
    except ir.passes.InvariantError as error:
        if isinstance(error.__cause__, PlcError):
            raise error.__cause__ from None
        raise
    except AssertionError as error:
        before = ", ".join(record.name for record in earlier) or "none"
        raise ir.passes.PassError(
            f"{each.name} broke the model (passes before it: {before})"
        ) from error
    return PassRecord(
        each.name,
        _options(each),
        result.modified,
        round(time.perf_counter() - started, 4),
        len(model.graph),
        sum(_bytes(value) for value in model.graph.initializers.values()),
    )


def model_text(model: ir.Model) -> str:
    """The model in ONNX's own text form, without the numbers of its weights."""
    return ir.to_onnx_text(model, exclude_initializers=True)


def _dump(model: ir.Model, path: Path) -> None:
    path.write_text(model_text(model), encoding="utf-8")


def _options(each: GraphPass) -> dict[str, Any]:
    values = {field.name: getattr(each, field.name) for field in fields(each)}
    return {
        name: str(value) if isinstance(value, Scheme) else value
        for name, value in values.items()
        if isinstance(value, int | float | str | Scheme)
    }


def _bytes(value: ir.Value) -> int:
    return 0 if value.const_value is None else value.const_value.nbytes
