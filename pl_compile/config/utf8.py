"""Reads whole UTF-8 files as text, and names the line of a byte that is not UTF-8.

Such files may come from anywhere. Files of limited size, such as JSON, are read with `read_text`,
which refuses pipes and devices: they may never end. Data of any size, which may come through a
pipe, is read with `read_utf8`.
"""

import codecs
import errno
import os
import re
import stat
from pathlib import Path

# No config, manifest or record is larger; a larger file would fill the memory.
MOST_TEXT_BYTES = 16 << 20

_UNPACK = "unpack it first"
_TABLE = "write its rows as CSV or JSON lines, which pandas does"

# First bytes of files that are not UTF-8: what such a file is, and what to do with it.
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
    """A file has a known form that is not UTF-8; the message says which, and what to do."""


def check_regular(path: Path) -> None:
    """Raises `OSError` unless it is a regular file: reading a pipe could wait for ever."""
    mode = path.stat().st_mode
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "a pipe, a device or a socket, not a file", str(path))


def check_readable(path: Path) -> None:
    """Raises `OSError` unless the file may be read."""
    with path.open("rb"):
        pass


def read_text(path: Path, *, most_bytes: int = MOST_TEXT_BYTES) -> str:
    """The text of a file, with its line ends as they are; a byte order mark is left out.

    Args:
        path: the file.
        most_bytes: the largest size of a file of its kind.

    Raises:
        OSError: there is no such file, it is a pipe or a device, or it cannot be read.
        ValueError: it is larger, or it is not UTF-8: the message says the line and the byte. An
            `OtherFormError` where it has another known form.
    """
    check_regular(path)
    with path.open("rb") as file:
        try:
            data = file.read(most_bytes + 1)
        except OSError as error:
            error.filename = str(path)  # the system names it only in errors of opening
            raise
    if len(data) > most_bytes:
        raise ValueError(f"more than {most_bytes >> 20} MiB, which no file of this kind has")
    return _decoded(data)


def read_utf8(path: Path) -> str:
    """The text of a file of data, of any size; a pipe is read to its end.

    Line ends are as they are; a byte order mark is left out.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is not UTF-8: the message says the line and the byte. An `OtherFormError`
            where it has another known form.
    """
    return _decoded(path.read_bytes())


def is_utf8(text: str) -> bool:
    """Whether UTF-8 can write a text, which is so unless it holds half of a surrogate pair.

    JSON, YAML and a command line can hold such halves; no tokenizer and no file takes them.
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
