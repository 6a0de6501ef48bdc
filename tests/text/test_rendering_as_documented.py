"""A reader that was written from `docs/artifact-format.md` renders as the runtime does.

The reader, `tests/reader_by_the_page/`, uses nothing of this project.
"""

import json
import re
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rendering_by_the_page import PageRenderer, Tokenizers, ids_of, segments_of, text_of
from tokenizers import AddedToken, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as HfTokenizer

from pl_compile.config.read import plain_from_config
from pl_compile.config.task import TaskConfig
from pl_compile.errors import DataError
from pl_compile.testing import byte_fallback_tokenizer
from pl_compile.text.render import Renderer, SequenceRules
from pl_compile.text.template import Field, Text, parse_template
from pl_compile.text.tokenizer import Tokenizer

PAGE = Path(__file__).parents[2] / "docs/artifact-format.md"
_VOCAB = 100_000

_ADDED: list[dict[str, Any]] = [
    {"content": "[INST]", "special": True},
    {"content": "[TOOL]"},
    {"content": "<|user|>", "special": True, "rstrip": True},
    {"content": "<|end|>", "lstrip": True},
    {"content": "<sep>", "normalized": True},
    {"content": "<pad>", "normalized": True, "rstrip": True},
]


def _tokenizer(kind: str, tiny_base: Path) -> str:
    if kind in ("prepend", "first", "always"):
        return byte_fallback_tokenizer(cast(Any, kind), _ADDED)
    if kind == "unigram":
        pieces = ("<unk>", "<s>", "[INST]", "▁", *"abcdefghinopqrstuw<>/[]ITNSOL|:.,é")
        unigram = models.Unigram([(piece, -float(n)) for n, piece in enumerate(pieces)], 0)
        file = HfTokenizer(unigram)
        file.pre_tokenizer = pre_tokenizers.Metaspace()
        file.normalizer = normalizers.Lowercase()
        file.add_special_tokens(["<unk>", "<s>"])
    else:
        file = HfTokenizer.from_file(str(tiny_base / "tokenizer.json"))
        file.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space="prefix" in kind)
        file.add_special_tokens([AddedToken("<s>", special=True)])
    file.add_tokens([AddedToken(**token) for token in _ADDED])
    text: str = file.to_str()
    return text


def _reader(
    task: TaskConfig, file: str, bos_id: int | None, eos_id: int | None = 2
) -> PageRenderer:
    record = {"task": plain_from_config(task), "bos_id": bos_id, "eos_id": eos_id}
    return PageRenderer(record, file, _VOCAB)


_MARKER = "<|VIRTUAL_PROMPT_0|>"
_TEMPLATES = (
    "{q} and {b} so {a}",
    "<s>{q} Answer: {a}",
    "<s>[INST] {q} [/INST] {a}",
    "<s> <|user|> {b}{q}<|end|>\n{a}",
    "[TOOL]{q}<sep> {b} <sep>{q} <pad> {b}so {a}",
    " {q} \n<|end|> <sep> {q}{b} <|end|>[INST]{a}",
)
_VALUES = (
    "who was [TOOL] there",
    "x <s>[INST]\n",
    " a  ",
    "",
    " \n\t ",
    "é<sep>.",
    "so\n ",
    "\x1cso\x1f",
)


@pytest.mark.parametrize("mode", ["keep", "nemo", "transformers"])
@pytest.mark.parametrize(
    "kind", ["prepend", "first", "always", "byte level", "byte level, prefix", "unigram"]
)
def test_a_reader_that_follows_the_page_has_the_ids_of_the_renderer(
    tiny_bases: dict[str, Path], kind: str, mode: str
) -> None:
    file = _tokenizer(kind, tiny_bases["llama"])
    tokenizer = Tokenizer(file)
    compared = 0
    for text in _TEMPLATES:
        for template in (_MARKER + text, text.replace("{q}", "{q} " + _MARKER + " ", 1)):
            for bos_id in (None, 1):
                task = TaskConfig("t", template, 3, whitespace=cast(Any, mode))
                renderer = Renderer(parse_template(task), tokenizer, SequenceRules(bos_id))
                reader = _reader(task, file, bos_id)
                for one, other in zip(_VALUES, (*_VALUES[3:], *_VALUES[:3]), strict=True):
                    fields = {"q": one, "b": other}
                    fields = {key: fields[key] for key in renderer.template.input_fields}
                    rendered = renderer.prompt(fields).input_ids(_VOCAB).tolist()
                    assert reader.prompt(fields) == rendered, (template, bos_id, fields)
                    compared += 1
    assert compared == len(_TEMPLATES) * 4 * len(_VALUES)


# Templates and values


@pytest.mark.parametrize(
    "text",
    [
        "<|VIRTUAL_PROMPT_0|>{q} {a}",
        "{{<|VIRTUAL_PROMPT_0|> {{{q}}} }}{b}{{ {a}   ",
        "<|VIRTUAL_PROMPT_x|> {{q}} {q}<|VIRTUAL_PROMPT_0|>\n{a}",
        "<|VIRTUAL_PROMPT_0|>{a b}|{ü}<|VIRTUAL_{a}",
    ],
)
def test_a_template_has_the_segments_of_the_page(text: str) -> None:
    task = TaskConfig("t", text, 3)
    segments = parse_template(task).segments

    ours = [(each.kind, each.text, each.rows) for each in segments_of(plain_from_config(task))]
    assert ours == [
        ("text", each.text, range(0))
        if isinstance(each, Text)
        else ("field", each.name, range(0))
        if isinstance(each, Field)
        else ("virtual", "", range(each.start, each.start + each.count))
        for each in segments
    ]


def test_each_marker_has_the_rows_of_the_page() -> None:
    text = "<|VIRTUAL_PROMPT_0|>{q}<|VIRTUAL_PROMPT_1|> {a}"
    task = TaskConfig("t", text, 5, virtual_token_splits=(3, 2))

    rows = [each.rows for each in segments_of(plain_from_config(task)) if each.kind == "virtual"]
    assert rows == [range(3), range(3, 5)]


@given(st.one_of(st.floats(allow_nan=False, allow_infinity=False), st.integers(-(2**70), 2**70)))
def test_a_number_becomes_the_text_of_the_page(number: float) -> None:
    assert text_of(number) == str(number)


# Choices


_CHOICES = ("yes so", " no", "[TOOL]é", "who ")
_ANSWERED = (
    *_TEMPLATES,
    "{q}{a}",
    "{q} {b}{a}",
    "{q} so: <|user|>{a}",
    "<s> {a}",
)


@pytest.mark.parametrize("mode", ["keep", "nemo", "transformers"])
@pytest.mark.parametrize("kind", ["prepend", "always", "byte level", "unigram"])
def test_a_reader_that_follows_the_page_has_the_trees_of_the_renderer(
    tiny_bases: dict[str, Path], kind: str, mode: str
) -> None:
    file = _tokenizer(kind, tiny_bases["llama"])
    tokenizer = Tokenizer(file)
    kinds_of_tree = set()
    for text in _ANSWERED:
        for template in (_MARKER + text, text.replace("{a}", f" {_MARKER}{{a}}")):
            task = TaskConfig("t", template, 3, whitespace=cast(Any, mode), choices=_CHOICES)
            for bos_id, eos_id in ((None, 2), (1, None)):
                rules = SequenceRules(bos_id, eos_id)
                renderer = Renderer(parse_template(task), tokenizer, rules)
                reader = _reader(task, file, bos_id, eos_id)
                for one in (*_VALUES, "so", "so  "):
                    fields = dict.fromkeys(renderer.template.input_fields, one)
                    theirs, ours = renderer.label_trie(fields), reader.tree(fields)
                    assert ours.parents == list(theirs.parents), (template, fields)
                    assert ours.tokens == list(theirs.tokens)
                    assert ours.ends == list(theirs.ends)
                    assert ours.longest == theirs.longest
                    assert reader.is_fixed() == theirs.fixed
                    kinds_of_tree.add(theirs.fixed)
    assert kinds_of_tree == {True, False}


# Length


@pytest.mark.parametrize("held", [False, True])
@pytest.mark.parametrize("kind", ["prepend", "byte level, prefix"])
def test_a_reader_that_follows_the_page_cuts_where_the_renderer_cuts(
    tiny_bases: dict[str, Path], kind: str, held: bool
) -> None:
    file = _tokenizer(kind, tiny_bases["llama"])
    text = "<s>{b}: {q} <|VIRTUAL_PROMPT_0|>so {a}"
    task = TaskConfig("t", text, 3, truncate_field="q", choices=_CHOICES)
    renderer = Renderer(parse_template(task), Tokenizer(file), SequenceRules(None, 2))
    reader = _reader(task, file, None)
    fields: dict[str, str | int | float] = {"b": "who é", "q": "one é two <s>[INST] so  three é "}
    cut = set()
    for capacity in range(6, 80):
        whole = len(renderer.prompt(fields))
        room = min(5, capacity // 4)
        try:
            if held:
                theirs = renderer.prompt_and_choices(fields, max_length=capacity)[0]
            else:
                limit = None if whole < capacity else capacity - room
                theirs = renderer.prompt(fields, max_length=limit)
        except DataError:
            with pytest.raises(ValueError, match="too long"):
                reader.fitted(fields, capacity, 5, held)
            continue
        values = reader.fitted(fields, capacity, 5, held)
        assert reader.prompt(values) == theirs.input_ids(_VOCAB).tolist()
        cut.add(values["q"])
    assert len(cut) > 5


# The examples on the page


def _plain(shown: str) -> str:
    """A text as the page shows it."""
    return shown.replace("\\|", "|").replace("·", " ").replace("⏎", "\n")


def _fields_of(cell: str) -> dict[str, str | float]:
    found: dict[str, str | float] = dict.fromkeys(re.findall(r"(\w) empty", cell), "")
    for name, text, is_number in re.findall(r"(\w) = `(.*?)`( as a number)?", cell):
        found[name] = json.loads(text) if is_number else _plain(text)
    return found


def _ids_of(cell: str, kinds: Tokenizers) -> list[int]:
    """The ids of pieces such as `V0` and ``D2(`who`)``."""
    by_name = {"T": kinds.t, "T2": kinds.t_on, "D": kinds.d, "D2": kinds.d_on}
    ids = []
    for row, name, text in re.findall(r"V(\d)|([TD]2?)\(`(.*?)`\)", cell):
        ids += [_VOCAB + int(row)] if row else ids_of(by_name[name], _plain(text))
    return [1, *ids] if cell.startswith("BOS") else ids


def test_the_examples_of_the_page_are_what_the_renderer_makes(
    tiny_bases: dict[str, Path],
) -> None:
    section = PAGE.read_text(encoding="utf-8").split("### Examples")[1].split("###")[0]
    rows = re.findall(r"^\| `(.*?)` \| `(\w+)`, (\w+) \| (.*?) \| (.*?) \|$", section, re.M)

    assert len(rows) == 8
    for place, (template, mode, bos, fields, pieces) in enumerate(rows):
        file = _tokenizer("prepend" if place >= 6 else "byte level", tiny_bases["llama"])
        task = TaskConfig("t", _plain(template), 2, whitespace=cast(Any, mode))
        rules = SequenceRules(1 if bos == "BOS" else None)
        prompt = Renderer(parse_template(task), Tokenizer(file), rules).prompt(_fields_of(fields))
        assert prompt.input_ids(_VOCAB).tolist() == _ids_of(pieces, Tokenizers(file)), template
