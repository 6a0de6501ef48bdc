"""A reader of `tokenizer.tables`, written from docs/tokenizer-tables.md alone. Slow and plain."""

import struct
from bisect import bisect_left
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

NONE = 0xFFFFFFFF
BYTE_LEVEL, PREFIX_SPACE, IGNORE_MERGES, BYTE_FALLBACK, NFC = 1, 2, 4, 8, 16
ORDINARY, SPECIAL, NOT_SPECIAL, BYTE, UNUSED = range(5)
META = ("vocab", "flags", "classes", "splits", "added", "merges", "strips", "unknown")


def numbers(kind: str, content: bytes) -> tuple[Any, ...]:
    return struct.unpack(f"<{len(content) // struct.calcsize(kind)}{kind}", content)


def sections(content: bytes) -> dict[str, bytes]:
    magic, version, count = struct.unpack_from("<8s2I", content)
    assert (magic, version) == (b"PLCTOKEN", 1)
    found: dict[str, bytes] = {}
    end = 16 + 24 * count
    for number in range(count):
        tag, zero, offset, size = struct.unpack_from("<4sI2Q", content, 16 + 24 * number)
        assert zero == 0
        assert offset % 16 == 0
        assert not any(content[end:offset])
        assert tag.decode() not in found
        end = offset + size
        assert end <= len(content)
        found[tag.decode()] = content[offset:end]
    assert end == len(content)
    return found


def mix(key: int) -> int:
    key = key * 0x9E3779B97F4A7C15 % (1 << 64)
    return key ^ key >> 32


def fnv(content: bytes) -> int:
    value = 0xCBF29CE484222325
    for byte in content:
        value = (value ^ byte) * 0x100000001B3 % (1 << 64)
    return value ^ value >> 32


class Reader:
    def __init__(self, content: bytes) -> None:
        self.sections = sections(content)
        self.meta = dict(zip(META, struct.unpack("<8I", self.sections["META"]), strict=True))
        offsets = numbers("I", self.sections["VOFF"])
        blob = self.sections["VBLB"]
        self.bytes = [blob[a:b] for a, b in pairwise(offsets)]
        self.kinds = self.sections["VTYP"]
        self.byte_ids = numbers("i", self.sections["BYTE"])
        self.blocks = numbers("H", self.sections["CLS1"])
        self.merges = numbers("I", self.sections["MERG"])
        self.whole = numbers("I", self.sections["WHOL"])
        self.tables = list(self._tables())
        self.added = list(self._added())
        self.steps = list(self._steps())
        assert len(self.bytes) == len(self.kinds) == self.meta["vocab"]
        assert (len(self.tables), len(self.added)) == (self.meta["splits"], self.meta["added"])
        if self.has(NFC):
            self._read_normal_forms()

    def has(self, flag: int) -> bool:
        return bool(self.meta["flags"] & flag)

    def encode(self, text: str, *, markup: bool = True) -> list[int]:
        """`markup`: whether added tokens are found."""
        ids: list[int] = []
        plain, is_first = "", True
        while text:
            token = self._added_at(text) if markup else None
            if token is None:
                plain, text = plain + text[0], text[1:]
                continue
            ids += [*self._section(plain, is_first), token[0]]
            plain, text, is_first = "", text[len(token[2]) :], False
        return ids + self._section(plain, is_first)

    def decode(self, ids: list[int]) -> str:
        """Special tokens too."""
        if self.has(BYTE_LEVEL):
            return b"".join(self.bytes[key] for key in ids).decode("utf-8", "replace")
        text, run = "", b""
        for key in ids:
            if self.kinds[key] == BYTE:
                run += self.bytes[key]
            else:
                text += text_of_run(run) + self.bytes[key].decode().replace("\u2581", " ")
                run = b""
        text += text_of_run(run)
        blanks = len(text) - len(text.lstrip(" "))
        return text[min(blanks, self.meta["strips"]) :]

    def pieces(self, text: str) -> list[str]:
        """The pieces of a text after the steps."""
        pieces = [text]
        for table in self.tables:
            pieces = [part for piece in pieces for part in self._split(piece, table)]
        return pieces

    def normalized(self, text: str, *, is_first: bool = True) -> str:
        """`is_first`: whether the text is the first section."""
        for kind, first, second in self.steps:
            if kind in (4, 5) and (text.startswith(first) or (kind == 5 and not is_first)):
                continue
            if kind in (1, 4, 5):
                text = first + text if text else text
            elif kind == 2:
                text = text.replace(first, second)
            else:
                text = self.nfc(text)
        return text

    def class_of(self, character: str) -> int:
        block = self.blocks[ord(character) >> 7]
        return int(self.sections["CLS2"][block * 128 + ord(character) % 128])

    def _added_at(self, text: str) -> tuple[int, int, str] | None:
        return next((token for token in self.added if text.startswith(token[2])), None)

    def _section(self, text: str, is_first: bool) -> list[int]:
        text = self.normalized(text, is_first=is_first)
        if self.has(PREFIX_SPACE) and text and text[0] != " ":
            text = " " + text
        return [key for piece in self.pieces(text) if piece for key in self._piece(piece)]

    def _split(self, text: str, table: list[tuple[int, ...]]) -> Iterator[str]:
        start = unmatched = 0
        while start < len(text):
            end = self._longest(text, start, table)
            if end is None:
                start += 1
                continue
            if unmatched < start:
                yield text[unmatched:start]
            yield text[start:end]
            start = unmatched = end
        if unmatched < len(text):
            yield text[unmatched:]

    def _longest(self, text: str, start: int, table: list[tuple[int, ...]]) -> int | None:
        state, found = 1, None
        for place in range(start, len(text) + 1):
            at_end = place == len(text)
            entry = table[state][self.meta["classes"] if at_end else self.class_of(text[place])]
            if entry & 0x8000:
                found = place
            state = entry & 0x7FFF
            if state == 0:
                break
        return found

    def _piece(self, piece: str) -> list[int]:
        content = piece.encode()
        if self.has(IGNORE_MERGES):
            key = self._whole(content)
            if key is not None:
                return [key]
        if self.has(BYTE_LEVEL):
            return self._merged(
                [self.byte_ids[byte] for byte in content if self.byte_ids[byte] >= 0]
            )
        ids: list[int] = []
        for character in piece:
            key = self._whole(character.encode())
            fallback = [self.byte_ids[byte] for byte in character.encode()]
            ids += fallback if key is None else [key]
        return self._merged(ids)

    def _merged(self, ids: list[int]) -> list[int]:
        while True:
            found = [self._merge(*pair) for pair in pairwise(ids)]
            ranked = [(rank, place, key) for place, (rank, key) in enumerate(found) if key != NONE]
            if not ranked:
                return ids
            _, place, key = min(ranked)
            ids = [*ids[:place], key, *ids[place + 2 :]]

    def _merge(self, left: int, right: int) -> tuple[int, int]:
        capacity = len(self.merges) // 4
        place = mix(left << 32 | right) & (capacity - 1)
        while True:
            row = self.merges[4 * place : 4 * place + 4]
            if row[0] == NONE:
                return NONE, NONE
            if row[:2] == (left, right):
                return row[2], row[3]
            place = (place + 1) % capacity

    def _whole(self, content: bytes) -> int | None:
        place = fnv(content) & (len(self.whole) - 1)
        while self.whole[place] != NONE:
            if self.bytes[self.whole[place]] == content:
                return int(self.whole[place])
            place = (place + 1) % len(self.whole)
        return None

    def _tables(self) -> Iterator[list[tuple[int, ...]]]:
        content = self.sections["DFAS"]
        while content:
            states, width = struct.unpack_from("<2I", content)
            assert width == self.meta["classes"] + 1
            size = 2 * states * width
            entries = numbers("H", content[8 : 8 + size])
            rows = [entries[width * state : width * (state + 1)] for state in range(states)]
            assert not any(rows[0])
            assert not any(entry & 0x8000 for entry in rows[1])
            assert all(entry & 0x7FFF < states for entry in entries)
            yield rows
            content = content[8 + size + -size % 4 :]

    def _added(self) -> Iterator[tuple[int, int, str]]:
        content = self.sections["ADDT"]
        while content:
            key, special, size = struct.unpack_from("<3I", content)
            yield key, special, content[12 : 12 + size].decode()
            content = content[12 + size + -size % 4 :]

    def _steps(self) -> Iterator[tuple[int, str, str]]:
        content = self.sections["NORM"]
        while content:
            kind, first, second = struct.unpack_from("<3I", content)
            end = 12 + first + second
            yield kind, content[12 : 12 + first].decode(), content[12 + first : end].decode()
            content = content[end:]

    # NFC (Unicode 3.11)

    def _read_normal_forms(self) -> None:
        rows, pool, marks, pairs, *rest = numbers("I", self.sections["NFCT"])
        assert len(rest) == 2 * rows + pool + 2 * marks + 3 * pairs
        decomposed = rest[: 2 * rows]
        characters = rest[2 * rows : 2 * rows + pool]
        marked = rest[2 * rows + pool :][: 2 * marks]
        composed = rest[2 * rows + pool + 2 * marks :]
        assert decomposed[::2] == sorted(decomposed[::2])
        self.decompositions = {
            code: characters[place >> 8 : (place >> 8) + (place & 255)]
            for code, place in zip(decomposed[::2], decomposed[1::2], strict=True)
        }
        self.marks = dict(zip(marked[::2], marked[1::2], strict=True))
        assert list(self.marks) == sorted(self.marks)
        keys = list(zip(composed[::3], composed[1::3], strict=True))
        assert keys == sorted(keys)
        self.pairs, self.wholes = keys, composed[2::3]

    def nfc(self, text: str) -> str:
        codes = [part for character in text for part in self._decomposed(ord(character))]
        start = 0
        while start < len(codes):  # runs of marks by their classes; sorting is stable
            end = start
            while end < len(codes) and codes[end] in self.marks:
                end += 1
            codes[start:end] = sorted(codes[start:end], key=self.marks.__getitem__)
            start = end + 1
        return "".join(map(chr, self._composed(codes)))

    def _decomposed(self, code: int) -> list[int]:
        if 0xAC00 <= code < 0xD7A4:
            place = code - 0xAC00
            parts = [0x1100 + place // 588, 0x1161 + place % 588 // 28, 0x11A7 + place % 28]
            return parts if place % 28 else parts[:2]
        return self.decompositions.get(code, [code])

    def _composed(self, codes: list[int]) -> list[int]:
        found: list[int] = []
        starter = None
        for code in codes:
            number = self.marks.get(code, 0)
            last = self.marks.get(found[-1], 0) if found else 0
            # Nothing stands between, or only marks of lower classes.
            if starter is not None and (starter == len(found) - 1 or 0 < last < number):
                whole = self._pair(found[starter], code)
                if whole is not None:
                    found[starter] = whole
                    continue
            found.append(code)
            if number == 0:
                starter = len(found) - 1
        return found

    def _pair(self, first: int, second: int) -> int | None:
        if 0x1100 <= first < 0x1113 and 0x1161 <= second < 0x1176:
            return 0xAC00 + (first - 0x1100) * 588 + (second - 0x1161) * 28
        if 0xAC00 <= first < 0xD7A4 and (first - 0xAC00) % 28 == 0 and 0x11A8 <= second < 0x11C3:
            return first + second - 0x11A7
        place = bisect_left(self.pairs, (first, second))
        if self.pairs[place : place + 1] == [(first, second)]:
            return int(self.wholes[place])
        return None


def text_of_run(run: bytes) -> str:
    """A run of byte tokens: its text where it is UTF-8 as a whole, else U+FFFD for each byte."""
    try:
        return run.decode()
    except UnicodeDecodeError:
        return "\ufffd" * len(run)
