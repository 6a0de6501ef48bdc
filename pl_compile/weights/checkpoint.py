"""A Hugging Face folder's tensors by name, and the fingerprint of the base they make.

In: a folder with `model.safetensors`, or with shards and their index. Out: numpy arrays as they are
stored, one at a time, and a sha256. Knows no model family. Pickled checkpoints are not read.
"""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from pl_compile.config.damage import damage_of
from pl_compile.config.decoder import DecoderConfig
from pl_compile.config.floats import FLOATS
from pl_compile.config.strict_json import read_json_object
from pl_compile.config.utf8 import check_regular
from pl_compile.errors import BaseModelError, list_problems, reason_of

# Written out, so that a field that is added to DecoderConfig later changes no fingerprint. What a
# family has of its own (`DecoderConfig.own`) enters it too.
_FINGERPRINTED = (
    "family",
    "ffn",
    "head_dim",
    "heads",
    "hidden",
    "kv_heads",
    "layers",
    "norm_eps",
    "positions",
    "rope_theta",
    "tied",
    "vocab",
)

_SINGLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"

_COPY = "Copy the base again."

# The bits of an exponent that is all ones: infinity, or no number.
_EXPONENTS: dict[str, np.unsignedinteger[Any]] = {
    FLOATS["float32"]: np.uint32(0x7F80_0000),
    FLOATS["float16"]: np.uint16(0x7C00),
    FLOATS["bfloat16"]: np.uint16(0x7F80),
}

# How many numbers are looked at together: what fits a processor's cache.
_BLOCK = 1 << 16


@dataclass(frozen=True)
class Header:
    """What a file says of a tensor before its numbers.

    Attributes:
        kind: safetensors' name of its numbers: "F32", "BF16", "I8", …
        shape: its sizes.
    """

    kind: str
    shape: tuple[int, ...]


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
        self._files: dict[str, tuple[Path, Any]] = {}
        self._headers: dict[str, Header] = {}
        for path, listed in self._paths().items():
            with self._reporting(path):
                check_regular(path)
                file = safe_open(path, framework="numpy")
                held = set(file.keys())
                slices = {name: file.get_slice(name) for name in held}
                headers = {
                    name: Header(part.get_dtype(), tuple(part.get_shape()))
                    for name, part in slices.items()
                }
            problems = [f"'{name}' is not in it" for name in sorted(listed - held)]
            problems += [f"'{name}' is in another file too" for name in held & self._files.keys()]
            if problems:
                raise self._error(
                    path.name, list_problems(problems), expected=f"what {_INDEX} says"
                )
            self._files |= dict.fromkeys(held, (path, file))
            self._headers |= headers

    @property
    def headers(self) -> dict[str, Header]:
        """What the files say of each tensor, by its name; no number is read."""
        return self._headers

    @property
    def names(self) -> list[str]:
        """Tensor names, sorted."""
        return sorted(self._files)

    def tensor(self, name: str) -> NDArray[Any]:
        """The tensor `name` with the shape and dtype it is stored in."""
        path, file = self._files[name]
        with self._reporting(path):
            array: NDArray[Any] = file.get_tensor(name)
        return array

    def rows(self, name: str, rows: slice) -> NDArray[Any]:
        """Some rows of the tensor `name`."""
        path, file = self._files[name]
        with self._reporting(path):
            array: NDArray[Any] = file.get_slice(name)[rows]
        return array

    def _paths(self) -> dict[Path, set[str]]:
        """The files, each with the tensors that the index says it holds."""
        single, index = self.folder / _SINGLE, self.folder / _INDEX
        if single.exists():
            return {single: set()}
        try:
            doing = f"reading the weights of {self.folder}, {_INDEX}"
            content = read_json_object(index, BaseModelError, doing, fix=_COPY)
        except FileNotFoundError:
            raise self._without_index() from None
        files = content.get("weight_map")
        if not isinstance(files, dict) or not files:
            raise self._error(_INDEX, "no 'weight_map' of tensors to files")
        paths: dict[Path, set[str]] = {}
        problems = []
        for tensor, name in files.items():
            # A name that leads out of the folder would read what is nobody's business.
            if not isinstance(name, str) or name in ("", ".", "..") or set(name) & set("/\\\0"):
                problems.append(f"'{tensor}' is in {name!r:.80}, which is no file beside it")
            else:
                paths.setdefault(self.folder / name, set()).add(tensor)
        with self._reporting(index):
            problems += [f"there is no {path.name}" for path in sorted(paths) if not path.exists()]
        if problems:
            raise self._error(_INDEX, list_problems(problems, most=5))
        return dict(sorted(paths.items()))

    def _without_index(self) -> BaseModelError:
        """What to say where neither file is there that names all tensors."""
        others = sorted(path.name for path in self.folder.glob("*.safetensors"))
        found = f"neither {_SINGLE} nor {_INDEX}"
        if not others:
            fix = "Pickled .bin checkpoints are not read: save the model with safetensors."
        elif len(others) == 1:
            fix = f"Rename it to {_SINGLE}, if it holds the whole model."
        else:
            fix = f"Copy {_INDEX} too, or save the model again with transformers."
        if others:
            found += f", but {', '.join(others[:3])}{', …' * (len(others) > 3)}"
        return self._error(self.folder.name, found, fix=fix)

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
            found, fix = damage_of(path) if isinstance(error, SafetensorError) else ("", "")
            raise self._error(path.name, found or reason_of(error), fix=fix or _COPY) from error

    def _error(
        self, file: str, found: str, *, expected: str = "", fix: str = _COPY
    ) -> BaseModelError:
        return BaseModelError(
            f"reading the weights of {self.folder}",
            found=f"{file}: {found}",
            expected=expected or f"a readable {_SINGLE}, or shards with {_INDEX}",
            fix=fix,
        )


def fingerprint_base(checkpoint: Checkpoint, config: DecoderConfig) -> str:
    """The sha256 that identifies a base: its config, and its tensors' names, shapes and bytes.

    Independent of shards, of the order in the files and of keys that do not change the numbers.

    Raises:
        BaseModelError: a tensor cannot be read, or holds what is no finite number.
    """
    sizes = {name: getattr(config, name) for name in _FINGERPRINTED}
    sizes |= {} if config.own is None else asdict(config.own)
    digest = hashlib.sha256(json.dumps(sizes, sort_keys=True).encode())
    broken = []
    for name in checkpoint.names:
        array = np.ascontiguousarray(checkpoint.tensor(name))
        digest.update(json.dumps([name, str(array.dtype), list(array.shape)]).encode())
        digest.update(array.reshape(-1).view(np.uint8).data)
        if not _is_finite(array, checkpoint.headers[name].kind):
            broken.append(f"'{name}' holds infinity, or what is no number")
    if broken:
        raise BaseModelError(
            f"reading the weights of {checkpoint.folder}",
            found=list_problems(broken, most=5),
            expected="finite numbers",
            fix="Copy the base again; if it is so where it comes from, it was trained badly.",
        )
    return digest.hexdigest()


def _is_finite(array: NDArray[Any], kind: str) -> bool:
    """Whether all numbers are finite as float32; of what is no float, True."""
    if kind == FLOATS["float64"]:
        with np.errstate(over="ignore"):
            array, kind = array.astype(np.float32), FLOATS["float32"]
    if kind not in _EXPONENTS:
        return True
    ones = _EXPONENTS[kind]
    bits = array.reshape(-1).view(ones.dtype)
    blocks = (bits[start : start + _BLOCK] for start in range(0, bits.size, _BLOCK))
    return not any(((block & ones) == ones).any() for block in blocks)
