"""What UTF-8 can write, and its files as text, read whole, with the line of a byte that is none.

Such files may come from anybody. What has one name in a folder and is read in one piece, such as
JSON, goes through `read_text`, which refuses what would never end. Data of any size, which may come
through a pipe, goes through `read_utf8`.
"""

import codecs
import errno
import os
import re
import stat
from pathlib import Path

# More is no config, manifest or record, and would fill the memory.
MOST_TEXT_BYTES = 16 << 20

_UNPACK = "unpack it first"
_TABLE = "write its rows as CSV or JSON lines, which pandas does"

# What files begin with that hold no UTF-8: what they are, and what to do with them.
_FORMS = {
    codecs.BOM_UTF16_LE: "UTF-16, as some editors save texts: save it as UTF-8",
    codecs.BOM_UTF16_BE: "UTF-16, as some editors save texts: save it as UTF-8",
    b"PK\x03\x04": "a zip archive or an Excel workbook: unpack it, or save its sheet as CSV UTF-8",
    b"\xd0\xcf\x11\xe0": "an old Excel workbook or another of Office's files: save it as CSV UTF-8",
    b"\x1f\x8b": f"a gzip file: {_UNPACK}",
    b"BZh91AY&SY": f"a bzip2 file: {_UNPACK}",
    b"\xfd7zXZ\0": f"an xz file: {_UNPACK}",
    b"\x28\xb5\x2f\xfd": f"a zstd file: {_UNPACK}",
    b"PAR1\x15": f"a Parquet file: {_TABLE}",
    b"ARROW1\0\0": f"an Arrow file: {_TABLE}",
}

_LINE_END = re.compile(r"\r\n|\r|\n")


class OtherFormError(ValueError):
    """A file is known to be of another form than UTF-8; says which, and what to do."""


def check_regular(path: Path) -> None:
    """Raises `OSError` unless there is a file with content: a pipe would be waited for."""
    mode = path.stat().st_mode
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "a pipe, a device or a socket, not a file", str(path))


def read_text(path: Path, *, most_bytes: int = MOST_TEXT_BYTES) -> str:
    """The text of a file, with its line ends as they are; a byte order mark is taken off.

    Args:
        path: the file.
        most_bytes: what no file of its kind is larger than.

    Raises:
        OSError: there is no such file, it is a pipe or a device, or it cannot be read.
        ValueError: it is larger, or is not UTF-8; says the line and the byte. An `OtherFormError`
            where it is known what it is.
    """
    check_regular(path)
    with path.open("rb") as file:
        try:
            data = file.read(most_bytes + 1)
        except OSError as error:
            error.filename = str(path)  # the system's own names it only where it is opened
            raise
    if len(data) > most_bytes:
        raise ValueError(f"more than {most_bytes >> 20} MiB, which no file of this kind has")
    return _decoded(data)


def read_utf8(path: Path) -> str:
    """The text of a file of data, of any size; a pipe is read to its end.

    Line ends are as they are; a byte order mark is taken off.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is not UTF-8; says the line and the byte. An `OtherFormError` where it is
            known what it is.
    """
    return _decoded(path.read_bytes())


def is_utf8(text: str) -> bool:
    """Whether UTF-8 can write a text: it holds no half of a surrogate pair.

    JSON, YAML and a command line can carry such halves; no tokenizer and no file takes them.
    """
    return text.isascii() or not any("\ud800" <= character <= "\udfff" for character in text)


def split_lines(text: str) -> list[str]:
    """The lines of a text, which end in LF, CR LF or CR.

    `str.splitlines` cuts at nine more characters, which are data here.
    """
    return _LINE_END.split(text)


def _decoded(data: bytes) -> str:
    form = next((what for begin, what in _FORMS.items() if data.startswith(begin)), None)
    if form is not None:
        raise OtherFormError(form)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = error.object[: error.start].decode("utf-8")
        line = len(split_lines(before))
        byte = error.object[error.start]
        raise ValueError(f"line {line}: the byte 0x{byte:02x}") from None
