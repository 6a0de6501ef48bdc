"""A Hugging Face folder's tensors by name, and the fingerprint of the base they make.

In: a folder with `model.safetensors`, or with shards and their index. Out: numpy arrays as they are
stored, one at a time, and a sha256. Knows no model family. Pickled checkpoints are not read.
"""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from pl_compile.config.decoder import DecoderConfig
from pl_compile.errors import BaseModelError

# Written out, so that a field that is added to DecoderConfig later changes no fingerprint.
_FINGERPRINTED = (
    "attention_bias",
    "family",
    "ffn",
    "head_dim",
    "heads",
    "hidden",
    "kv_heads",
    "layers",
    "mlp_bias",
    "norm_eps",
    "positions",
    "rope_theta",
    "tied",
    "vocab",
)

_SINGLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"


class Checkpoint:
    """The tensors of a Hugging Face folder, read when asked for.

    Raises:
        BaseModelError: no safetensors files, a damaged one, or one that the index names is missing.
    """

    def __init__(self, folder: Path) -> None:
        # Teaches numpy the name "bfloat16", which safetensors asks for. The base install lacks it,
        # since it never reads a checkpoint.
        import ml_dtypes  # noqa: F401

        self.folder = folder
        self._files: dict[str, Any] = {}
        for path in self._paths():
            with self._reporting(path):
                file = safe_open(path, framework="numpy")
                self._files |= dict.fromkeys(file.keys(), file)

    @property
    def names(self) -> list[str]:
        """Tensor names, sorted."""
        return sorted(self._files)

    def tensor(self, name: str) -> NDArray[Any]:
        """The tensor `name` with the shape and dtype it is stored in."""
        with self._reporting(self.folder / _SINGLE):
            array: NDArray[Any] = self._files[name].get_tensor(name)
        return array

    def _paths(self) -> list[Path]:
        single, index = self.folder / _SINGLE, self.folder / _INDEX
        if single.is_file():
            return [single]
        with self._reporting(index):
            names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        return [self.folder / name for name in sorted(names)]

    @contextmanager
    def _reporting(self, path: Path) -> Iterator[None]:
        try:
            yield
        except (
            OSError,
            SafetensorError,
            ValueError,
            LookupError,
            TypeError,
            AttributeError,
        ) as error:
            raise BaseModelError(
                f"reading the weights of {self.folder}",
                found=f"{path.name}: {error}",
                expected=f"a readable {_SINGLE}, or shards with {_INDEX}",
                fix="Pickled .bin checkpoints are not read: save the model with safetensors.",
            ) from error


def fingerprint_base(checkpoint: Checkpoint, config: DecoderConfig) -> str:
    """The sha256 that identifies a base: its config, and its tensors' names, shapes and bytes.

    Independent of shards, of the order in the files and of keys that do not change the numbers.
    """
    sizes = {name: getattr(config, name) for name in _FINGERPRINTED}
    digest = hashlib.sha256(json.dumps(sizes, sort_keys=True).encode())
    for name in checkpoint.names:
        array = np.ascontiguousarray(checkpoint.tensor(name))
        digest.update(json.dumps([name, str(array.dtype), list(array.shape)]).encode())
        digest.update(array.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()
