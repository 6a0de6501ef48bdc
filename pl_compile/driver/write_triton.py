"""Writes what Triton Inference Server needs around a bundle: a model of a model repository.

    FOLDER/config.pbtxt     inputs, outputs, how Triton runs the model
    FOLDER/1/model.py       `triton_model.py`, which Triton's Python backend imports
    FOLDER/1/bundle/        the bundle

FOLDER's name is that of the model, and the folder that it lies in is the repository. The file names
no model, so the folder may be renamed.
"""

from pathlib import Path

from pl_compile.artifact.bundle import files_of_bundle
from pl_compile.config.targets import TARGETS

CONFIG = "config.pbtxt"
MODEL = "1/model.py"
BUNDLE = "1/bundle"

_CONFIG = """\
# Written by plc export --triton.
backend: "python"
# Triton makes no batches: the session puts requests into one, at any step.
max_batch_size: 0
model_transaction_policy {{ decoupled: true }}
input [
  {{ name: "task", data_type: TYPE_STRING, dims: [ 1 ] }},
  # A JSON object: a value for each field of the task's template.
  {{ name: "fields", data_type: TYPE_STRING, dims: [ 1 ] }},
  # A JSON object, such as {{"max_tokens": 32, "temperature": 0.7}}.
  {{ name: "options", data_type: TYPE_STRING, dims: [ 1 ], optional: true }},
  # Whether the answer is sent in pieces, as it is written.
  {{ name: "stream", data_type: TYPE_BOOL, dims: [ 1 ], optional: true }}
]
output [
  {{ name: "text", data_type: TYPE_STRING, dims: [ 1 ] }},
  # The whole answer as a JSON object, in the last response; empty before.
  {{ name: "result", data_type: TYPE_STRING, dims: [ 1 ] }}
]
# One process, one session.
instance_group [ {{ count: 1, kind: {kind} }} ]
# parameters {{ key: "max_batch", value: {{ string_value: "16" }} }}
# parameters {{ key: "threads", value: {{ string_value: "8" }} }}
"""


def write_triton_model(folder: Path, target: str) -> None:
    """Writes the model but for its bundle.

    Args:
        folder: the model's.
        target: of the bundle.
    """
    (folder / MODEL).parent.mkdir(parents=True)
    # On a GPU the engine takes its device by itself: Triton need not spread instances.
    kind = "KIND_MODEL" if TARGETS[target].on_gpu else "KIND_CPU"
    (folder / CONFIG).write_text(_CONFIG.format(kind=kind), encoding="utf-8")
    model = Path(__file__).with_name("triton_model.py").read_bytes()
    (folder / MODEL).write_bytes(model)


def files_of_triton_model(folder: Path) -> frozenset[str]:
    """The files of a model that an export wrote, by their paths in it.

    Empty where the folder holds no bundle in the place that a model has for it.
    """
    files = files_of_bundle(folder / BUNDLE)
    if not files:
        return frozenset()
    # Python writes these when Triton imports the model.
    compiled = (path.relative_to(folder) for path in folder.glob("1/__pycache__/model.*.pyc"))
    inside = (f"{BUNDLE}/{name}" for name in files)
    return frozenset([CONFIG, MODEL, *inside, *(path.as_posix() for path in compiled)])
