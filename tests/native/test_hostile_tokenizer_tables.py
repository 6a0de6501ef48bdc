"""Whatever a file of tables holds: the native runtime refuses it by name, or does no harm."""

import functools
import os
import random
import struct
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from native_programs import FUZZER, SANITIZED, answers, built, emulated, fuzz
from tokenizer_cases import tokenizer_json
from tokenizer_tables_files import (
    Section,
    cut,
    displaced,
    flipped,
    headers,
    numbers,
    patch,
    removed,
    sections,
    shortened,
)

from pl_compile.text.tables import tables_of as written_tables

pytestmark = pytest.mark.timeout(1200)  # most of it goes into compiling

# Together they have all sections and all steps: a table of whole words, NFC, bytes.
KINDS = ["llama 3", "qwen", "llama 2", "metaspace, first, split"]
Ask = Callable[[Sequence[str]], list[str]]


@functools.cache
def good(kind: str) -> bytes:
    return written_tables(tokenizer_json(kind))


def needed(kind: str) -> list[Section]:
    return [section for section in sections(good(kind)) if section.size]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("hostile_tables")


def written(folder: Path, kind: str) -> Path:
    path = folder / f"{kind.replace(' ', '_')}.tables"
    path.write_bytes(good(kind))
    return path


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def ask(folder: Path, kind: str) -> Ask:
    """The program with sanitizers: it ends at the first wrong step, which is a failure."""

    def get(lines: Sequence[str]) -> list[str]:
        program = built(folder, "tokenizer_program.cc", *SANITIZED)
        return answers([program, written(folder, kind)], lines)

    return get


def expect_harmless(found: Sequence[str], lines: Sequence[str]) -> None:
    for line, answer in zip(lines, found, strict=True):
        assert answer.startswith(("refused reading changed: ", "loaded ")), (line, answer)
        assert answer.startswith("loaded") or "; expected " in answer, (line, answer)


def test_the_file_as_it_is_is_loaded(kind: str, ask: Ask) -> None:
    (found,) = ask([patch(0, b"PLCTOKEN")])

    assert found.startswith("loaded ")


def test_without_a_section_the_file_is_refused_and_it_is_named(kind: str, ask: Ask) -> None:
    found = ask(list(map(removed, needed(kind))))

    for section, answer in zip(needed(kind), found, strict=True):
        assert answer.startswith(f"refused reading changed: section {section.tag}: it is missing")


def test_a_shorter_section_is_refused(kind: str, ask: Ask) -> None:
    # NORM may end after any step: nothing else says how many there are.
    shorter = [section for section in needed(kind) if section.tag != "NORM"]
    lines = [line for section in shorter for line in shortened(section)]

    found = ask(lines)

    assert len(lines) > 40
    expect_harmless(found, lines)
    assert [line for line in found if not line.startswith("refused")] == []


def test_normalizing_may_have_fewer_steps_and_no_half_ones(kind: str, ask: Ask) -> None:
    lines = [line for s in sections(good(kind)) if s.tag == "NORM" for line in shortened(s)]

    expect_harmless(ask(lines), lines)


def test_a_shorter_file_is_refused(kind: str, ask: Ask) -> None:
    lines = list(cut(good(kind)))

    found = ask(lines)

    assert all(answer.startswith("refused") for answer in found)


def test_sections_elsewhere_do_no_harm(kind: str, ask: Ask) -> None:
    lines = [line for section in sections(good(kind)) for line in displaced(section)]

    expect_harmless(ask(lines), lines)


def test_wrong_numbers_do_no_harm(kind: str, ask: Ask) -> None:
    lines = [*headers(), *(line for section in needed(kind) for line in numbers(section))]

    expect_harmless(ask(lines), lines)


def test_changed_bytes_do_no_harm(kind: str, ask: Ask) -> None:
    file = good(kind)
    lines = [line for section in needed(kind) for line in flipped(file, section, 5, 40)]

    found = ask(lines)

    expect_harmless(found, lines)
    kinds = {answer.split()[0] for answer in found}
    assert kinds == {"refused", "loaded"}  # else the lines would not show much


def test_changed_bytes_do_no_harm_on_arm_in_an_emulator(folder: Path) -> None:
    file = good("qwen")
    every = [line for section in needed("qwen") for line in flipped(file, section, 6, 6)]
    every += [line for section in needed("qwen") for line in shortened(section)]
    lines = random.Random(6).sample(every, 120)

    found = answers([*emulated(folder, "tokenizer_program.cc"), written(folder, "qwen")], lines)

    expect_harmless(found, lines)


# What stands there (a section, a place in it), another number, and what is said of it.
_POINTING_OUTSIDE = [
    ("META", 4, 64, "flags 64; expected those of version 1"),
    ("META", 12, 17, "17 splits; expected at most 16"),
    ("VOFF", 0, 2**31, "entry 0 is above the next one"),
    ("VTYP", 0, 9, "entry 0 is 9; expected a kind of tokens"),
    ("CLS1", 0, 2**16 - 1, "entry 0 is 65535; expected one of the"),
    ("CLS2", 0, 255, "entry 0 is 255; expected classes below"),
    ("DFAS", 0, 40000, "entry 0 has 40000 states; expected 2 to 32768"),
    ("DFAS", 8, 1, "entry 0 leaves the dead state"),
    ("ADDT", 0, 10**6, "entry 0 has the id 1000000; expected ids of tokens"),
    ("ADDT", 8, 10**6, "entry 0 is cut off; expected 1000000 bytes"),
    ("NORM", 0, 9, "entry 0 is of kind 9; expected 1 to 5"),
    ("NFCT", 20, 2**32 - 1, "entry 0 of the decompositions is outside the pool"),
    ("NFCT", 16, 2**21, "entry 1 is not above the one before; expected sorted rows"),
]


@pytest.mark.parametrize(("tag", "place", "number", "said"), _POINTING_OUTSIDE)
@pytest.mark.parametrize("kind", ["qwen"], indirect=True)
def test_a_number_that_points_outside_is_refused(
    tag: str, place: int, number: int, said: str, ask: Ask
) -> None:
    (section,) = (section for section in needed("qwen") if section.tag == tag)
    data = struct.pack("<I", number).rstrip(b"\0") if tag in ("VTYP", "CLS1", "CLS2") else None

    (found,) = ask([patch(section.offset + place, data or struct.pack("<I", number))])

    assert found.startswith(f"refused reading changed: section {tag}: {said}")


def refusal(folder: Path, path: Path) -> str:
    program = built(folder, "tokenizer_program.cc", *SANITIZED)
    done = subprocess.run([program, path], input="", capture_output=True, text=True, check=False)
    assert done.returncode == 1
    return done.stderr.strip()


def test_an_error_says_what_was_found_and_what_was_expected(folder: Path) -> None:
    file, path = bytearray(good("qwen")), folder / "spoiled.tables"
    struct.pack_into("<I", file, 8, 2)
    path.write_bytes(file)

    assert refusal(folder, path) == (
        f"reading {path}: header: version 2; expected version 1. "
        "Use a library as new as the bundle, or export the bundle again."
    )


def test_an_id_that_is_none_is_refused_where_it_stands(folder: Path) -> None:
    file, path = bytearray(good("qwen")), folder / "spoiled.tables"
    bytes_ = next(section for section in needed("qwen") if section.tag == "BYTE")
    size = struct.unpack_from("<I", file, sections(good("qwen"))[0].offset)[0]
    struct.pack_into("<i", file, bytes_.offset + 4 * 65, size)
    path.write_bytes(file)

    assert refusal(folder, path) == (
        f"reading {path}: section BYTE: entry 65 is {size}; expected ids of tokens, "
        f"below {size}, or -1. Export the bundle again."
    )


def test_a_file_that_cannot_be_read_is_named(folder: Path) -> None:
    pipe, empty = folder / "pipe", folder / "empty"
    os.mkfifo(pipe)
    empty.write_bytes(b"")

    assert refusal(folder, folder / "missing").startswith(
        f"reading {folder / 'missing'}: No such file or directory; expected a file"
    )
    assert "this is no regular file" in refusal(folder, folder)
    assert "this is no regular file" in refusal(folder, pipe)
    assert "0 bytes that do not begin with PLCTOKEN" in refusal(folder, empty)


@pytest.mark.parametrize("kind", ["gpt-2", "llama 2", "qwen"])
def test_a_fuzzer_finds_nothing_in_a_few_seconds(kind: str, folder: Path, tmp_path: Path) -> None:
    program = built(folder, "fuzz_tokenizer.cc", *FUZZER)
    seeds = tmp_path / "seeds"
    seeds.mkdir()
    first = ["\x02the é😀 123's\n  x", "\x0a<think>s>x a b", "\x00\x10\0\0\0\1", "\x01PLCTOKEN"]
    for number, text in enumerate(first):
        (seeds / str(number)).write_bytes(text.encode())

    fuzz(program, seeds, PLC_TABLES=str(written(folder, kind)))
