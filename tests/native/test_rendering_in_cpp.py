"""The native runtime turns a request into the tokens that Python turns it into."""

import json
import random
import struct
import sys
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from native_programs import PLAIN, SANITIZED, SOURCES, answers, built
from tokenizer_cases import ADDED, texts, tokenizer_json
from tokenizer_cases import KINDS as TOKENIZERS

from pl_compile.config.task import CopiedAnswer, TaskConfig
from pl_compile.errors import ConfigError, DataError
from pl_compile.text.label_trie import LabelTrie, TrieWalk
from pl_compile.text.render import Rendered, Renderer, SequenceRules
from pl_compile.text.spans import SpanWalk
from pl_compile.text.tables import tables_of
from pl_compile.text.template import Field, Template, Virtual, parse_template
from pl_compile.text.tokenizer import Tokenizer
from pl_compile.text.words import words_of

pytestmark = pytest.mark.timeout(1200)  # most of it goes into compiling

Ask = Callable[[str, Sequence[str]], list[str]]
Fields = Mapping[str, str | int | float]

SENTENCES = (
    "The year 1987 was cold, and J.D. Smith (a lawyer) didn't mind: it's 40.5 km to Rome.",
    "中文字符有很多。日本語テキスト、한국어 텍스트 and ไทย ก็ดี.",
    "Ne\u0301e café — Việt Nam, e\u0323\u0301 हिन्दी नमस्ते 👩\u200d👩\u200d👧 ok 🦊\ufe0f!",
    "who was there?\n\nHe was.  \tShe   was not\u3000there\u2028today.\r\nEnd",
    "the word the word the words, the Word; THE word.",
    "x_1 = f(a,b)[0]  # done\u00a0\x1cyes \u1100\u1161\u11a8 \u212b \u0344\u0323a",
)
_VALUES = (
    *("", " ", "   ", "a", "a ", " who", "who  ", "\n", "\t who \n", "<think>", "<s>", "a b"),
    *("é", "→ <|im_end|>", "中 ", "\u3000x\u2028", "\x1c y \x1f", "😀👍🏽", "{answer}", "e\u0301"),
    *("<|VIRTUAL_PROMPT_0|>", "\x00", "1e2", "▁the▁", "don't", " \u0301a", "\u200d", "the word "),
    *(0, -7, 12345678901234, 1.5, -0.0, 1e16, 1e-05, 100.0, 3.0e300, 5e-324, 0.1),
)
_PIECES = (
    *("{p}", "{q}", "{p}", "{q}", " ", "  ", "Context: ", "\nAnswer:", "\n", "<s>", "<think>", "é"),
    *("<|im_end|>", " <s> ", "a", " the", "→", "\t", "\u3000", "{{", "}}", "who ", "s>x", "<s><s>"),
)
_CHOICES = (
    ("there", " was", "who"),
    ("a", "ab", "abc", "b"),
    ("中文", "中", "中國 ", "日本"),
    ("positive", "neutral", "negative", "positively"),
    ("<s>", "<think>x", "é", "👍", "👍🏽"),
    ("one",),
)


def _changed(kind: str, **changes: Any) -> str:
    return json.dumps(json.loads(tokenizer_json(kind)) | changes)


def _byte_level(*, blank: bool) -> dict[str, Any]:
    return {
        "type": "ByteLevel",
        "add_prefix_space": blank,
        "trim_offsets": True,
        "use_regex": True,
    }


def _with_front(kind: str, *others: Mapping[str, Any]) -> str:
    """The tokenizer with the front `<s>`, and with other post-processors."""
    key = {
        token["content"]: token["id"] for token in json.loads(tokenizer_json(kind))["added_tokens"]
    }["<s>"]
    front = {
        "type": "TemplateProcessing",
        "single": [
            {"SpecialToken": {"id": "<s>", "type_id": 0}},
            {"Sequence": {"id": "A", "type_id": 0}},
        ],
        "pair": [{"Sequence": {"id": name, "type_id": 0}} for name in "AB"],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [key], "tokens": ["<s>"]}},
    }
    return _changed(kind, post_processor={"type": "Sequence", "processors": [*others, front]})


@cache
def tokenizer_text(kind: str) -> str:
    """The `tokenizer.json` of one of `KINDS`."""
    made = {
        "trims": lambda: _changed("gpt-2", post_processor=_byte_level(blank=False)),
        "trims, a blank in front": lambda: _changed(
            "a blank in front", post_processor=_byte_level(blank=True)
        ),
        "trims, NFC": lambda: _with_front("qwen", _byte_level(blank=True)),
        "llama 2, a front": lambda: _with_front("llama 2", _byte_level(blank=False)),
        "a blank in front, a front": lambda: _with_front("a blank in front"),
        "gemma, a front": lambda: _with_front("gemma"),
        "metaspace, first, a front": lambda: _with_front("metaspace, first"),
        "metaspace, always, a front": lambda: _with_front("metaspace, always, split"),
        "prepended NFC": lambda: _changed(
            "llama 2",
            normalizer={
                "type": "Sequence",
                "normalizers": [
                    {"type": "Prepend", "prepend": "▁▁"},
                    {"type": "Replace", "pattern": {"String": "the"}, "content": "é\u0323a"},
                    {"type": "NFC"},
                    {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
                ],
            },
        ),
        "lacks z": lambda: _without("z"),
        "lacks bytes": lambda: _without("qzÃ©ĊĠð"),
    }
    return made[kind]() if kind in made else tokenizer_json(kind)


KINDS = (
    *TOKENIZERS,
    *("trims", "trims, a blank in front", "trims, NFC", "llama 2, a front"),
    *("a blank in front, a front", "gemma, a front", "prepended NFC"),
    *("metaspace, first, a front", "metaspace, always, a front"),
    *("lacks z", "lacks bytes"),
)


def _without(signs: str) -> str:
    """A byte-level tokenizer that has no tokens for some bytes, and leaves them out."""
    spec = json.loads(tokenizer_json("gpt-2"))
    model = spec["model"]
    others = str.maketrans({sign: chr(0x4E00 + ord(sign)) for sign in signs})
    model["vocab"] = {piece.translate(others): key for piece, key in model["vocab"].items()}
    model["merges"] = [[part.translate(others) for part in pair] for pair in model["merges"]]
    model["byte_fallback"] = model["fuse_unk"] = False
    return json.dumps(spec)


@cache
def tokenizer_of(kind: str, vocab: int | None = None) -> Tokenizer:
    return Tokenizer(tokenizer_text(kind), vocab=vocab)


@cache
def size_of(kind: str) -> int:
    return max(tokenizer_of(kind)._opening.get_vocab().values()) + 1


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("native_rendering")


def written(folder: Path, kind: str) -> Path:
    path = folder / f"{kind.replace(' ', '_')}.tables"
    if not path.exists():
        path.write_bytes(tables_of(tokenizer_text(kind)))
    return path


@pytest.fixture(scope="module")
def ask(folder: Path) -> Ask:
    """Answers of the program to lines, with the tables of a kind."""

    def get(kind: str, lines: Sequence[str]) -> list[str]:
        program = built(folder, "rendering_program.cc", *PLAIN)
        return answers([program, written(folder, kind)], lines)

    return get


# Lines of the program


def said(text: str) -> str:
    return "x" + text.encode().hex()


def listed(items: Sequence[object]) -> str:
    return ",".join(map(str, items)) or "-"


def bits_of(number: float) -> str:
    return f"{struct.unpack('<Q', struct.pack('<d', number))[0]:016x}"


def fields_line(fields: Fields) -> str:
    def value(given: str | int | float) -> str:
        if isinstance(given, str):
            return "t" + said(given)
        return f"w{given}" if isinstance(given, int) else "r" + bits_of(given)

    return listed([f"{said(name)}:{value(given)}" for name, given in fields.items()])


def task_line(renderer: Renderer, vocab: int) -> str:
    template, rules = renderer.template, renderer.rules
    task = template.task

    def segment(each: object) -> str:
        if isinstance(each, Virtual):
            return f"V{each.start}:{each.count}"
        return "F" + said(each.name) if isinstance(each, Field) else "T" + said(each.text)  # type: ignore[attr-defined]

    return " ".join(
        [
            *("task", str(vocab), task.whitespace),
            *("-" if key is None else str(key) for key in (rules.bos_id, rules.eos_id)),
            listed(rules.end_ids),
            "-" if task.truncate_field is None else said(task.truncate_field),
            "-" if task.answer is None else said(task.answer.span),
            listed(list(map(said, task.choices))),
            "-" if template.answer_field is None else said(template.answer_field),
            str(renderer._answer_index),
            listed(list(map(said, template.input_fields))),
            listed(list(map(segment, template.segments))),
        ]
    )


def rendered_line(made: Rendered) -> str:
    return f"{listed(made.token_ids.tolist())} {listed(made.virtual_rows.tolist())}"


def trie_line(trie: LabelTrie) -> str:
    groups = ""
    if trie.inner_nodes:
        group = trie.group(trie.inner_nodes, 3)
        groups = f"{listed(group.nodes)};{listed(group.wanted)}"
    parts = (trie.parents, trie.tokens, trie.ends)
    return " ".join(
        [
            *map(listed, parts),
            *(str(int(trie.fixed)), str(trie.longest), listed(trie.inner_nodes)),
            *(listed(list(map(said, trie.texts))), groups),
        ]
    )


def walked(walk: SpanWalk, seed: int) -> str:
    """As the program walks."""
    parts = []
    for step in range(40):
        allowed = walk.allowed()
        line = [listed(allowed), str(int(walk.is_span)), str(walk.places)]
        if step % 3 == 1:
            line.append(listed(walk.ahead(seed % 7)))
        seed = (seed * 1103515245 + 12345) % 2**32
        if not allowed or (walk.is_span and seed >> 28 == 0):
            parts.append(";".join(line))
            break
        token = allowed[(seed >> 16) % len(allowed)]
        line += [said(walk.peek(token)), said(walk.push(token)), said(walk.pending())]
        parts.append(";".join(line))
    return " ".join([*parts, said(walk.finish())])


def expected_of(make: Callable[[], str]) -> str:
    try:
        return make()
    except DataError as error:
        return f"error {error}"


def message(line: str) -> str:
    """What the program says; errors as text."""
    kind, _, text = line.partition(" ")
    return f"error {bytes.fromhex(text[1:]).decode()}" if kind == "error" else line


def expect_equal(found: Sequence[str], expected: Sequence[str], given: Sequence[object]) -> None:
    """Answers alike; where Python refuses, C++ refuses for the same reason, in its first words."""
    for line, wanted, each in zip(map(message, found), expected, given, strict=True):
        if not wanted.startswith("error") or not line.startswith("error"):
            assert line == wanted, each


# Tasks


def renderers(kind: str, seed: int, count: int, **settings: Any) -> Iterator[Renderer]:
    """Random tasks that can be served; many templates are none."""
    source = random.Random(f"{kind}{seed}")
    size = size_of(kind)
    while count:
        try:
            task = _task(source, **settings)
            template = parse_template(task)
        except ConfigError:
            continue
        bos = source.choice((None, None, tokenizer_of(kind).token_id("<s>")))
        rules = SequenceRules(bos, source.choice((None, 2)), source.choice(((), (5, 7))))
        try:
            yield Renderer(template, tokenizer_of(kind, size), rules)
        except DataError:
            continue
        count -= 1


def _task(source: random.Random, **settings: Any) -> TaskConfig:
    pieces = [source.choice(_PIECES) for _ in range(source.randrange(7))]
    markers = source.randrange(1, 3)
    for number in range(markers):
        start = source.randrange(len(pieces) + 1) if not number else len(pieces)
        pieces.insert(start, f"<|VIRTUAL_PROMPT_{number}|>")
    pieces += [source.choice(("", " ", "\n", "Answer: ", "<s>")), "{answer}"]
    after = source.random() < 0.15
    pieces += ["{p}!"] if after else []
    text = "".join(pieces)
    cut = [name for name in ("p", "q") if f"{{{name}}}" in text]
    given: dict[str, Any] = {
        "virtual_token_splits": (3, 2)[:markers],
        "whitespace": source.choice(("keep", "nemo", "transformers")),
        "answer_field": "answer",
        "answer_only_loss": not after,
        "truncate_field": source.choice([None, *cut]),
    }
    return TaskConfig("mood", text, sum((3, 2)[:markers]), **given | settings)


def some_fields(source: random.Random, template: Template) -> dict[str, Any]:
    def value() -> Any:
        return source.choice(
            (source.choice(_VALUES), source.choice(SENTENCES), _random_text(source))
        )

    return {name: value() for name in template.input_fields}


def _random_text(source: random.Random) -> str:
    return texts(source.randrange(10**6), 1)[0]


def prompt_cases(kind: str, tasks: int) -> tuple[list[str], list[str]]:
    """Lines of prompts and trees, and what Python says."""
    source = random.Random(f"prompts of {kind}")
    lines, expected = [], []

    def add(line: str, make: Callable[[], str]) -> None:
        lines.append(line)
        expected.append(expected_of(make))

    for choices in ((), *_CHOICES):
        for renderer in renderers(kind, len(choices), tasks, choices=choices):
            add(task_line(renderer, size_of(kind)), lambda: "ok")
            opening = renderer.opening()
            layout = json.dumps([opening.token_ids.tolist(), opening.virtual_rows.tolist()])
            add(
                "opening",
                lambda o=opening, text=layout: " ".join(  # type: ignore[misc]
                    [
                        *(rendered_line(o), said(text), listed(o.input_ids(100000).tolist())),
                        *(rendered_line(o.without_virtual()), rendered_line(o.after(2))),
                    ]
                ),
            )
            if choices:
                add("tree empty", lambda r=renderer: trie_line(r.label_trie()))  # type: ignore[misc]
            for _ in range(6):
                fields = some_fields(source, renderer.template)
                most = source.choice((None, source.randrange(1, 60), source.randrange(8, 30)))
                add(
                    f"prompt {'-' if most is None else most} {fields_line(fields)}",
                    lambda r=renderer, f=fields, m=most: rendered_line(r.prompt(f, max_length=m)),  # type: ignore[misc]
                )
                if choices:
                    add(
                        f"tree {fields_line(fields)}",
                        lambda r=renderer, f=fields: trie_line(r.label_trie(f)),  # type: ignore[misc]
                    )
                    add(
                        f"choices {most or 40} {fields_line(fields)}",
                        lambda r=renderer, f=fields, m=most: _prompt_and_choices(r, f, m or 40),  # type: ignore[misc]
                    )
    return lines, expected


def _prompt_and_choices(renderer: Renderer, fields: Fields, most: int) -> str:
    made, trie = renderer.prompt_and_choices(fields, max_length=most)
    return f"{rendered_line(made)} {trie_line(trie)}"


def span_cases(kind: str, tasks: int) -> tuple[list[str], list[str]]:
    """Lines of copied answers, and what Python says."""
    source = random.Random(f"spans of {kind}")
    lines, expected = [], []
    for renderer in renderers(kind, 40, tasks, answer=CopiedAnswer("p"), truncate_field="p"):
        lines.append(task_line(renderer, size_of(kind)))
        expected.append("ok")
        for _ in range(4):
            fields = some_fields(source, renderer.template) | {"p": source.choice(SENTENCES)}
            if source.random() < 0.3:
                fields["p"] = _random_text(source)[:60]
            most = source.choice((None, source.randrange(15, 60)))
            seed = source.randrange(2**32)
            lines.append(f"spans {'-' if most is None else most} {seed} {fields_line(fields)}")
            expected.append(
                expected_of(lambda r=renderer, f=fields, m=most, s=seed: _spans(r, f, m, s))  # type: ignore[misc]
            )
    return lines, expected


def _spans(renderer: Renderer, fields: Fields, most: int | None, seed: int) -> str:
    made, walk = renderer.prompt_and_spans(fields, max_length=most)
    return f"{rendered_line(made)} {walked(walk, seed)}"


@pytest.mark.parametrize("kind", KINDS)
def test_prompts_and_trees_are_those_of_the_python_runtime(kind: str, ask: Ask) -> None:
    lines, expected = prompt_cases(kind, 6)

    found = ask(kind, lines)

    assert sum(not line.startswith("error") for line in expected) > len(expected) * 0.6
    expect_equal(found, expected, lines)


@pytest.mark.parametrize("kind", KINDS)
def test_copied_answers_are_walked_as_in_the_python_runtime(kind: str, ask: Ask) -> None:
    lines, expected = span_cases(kind, 10)

    found = ask(kind, lines)

    assert sum(not line.startswith("error") for line in expected) > len(expected) * 0.6
    expect_equal(found, expected, lines)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("opens", [True, False])
@pytest.mark.parametrize("markup", [True, False])
def test_tokens_write_the_places_that_tokenizers_says(
    kind: str, opens: bool, markup: bool, ask: Ask
) -> None:
    given = [*texts(31, 250), *SENTENCES, *ADDED, " a b  ", "中 a"]

    def places(text: str) -> str:
        encoding = tokenizer_of(kind)._encoding(text, opens=opens, markup=markup)
        ends = [len(text[:end].encode()) for end in range(len(text) + 1)]
        places = [ends[place] for pair in encoding.offsets for place in pair]
        return f"{listed(encoding.ids)} {listed(places)}"

    name = "template" if markup else "data"
    found = ask(kind, [f"places {name} {int(opens)} {said(text)}" for text in given])

    expect_equal(found, list(map(places, given)), given)


def test_numbers_are_written_as_python_writes_them(ask: Ask) -> None:
    source = random.Random(5)
    given = [float(f"{source.random()}e{source.randrange(-30, 30)}") for _ in range(2000)]
    given += [struct.unpack("<d", source.randbytes(8))[0] for _ in range(2000)]
    given += [float(f"1e{power}") for power in range(-320, 309)]
    given += [float(f"-9.5e{power}") for power in range(-8, 22)]
    given += [0.0, -0.0, 0.1, 1 / 3, 1e16, 9999999999999998.0, 0.0001, 0.00009999, 5e-324]
    given = [each for each in given if each - each == 0]

    found = ask("gpt-2", [f"number {bits_of(each)}" for each in given])

    assert found == list(map(repr, given))


@pytest.mark.skipif(
    unicodedata.unidata_version != "14.0.0",
    reason="needs Python 3.11, of whose Unicode the tables are, since others know more letters; "
    "with any: test_copied_answers_are_walked_as_in_the_python_runtime",
)
def test_words_of_every_character_are_those_of_python(ask: Ask) -> None:
    codes = [code for code in range(sys.maxunicode + 1) if not 0xD800 <= code < 0xE000]
    given = [
        "".join(f"a{chr(code)}b" for code in codes[start : start + 200])
        for start in range(0, 0x32000, 200)
    ]
    given += ["".join(f"a{chr(code)}b" for code in codes[-0x20000::97])]
    given += texts(3, 200)

    found = ask("gpt-2", [f"words {said(text)}" for text in given])

    for text, line in zip(given, found, strict=True):
        ends = [0]
        for character in text:
            ends.append(ends[-1] + len(character.encode()))
        assert line == listed([ends[place] for word in words_of(text) for place in word])


def test_the_table_of_characters_is_what_its_script_writes() -> None:
    if unicodedata.unidata_version != "14.0.0":
        pytest.skip(
            "needs Python 3.11, of whose Unicode the table is; with any: "
            "test_copied_answers_are_walked_as_in_the_python_runtime"
        )
    scope: dict[str, Any] = {"__name__": "script"}
    script = SOURCES.parent / "tools" / "write_character_kinds.py"
    exec(compile(script.read_text(encoding="utf-8"), str(script), "exec"), scope)

    assert (SOURCES / "character_kinds.inc").read_text(encoding="utf-8") == scope["content"]()


# What is refused


def a_renderer(kind: str, template: str, vocab: int | None = None, **settings: Any) -> Renderer:
    task = TaskConfig("mood", f"<|VIRTUAL_PROMPT_0|>{template}", 3, **settings)
    return Renderer(parse_template(task), tokenizer_of(kind, vocab), SequenceRules())


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ("-", "field 'p' is missing; field 'q' is missing. Its fields: p, q."),
        (fields_line({"p": "a", "q": "b", "r": "c"}), "field 'r' is not in the template."),
        (
            fields_line({"p": "a", "q": "b", "answer": "c"}),
            "field 'answer' is what the model writes: leave it out.",
        ),
        (f"{said('p')}:tx61,{said('p')}:tx61,{said('q')}:tx61", "field 'p' is given twice."),
        (f"{said('p')}:txff,{said('q')}:tx61", "field 'p' is not UTF-8, expected text as UTF-8."),
        (
            f"{said('p')}:r{bits_of(float('inf'))},{said('q')}:tx61",
            "field 'p' is no finite number",
        ),
    ],
)
def test_wrong_fields_are_named(fields: str, words: str, ask: Ask) -> None:
    renderer = a_renderer("gpt-2", "{p} {q}: {answer}")

    _, found = ask("gpt-2", [task_line(renderer, 2000), f"prompt - {fields}"])

    assert message(found).startswith("error rendering task 'mood': ")
    assert words in message(found)


def test_a_prompt_that_is_too_long_is_refused_as_in_python(ask: Ask) -> None:
    fixed, cut = (a_renderer("gpt-2", "{p}: {answer}", truncate_field=name) for name in (None, "p"))
    fields = {"p": "the word the word"}

    lines = [line for each in (fixed, cut) for line in (task_line(each, 2000), "")]
    lines[1] = lines[3] = f"prompt 3 {fields_line(fields)}"
    found = ask("gpt-2", lines)

    for renderer, line in ((fixed, found[1]), (cut, found[3])):
        assert message(line) == expected_of(
            lambda r=renderer: rendered_line(r.prompt(fields, max_length=3))  # type: ignore[misc]
        )


def test_tokens_without_a_row_are_refused(ask: Ask) -> None:
    """Of the template when the task is read, of a field when it is given."""
    renderer = a_renderer("gpt-2", "the {p}: {answer}")
    word = tokenizer_of("gpt-2").encode("the", opens=True, markup=False)[0]
    letter = tokenizer_of("gpt-2").encode("z", opens=True, markup=False)[0]
    assert letter < word

    found = ask("gpt-2", [task_line(renderer, word)])
    assert message(found[0]).startswith(
        "error reading task 'mood': tokenising 'the': the token 'the'"
    )
    assert f"expected ids below {word}" in message(found[0])

    renderer = a_renderer("gpt-2", ":{p}: {answer}")
    found = ask("gpt-2", [task_line(renderer, word), f"prompt - {fields_line({'p': 'the'})}"])
    assert found[0] == "ok"
    assert "which the base has no row for" in message(found[1])


def test_choices_of_equal_tokens_are_refused(ask: Ask) -> None:
    renderer = a_renderer("qwen", "{p}:{answer}")
    line = task_line(renderer, 2000).split(" ")
    line[8] = ",".join(map(said, ("é", "e\u0301")))

    (found,) = ask("qwen", [" ".join(line)])

    assert "are the same tokens" in message(found)


@pytest.mark.parametrize(
    "parts",
    [
        ("xaa", "-", "-", "-"),
        ("x61", "-1,0", "-1,5", "2"),
        ("x61", "-1,0", "-1,5", "0"),
        ("x61", "-1,1", "-1,5", "1"),
        ("x61", "-1,0,0", "-1,5,5", "1"),
        ("x61", "-1,0,0", "-1,5,6", "1"),
        ("x61,x62", "-1,0", "-1,5", "1"),
        ("x61", "-1,0", "-1,-3", "1"),
        ("x61", "0,0", "-1,5", "1"),
        ("x61", "-1", "-1,5", "1"),
    ],
)
def test_what_is_no_tree_is_refused_as_in_python(parts: tuple[str, ...], ask: Ask) -> None:
    (found,) = ask("gpt-2", [f"parts {' '.join(parts)} 1"])

    labels, *others = ([] if part == "-" else part.split(",") for part in parts)
    parents, tokens, ends = (tuple(map(int, each)) for each in others)
    trie = LabelTrie(tuple(labels), parents, tokens, ends, fixed=True)
    with pytest.raises(ValueError, match="not a tree"):
        trie.check()
    assert message(found) == "error not a tree of labels"


def test_a_tree_of_a_file_is_read(ask: Ask) -> None:
    trie = LabelTrie.of(("ab", " abc ", "abd"), ([1, 2], [1, 2, 3], [1, 2, 4]), fixed=False)
    parts = (list(map(said, trie.labels)), trie.parents, trie.tokens, trie.ends)

    (found,) = ask("gpt-2", [f"parts {' '.join(map(listed, parts))} 0"])

    assert found == trie_line(trie)
    assert TrieWalk(trie).allowed() == [1]


def test_sanitizers_find_nothing_in_all_of_it(folder: Path) -> None:
    program = built(folder, "rendering_program.cc", *SANITIZED)
    for kind in ("trims, NFC", "llama 2, a front", "prepended NFC", "a blank in front"):
        lines, expected = prompt_cases(kind, 2)
        spans, walks = span_cases(kind, 3)

        found = answers([program, written(folder, kind)], [*lines, *spans])

        expect_equal(found, [*expected, *walks], [*lines, *spans])
