"""What the Python runtime answers to the cases of the conformance vectors.

A case has a `kind`, which names a function here, and what is `given`. The answer is plain data. A
case that is refused answers `{"refused": true}`: the words of messages are each runtime's own.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from pl_compile.artifact.prompt_table import BaseIdentity, entry_from_record
from pl_compile.config.sampling import Sampling
from pl_compile.errors import PlcError
from pl_compile.runtime.answer_text import AnswerText
from pl_compile.runtime.sampling import next_token
from pl_compile.text.label_trie import LabelTrie
from pl_compile.text.render import Rendered, Renderer
from pl_compile.text.spans import SpanWalk
from pl_compile.text.template import parse_template
from pl_compile.text.tokenizer import Tokenizer

VECTORS = Path(__file__).parent / "vectors"
REFUSED = {"refused": True}

Given = Mapping[str, Any]


@cache
def tokenizer_of(name: str, vocab: int | None = None) -> Tokenizer:
    return Tokenizer(_tokenizer_text(name), vocab=vocab)


def _tokenizer_text(name: str) -> str:
    return (VECTORS / f"tokenizer_{name}.json").read_text(encoding="utf-8")


@cache
def vocab_of(name: str) -> int:
    spec = json.loads(_tokenizer_text(name))
    ids = [*spec["model"]["vocab"].values(), *(token["id"] for token in spec["added_tokens"])]
    return int(max(ids)) + 1


@cache
def _renderer(tokenizer: str, record: str) -> Renderer:
    plain = json.loads(record)
    rows = np.zeros((plain["task"]["total_virtual_tokens"], 4), np.float32)
    base = BaseIdentity("conformance", "0" * 64, 4, vocab_of(tokenizer))
    name = plain["task"]["taskname"]
    entry = entry_from_record(plain, rows, name, base=base, doing="reading a vector")
    return Renderer(
        parse_template(entry.task), tokenizer_of(tokenizer, vocab_of(tokenizer)), entry.rules
    )


def renderer_of(given: Given) -> Renderer:
    return _renderer(given["tokenizer"], json.dumps(given["record"]))


def _tokens_of(made: Rendered) -> dict[str, Any]:
    return {"token_ids": made.token_ids.tolist(), "virtual_rows": made.virtual_rows.tolist()}


def tokens(given: Given) -> dict[str, Any]:
    """The ids of a text."""
    tokenizer = tokenizer_of(given["tokenizer"])
    return {"ids": tokenizer.encode(given["text"], opens=given["opens"], markup=given["markup"])}


def answer(given: Given) -> dict[str, Any]:
    """The pieces of an answer's text, token by token, and the last one at its end."""
    tokenizer = tokenizer_of(given["tokenizer"])
    text = AnswerText(tokenizer, given["stops"])
    pieces = []
    for token_id in given["ids"]:
        pieces.append(text.push(token_id))
        if text.stopped:
            break
    pieces.append(text.finish())
    return {
        "pieces": pieces,
        "stopped": text.stopped,
        "whole": tokenizer.decode(list(given["ids"])),
    }


def opening(given: Given) -> dict[str, Any]:
    """What every prompt of a task begins with."""
    return _tokens_of(renderer_of(given).opening())


def prompt(given: Given) -> dict[str, Any]:
    """A prompt, at most `most` tokens long."""
    return _tokens_of(renderer_of(given).prompt(given["fields"], max_length=given["most"]))


def choices(given: Given) -> dict[str, Any]:
    """A prompt with room for each choice, and the tree of the choices after it."""
    made, trie = renderer_of(given).prompt_and_choices(given["fields"], max_length=given["most"])
    return {**_tokens_of(made), **_tree_of(trie)}


def _tree_of(trie: LabelTrie) -> dict[str, Any]:
    nodes = range(len(trie.parents))
    return {
        "parents": list(trie.parents),
        "tokens": list(trie.tokens),
        "ends": list(trie.ends),
        "fixed": trie.fixed,
        "texts": list(trie.texts),
        "allowed": [sorted(trie.tokens[n] for n in nodes if trie.parents[n] == m) for m in nodes],
    }


def spans(given: Given) -> dict[str, Any]:
    """A prompt; then an answer that is copied, by the tokens of `walk`."""
    made, walk = renderer_of(given).prompt_and_spans(given["fields"], max_length=given["most"])
    return {**_tokens_of(made), **walked(walk, given["walk"])}


def walked(walk: SpanWalk, chosen: Sequence[int]) -> dict[str, Any]:
    """What may come before each token and after the last, and the text that each makes certain."""
    steps, texts = [], []
    for token_id in chosen:
        steps.append({"allowed": list(walk.allowed()), "is_span": bool(walk.is_span)})
        texts.append(walk.push(token_id))
    steps.append({"allowed": list(walk.allowed()), "is_span": bool(walk.is_span)})
    texts.append(walk.finish())
    return {"steps": steps, "texts": texts}


def draws(given: Given) -> dict[str, Any]:
    """So many tokens, from the same logits and one source of noise; null where none may come."""
    sampling = Sampling(**given["sampling"])
    logits = np.asarray(given["logits"], np.float32)
    generator = np.random.default_rng(sampling.seed)
    found = [
        next_token(
            logits,
            sampling,
            generator,
            bias=dict(given["bias"]),
            seen=given["seen"],
            blocked=given["blocked"],
            allowed=given["allowed"],
        )
        for _ in range(given["count"])
    ]
    return {"tokens": found}


KINDS: Mapping[str, Callable[[Given], dict[str, Any]]] = {
    function.__name__: function
    for function in (tokens, answer, opening, prompt, choices, spans, draws)
}


def answer_to(kind: str, given: Given) -> dict[str, Any]:
    """The answer of a case."""
    try:
        return KINDS[kind](given)
    except PlcError:
        return REFUSED
