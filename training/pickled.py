"""Arrays of a foreign pickle, read as weights only: nothing that is in it is run.

In: a file that `torch.save` wrote, and a user who asked for it. Out: float32 arrays by name.
"""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from pl_compile.config.floats import check_floats
from pl_compile.errors import ArtifactError, first_line_of


def tensors_of_pickle(path: Path) -> dict[str, NDArray[np.float32]]:
    """The tensors of a file that holds a dict of them.

    Raises:
        ArtifactError: the file cannot be read, or holds anything but tensors by name.
    """
    doing = f"reading {path} as weights only"
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        kinds = {name: str(each.dtype).removeprefix("torch.") for name, each in content.items()}
        tensors = {name: tensor.detach().float().numpy() for name, tensor in content.items()}
    except Exception as error:  # a damaged or hostile pickle can end in any
        raise ArtifactError(
            doing, found=first_line_of(error), expected="tensors by name"
        ) from error
    if not all(isinstance(name, str) for name in tensors):
        raise ArtifactError(doing, found="names that are no text", expected="tensors by name")
    check_floats(kinds, ArtifactError, doing)
    return tensors
