"""What is wrong with a safetensors file that cannot be opened, in words for its owner.

A sound file is a length of 8 bytes, a JSON header with the places of all tensors, and their bytes
(https://github.com/huggingface/safetensors#format).
"""

from pathlib import Path

from pl_compile.config import lfs
from pl_compile.config.strict_json import parse_json

_LENGTH = 8
_MOST_HEADER = 100_000_000  # the library's own limit
_COPY = "Copy it again."


def damage_of(path: Path) -> tuple[str, str]:
    """What a file is, if not a sound safetensors file, and what to do; both may be empty."""
    try:
        return _damage(path)
    except OSError:  # only the library's own message is left then
        return "", ""


def _damage(path: Path) -> tuple[str, str]:
    size = path.stat().st_size
    if size == 0:
        return "an empty file", _COPY
    with path.open("rb") as file:
        start = file.read(_LENGTH)
        if start.startswith(b"PK\x03\x04"):
            return "a zip, such as torch.save writes, not safetensors", ""
        length = int.from_bytes(start, "little")
        if length > _MOST_HEADER:
            start += file.read(1000)
            if lfs.is_pointer(start.decode("utf-8", errors="ignore")):
                return lfs.FOUND, lfs.FIX
            if _is_text(start):
                return "a text, such as a config or examples, not tensors", ""
            return "not safetensors: such a file begins with a length, which is too large here", ""
        needed = _LENGTH + length
        if len(start) == _LENGTH and size >= needed:
            needed += _bytes_of_tensors(file.read(length))
    if size < needed or len(start) < _LENGTH:
        return f"cut short: {size} bytes, at least {max(needed, _LENGTH)} by its header", _COPY
    if size > needed > _LENGTH + length:
        return f"{size} bytes, {needed} by its header", _COPY
    return "", ""


def _bytes_of_tensors(header: bytes) -> int:
    """The end of the last tensor by the header; 0 if the header says nothing of it."""
    try:
        entries = parse_json(header.decode())
        ends = [entry["data_offsets"][1] for name, entry in entries.items() if name[:2] != "__"]
        return max([0, *(end for end in ends if type(end) is int)])
    except (ValueError, AttributeError, TypeError, LookupError):
        return 0


def _is_text(start: bytes) -> bool:
    """Whether bytes are UTF-8; the last character may be cut."""
    text = start.decode("utf-8", errors="ignore")
    return len(text.encode()) >= len(start) - 3 and all(
        c.isprintable() or c.isspace() for c in text
    )
