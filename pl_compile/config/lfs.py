"""Pointer files of Git LFS: a clone without Git LFS has them in place of weights."""

_POINTER = "version https://git-lfs"

FOUND = "a pointer of Git LFS, not the file"
FIX = "Run `git lfs pull` in the clone, or download the file itself."


def is_pointer(text: str) -> bool:
    """Whether the text of a file is such a pointer."""
    return text.startswith(_POINTER)
