"""Writes the conformance vectors: what the Python runtime answers to cases of all kinds.

    PYTHONPATH=tests/native:tests/conformance python tests/conformance/write_vectors.py

Everything comes from fixed seeds, so a second run changes nothing. Run it when the format changes,
and read what changed: other runtimes are held to these files.
"""

import json
import random
from collections.abc import Iterator
from typing import Any

from python_answers import (
    REFUSED,
    VECTORS,
    answer_to,
    renderer_of,
    tokenizer_of,
    vocab_of,
)
from tokenizer_cases import texts, tokenizer_json

from pl_compile.errors import PlcError

FORMAT, VERSION = "plc-conformance", 1
TOKENIZERS = {"gpt_2": "gpt-2", "qwen": "qwen", "llama_2": "llama 2", "gemma": "gemma"}

_WORDS = "These cases are of tokenizer_NAME.json beside this file, where NAME is `tokenizer`. "
HOLDS = {
    "tokens": _WORDS
    + "The ids of `text`. `markup`: whether added tokens in it count as tokens, as in a "
    "template; in data they are characters. `opens`: whether it is the first text of a "
    "sequence.",
    "answers": _WORDS
    + "`ids` arrive one by one, until a text of `stops` has come. `pieces` is the text that"
    " each makes certain, and last what follows when no more come; `stopped`, whether a "
    "stop text came. `whole` is the text of all ids at once, with what stands at or "
    "behind a stop text.",
    "prompts": _WORDS
    + "`record` is a task.json. `opening`: what each prompt begins with. `prompt`: that of "
    "`fields`, at most `most` tokens long (null: any). `token_ids` has 0 where a token is"
    " virtual, and `virtual_rows` the row, else -1.",
    "choices": _WORDS
    + "Prompts that leave room for each choice within `most` tokens, and the tree of the "
    "choices after them as labels.json has it. For each node `texts` is the text that is "
    "certain there, and `allowed` are the tokens that may come.",
    "spans": _WORDS
    + "Prompts of tasks whose answers are copied from a field. `walk` are the tokens of an "
    "answer. `steps` says before each of them and at the end which may come and whether "
    "the answer may end there; `texts` is the text that each makes certain, and last the "
    "rest.",
    "draws": "`count` tokens in turn from the same `logits` (float32) and one source of noise, "
    "which begins with sampling.seed. `bias` are pairs of a token and what is added to "
    "its logit, `seen` the tokens so far, `blocked` those that may not come, `allowed` "
    "the only ones that may (null: all). A token is null where none may come.",
}
_REFUSED = ' A case that is to be refused has the answer {"refused": true}.'

_TEMPLATES = (
    "<|VIRTUAL_PROMPT_0|>Context: {p}\nQuestion: {q}\nAnswer:{answer}",
    "<|VIRTUAL_PROMPT_0|> {p} <|VIRTUAL_PROMPT_1|>{q} -> {answer}",
    "<s>{p}<|VIRTUAL_PROMPT_0|><|im_end|> {{x}} {answer}",
    "{p}\t<|VIRTUAL_PROMPT_0|>{answer}",
)
_CHOICES = (
    ("there", " was", "who"),
    ("a", "ab", "abc", "b"),
    ("positive", "neutral", "negative", "positively"),
    ("中文", "中", "日本"),
)
_VALUES = (
    *("", " ", "   ", "who", "who  ", "\n", "<think>", "<s>", "é", "→ <|im_end|>", "\u3000x\u2028"),
    *("😀👍🏽", "{answer}", "e\u0301", "<|VIRTUAL_PROMPT_0|>", "1e2", "don't", " \u0301a"),
    *("the word the word.", "Ne\u0301e café, Việt Nam", 0, -7, 1.5, -0.0, 1e16, 1e-05, 0.1),
)
_SENTENCES = (
    "The year 1987 was cold, and J.D. Smith (a lawyer) didn't mind: it's 40.5 km to Rome.",
    "中文字符有很多。日本語テキスト, and ไทย ก็ดี.",
    "Ne\u0301e café, e\u0323\u0301 नमस्ते ok 🦊\ufe0f!",
    "the word the word the words, the Word; THE word.",
)


def _case(kind: str, **given: Any) -> dict[str, Any]:
    return {"kind": kind, "given": given, "expected": answer_to(kind, given)}


def token_cases() -> Iterator[dict[str, Any]]:
    for name in TOKENIZERS:
        for place, text in enumerate(texts(7, 60)):
            if len(text) <= 80:
                opens, markup = place % 3 != 1, place % 2 == 0
                yield _case("tokens", tokenizer=name, text=text, opens=opens, markup=markup)


def answer_cases() -> Iterator[dict[str, Any]]:
    for name in TOKENIZERS:
        source = random.Random(f"answers of {name}")
        tokenizer = tokenizer_of(name)
        for place, text in enumerate(texts(8, 40)):
            ids = tokenizer.encode(text[:24], opens=False, markup=True)
            if place % 4 == 0:
                ids = [source.randrange(vocab_of(name)) for _ in range(12)]
            whole = tokenizer.decode(ids)
            stops = []
            for _ in range(source.randrange(3)):
                begin = source.randrange(len(whole) + 1)
                stops += [whole[begin : begin + source.randrange(1, 4)] or "nowhere"]
            yield _case("answer", tokenizer=name, ids=ids, stops=stops)


def _record(source: random.Random, name: str, **more: Any) -> dict[str, Any]:
    template = source.choice(_TEMPLATES)
    splits = [3, 2][: template.count("<|VIRTUAL")]
    tokenizer = tokenizer_of(name)
    eos_ids: list[int | None] = [None, 2]
    record: dict[str, Any] = {
        "task": {
            "taskname": "mood",
            "prompt_template": template,
            "total_virtual_tokens": sum(splits),
            "virtual_token_splits": splits,
            "truncate_field": source.choice([None, "p"]),
            "answer_field": "answer",
            "answer_only_loss": True,
            "choices": [],
            "whitespace": source.choice(["keep", "nemo", "transformers"]),
            **more,
        },
        "bos_id": source.choice([None, tokenizer.token_id("<s>")]),
        "eos_id": source.choice(eos_ids),
        "method": "prompt_tuning",
    }
    if tokenizer.rendering != 1:
        record["rendering"] = tokenizer.rendering
    return record


def _fields(source: random.Random, record: dict[str, Any]) -> dict[str, Any]:
    names = [name for name in "pq" if f"{{{name}}}" in record["task"]["prompt_template"]]
    values = (*_VALUES, *_SENTENCES)
    return {name: source.choice(values) for name in names if source.random() < 0.97}


def prompt_cases() -> Iterator[dict[str, Any]]:
    for name in TOKENIZERS:
        source = random.Random(f"prompts of {name}")
        for _ in range(8):
            record = _record(source, name)
            yield _case("opening", tokenizer=name, record=record)
            for _ in range(3):
                most = source.choice([None, source.randrange(6, 40)])
                given = {"record": record, "fields": _fields(source, record), "most": most}
                yield _case("prompt", tokenizer=name, **given)


def choice_cases() -> Iterator[dict[str, Any]]:
    for name in TOKENIZERS:
        source = random.Random(f"choices of {name}")
        for choices in _CHOICES * 2:
            record = _record(source, name, choices=list(choices))
            fields, most = _fields(source, record), source.choice([16, 30, 200])
            yield _case("choices", tokenizer=name, record=record, fields=fields, most=most)


def span_cases() -> Iterator[dict[str, Any]]:
    for name in TOKENIZERS:
        source = random.Random(f"spans of {name}")
        for _ in range(6):
            record = _record(source, name, answer={"span": "p"}, truncate_field="p")
            fields = {**_fields(source, record), "p": source.choice(_SENTENCES)}
            given: dict[str, Any] = {"tokenizer": name, "record": record, "fields": fields}
            given["most"] = source.choice([None, source.randrange(20, 40)])
            given["walk"] = _some_walk(source, given)
            yield _case("spans", **given)


def _some_walk(source: random.Random, given: dict[str, Any]) -> list[int]:
    try:
        renderer = renderer_of(given)
        _, walk = renderer.prompt_and_spans(given["fields"], max_length=given["most"])
    except PlcError:
        return []
    chosen: list[int] = []
    while (allowed := walk.allowed()) and len(chosen) < 9:
        if walk.is_span and source.random() < 0.15:
            break
        chosen.append(int(source.choice(list(allowed))))
        walk.push(chosen[-1])
    return chosen


def draw_cases() -> Iterator[dict[str, Any]]:
    source = random.Random("draws")
    vocab = 24
    for place in range(90):
        given: dict[str, Any] = {
            # Multiples of 1/16: exact in float32, and equal ones.
            "logits": [source.randrange(-96, 96) / 16 for _ in range(vocab)],
            "sampling": {
                "seed": source.choice([0, 1, place, 2**32, 2**63 - 1]),
                "temperature": source.choice([0, 0.3, 1.0, 2.5]),
                "top_k": source.choice([0, 0, 1, 5, 100]),
                "top_p": source.choice([1.0, 0.9, 0.5, 0.01]),
                "min_p": source.choice([0.0, 0.0, 0.2, 1.0]),
                "repetition_penalty": source.choice([1.0, 1.3, 0.5]),
            },
            "count": 12,
            "bias": [
                [k, source.choice([-2.5, 1.0])] for k in source.sample(range(vocab), place % 3)
            ],
            "seen": source.sample(range(vocab), place % 5),
            "blocked": source.sample(range(vocab), source.choice([0, 0, 3, 23])),
            "allowed": None if place % 6 else source.sample(range(vocab), 1 + place % 4),
        }
        yield _case("draws", **given)
    wrong = [{"temperature": -0.5}, {"top_p": 0}, {"top_p": 1.5}, {"min_p": -1}, {"top_k": -1}]
    wrong += [{"repetition_penalty": 0}, {"repetition_penalty": 1001}, {"min_p": 2}]
    for sampling in wrong:
        given = {"logits": [0.5, 1.5], "sampling": sampling, "count": 1, "bias": []}
        yield _case("draws", **given, seen=[], blocked=[], allowed=None)


FILES = {
    "tokens": token_cases,
    "answers": answer_cases,
    "prompts": prompt_cases,
    "choices": choice_cases,
    "spans": span_cases,
    "draws": draw_cases,
}


def text_of(name: str) -> str:
    """The content of a file: one case a line."""
    cases = list(FILES[name]())
    refused = sum(case["expected"] == REFUSED for case in cases)
    assert refused <= len(cases) // 3, f"{name}: {refused} of {len(cases)} are refused"
    head = json.dumps({"format": FORMAT, "version": VERSION, "holds": HOLDS[name] + _REFUSED})
    lines = [json.dumps(case, ensure_ascii=True, separators=(",", ":")) for case in cases]
    return head[:-1] + ', "cases": [\n' + ",\n".join(lines) + "\n]}\n"


def main() -> None:
    """Writes all files."""
    VECTORS.mkdir(exist_ok=True)
    for name, kind in TOKENIZERS.items():
        path = VECTORS / f"tokenizer_{name}.json"
        path.write_text(tokenizer_json(kind) + "\n", encoding="utf-8")
    for name in FILES:
        (VECTORS / f"{name}.json").write_text(text_of(name), encoding="utf-8")


if __name__ == "__main__":
    main()
