"""The names of the files that a compiled base consists of, for all targets that are ONNX."""

MODEL_NAME = "model.onnx"
DATA_NAME = "model.onnx.data"  # beside it: the numbers of its weights
