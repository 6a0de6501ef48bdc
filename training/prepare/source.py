"""Reads publishers' files as text, or raises an error of one line. Knows no data set."""

from pathlib import Path

from pl_compile.config.utf8 import OtherFormError, read_utf8
from pl_compile.errors import DataError, reason_of


def read_text(path: Path, *, otherwise: str | None = None) -> str:
    """The text of a file, with its line ends as they are; a byte order mark is left out.

    Args:
        path: a UTF-8 file.
        otherwise: the encoding of a file that is not UTF-8; it must accept every byte. A text in it
            with letters beyond ASCII is practically never valid UTF-8.

    Raises:
        DataError: the file is missing, cannot be read, or is in another encoding.
    """
    doing = f"reading {path}"
    try:
        return read_utf8(path)
    except FileNotFoundError:
        raise DataError(doing, found="no such file", fix="Check the path.") from None
    except OSError as error:
        raise DataError(doing, found=reason_of(error), expected="a file") from error
    except OtherFormError as error:
        raise DataError(doing, found=str(error), expected="UTF-8") from error
    except ValueError as error:
        if otherwise is not None:
            return path.read_bytes().decode(otherwise)
        raise DataError(
            doing, found=str(error), expected="UTF-8", fix="Save the file as UTF-8."
        ) from error
