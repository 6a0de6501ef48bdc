"""The sections of a file tokenizer.tables, and the many ways to spoil it.

Each way is a line for `tokenizer_program.cc`.
"""

import random
import struct
from collections.abc import Iterator
from dataclasses import dataclass

_HEADER, _ENTRY = 16, 24
_NUMBERS = (0, 1, 2, 16, 255, 2**15, 2**16, 2**24, 2**31 - 1, 2**31, 2**32 - 2, 2**32 - 1)
_SIZES = (*_NUMBERS, 2**32, 2**63, 2**64 - 1)


@dataclass(frozen=True)
class Section:
    """A section, and where the header says so.

    Attributes:
        tag: four letters.
        entry: place of its entry in the header.
        offset: of its first byte.
        size: in bytes.
    """

    tag: str
    entry: int
    offset: int
    size: int


def sections(file: bytes) -> list[Section]:
    """The sections of a good file."""
    (count,) = struct.unpack_from("<I", file, 12)
    found = []
    for number in range(count):
        entry = _HEADER + number * _ENTRY
        tag, _, offset, size = struct.unpack_from("<4sIQQ", file, entry)
        found.append(Section(tag.decode(), entry, offset, size))
    return found


def patch(place: int, data: bytes) -> str:
    """The file with other bytes at a place."""
    return f"patch {place} {data.hex()}"


def removed(section: Section) -> str:
    """The file without a section: one with an unknown tag is ignored."""
    return patch(section.entry, b"gone")


def shortened(section: Section) -> Iterator[str]:
    """The file with less of a section."""
    for size in {0, 1, section.size // 2, section.size - 4, section.size - 1}:
        if 0 <= size < section.size:
            yield patch(section.entry + 16, struct.pack("<Q", size))


def displaced(section: Section) -> Iterator[str]:
    """The file with a section elsewhere, or longer than the file."""
    for number in (*_SIZES, section.offset + 16, section.offset + 8, section.offset - 16):
        yield patch(section.entry + 8, struct.pack("<Q", number))
    for number in (*_SIZES, section.size + 1, section.size + 16):
        yield patch(section.entry + 16, struct.pack("<Q", number))


def flipped(file: bytes, section: Section, seed: int, count: int) -> Iterator[str]:
    """The file with other bytes in a section; more often near its start, where sizes are."""
    generator = random.Random(f"{seed}{section.tag}")
    for _ in range(count if section.size else 0):
        reach = generator.choice((min(64, section.size), section.size))
        place = section.offset + generator.randrange(reach)
        yield patch(place, bytes([file[place] ^ 1 << generator.randrange(8)]))
        yield patch(place, generator.choice((b"\xff" * 4, b"\0" * 4, generator.randbytes(3))))


def numbers(section: Section) -> Iterator[str]:
    """The file with telling numbers at the start of a section."""
    for place in range(0, min(32, section.size), 4):
        for number in _NUMBERS:
            yield patch(section.offset + place, struct.pack("<I", number))


def cut(file: bytes) -> Iterator[str]:
    """The start of the file."""
    ends = {section.offset + section.size for section in sections(file)}
    starts = {section.offset for section in sections(file)}
    for size in sorted({*range(0, 40), *ends, *starts, len(file) - 1}):
        if size < len(file):
            yield f"cut {size}"


def headers() -> Iterator[str]:
    """The file with other numbers in its header."""
    for place in (0, 8, 12):
        for number in _NUMBERS:
            yield patch(place, struct.pack("<I", number))
