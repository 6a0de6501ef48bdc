"""What a form of a target must have shown to have run: how the names of its results begin."""

SHOWN = {
    "onnx-cuda": ("self-tests", "parity", "mixed batch", "entries", "operators on"),
    "tensorrt": ("task", "mixed batch"),
}
