"""The tokenizer of the native runtime makes the ids and the texts that Python's makes."""

from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path

import pytest
from native_programs import PLAIN, SANITIZED, THREADS, answers, built, emulated
from tokenizer_cases import KINDS, id_lists, texts, tokenizer_json, wrong_bytes
from tokenizer_parity import compared, given_texts
from tokenizers import Tokenizer as HfTokenizer

from pl_compile.text.streaming import open_stream
from pl_compile.text.tables import tables_of as written_tables
from pl_compile.text.tokenizer import Tokenizer
from pl_compile.weights.bases import DEFAULT_BASE, cached_base_folder

pytestmark = pytest.mark.timeout(1200)  # most of it goes into compiling

Ask = Callable[[str, Sequence[str]], list[str]]


@cache
def tables_of(kind: str) -> bytes:
    return written_tables(tokenizer_json(kind))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("native_tokenizer")


@pytest.fixture(scope="module")
def ask(folder: Path) -> Ask:
    """Answers of the program to lines, with the tables of a kind."""

    def get(kind: str, lines: Sequence[str]) -> list[str]:
        program = built(folder, "tokenizer_program.cc", *PLAIN)
        return answers([program, written(folder, kind)], lines)

    return get


def written(folder: Path, kind: str) -> Path:
    path = folder / f"{kind.replace(' ', '_')}.tables"
    if not path.exists():
        path.write_bytes(tables_of(kind))
    return path


def encode_line(text: str | bytes, *, added: str = "characters", opens: bool = True) -> str:
    data = text.encode() if isinstance(text, str) else text
    return f"encode {added} {int(opens)} {data.hex()}"


def to_ids(line: str) -> list[int]:
    return [int(each) for each in line.split(",") if each]


def from_ids(ids: Sequence[int]) -> str:
    return ",".join(map(str, ids))


def expect_equal(found: Sequence[object], expected: Sequence[object], given: Sequence[str]) -> None:
    differ = [place for place in range(len(given)) if found[place] != expected[place]]
    shortest = min(differ, key=lambda place: len(given[place]), default=0)
    assert not differ, (len(differ), given[shortest], found[shortest], expected[shortest])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("opens", [True, False])
@pytest.mark.parametrize("added", ["characters", "all"])
def test_ids_are_those_of_the_python_runtime(kind: str, opens: bool, added: str, ask: Ask) -> None:
    tokenizer, given = Tokenizer(tokenizer_json(kind)), texts(7, 700)

    found = ask(kind, [encode_line(text, added=added, opens=opens) for text in given])

    expected = [tokenizer.encode(text, opens=opens, markup=added == "all") for text in given]
    expect_equal(list(map(to_ids, found)), expected, given)


@pytest.mark.parametrize("kind", KINDS)
def test_special_tokens_alone_can_be_characters_as_in_tokenizers(kind: str, ask: Ask) -> None:
    library, given = HfTokenizer.from_str(tokenizer_json(kind)), texts(8, 700)

    found = ask(kind, [encode_line(text, added="not_special") for text in given])

    library.encode_special_tokens = True
    expected = [library.encode(text, add_special_tokens=False).ids for text in given]
    expect_equal(list(map(to_ids, found)), expected, given)


@pytest.mark.parametrize("kind", ["gpt-2", "llama 2"])
def test_bytes_that_are_not_utf8_are_read_as_python_replaces_them(kind: str, ask: Ask) -> None:
    tokenizer, given = Tokenizer(tokenizer_json(kind)), wrong_bytes(9, 1500)

    found = ask(kind, list(map(encode_line, given)))

    replaced = [data.decode("utf-8", "replace") for data in given]
    expected = [tokenizer.encode(text, opens=True, markup=False) for text in replaced]
    expect_equal(list(map(to_ids, found)), expected, [data.hex() for data in given])


@pytest.mark.parametrize("kind", ["gpt-2", "qwen", "gemma"])
def test_every_character_of_some_planes_is_written_as_in_python(kind: str, ask: Ask) -> None:
    points = [*range(0x20, 0x3400, 3), *range(0x3400, 0xD800, 61), *range(0xE000, 0x30000, 37)]
    tokenizer, given = Tokenizer(tokenizer_json(kind)), [f"a{chr(p)}1{chr(p)} '" for p in points]

    found = ask(kind, list(map(encode_line, given)))

    expected = [tokenizer.encode(text, opens=True, markup=False) for text in given]
    expect_equal(list(map(to_ids, found)), expected, given)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("skip", [False, True])
def test_ids_become_the_text_that_tokenizers_makes(kind: str, skip: bool, ask: Ask) -> None:
    tokenizer, given = Tokenizer(tokenizer_json(kind)), id_lists(kind, 10, 1500)
    library = HfTokenizer.from_str(tokenizer_json(kind))

    found = ask(kind, [f"decode {int(skip)} {from_ids(ids)}" for ids in given])

    expected = [
        tokenizer.decode(ids) if skip else library.decode(ids, skip_special_tokens=False)
        for ids in given
    ]
    expect_equal([bytes.fromhex(line).decode() for line in found], expected, list(map(str, given)))


def streamed_by_python(kind: str, skip: bool, ids: Sequence[int]) -> str:
    """As the program writes it: what each token gives and leaves, and the rest."""
    if skip:
        stream = Tokenizer(tokenizer_json(kind)).stream()
    else:
        stream = open_stream(HfTokenizer.from_str(tokenizer_json(kind)), ())
    parts = []
    for token_id in ids:
        peeked = stream.peek(token_id)
        parts += [stream.push(token_id), stream.pending(), stream.pending(2), peeked]
    return ",".join(part.encode().hex() for part in [*parts, stream.finish()])


@pytest.mark.parametrize("kind", ["gpt-2", "llama 2", "gemma", "metaspace, first"])
@pytest.mark.parametrize("skip", [False, True])
def test_streams_hand_out_the_same_pieces_as_pythons(kind: str, skip: bool, ask: Ask) -> None:
    given = [[*ids, 10**6] for ids in id_lists(kind, 11, 400)]

    found = ask(kind, [f"stream {int(skip)} {from_ids(ids)}" for ids in given])

    expected = [streamed_by_python(kind, skip, ids) for ids in given]
    expect_equal(found, expected, list(map(str, given)))


def test_the_bytes_of_a_token_may_be_a_part_of_a_character(ask: Ask) -> None:
    library = HfTokenizer.from_str(tokenizer_json("gpt-2"))

    found = ask("gpt-2", [f"bytes {library.token_to_id('ð')}", f"bytes {10**6}", "bytes -1"])

    assert found == ["f0", "", ""]


@pytest.mark.timeout(60)
@pytest.mark.parametrize("kind", ["gpt-2", "llama 2", "qwen"])
def test_a_long_word_takes_no_time_that_grows_with_its_square(kind: str, ask: Ask) -> None:
    letter, blanks, word = b"a" * 1_000_000, b" " * 1_000_000, b"the" * 300_000

    found = ask(kind, [f"count {data.hex()}" for data in (letter, blanks, word)])

    assert all(int(count) > 1000 for count in found)


@pytest.mark.parametrize("kind", ["qwen", "llama 2"])
def test_other_compilers_and_processors_make_the_same_ids(
    kind: str, folder: Path, ask: Ask
) -> None:
    lines = [encode_line(text, added="all") for text in texts(12, 300)]
    here = ask(kind, lines)

    clang = built(folder, "tokenizer_program.cc", *SANITIZED)

    assert answers([clang, written(folder, kind)], lines) == here


@pytest.mark.parametrize("kind", ["qwen", "llama 2"])
def test_a_processor_for_arm_makes_the_same_ids_in_an_emulator(
    kind: str, folder: Path, ask: Ask
) -> None:
    lines = [encode_line(text, added="all") for text in texts(12, 300)]

    found = answers([*emulated(folder, "tokenizer_program.cc"), written(folder, kind)], lines)

    assert found == ask(kind, lines)


@pytest.mark.real
def test_the_default_base_has_the_ids_of_the_python_runtime(folder: Path) -> None:
    file = cached_base_folder(DEFAULT_BASE) / "tokenizer.json"
    if not file.is_file():
        pytest.skip(
            f"needs the base {DEFAULT_BASE} (plc fetch {DEFAULT_BASE}); on small ones: "
            "test_ids_are_those_of_the_python_runtime"
        )
    spec = file.read_text(encoding="utf-8")
    path = folder / "default.tables"
    path.write_bytes(written_tables(spec))
    tokenizer, given = Tokenizer(spec), texts(13, 3000)
    program = built(folder, "tokenizer_program.cc", *PLAIN)

    found = answers([program, path], [encode_line(text, added="all") for text in given])

    expected = [tokenizer.encode(text, opens=True, markup=True) for text in given]
    expect_equal(list(map(to_ids, found)), expected, given)


def test_threads_share_a_tokenizer_without_races(folder: Path) -> None:
    program = built(folder, "tokenizer_program.cc", *THREADS)
    lines = [encode_line(text, added="all") for text in texts(14, 300)]
    lines += [f"stream 1 {from_ids(ids)}" for ids in id_lists("qwen", 15, 100)]

    found = answers([program, written(folder, "qwen"), "threads"], lines)

    assert len(set(found)) > 100


@cache
def of_all_sorts() -> list[str]:
    return given_texts(600)


@pytest.mark.parametrize("kind", KINDS)
def test_all_sorts_of_texts_become_the_ids_and_the_texts_of_the_library(
    kind: str, folder: Path
) -> None:
    """`tokenizer_parity.py` in small, under sanitizers."""
    program = built(folder, "tokenizer_program.cc", *SANITIZED)

    found = compared(
        tokenizer_json(kind), partial(answers, [program, written(folder, kind)]), of_all_sorts()
    )

    assert (found.texts, found.differ) == (600, [])
    assert found.characters > 50_000


def test_all_sorts_of_texts_are_many_and_a_difference_is_found(folder: Path) -> None:
    given = of_all_sorts()

    def spoiled(lines: Sequence[str]) -> list[str]:
        return ["1" if line.endswith(given[-1].encode().hex()) else "" for line in lines]

    assert len(set(given)) > 550
    assert set(compared(tokenizer_json("gpt-2"), spoiled, given).differ) == {*given} - {""}
