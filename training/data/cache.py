"""Keeps rendered examples between runs, in a file named by the hash of all that they depend on.

    <sha256 of the key parts>.safetensors
        token_ids, virtual_rows    int32 [tokens], the sequences one after the other
        in_loss                    bool [tokens]
        offsets                    int64 [sequences + 1]: sequence i is offsets[i] to offsets[i + 1]
        task, answer_start         int32 [sequences]
        notes                      uint8: JSON of each `where`, and of the `SkipReport`
        metadata                   "key": the file's own name; "sha256": of all tensors

Nothing is pickled, and a damaged file is made again. Processes may share the folder: files are
written whole or not at all, and if two processes write the same one, either is right.
"""

import hashlib
import inspect
import json
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save

from pl_compile.artifact.files import sha256_of, write_atomically
from pl_compile.artifact.tensors import read_tensor_file
from pl_compile.config import lfs, plain_values, sizes, strict_json, task, utf8
from pl_compile.config.read import plain_from_config
from pl_compile.errors import ArtifactError
from pl_compile.progress import SILENT, Progress
from pl_compile.text import (
    examples,
    field_value,
    label_trie,
    other_forms,
    render,
    spans,
    streaming,
    template,
    tokenizer,
    tokenizer_json,
    words,
)
from pl_compile.text.render import Rendered, Renderer
from pl_compile.text.tokenizer import Tokenizer
from pl_compile.training.data import dataset
from pl_compile.training.data.dataset import SkipReport, TrainingSequence
from pl_compile.weights.bases import cache_folder

# The version of the file's form. The rules of rendering enter the key as the text of the modules
# below, since a release number does not change while they are edited. The list has all modules of
# `config/` and `text/` that they import, so that a module can be divided.
_VERSION = 2
_CODE = (
    *(lfs, plain_values, sizes, strict_json, task, utf8),
    *(examples, field_value, label_trie, other_forms, render),
    *(spans, streaming, template, tokenizer, tokenizer_json, words),
    dataset,
)

MAX_BYTES = 2 << 30

# Names of our files, and of what a killed process leaves of them (`write_atomically`).
_OUR_NAME = re.compile(r"\.?[0-9a-f]{64}\.safetensors(\.[0-9a-f]+)?")


def datasets_folder() -> Path:
    """The folder where rendered examples are kept, beside the fetched bases."""
    return cache_folder() / "datasets"


def dataset_key(
    base_tokenizer: Tokenizer,
    renderers: Mapping[str, Renderer],
    paths: Sequence[Path],
    *,
    max_length: int,
    min_length: int,
) -> dict[str, str]:
    """The parts of the key of some files' examples: all that the result of rendering depends on.

    Args:
        base_tokenizer: the base's.
        renderers: by taskname, in the order that numbers the tasks.
        paths: the data files, in order; a path is part of its examples' `where`.
        max_length: as given to `render_examples`.
        min_length: the same.

    Raises:
        OSError: a file cannot be read.
    """
    tasks = [
        [plain_from_config(renderer.template.task), asdict(renderer.rules)]
        for renderer in renderers.values()
    ]
    code = "".join(inspect.getsource(module) for module in _CODE)
    return {
        "code": hashlib.sha256(code.encode()).hexdigest(),
        "tokenizers": version("tokenizers"),
        "tokenizer": hashlib.sha256(base_tokenizer.text.encode()).hexdigest(),
        "vocab": str(base_tokenizer.vocab),
        "tasks": json.dumps(tasks),
        "lengths": json.dumps([min_length, max_length]),
        "data": json.dumps([[str(path), sha256_of(path)] for path in paths]),
    }


def cached(
    key_parts: Mapping[str, str],
    make: Callable[[], tuple[list[TrainingSequence], SkipReport]],
    folder: Path | None = None,
    *,
    max_bytes: int = MAX_BYTES,
    progress: Progress = SILENT,
) -> tuple[list[TrainingSequence], SkipReport]:
    """The result of `make`, or the same from an earlier run.

    Args:
        key_parts: all that the result depends on; if one changes, the file is another one.
        make: renders the examples; its exceptions are passed on.
        folder: where files are kept; if None, `datasets_folder()`.
        max_bytes: of all files together; the least recently used ones are removed.
        progress: gets a message where the result cannot be kept.
    """
    folder = folder or datasets_folder()
    text = json.dumps([_VERSION, sorted(key_parts.items())])
    path = folder / f"{hashlib.sha256(text.encode()).hexdigest()}.safetensors"
    kept = _read(path)
    if kept is not None:
        with suppress(OSError):  # the folder may be read-only
            os.utime(path)
        return kept
    made = make()
    data = _encode(path.stem, *made)
    if len(data) <= max_bytes:
        try:
            write_atomically(path, data)
            _drop_oldest(folder, max_bytes)
        except (ArtifactError, OSError) as error:
            progress.say(f"the rendered examples are not kept for the next run: {error}")
    return made


def _encode(key: str, sequences: list[TrainingSequence], report: SkipReport) -> bytes:
    rendered = [sequence.rendered for sequence in sequences]
    notes = {"where": [sequence.where for sequence in sequences], "report": asdict(report)}
    tensors: dict[str, NDArray[Any]] = {
        "token_ids": _joined((r.token_ids for r in rendered), np.int32),
        "virtual_rows": _joined((r.virtual_rows for r in rendered), np.int32),
        "in_loss": _joined((sequence.in_loss for sequence in sequences), np.bool_),
        "offsets": np.cumsum([0, *map(len, sequences)], dtype=np.int64),
        "task": np.asarray([sequence.task for sequence in sequences], np.int32),
        "answer_start": np.asarray([r.answer_start for r in rendered], np.int32),
        # Escaped, since a path may hold bytes that are not UTF-8.
        "notes": np.frombuffer(json.dumps(notes).encode("ascii"), np.uint8),
    }
    return save(tensors, {"key": key, "sha256": _sum(tensors)})


def _read(path: Path) -> tuple[list[TrainingSequence], SkipReport] | None:
    """The content of a file; None where there is no such file or it is damaged."""
    try:
        file = read_tensor_file(path, doing=f"reading {path}")
    except ArtifactError:
        return None
    tensors = file.tensors
    if file.metadata != {"key": path.stem, "sha256": _sum(tensors)}:
        return None
    notes = json.loads(tensors["notes"].tobytes())
    token_ids = tensors["token_ids"].astype(np.int64)
    virtual_rows = tensors["virtual_rows"].astype(np.int64)
    ends = tensors["offsets"].tolist()
    sequences = []
    for index, where in enumerate(notes["where"]):
        own = slice(ends[index], ends[index + 1])
        answer_start = int(tensors["answer_start"][index])
        rendered = Rendered(token_ids[own], virtual_rows[own], answer_start)
        number, in_loss = int(tensors["task"][index]), tensors["in_loss"][own]
        sequences.append(TrainingSequence(number, rendered, in_loss, where))
    return sequences, SkipReport(**notes["report"])


def _joined(arrays: Iterable[NDArray[Any]], kind: type[np.generic]) -> NDArray[Any]:
    return np.concatenate([np.empty(0, kind), *arrays]).astype(kind)


def _sum(tensors: Mapping[str, NDArray[Any]]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        array = tensors[name]
        digest.update(json.dumps([name, str(array.dtype), list(array.shape)]).encode())
        digest.update(array.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def _drop_oldest(folder: Path, max_bytes: int) -> None:
    """Removes the least recently used files until the others fit."""
    files = []
    for path in folder.iterdir():
        with suppress(FileNotFoundError):  # another process removed it first
            if _OUR_NAME.fullmatch(path.name):
                status = path.stat()
                files.append((status.st_mtime_ns, status.st_size, path))
    total = sum(size for _, size, _ in files)
    for _, size, path in sorted(files):
        if total <= max_bytes:
            return
        path.unlink(missing_ok=True)
        total -= size
