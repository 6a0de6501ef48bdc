"""The sections of `tokenizer.tables`, and the file. The format: docs/tokenizer-tables.md."""

import struct
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain

import numpy as np

from pl_compile.errors import TablesError
from pl_compile.text.tables.automata import Table, table_of
from pl_compile.text.tables.code_points import END, Classes, divide
from pl_compile.text.tables.components import Nfc, Open, Prepend, Replace, Step
from pl_compile.text.tables.hash_tables import EMPTY, id_table, merge_table
from pl_compile.text.tables.normal_forms import NormalForms, normal_forms
from pl_compile.text.tables.patterns import sets_of
from pl_compile.text.tables.read_tokenizer import TokenizerParts, read_tokenizer
from pl_compile.text.tables.vocabulary import byte_ids, whole_tokens, written_by

MAGIC, VERSION = b"PLCTOKEN", 1

_ALIGNMENT = 16
_BLOCK = 128  # code points
_MOST_CLASSES = 255

_ORDINARY, _SPECIAL, _NOT_SPECIAL, _BYTE, _UNUSED = range(5)
_BYTE_LEVEL, _PREFIX_SPACE, _IGNORE_MERGES, _BYTE_FALLBACK, _NFC = (1 << bit for bit in range(5))
_PREPEND, _REPLACE, _NFC_STEP, _OPEN, _OPEN_ONCE = range(1, 6)


def tables_of(tokenizer_json: str) -> bytes:
    """The bytes of `tokenizer.tables` for the text of a `tokenizer.json`.

    They are the same in each run with one version of the library.

    Raises:
        TablesError: the library cannot read the text, or has a part that no table can say.
    """
    parts = read_tokenizer(tokenizer_json)
    classes = divide(codes for split in parts.splits for codes in sets_of(split))
    if len(classes.examples) > _MOST_CLASSES:
        raise TablesError(
            f"splits that divide code points into {len(classes.examples)} classes",
            expected=f"at most {_MOST_CLASSES}",
        )
    tables = [table_of(split, classes) for split in parts.splits]
    return _file(dict(_sections(parts, classes, tables)))


def _sections(
    parts: TokenizerParts, classes: Classes, tables: Sequence[Table]
) -> Iterator[tuple[bytes, bytes]]:
    merges = _merges(parts)
    tokens, kinds = _tokens(parts)
    offsets = np.cumsum([0, *map(len, tokens)])
    yield b"META", _meta(parts, len(tokens), len(classes.examples), len(merges))
    yield b"VOFF", offsets.astype("<u4").tobytes()
    yield b"VBLB", b"".join(tokens)
    yield b"VTYP", kinds
    yield b"BYTE", np.array(_byte_ids(parts), "<i4").tobytes()
    yield b"MERG", merge_table(merges)
    yield from _class_sections(classes)
    yield b"DFAS", b"".join(map(_table, tables))
    yield b"ADDT", b"".join(_added(parts))
    wanted = parts.ignore_merges or not parts.byte_level
    yield (
        b"WHOL",
        id_table(whole_tokens(parts.vocabulary, byte_level=parts.byte_level) if wanted else {}),
    )
    yield b"NORM", b"".join(map(_step, parts.steps))
    lists = ((len(parts.trims), len(parts.front)), parts.trims, parts.front)
    yield b"POST", b"".join(map(_numbers, lists))
    if Nfc() in parts.steps:
        yield b"NFCT", _normal_forms(normal_forms())


def _meta(parts: TokenizerParts, ids: int, classes: int, merges: int) -> bytes:
    flags = {
        _BYTE_LEVEL: parts.byte_level,
        _PREFIX_SPACE: parts.prefix_space,
        _IGNORE_MERGES: parts.ignore_merges,
        _BYTE_FALLBACK: not parts.byte_level,
        _NFC: Nfc() in parts.steps,
    }
    unknown = EMPTY if parts.unknown is None else parts.unknown
    return struct.pack(
        "<8I",
        ids,
        sum(flag for flag, is_set in flags.items() if is_set),
        classes,
        len(parts.splits),
        len(parts.added),
        merges,
        parts.strips,
        unknown,
    )


def _tokens(parts: TokenizerParts) -> tuple[list[bytes], bytes]:
    """For each id, what its token writes, and its kind."""
    named = {key: text for text, key in parts.vocabulary.items()}
    kinds = dict.fromkeys(named, _ORDINARY)
    if not parts.byte_level:
        kinds |= dict.fromkeys(byte_ids(parts.vocabulary, byte_level=False), _BYTE)
    for token in parts.added:
        named[token.id] = token.text
        kinds[token.id] = _SPECIAL if token.special else _NOT_SPECIAL
    ids = range(max(named) + 1)
    texts = {key: written_by(text, byte_level=parts.byte_level) for key, text in named.items()}
    if not parts.byte_level:
        bytes_ = byte_ids(parts.vocabulary, byte_level=False)
        texts |= {key: bytes([byte]) for byte, key in enumerate(bytes_)}
    return [texts.get(key, b"") for key in ids], bytes(kinds.get(key, _UNUSED) for key in ids)


def _byte_ids(parts: TokenizerParts) -> list[int]:
    """The id of each byte; that of the unknown token for a byte without one."""
    unknown = -1 if parts.unknown is None else parts.unknown
    found = byte_ids(parts.vocabulary, byte_level=parts.byte_level)
    return [unknown if key < 0 else key for key in found]


def _merges(parts: TokenizerParts) -> dict[tuple[int, int], tuple[int, int]]:
    """Rank and merged id by the ids of a pair; of a pair that is listed twice, the last rank."""
    ids = parts.vocabulary
    return {
        (ids[left], ids[right]): (rank, ids[left + right])
        for rank, (left, right) in enumerate(parts.merges)
    }


def _class_sections(classes: Classes) -> Iterator[tuple[bytes, bytes]]:
    lengths = np.diff([*classes.starts, END])
    of_each = np.repeat(np.array(classes.classes, np.uint8), lengths)
    blocks: dict[bytes, int] = {}
    numbers = [
        blocks.setdefault(block.tobytes(), len(blocks)) for block in of_each.reshape(-1, _BLOCK)
    ]
    yield b"CLS1", np.array(numbers, "<u2").tobytes()
    yield b"CLS2", b"".join(blocks)


def _table(table: Table) -> bytes:
    entries = np.array(table, "<u2")
    return _padded(struct.pack("<2I", *entries.shape) + entries.tobytes(), 4)


def _added(parts: TokenizerParts) -> Iterator[bytes]:
    for token in parts.added:
        text = token.text.encode()
        yield _padded(struct.pack("<3I", token.id, token.special, len(text)) + text, 4)


def _step(step: Step) -> bytes:
    match step:
        case Prepend(text):
            kind, first, second = _PREPEND, text.encode(), b""
        case Open(text, once):
            kind, first, second = _OPEN_ONCE if once else _OPEN, text.encode(), b""
        case Replace(old, new):
            kind, first, second = _REPLACE, old.encode(), new.encode()
        case Nfc():
            kind, first, second = _NFC_STEP, b"", b""
    return struct.pack("<3I", kind, len(first), len(second)) + first + second


def _normal_forms(forms: NormalForms) -> bytes:
    rows: list[tuple[int, ...]] = []
    pool = ""
    for character, parts in sorted(forms.decompositions.items()):
        rows.append((ord(character), len(pool) << 8 | len(parts)))
        pool += parts
    marks = sorted((ord(mark), number) for mark, number in forms.marks.items())
    pairs = sorted((*map(ord, pair), ord(whole)) for pair, whole in forms.compositions.items())
    counts = [len(rows), len(pool), len(marks), len(pairs)]
    lists = (counts, chain(*rows), map(ord, pool), chain(*marks), chain(*pairs))
    return b"".join(map(_numbers, lists))


def _numbers(numbers: Iterable[int]) -> bytes:
    return np.fromiter(numbers, "<u4").tobytes()


def _file(sections: dict[bytes, bytes]) -> bytes:
    """Magic, version, the table of sections, and the sections."""
    head = struct.pack("<8s2I", MAGIC, VERSION, len(sections))
    start = len(head) + 24 * len(sections)
    parts, place = [], start
    for tag, content in sections.items():
        gap = bytes(-place % _ALIGNMENT)
        place += len(gap)
        head += struct.pack("<4sI2Q", tag, 0, place, len(content))
        parts += [gap, content]
        place += len(content)
    return head + b"".join(parts)


def _padded(content: bytes, multiple: int) -> bytes:
    return content + bytes(-len(content) % multiple)
