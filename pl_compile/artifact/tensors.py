"""Reading a safetensors file whole: its arrays and its metadata, or one clear error."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from pl_compile.errors import ArtifactError


@dataclass(frozen=True)
class TensorFile:
    """What a safetensors file holds.

    Attributes:
        tensors: arrays by name.
        metadata: text by name; empty where the file has none.
    """

    tensors: dict[str, NDArray[Any]]
    metadata: dict[str, str]


def read_tensor_file(path: Path, *, doing: str, prefix: str = "") -> TensorFile:
    """Reads a safetensors file.

    Args:
        path: the file.
        doing: what an error says was being done.
        prefix: only tensors whose name begins with it are read.

    Raises:
        ArtifactError: there is no such file, or it is damaged.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            names = [name for name in file.keys() if name.startswith(prefix)]  # noqa: SIM118
            tensors = {name: file.get_tensor(name) for name in names}
    except (OSError, SafetensorError, TypeError, AttributeError) as error:
        # The last two: a number format that numpy does not know.
        raise ArtifactError(doing, found=str(error), expected="a safetensors file") from error
    return TensorFile(tensors, metadata)
