"""Reads and changes the content of a `tokenizer.json` where the library has no switch for it.

Each function takes and gives the file's text, or a part of it. `tokenizer.py` loads the result.
"""

import json
import re
from collections.abc import Collection, Iterator
from typing import Any
from uuid import uuid4


def with_all_special(text: str) -> tuple[str, Collection[str]]:
    """The same tokenizer with all its added tokens special, and the texts of those that were.

    Only the list of added tokens is parsed: to parse megabytes takes longer than a step.
    """
    lists = list(re.finditer(r'"added_tokens"\s*:\s*(?=\[)', text))
    if len(lists) > 1:
        raise ValueError("two lists of added tokens")
    if not lists:
        return text, ()
    start = lists[0].end()
    tokens, end = json.JSONDecoder().raw_decode(text, start)
    if not all(
        isinstance(token, dict) and {"content", "special"} <= set(token) for token in tokens
    ):
        return text, ()  # the library says what is wrong
    edited = json.dumps([{**token, "special": True} for token in tokens])
    special = {token["content"] for token in tokens if token["special"]}
    return text[:start] + edited + text[end:], special


def prefix_of(part: dict[str, Any]) -> str:
    """Where a part of a tokenizer puts a blank: before each "section", the "text", or "" (none)."""
    if part.get("type") == "Prepend":
        return "section" if part.get("prepend") else ""
    if part.get("add_prefix_space"):
        return "section"
    return {"always": "section", "first": "text"}.get(part.get("prepend_scheme", ""), "")


def without_prefix(text: str) -> str:
    """The same tokenizer, but without the blank before the text."""
    spec = json.loads(text)
    for key in ("normalizer", "pre_tokenizer"):
        for part in parts_of(spec.get(key) or {}):
            kind = part.get("type")
            if kind == "Prepend":
                # The library aborts after a `Prepend` of nothing.
                part.clear()
                part |= {"type": "Sequence", "normalizers": []}
            if kind == "Metaspace":
                part["prepend_scheme"] = "never"
            if "add_prefix_space" in part:
                part["add_prefix_space"] = False
    return json.dumps(spec)


def without_prefix_where_marked(text: str, mark: str) -> str:
    """The same tokenizer, but its normalizer puts no blank before a text that begins with a mark.

    The mark is removed. Added tokens that are looked for in normalised text keep the form that has
    such a blank.
    """
    spec = json.loads(text)
    for part in list(parts_of(spec.get("normalizer") or {})):
        if part.get("type") == "Prepend":
            pattern = {"Regex": rf"\A{re.escape(part['prepend'])}{mark}"}
            taken = {"type": "Replace", "pattern": pattern, "content": ""}
            prepend = dict(part)
            part.clear()
            part |= {"type": "Sequence", "normalizers": [prepend, taken]}
    return json.dumps(spec)


def without_special(text: str, special: Collection[str]) -> str:
    """The same tokenizer without added tokens; special ones are renamed in its vocabulary."""
    spec = json.loads(text)
    spec["added_tokens"] = []
    model = spec["model"]
    unwritable = uuid4().hex  # what no text holds

    def renamed(piece: str) -> str:
        return unwritable + piece if piece in special else piece

    if isinstance(model["vocab"], list):
        model["vocab"] = [[renamed(piece), score] for piece, score in model["vocab"]]
    else:
        model["vocab"] = {renamed(piece): key for piece, key in model["vocab"].items()}
        model["unk_token"] = renamed(model["unk_token"])
    return json.dumps(spec)


def parts_of(component: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """A normalizer or a pre-tokenizer and all its parts."""
    yield component
    for key in ("normalizers", "pretokenizers"):
        for part in component.get(key, ()):
            yield from parts_of(part)
