"""`docs/artifact-format.md`, "Templates", "Rendering a request" and "Labels".

It is written after the page, line by line, with nothing but the library `tokenizers`.
"""

import itertools
import json
import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import ROUND_DOWN, ROUND_UP, Context, Decimal
from typing import Any

from tokenizers import Tokenizer as HfTokenizer

Spec = dict[str, Any]

_MARK = "\ue123"
WHITE = "".join(
    map(chr, [*range(9, 14), 0x20, 0x85, 0xA0, 0x1680, *range(0x2000, 0x200B)])
) + "".join(map(chr, [0x2028, 0x2029, 0x202F, 0x205F, 0x3000]))
WIDE = WHITE + "\x1c\x1d\x1e\x1f"


# Templates


@dataclass(frozen=True)
class Segment:
    """A part of a template: `kind` is "text", "field" or "virtual"."""

    kind: str
    text: str = ""
    rows: range = range(0)


def segments_of(task: Spec) -> list[Segment]:
    """The segments of a task's template."""
    scan = re.compile(
        r"<\|VIRTUAL_PROMPT_([0-9]+)\|>|(\{\{)|(\}\})|\{([^{}]+)\}|((?:(?!<\|VIRTUAL_PROMPT_)[^{}])+)|(.)",
        re.S,
    )
    total, splits = task["total_virtual_tokens"], task.get("virtual_token_splits")
    counts = splits or [total]
    found: list[Segment] = []
    for match in scan.finditer(task["prompt_template"]):
        marker, opening, closing, name, text, other = match.groups()
        if marker is not None:
            start = sum(counts[: int(marker)])
            found.append(Segment("virtual", rows=range(start, start + counts[int(marker)])))
        elif name is not None:
            found.append(Segment("field", name))
        else:
            assert other not in ("{", "}")
            piece = (opening and "{") or (closing and "}") or text or other
            before = found.pop().text if found and found[-1].kind == "text" else ""
            found.append(Segment("text", before + piece))
    ends_in_blanks = found[-1].kind == "text" and not found[-1].text.strip(" ")
    if task.get("answer_only_loss", True) and ends_in_blanks and found[-2].kind == "field":
        found.pop()
    return found


def answer_of(task: Spec, segments: Sequence[Segment]) -> str | None:
    """The field that the model writes."""
    last = segments[-1]
    named: str | None = task.get("answer_field")
    return named or (last.text if last.kind == "field" else None)


def text_of(value: str | int | float) -> str:
    """A value as text."""
    if isinstance(value, str):
        return value
    if isinstance(value, int):
        return str(value)
    sign, digits, exponent = _shortest(value)
    point = exponent + 1  # digits before the point
    if digits == "0":
        return f"{sign}0.0"
    if value and not 1e-4 <= abs(value) < 1e16:
        tail = f".{digits[1:]}" if digits[1:] else ""
        return f"{sign}{digits[0]}{tail}e{'-' if exponent < 0 else '+'}{abs(exponent):02}"
    if point <= 0:
        return f"{sign}0.{'0' * -point}{digits}"
    digits = digits.ljust(point, "0")
    return f"{sign}{digits[:point]}.{digits[point:] or '0'}"


def _shortest(value: float) -> tuple[str, str, int]:
    """Sign, digits and exponent of the fewest digits that are read back as the same number."""
    exact = Decimal(value)
    for count in range(1, 18):
        rounded = [
            Context(count, rounding).create_decimal(exact) for rounding in (ROUND_DOWN, ROUND_UP)
        ]
        found = [each for each in rounded if float(each) == value]
        if found:
            break
    nearest = min(found, key=lambda each: abs(each - exact))
    written = f"{nearest:.{count - 1}e}"
    mantissa, exponent = written.lstrip("-").split("e")
    digits = mantissa.replace(".", "").rstrip("0") or "0"
    return "-" if written.startswith("-") else "", digits, int(exponent)


# Tokenizers


class Tokenizers:
    """The five tokenizers of a `tokenizer.json`, and what it says of added tokens."""

    def __init__(self, file: str) -> None:
        spec = json.loads(file)
        self.added = {token["id"]: token for token in spec["added_tokens"]}
        self.t, self.t_on = _made(lambda s: s, spec), _made(_going_on, spec)
        self.d, self.d_on = _made(_for_data, spec), _made(lambda s: _going_on(_for_data(s)), spec)
        parts = [*_components(spec["normalizer"]), *_components(spec["pre_tokenizer"])]
        self.prepends = any(part["type"] == "Prepend" and part["prepend"] for part in parts)
        self.opens_sections = self.prepends or any(
            part.get("add_prefix_space") or part.get("prepend_scheme") == "always" for part in parts
        )
        normalized = any(token["normalized"] for token in self.added.values())
        self.t_marked = _made(_marked, spec) if self.prepends and normalized else None
        whole = self.t.encode("a", add_special_tokens=True)
        self.front = list(whole.ids[: whole.sequence_ids.index(0)])
        normalizer = self.t.normalizer
        self.has_blanks = normalizer is None or " " in normalizer.normalize_str("a a")

    def joined(self, text: str, opens: bool, first: bool) -> tuple[list[int], bool, bool]:
        """Tokens, `opens` and `strips` of a text of the template, with `transformers`."""
        e = ids_of(self.t if opens else self.t_on, text)
        front = self.front
        if first and front and e[: len(front)] == front:
            tokenizer = self.t if opens else self.t_on
            offsets = tokenizer.encode(text, add_special_tokens=False).offsets
            rest = text[offsets[len(front) - 1][1] :]
            if not rest:
                return front, True, self.added[front[-1]]["rstrip"]
            ids, opens, strips = self.joined(rest, True, False)
            return front + ids, opens, strips
        if not opens and self.t_marked is not None:
            e = ids_of(self.t_marked, _MARK + text)
        elif not opens and self.opens_sections:
            whole = ids_of(self.t, text)
            e = e[: self._first_added(e)] + whole[self._first_added(whole) :]
        last = self.added.get(e[-1]) if e else None
        if last is None:
            return e, False, False
        opens = self.opens_sections and not (self.prepends and last["normalized"])
        return e, opens, last["rstrip"] and (self.has_blanks or not last["normalized"])

    def _first_added(self, ids: list[int]) -> int:
        return next((place for place, key in enumerate(ids) if key in self.added), len(ids))


def ids_of(tokenizer: HfTokenizer, text: str) -> list[int]:
    """The tokens of a text."""
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
    return ids


def _made(edit: Callable[[Spec], Spec], spec: Spec) -> HfTokenizer:
    tokenizer = HfTokenizer.from_str(json.dumps(edit(json.loads(json.dumps(spec)))))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _components(part: Spec | None) -> Iterator[Spec]:
    if part is not None:
        inner = [*part.get("normalizers", ()), *part.get("pretokenizers", ())]
        yield part
        for each in inner:
            yield from _components(each)


def _for_data(spec: Spec) -> Spec:
    special = {token["content"] for token in spec["added_tokens"] if token["special"]}
    spec["added_tokens"] = []
    model = spec["model"]
    model["dropout"] = None
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


def _going_on(spec: Spec) -> Spec:
    for part in [*_components(spec["normalizer"]), *_components(spec["pre_tokenizer"])]:
        if part["type"] == "Prepend":
            part.clear()
            part.update(type="Sequence", normalizers=[])
        if "prepend_scheme" in part:
            part["prepend_scheme"] = "never"
        if "add_prefix_space" in part:
            part["add_prefix_space"] = False
    return spec


def _marked(spec: Spec) -> Spec:
    for part in list(_components(spec["normalizer"])):
        if part["type"] == "Prepend":
            pattern = {"Regex": rf"\A{part['prepend']}{_MARK}"}
            taken = {"type": "Replace", "pattern": pattern, "content": ""}
            prepend = dict(part)
            part.clear()
            part.update(type="Sequence", normalizers=[prepend, taken])
    return spec


_APART = [(0xE00, 0xEFF), (0x1000, 0x109F), (0x1780, 0x17FF), (0x3040, 0x30FF), (0x31F0, 0x31FF)]
_APART += [(0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xAC00, 0xD7AF), (0xF900, 0xFAFF)]
_APART += [(0x20000, 0x3FFFF)]


def words_of(text: str) -> list[tuple[int, int]]:
    """The words of a field's value: where each begins, and where it ends."""
    found: list[tuple[int, int, bool]] = []
    for place, character in enumerate(text):
        if character in WIDE:
            continue
        category = unicodedata.category(character)[0]
        mark = category == "M" or character in "\u200c\u200d"
        apart = any(first <= ord(character) <= last for first, last in _APART)
        letter = not mark and not apart and (category in "LN" or character == "_")
        begin, end, began_with_letter = found[-1] if found else (0, -1, False)
        if end == place and (mark or (letter and began_with_letter)):
            found[-1] = begin, place + 1, began_with_letter
        else:
            found.append((place, place + 1, letter))
    return [(begin, end) for begin, end, _ in found]


# Pieces


@dataclass
class State:
    """A sequence under construction."""

    first: bool
    ids: list[int] = field(default_factory=list)
    waiting: str = ""
    opens: bool = True
    empty: bool = True
    strips: bool = False

    @property
    def place(self) -> tuple[str, bool, bool, bool]:
        """What the tokens of an answer depend on."""
        return self.waiting, self.opens, self.empty, self.strips


@dataclass(frozen=True)
class Tree:
    """The choices of a task after one prompt, as `labels.json` has them."""

    parents: list[int]
    tokens: list[int]
    ends: list[int]
    longest: int

    def children(self, node: int) -> dict[int, int]:
        """The nodes that a token leads to."""
        places = enumerate(zip(self.parents, self.tokens, strict=True))
        return {token: each for each, (parent, token) in places if each and parent == node}

    def path(self, node: int) -> list[int]:
        """The tokens that lead to a node."""
        return [*self.path(self.parents[node]), self.tokens[node]] if node else []


class PageRenderer:
    """A task's prompts and choices.

    Args:
        record: the task's record, as a table or a bundle has it.
        file: the content of `tokenizer.json`.
        vocab: of the base.
    """

    def __init__(self, record: Spec, file: str, vocab: int) -> None:
        self.task, self.tokenizers, self.vocab = record["task"], Tokenizers(file), vocab
        self.bos_id, self.eos_id = record["bos_id"], record["eos_id"]
        self.mode = self.task.get("whitespace", "keep")
        self.segments = segments_of(self.task)
        self.answer = answer_of(self.task, self.segments)
        parts = [(each.kind, each.text) for each in self.segments]
        self.end = len(parts) if self.answer is None else parts.index(("field", self.answer))

    def prompt(self, fields: Mapping[str, str | int | float]) -> list[int]:
        """The ids of a request, virtual ones included."""
        return self._run({name: text_of(value) for name, value in fields.items()}).ids

    def opening(self) -> list[int]:
        """The ids that every prompt begins with."""
        state = self._opened()
        for index in range(self.end):
            if self.segments[index].kind == "field":
                break
            self._append(state, index, {})
        return state.ids

    def tree(self, fields: Mapping[str, str | int | float]) -> Tree:
        """The choices after a prompt."""
        state = self._run({name: text_of(value) for name, value in fields.items()})
        parents, tokens, longest = [-1], [-1], 0
        ends: list[int] = []
        for choice in self.task["choices"]:
            answer = State(False, [], *state.place)
            self._append_text(answer, self._laid_out(choice, self.end), is_text=False)
            path = answer.ids + ([] if self.eos_id is None else [self.eos_id])
            node = 0
            for token in path:
                tree = Tree(parents, tokens, ends, 0)
                if token not in tree.children(node):
                    parents.append(node)
                    tokens.append(token)
                node = tree.children(node)[token]
            ends.append(node)
            longest = max(longest, len(path))
        return Tree(parents, tokens, ends, longest)

    def spans(self, fields: Mapping[str, str | int | float]) -> dict[tuple[int, ...], str]:
        """The text of each span after a prompt, by its tokens."""
        values = {name: text_of(value) for name, value in fields.items()}
        state = self._run(values)
        text = values[self.task["answer"]["span"]]
        words = words_of(text)
        found: dict[tuple[int, ...], str] = {}
        for index, (begin, _) in enumerate(words):
            for _, end in words[index:]:
                answer = State(False, [], *state.place)
                self._append_text(answer, self._laid_out(text[begin:end], self.end), is_text=False)
                found.setdefault(tuple(answer.ids), text[begin:end])
        return found

    def is_fixed(self) -> bool:
        """Whether the tree is the same after every prompt."""
        slots = [i for i in range(self.end) if self.segments[i].kind == "field"]
        combinations = itertools.product(("", " ", "a", "a "), repeat=len(slots))
        return (
            len({self._place(dict(zip(slots, values, strict=True))) for values in combinations})
            == 1
        )

    def fitted(
        self, fields: Mapping[str, str | int | float], capacity: int, max_tokens: int, held: bool
    ) -> dict[str, str]:
        """The values, cut where they do not fit; `held` is whether the answer is a choice."""
        values = {name: text_of(value) for name, value in fields.items()}
        name = self.task.get("truncate_field")
        n = len(self.prompt(values))
        if held:
            limit = capacity
        elif n < capacity:
            return values
        else:
            limit = capacity - (1 if name is None else min(max_tokens, capacity // 4))

        def length() -> int:
            return len(self.prompt(values)) + (self.tree(values).longest if held else 0)

        while length() > limit:
            if name is None or not values[name]:
                raise ValueError("too long")
            encoding = self.tokenizers.d_on.encode(values[name], add_special_tokens=False)
            keep = max(0, len(encoding.ids) - (length() - limit + 1))
            if keep < len(encoding.ids):
                values[name] = values[name][: encoding.offsets[keep][0]]
        return values

    def _place(self, by_slot: Mapping[int, str]) -> tuple[str, bool, bool, bool]:
        state = self._opened()
        for index in range(self.end):
            segment = self.segments[index]
            values = {segment.text: by_slot[index]} if segment.kind == "field" else {}
            if segment.kind == "field":
                self._append_text(state, self._laid_out(values[segment.text], index), is_text=False)
            else:
                self._append(state, index, values)
        return state.place

    def _opened(self) -> State:
        return State(self.bos_id is None, [] if self.bos_id is None else [self.bos_id])

    def _run(self, values: Mapping[str, str]) -> State:
        state = self._opened()
        for index in range(self.end):
            self._append(state, index, values)
        return state

    def _append(self, state: State, index: int, values: Mapping[str, str]) -> None:
        segment, kinds = self.segments[index], self.tokenizers
        if segment.kind == "virtual":
            if state.waiting and self.mode != "nemo":
                state.ids += ids_of(kinds.d if state.opens else kinds.d_on, state.waiting)
                state.first = False
            state.ids += [self.vocab + row for row in segment.rows]
            state.waiting, state.empty, state.strips = "", False, False
            return
        is_text = segment.kind == "text"
        t = self._laid_out(segment.text if is_text else values[segment.text], index)
        if not is_text and self.mode == "transformers":
            blanks = t[len(t.rstrip(" ")) :]
            if self._is_taken(index, blanks, values):
                t = t.rstrip(" ").rstrip(WHITE) + blanks
        self._append_text(state, t, is_text=is_text)

    def _append_text(self, state: State, t: str, *, is_text: bool) -> None:
        kinds = self.tokenizers
        t = state.waiting + t
        t = t.lstrip(" ") if state.empty else t
        t = t.lstrip(WHITE) if state.strips else t
        body = t.rstrip(" ")
        state.waiting = t[len(body) :]
        if not body:
            return
        if is_text and self.mode == "transformers":
            ids, state.opens, state.strips = kinds.joined(body, state.opens, state.first)
            state.waiting = "" if state.strips else state.waiting
        else:
            pair = (kinds.t, kinds.t_on) if is_text else (kinds.d, kinds.d_on)
            ids = ids_of(pair[not state.opens], body)
            state.opens = state.strips = False
        state.ids += ids
        state.empty = state.first = False

    def _laid_out(self, t: str, index: int) -> str:
        if self.mode == "nemo":
            if index > 0 and self.segments[index - 1].kind == "virtual":
                t = t.lstrip(WIDE)
            if index + 1 < len(self.segments) and self.segments[index + 1].kind == "virtual":
                t = t.rstrip(WIDE)
        return t

    def _is_taken(self, index: int, between: str, values: Mapping[str, str]) -> bool:
        for segment in self.segments[index + 1 : self.end]:
            if segment.kind == "virtual":
                return False
            if segment.kind == "text" and segment.text.strip(" "):
                ids, _, _ = self.tokenizers.joined(between + segment.text, False, False)
                return bool(ids) and bool(self.tokenizers.added.get(ids[0], {}).get("lstrip"))
            text = segment.text if segment.kind == "text" else values[segment.text]
            if text.strip(WHITE):
                return False
            between += text
        return False
