"""The tensors of a Hugging Face folder with `model.safetensors`, or with shards and their index.

Pickled checkpoints are not read.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from pl_compile.checkpoints.checkpoint import Header
from pl_compile.config.damage import damage_of
from pl_compile.config.strict_json import read_json_object
from pl_compile.config.utf8 import check_readable, check_regular
from pl_compile.errors import BaseModelError, list_problems, reason_of

_SINGLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"

_COPY = "Copy the base again."


class SafetensorsCheckpoint:
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
                check_readable(path)  # the library calls a file that may not be read missing
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
        """What the files say of each tensor, by its name; none of its numbers is read."""
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
            # A name that leads out of the folder could read any file of the user's.
            if not isinstance(name, str) or name in ("", ".", "..") or set(name) & set("/\\\0"):
                problems.append(f"'{tensor}' is in {name!r:.80}, which is not a file beside it")
            else:
                paths.setdefault(self.folder / name, set()).add(tensor)
        with self._reporting(index):
            problems += [f"there is no {path.name}" for path in sorted(paths) if not path.exists()]
        if problems:
            raise self._error(_INDEX, list_problems(problems, most=5))
        return dict(sorted(paths.items()))

    def _without_index(self) -> BaseModelError:
        """The error where there is neither a single file nor an index."""
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
