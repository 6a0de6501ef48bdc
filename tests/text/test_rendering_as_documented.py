"""A reader of `docs/artifact-format.md`, "Rendering a request", with nothing but `tokenizers`.

It is written after the page, line by line, and gives the ids that the renderer gives.
"""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import pytest
from tokenizers import AddedToken, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as HfTokenizer

from pl_compile.config.task import TaskConfig
from pl_compile.testing import byte_fallback_tokenizer
from pl_compile.text.render import Renderer, SequenceRules
from pl_compile.text.template import parse_template
from pl_compile.text.tokenizer import Tokenizer

_VOCAB = 100_000
_MARK = "\ue123"
_SPLIT = re.compile(r"<\|VIRTUAL_PROMPT_\d+\|>|\{\w+\}|(?:(?!<\|VIRTUAL_PROMPT_|\{).)+", re.S)


class Reader:
    """One task of a bundle."""

    def __init__(self, file: str, template: str, rows: int, bos_id: int | None, mode: str) -> None:
        spec = json.loads(file)
        self.segments = _SPLIT.findall(template)[:-1]  # the answer is the last
        self.rows, self.bos_id, self.mode = rows, bos_id, mode
        self.added = {token["id"]: token for token in spec["added_tokens"]}
        self.t, self.t_on = HfTokenizer.from_str(file), _made(_going_on, spec)
        self.d, self.d_on = _made(_for_data, spec), _made(lambda s: _going_on(_for_data(s)), spec)
        parts = [*_components(spec["normalizer"]), *_components(spec["pre_tokenizer"])]
        self.prepends = any(part["type"] == "Prepend" for part in parts)
        self.pre_tokenizer_opens = any(
            part.get("add_prefix_space") or part.get("prepend_scheme") == "always" for part in parts
        )
        self.t_marked = _made(_marked, spec) if self.prepends else None
        normalizer = self.t.normalizer
        whole = self.t.encode("a", add_special_tokens=True)
        self.front = whole.ids[: whole.sequence_ids.index(0)]
        self.has_blanks = normalizer is None or " " in normalizer.normalize_str("a a")

    def ids(self, fields: Mapping[str, str]) -> list[int]:
        """The prompt of a request."""
        ids = [] if self.bos_id is None else [self.bos_id]
        blanks, opens, empty, no_token, strips = "", True, True, self.bos_id is None, False
        for index, segment in enumerate(self.segments):
            if segment.startswith("<|VIRTUAL"):
                if blanks and self.mode != "nemo":
                    ids += _ids(self.d if opens else self.d_on, blanks)
                    no_token = False
                ids += range(_VOCAB, _VOCAB + self.rows)
                blanks, empty, strips = "", False, False
                continue
            is_field = segment.startswith("{")
            text = blanks + self._text(index, fields)
            text = text.lstrip(" ") if empty else text
            text = text.lstrip() if strips else text
            body = text.rstrip(" ")
            blanks = text[len(body) :]
            if not body:
                continue
            if is_field or self.mode != "transformers":
                kinds = (self.d, self.d_on) if is_field else (self.t, self.t_on)
                ids += _ids(kinds[not opens], body)
                opens = strips = False
            else:
                new = self._joined(body, opens, no_token)
                ids += new
                last = self.added.get(new[-1]) if new else None
                is_normalized = last is not None and last["normalized"]
                opens = (no_token and new == self.front) or (
                    last is not None
                    and (self.pre_tokenizer_opens or (self.prepends and not is_normalized))
                )
                strips = (
                    last is not None and last["rstrip"] and (self.has_blanks or not is_normalized)
                )
                blanks = "" if strips else blanks
            empty = no_token = False
        return ids

    def _text(self, index: int, fields: Mapping[str, str]) -> str:
        segment = self.segments[index]
        text = fields[segment[1:-1]] if segment.startswith("{") else segment
        if self.mode == "nemo":
            before, behind = self.segments[:index][-1:], self.segments[index + 1 :][:1]
            text = text.lstrip() if "".join(before).startswith("<|VIRTUAL") else text
            text = text.rstrip() if "".join(behind).startswith("<|VIRTUAL") else text
        if self.mode == "transformers" and segment.startswith("{"):
            moved = text[len(text.rstrip(" ")) :]
            if self._is_taken(index, moved, fields):
                text = text.rstrip() + moved
        return text

    def _is_taken(self, index: int, between: str, fields: Mapping[str, str]) -> bool:
        for segment in self.segments[index + 1 :]:
            if segment.startswith("<|VIRTUAL"):
                return False
            if segment.startswith("{"):
                between += fields[segment[1:-1]]
                if between.strip():
                    return False
            elif segment.strip(" "):
                ids = self._joined(between + segment, False, False)
                return bool(self.added.get(ids[0], {}).get("lstrip"))
            else:
                between += segment
        return False

    def _joined(self, text: str, opens: bool, no_token: bool) -> list[int]:
        ids = _ids(self.t, text)
        front = self.front
        if no_token and front and ids[: len(front)] == front:
            rest = text[self.t.encode(text, add_special_tokens=False).offsets[len(front) - 1][1] :]
            return front + (_ids(self.t, rest) if rest else [])
        if opens:
            return ids
        if self.t_marked is not None:
            return _ids(self.t_marked, _MARK + text)
        going_on = _ids(self.t_on, text)
        return going_on[: self._first_added(going_on)] + ids[self._first_added(ids) :]

    def _first_added(self, ids: list[int]) -> int:
        return next((place for place, key in enumerate(ids) if key in self.added), len(ids))


def _ids(tokenizer: HfTokenizer, text: str) -> list[int]:
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
    return ids


def _made(edit: Any, spec: dict[str, Any]) -> HfTokenizer:
    return HfTokenizer.from_str(json.dumps(edit(json.loads(json.dumps(spec)))))


def _components(part: dict[str, Any] | None) -> Iterator[dict[str, Any]]:
    if part is not None:
        inner = [*part.get("normalizers", ()), *part.get("pretokenizers", ())]
        yield part
        for each in inner:
            yield from _components(each)


def _for_data(spec: dict[str, Any]) -> dict[str, Any]:
    special = {token["content"] for token in spec["added_tokens"] if token["special"]}
    spec["added_tokens"] = []
    model = spec["model"]
    if model["type"] != "BPE":

        def name(piece: str) -> str:
            return f"{_MARK}{piece}" if piece in special else piece

        vocab = model["vocab"]
        if isinstance(vocab, dict):
            model["vocab"] = {name(piece): key for piece, key in vocab.items()}
            model["unk_token"] = name(model["unk_token"])
        else:
            model["vocab"] = [[name(piece), score] for piece, score in vocab]
    return spec


def _going_on(spec: dict[str, Any]) -> dict[str, Any]:
    for part in [*_components(spec["normalizer"]), *_components(spec["pre_tokenizer"])]:
        if part["type"] == "Prepend":
            part.clear()
            part.update(type="Sequence", normalizers=[])
        if "prepend_scheme" in part:
            part["prepend_scheme"] = "never"
        if "add_prefix_space" in part:
            part["add_prefix_space"] = False
    return spec


def _marked(spec: dict[str, Any]) -> dict[str, Any]:
    for part in _components(spec["normalizer"]):
        if part["type"] == "Prepend":
            pattern = {"Regex": rf"\A{part['prepend']}{_MARK}"}
            taken = {"type": "Replace", "pattern": pattern, "content": ""}
            prepend = dict(part)
            part.clear()
            part.update(type="Sequence", normalizers=[prepend, taken])
    return spec


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


_MARKER = "<|VIRTUAL_PROMPT_0|>"
_TEMPLATES = (
    "{q} and {b} so {a}",
    "<s>{q} Answer: {a}",
    "<s>[INST] {q} [/INST] {a}",
    "<s> <|user|> {b}{q}<|end|>\n{a}",
    "[TOOL]{q}<sep> {b} <sep>{q} <pad> {b}so {a}",
    " {q} \n<|end|> <sep> {q}{b} <|end|>[INST]{a}",
)
_VALUES = ("who was [TOOL] there", "x <s>[INST]\n", " a  ", "", " \n\t ", "é<sep>.", "so\n ")


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
                reader = Reader(file, template, 3, bos_id, mode)
                for one, other in zip(_VALUES, (*_VALUES[3:], *_VALUES[:3]), strict=True):
                    fields = {"q": one, "b": other}
                    fields = {key: fields[key] for key in renderer.template.input_fields}
                    rendered = renderer.prompt(fields).input_ids(_VOCAB).tolist()
                    assert reader.ids(fields) == rendered, (template, bos_id, fields)
                    compared += 1
    assert compared == len(_TEMPLATES) * 4 * len(_VALUES)
