"""Which numbers are weights as they are: floats of 16 bits and more.

Whole numbers, and floats of fewer bits, are codes: they mean nothing without the scales that stand
somewhere else.
"""

from collections.abc import Mapping

from pl_compile.errors import PlcError

# As numpy and torch call a kind of float, and as safetensors does.
FLOATS = {"float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16"}

EXPECTED = "floats of 16 bits or more"

_MOST_SHOWN = 5


def check_floats(kinds: Mapping[str, str], error: type[PlcError], doing: str) -> None:
    """Raises `error` unless all tensors are floats.

    Args:
        kinds: what numpy or safetensors calls the numbers of each, by the tensor's name.
        error: what is raised.
        doing: what it says was being done.
    """
    known = {*FLOATS, *FLOATS.values()}
    codes = [f"'{name}' of {kind}" for name, kind in kinds.items() if kind not in known]
    if codes:
        more = ", …" if len(codes) > _MOST_SHOWN else ""
        raise error(doing, found=", ".join(codes[:_MOST_SHOWN]) + more, expected=EXPECTED)
