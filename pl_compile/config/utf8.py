"""What UTF-8 can write, and its files as text, with the line of a byte that is none."""

import re
from pathlib import Path

_LINE_END = re.compile(r"\r\n|\r|\n")


def read_utf8(path: Path) -> str:
    """The text of a file with its line ends as they are; a byte order mark is taken off.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is not UTF-8; says the line and the byte.
    """
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = error.object[: error.start].decode("utf-8")
        line = len(split_lines(before))
        byte = error.object[error.start]
        raise ValueError(f"line {line}: the byte 0x{byte:02x}") from None


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
