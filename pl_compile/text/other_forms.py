"""What a file that should hold JSON lines looks like instead, in words for its author.

Each function gives the end of a message, or nothing where no other form is recognised.
"""

import json
from collections.abc import Sequence

from pl_compile.config.strict_json import parse_json

SPREAD = ": an object over several lines, expected one on each line, or a JSON array in [ ]"
TABLE = ": the file looks like CSV or TSV: plc prepare csv makes JSON lines of it"

_JOINED = ": objects joined by commas, expected no comma at the end, or a JSON array in [ ]"
_PYTHON = ": Python's way to write it, expected what json.dumps writes"
_CURLY = ": typographic quotes, expected straight ones"
_COMMENT = ": a comment, which JSON does not have: take it out"
_TWO = ": more than one value, expected one object on each line"


def form_of_line(line: str) -> str:
    """What a line that is not JSON looks like."""
    line = line.strip()
    if line.startswith(("{'", "{\u201c", "{\u2018")):
        return _PYTHON if line[1] == "'" else _CURLY
    if line.startswith(("//", "#", "/*")):
        return _COMMENT
    if line.endswith(",") and _is_json(line[:-1]):
        return _JOINED
    return _TWO if _has_two(line) else ""


def form_of_file(lines: Sequence[str], place: int) -> str:
    """What a file as a whole looks like; its first line that is not JSON stands at `place`.

    For `SPREAD` and `TABLE`, one message is enough: otherwise each further line would give one.
    """
    line = lines[place]
    if not any(each.lstrip().startswith("{") for each in lines):
        return TABLE if any(separator in line for separator in ",;\t|") else ""
    if line.lstrip().startswith("{") and not line.rstrip().endswith("}") and lines[place + 1 :]:
        try:
            json.JSONDecoder().raw_decode("\n".join(lines[place:]).lstrip())
        except (ValueError, RecursionError):
            return ""
        return SPREAD
    return ""


def _has_two(line: str) -> bool:
    try:
        parse_json(line)
    except json.JSONDecodeError as error:
        return line.startswith("{") and error.msg == "Extra data"
    return False


def _is_json(text: str) -> bool:
    try:
        parse_json(text)
    except ValueError:
        return False
    return True
