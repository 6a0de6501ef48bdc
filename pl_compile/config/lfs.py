"""Files that Git LFS has not brought: what a clone without it holds instead of weights."""

from pathlib import Path

_POINTER = "version https://git-lfs"

FOUND = "a pointer of Git LFS, not the file"
FIX = "Run `git lfs pull` in the clone, or download the file itself."


def is_pointer(text: str) -> bool:
    """Whether the text of a file names a file that is elsewhere."""
    return text.startswith(_POINTER)


def is_pointer_file(path: Path) -> bool:
    """The same of a file, whose first bytes are read."""
    try:
        with path.open("rb") as file:
            return file.read(len(_POINTER)) == _POINTER.encode()
    except OSError:
        return False
