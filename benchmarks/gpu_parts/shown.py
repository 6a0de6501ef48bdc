"""The results that a form of a target needs to count as run: how their names begin."""

SHOWN = {
    "onnx-cuda": ("self-tests", "parity", "mixed batch", "entries", "operators on"),
    "tensorrt": ("task", "mixed batch"),
}
