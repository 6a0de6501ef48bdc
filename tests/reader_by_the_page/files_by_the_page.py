"""`docs/artifact-format.md`, "Conventions", "Bundle", "A folded prefix": files and their sums."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

NumberToText = Callable[[float], str]

_ESCAPES = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t"}
_ESCAPES |= {"\b": "\\b", "\f": "\\f"}
_TYPES = {"F32": np.float32, "I64": np.int64}
_NOT_LISTED = {"manifest.json", "report.json", "report.html"}
_PLANS = {"model.plan", "plan.json", "profile.json", "model_ctx.onnx"}


def json_text(value: Any, number: NumberToText) -> str:
    """The text of JSON that a sum is taken over."""
    if isinstance(value, str):
        return '"' + "".join(map(_escaped, value)) + '"'
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list):
        return "[" + ", ".join(json_text(item, number) for item in value) + "]"
    if isinstance(value, dict):
        items = (f"{json_text(k, number)}: {json_text(value[k], number)}" for k in sorted(value))
        return "{" + ", ".join(items) + "}"
    return number(value)


def _escaped(character: str) -> str:
    if character in _ESCAPES:
        return _ESCAPES[character]
    if " " <= character <= "~":
        return character
    units = character.encode("utf-16-be").hex()
    return "".join(f"\\u{units[i : i + 4]}" for i in range(0, len(units), 4))


def sum_of(*parts: bytes) -> str:
    """A sum over bytes, one part after another."""
    return hashlib.sha256(b"".join(parts)).hexdigest()


def sum_of_list(value: Any) -> str:
    """A sum over a list of texts and whole numbers."""
    return sum_of(json_text(value, str).encode("ascii"))


def tensors_in(path: Path) -> tuple[dict[str, NDArray[Any]], dict[str, str]]:
    """The tensors and the metadata of a safetensors file."""
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    metadata = header.pop("__metadata__", {})
    tensors = {}
    for name, entry in header.items():
        start, end = (8 + length + offset for offset in entry["data_offsets"])
        array = np.frombuffer(data[start:end], _TYPES[entry["dtype"]])
        tensors[name] = array.reshape(entry["shape"])
    return tensors, metadata


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a bundle whose files are all there, as they are listed, and no others."""
    manifest: dict[str, Any] = json.loads((folder / "manifest.json").read_bytes())
    assert (manifest["format"], manifest["version"]) == ("plc.bundle", 1)
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert found - _NOT_LISTED == set(manifest["files"])
    for name, entry in manifest["files"].items():
        data = (folder / name).read_bytes()
        assert (len(data), sum_of(data)) == (entry["size_bytes"], entry["sha256"]), name
    return manifest


def identity_of_folded(
    manifest: dict[str, Any], learned: NDArray[Any], ids: list[int], rows: list[int]
) -> dict[str, str]:
    """What a folded prefix must have been computed from.

    Args:
        manifest: of the bundle.
        learned: rows or learned prefix of the task.
        ids: of the opening, 0 where virtual.
        rows: of the opening, -1 where real.
    """
    files = {
        name: entry["sha256"]
        for name, entry in manifest["files"].items()
        if name.startswith("base/") and name.split("/")[-1] not in _PLANS
    }
    precision = {"dtype": "float32", "quantization": "none", **manifest.get("precision", {})}
    shape = json_text([str(learned.dtype), list(learned.shape)], str).encode("ascii")
    return {
        "base": manifest["base"]["fingerprint"],
        "graph": sum_of_list([[name, files[name]] for name in sorted(files)]),
        "prompt": sum_of(shape, learned.tobytes()),
        "layout": sum_of_list([ids, rows]),
        "positions": "from 0, virtual tokens included",
        "dtype": precision["dtype"],
        "quantization": precision["quantization"],
    }
