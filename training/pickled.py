"""Reads arrays of a foreign pickle as weights only: no code in it is run.

In: a file that `torch.save` wrote, and a user who asked for it. Out: float32 arrays by name.
"""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from pl_compile.config.floats import check_floats
from pl_compile.errors import ArtifactError, reason_of


def tensors_of_pickle(path: Path) -> dict[str, NDArray[np.float32]]:
    """The tensors of a file that holds a dict of them.

    Raises:
        ArtifactError: the file cannot be read, or holds anything but tensors by name.
    """
    doing = f"reading {path} as weights only"
    wanted = "tensors by name"
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise ArtifactError(doing, found=reason_of(error), expected=wanted) from error
    except Exception as error:  # a damaged or hostile pickle can raise any exception
        raise ArtifactError(
            doing,
            found="a file that is damaged, or holds something else",
            expected=f"a file that torch.save wrote, with {wanted}",
        ) from error
    if not isinstance(content, dict) or not all(
        isinstance(tensor, torch.Tensor) for tensor in content.values()
    ):
        raise ArtifactError(doing, found="something else", expected=wanted)
    if not all(isinstance(name, str) for name in content):
        raise ArtifactError(doing, found="names that are not text", expected=wanted)
    kinds = {name: str(each.dtype).removeprefix("torch.") for name, each in content.items()}
    check_floats(kinds, ArtifactError, doing)
    sparse = [f"'{name}'" for name, tensor in content.items() if not _is_all_there(tensor)]
    if sparse:
        found = f"{', '.join(sparse[:5])}, whose numbers are not all in the file"
        raise ArtifactError(doing, found=found, expected="each number of a tensor by itself")
    # A view may be marked as the negative of the stored numbers.
    return {name: tensor.detach().resolve_neg().float().numpy() for name, tensor in content.items()}


def _is_all_there(tensor: torch.Tensor) -> bool:
    """Whether the file has a number for each place: a small file may hold a huge repeating view."""
    if tensor.is_nested or tensor.layout != torch.strided or tensor.device.type != "cpu":
        return False
    return tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes()
