"""The types of numbers that can be weights: floats of 16 bits and more.

Whole numbers, and floats of fewer bits, are codes: they mean nothing without their scales, which
are stored elsewhere.
"""

from collections.abc import Mapping

from pl_compile.errors import PlcError

# The name of a float type in numpy and torch, and its name in safetensors.
FLOATS = {"float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16"}

EXPECTED_FLOATS = "floats of 16 bits or more"

_MOST_SHOWN = 5


def check_floats(kinds: Mapping[str, str], error: type[PlcError], doing: str) -> None:
    """Raises `error` unless all tensors are floats.

    Args:
        kinds: numpy's or safetensors' name of each tensor's type, by the tensor's name.
        error: the exception to raise.
        doing: what it says was being done.
    """
    known = {*FLOATS, *FLOATS.values()}
    codes = [f"'{name}' of {kind}" for name, kind in kinds.items() if kind not in known]
    if codes:
        more = ", …" if len(codes) > _MOST_SHOWN else ""
        raise error(doing, found=", ".join(codes[:_MOST_SHOWN]) + more, expected=EXPECTED_FLOATS)
