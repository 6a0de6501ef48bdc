"""Second moments of the activations that the base's weights meet, from examples of the tasks.

In: the main graph as floats, and examples. Out: `Moments` for GPTQ. The graph itself runs on ONNX
Runtime, with the inputs of its matrix products as further outputs. So calibration needs no torch,
and sees virtual tokens in their places.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from pl_compile.artifact.bundle import MODEL_NAME
from pl_compile.config.build import BuildOptions
from pl_compile.config.contract import GraphContract
from pl_compile.config.decoder import DecoderConfig
from pl_compile.errors import DataError
from pl_compile.exporters.exporter import Exporter, PassInputs
from pl_compile.exporters.onnx.files import save
from pl_compile.graph.decoder import build_decoder
from pl_compile.passes.edit import is_op
from pl_compile.passes.pipeline import run_passes
from pl_compile.progress import SILENT, Progress
from pl_compile.quantize.moments import Moments
from pl_compile.runtime.engines.onnxruntime.opening import onnx_engine
from pl_compile.runtime.served_task import ServedTask
from pl_compile.runtime.stepping import Batch
from pl_compile.shapes import Int64
from pl_compile.text.examples import Example, cut_note

# Enough for stable moments of a small base, in about a minute.
MOST_EXAMPLES = 128

_OUTPUT = "calibration."

# Tokens whose activations are summed up together.
_AT_ONCE = 1024


def calibration_prompts(
    examples: Sequence[Example],
    learned: Mapping[str, ServedTask],
    *,
    capacity: int,
    vocab: int,
    progress: Progress = SILENT,
) -> list[tuple[ServedTask, Int64]]:
    """The examples as sequences of ids, right answers included where the data gives them.

    Args:
        examples: at least one; at most `MOST_EXAMPLES` of them are used, spread evenly.
        learned: the tasks by name.
        capacity: longest sequence; fields that may be cut are cut to fit.
        vocab: ids that the base knows.
        progress: is told which examples are cut to fit.

    Raises:
        DataError: a prompt is too long.
    """
    count = min(len(examples), MOST_EXAMPLES)
    rows = []
    cuts: dict[str, int] = {}
    for number in np.linspace(0, len(examples) - 1, count).astype(int):
        example = examples[number]
        prompt = learned[example.taskname]
        rendered = (
            prompt.renderer.example if _is_answered(example, prompt) else prompt.renderer.prompt
        )
        # The first of several right answers; a question without an answer has an empty list.
        fields = {
            name: value[0] if isinstance(value, list) else value
            for name, value in example.fields.items()
            if value != []
        }
        try:
            kept = rendered(fields, max_length=capacity)
            lost = len(rendered(fields)) - len(kept)
        except DataError as error:
            raise DataError(f"calibrating on {example.where}", found=str(error)) from error
        if lost:
            cuts[example.where] = lost
        rows.append((prompt, prompt.to_feed(kept).input_ids(vocab)))
    if cuts:
        progress.say(f"calibrating: {cut_note(cuts, count, capacity)}")
    return rows


def _is_answered(example: Example, prompt: ServedTask) -> bool:
    return example.fields.get(prompt.renderer.template.answer_field or "") not in (None, [])


def measure_moments(
    exporter: Exporter,
    config: DecoderConfig,
    contract: GraphContract,
    weights: Mapping[str, NDArray[np.float32]],
    rows: Sequence[tuple[ServedTask, Int64]],
    *,
    progress: Progress = SILENT,
) -> Moments:
    """Second moments of the inputs of each matrix product of the layers.

    Args:
        exporter: the target's; its first passes decide which products there are.
        config: the base.
        contract: of the graph that will be built; `rows` fit into its capacity.
        weights: float32 arrays by our names.
        rows: prompts and ids, as `calibration_prompts` makes them.
        progress: receives messages.
    """
    contract = replace(
        contract, prompts="input", baked_tasks=(), candidates=0, ranks=1, logit_tiles=False
    )
    model = build_decoder(config, contract, weights)
    stages = exporter.passes(PassInputs(config, contract, BuildOptions("none")))
    run_passes(model, stages.prepare)
    watched = _watch(model)
    run_passes(model, stages.floats)
    with TemporaryDirectory(prefix="plc-calibration-") as folder:
        save(model, Path(folder))
        del model
        engine = onnx_engine(
            Path(folder) / MODEL_NAME, contract, max_batch=1, watched=tuple(watched)
        )
        sums = _Sums()
        with progress.bar("calibrating", len(rows)) as bar:
            for prompt, ids in rows:
                batch = Batch(engine)
                batch.admit(0, prompt)
                for start in range(0, len(ids), engine.piece):
                    batch.feed({0: ids[start : start + engine.piece]})
                    for output, seen in engine.watched():
                        sums.add(watched[output], seen[0])
                bar.advance()
    return Moments(sums.moments(), sum(len(ids) for _, ids in rows))


class _Sums:
    """Sums of `x x^T`. Many tokens are added at once, since a sum is larger than its addends."""

    def __init__(self) -> None:
        self._waiting: dict[str, list[NDArray[np.float32]]] = {}
        self._sums: dict[str, NDArray[np.float64]] = {}

    def add(self, weight: str, seen: NDArray[np.float32]) -> None:
        """Adds the activations `[tokens, inputs]` that met a weight."""
        waiting = self._waiting.setdefault(weight, [])
        waiting.append(seen)
        if sum(map(len, waiting)) >= _AT_ONCE:
            self._flush(weight)

    def moments(self) -> dict[str, NDArray[np.float64]]:
        """The sums by weight."""
        for weight in self._waiting:
            self._flush(weight)
        return self._sums

    def _flush(self, weight: str) -> None:
        waiting = self._waiting[weight]
        if waiting:
            rows = np.concatenate(waiting)
            moment = (rows.T @ rows).astype(np.float64)
            if weight in self._sums:
                self._sums[weight] += moment
            else:
                self._sums[weight] = moment
            waiting.clear()


def _watch(model: ir.Model) -> dict[str, str]:
    """Makes the input of each product an output; returns the weight that it meets, by its name."""
    watched = {}
    for node in list(model.graph):
        weight = node.inputs[1] if is_op(node, "MatMul") else None
        if weight is None or not weight.is_initializer():
            continue
        name = f"{_OUTPUT}{weight.name}"
        seen = ir.val(name, ir.DataType.FLOAT, ["batch", "seq", None])
        model.graph.append(
            ir.node("Identity", [node.inputs[0]], name=f"{name}.seen", outputs=[seen])
        )
        model.graph.outputs.append(seen)
        watched[name] = str(weight.name)
    return watched
