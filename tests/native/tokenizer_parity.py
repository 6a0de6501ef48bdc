"""The tokenizer of the native runtime beside `tokenizers`, on many texts.

    python tests/native/tokenizer_parity.py [--count 200000] [--kind gpt-2]... [--sanitized]

A third of the texts are random, a third are real (this machine's message catalogues, documentation
and Python sources), and a third together hold every code point among others. Compared are the ids
of each text as a field; and for every fourth of them, and for all that hold an added token, also
those of a field that goes on and of a part of a template, and the text that the latter become. For
each kind it prints how many texts were compared and how many differed, with the shortest of them;
it ends with 1 where any did. A small form of it runs in the tests.
"""

import argparse
import gettext
import gzip
import json
import os
import random
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from native_programs import PLAIN, SANITIZED, answers, built
from tokenizer_cases import KINDS, texts, tokenizer_json
from tokenizers import Tokenizer as HfTokenizer

from pl_compile.text.tables import tables_of
from pl_compile.text.tokenizer_json import without_prefix
from pl_compile.weights.bases import DEFAULT_BASE, cached_base_folder

_CODES = [*range(0xD800), *range(0xE000, 0x110000)]
_CODES_A_TEXT = 24
_LONGEST = 240  # characters of a real text
_AT_ONCE = 10_000  # texts
_CATALOGUES, _DOCUMENTS = Path("/usr/share/locale"), Path("/usr/share/doc")

# Kinds of the tests of the tables that `KINDS` has by another name.
_ALIKE = {"GPT-2", "SmolLM2", "Llama 3", "Qwen 2.5", "a blank in front", "GPT-NeoX"}

Ask = Callable[[Sequence[str]], list[str]]


class Compared(NamedTuple):
    """Texts, and those of them that were not alike."""

    texts: int
    characters: int
    differ: list[str]


class _Asked(NamedTuple):
    text: str
    line: str  # for the program
    expected: str  # as its answer


def every_code_point(count: int) -> list[str]:
    """Texts with code points among letters, digits and blanks: all, if the count allows."""
    step = max(1, len(_CODES) // (count * _CODES_A_TEXT))
    codes = _CODES[::step]
    each = -(-len(codes) // count)
    return [
        "".join(f"{chr(code)}a {chr(code)}1" for code in codes[start : start + each])
        for start in range(0, len(codes), each)
    ]


def real_texts(seed: int, count: int) -> list[str]:
    """Of each source an equal part, each text once; random texts where a machine has too few."""
    generator = random.Random(seed)
    found: dict[str, None] = {}
    for source in (_messages, _documents, _sources):
        found |= dict.fromkeys(islice(source(generator), -(-count // 3)))
    missing = texts(seed, max(0, count - len(found)))
    return [*found, *missing][:count]


def _messages(generator: random.Random) -> Iterator[str]:
    """Translated messages of programs: some from each catalogue, in turn by language."""
    for path in _shuffled(generator, _CATALOGUES, "*.mo"):
        try:
            with path.open("rb") as file:
                catalogue = gettext.GNUTranslations(file)
        except (OSError, UnicodeError, ValueError, LookupError):
            continue  # a catalogue of another form
        messages = list(vars(catalogue)["_catalog"].values())
        for message in generator.sample(messages, min(40, len(messages))):
            yield from _parts(str(message))


def _documents(generator: random.Random) -> Iterator[str]:
    for path in _shuffled(generator, _DOCUMENTS, "*"):
        try:
            data = path.read_bytes()[:200_000]
            data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else data
        except (OSError, EOFError):
            continue
        yield from islice(_parts(data[:200_000].decode("utf-8", "replace")), 60)


def _sources(generator: random.Random) -> Iterator[str]:
    for path in _shuffled(generator, Path(sysconfig.get_paths()["stdlib"]), "*.py"):
        yield from islice(_parts(path.read_bytes()[:200_000].decode("utf-8", "replace")), 60)


def _shuffled(generator: random.Random, folder: Path, pattern: str) -> list[Path]:
    paths = sorted(path for path in folder.rglob(pattern) if path.is_file())
    generator.shuffle(paths)
    return paths


def _parts(text: str) -> Iterator[str]:
    """A text in parts of several lines."""
    lines = text.splitlines(keepends=True)
    part = ""
    for line in lines:
        part += line[:_LONGEST]
        if len(part) > _LONGEST // 3:
            yield part[:_LONGEST]
            part = ""
    if part:
        yield part


def given_texts(count: int, seed: int = 7) -> list[str]:
    """So many texts, about a third of each sort."""
    third = count // 3
    planes = every_code_point(third)
    real = real_texts(seed, third)
    return [*planes, *real, *texts(seed, count - len(planes) - len(real))]


def compared(tokenizer: str, ask: Ask, given: Sequence[str]) -> Compared:
    """What the program makes of texts beside what the library makes of them.

    Args:
        tokenizer: the text of a `tokenizer.json`.
        ask: the answers of `tokenizer_program.cc`, with the tables of that tokenizer, to lines.
        given: the texts.
    """
    as_template = HfTokenizer.from_str(tokenizer)
    plain = json.dumps(json.loads(tokenizer) | {"added_tokens": []})
    as_field, going_on = HfTokenizer.from_str(plain), HfTokenizer.from_str(without_prefix(plain))
    added = [token["content"] for token in json.loads(tokenizer)["added_tokens"]]
    differ = set()
    for start in range(0, len(given), _AT_ONCE):
        every = list(given[start : start + _AT_ONCE])
        some = [text for text in every[1::4] if not any(map(text.__contains__, added))]
        some += [text for text in every if any(map(text.__contains__, added))]
        asked = [
            *_encoded(as_field, "encode characters 1", every),
            *_encoded(going_on, "encode characters 0", some),
        ]
        of_template = _encoded(as_template, "encode all 1", some)
        ids = [list(map(int, filter(None, each.expected.split(",")))) for each in of_template]
        decoded = as_template.decode_batch(ids, skip_special_tokens=False)
        asked += of_template
        asked += [
            _Asked(text, f"decode 0 {each.expected}", written.encode().hex())
            for text, each, written in zip(some, of_template, decoded, strict=True)
        ]
        found = ask([each.line for each in asked])
        differ |= {
            each.text for each, answer in zip(asked, found, strict=True) if each.expected != answer
        }
    return Compared(len(given), sum(map(len, given)), sorted(differ, key=len))


def _encoded(library: HfTokenizer, line: str, given: Sequence[str]) -> list[_Asked]:
    ids = [each.ids for each in library.encode_batch(given, add_special_tokens=False)]
    return [
        _Asked(text, f"{line} {text.encode().hex()}", ",".join(map(str, of_text)))
        for text, of_text in zip(given, ids, strict=True)
    ]


@cache
def _of_tables() -> dict[str, str]:
    """The kinds that only the tests of the tables have."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "text" / "tables"))
    from known_tokenizers import PRE_TOKENIZERS
    from tiny_tokenizers import byte_level_tokenizer

    names = PRE_TOKENIZERS.keys() - _ALIKE
    return {name: byte_level_tokenizer(name) for name in sorted(names)}


def all_kinds() -> dict[str, str]:
    """The text of the `tokenizer.json` of each kind; the default base's, if it was fetched."""
    default = cached_base_folder(DEFAULT_BASE) / "tokenizer.json"
    base = {DEFAULT_BASE: default.read_text(encoding="utf-8")} if default.is_file() else {}
    return base | {kind: tokenizer_json(kind) for kind in KINDS} | _of_tables()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=200_000, help="texts for each kind")
    parser.add_argument("--kind", action="append", help="only this one; may be given again")
    parser.add_argument("--sanitized", action="store_true", help="with ASan and UBSan")
    options = parser.parse_args()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    kinds = all_kinds()
    given = given_texts(options.count)
    failed = False
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "programs"
        folder.mkdir()
        program = built(
            folder, "tokenizer_program.cc", *(SANITIZED if options.sanitized else PLAIN)
        )
        for kind in options.kind or kinds:
            path = folder / "tokenizer.tables"
            path.write_bytes(tables_of(kinds[kind]))
            started = time.monotonic()
            found = compared(kinds[kind], partial(answers, [program, path]), given)
            seconds = time.monotonic() - started
            print(
                f"{kind}: {found.texts:,} texts of {found.characters:,} characters, "
                f"{len(found.differ):,} differ ({seconds:.0f} s)"
                + "".join(f"\n  {text!r:.200}" for text in found.differ[:3]),
                flush=True,
            )
            failed = failed or bool(found.differ)
    sys.exit(int(failed))


if __name__ == "__main__":
    main()
