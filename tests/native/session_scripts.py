"""Random requests as lines for `session_program.cc`, and what Python's session answers to them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

from pl_compile.errors import PlcError
from pl_compile.runtime import Request, Sampling, Session
from pl_compile.runtime.label_rows import BestLabelRow, ScoresRow
from pl_compile.runtime.requests import BestLabel, Result

TEXT = (
    "the quick fox jumps over a lazy dog and then it sleeps; was 42 cold Weiß née 🦊 sentiment "
    "positive <|end|> 3.5% naïve of to in"
)
WORDS = TEXT.split()
KINDS = {"answer": 0, "best": 1, "all": 2}


def said(text: str) -> str:
    return text.encode().hex()


def read(hex_text: str) -> str:
    return "" if hex_text == "-" else bytes.fromhex(hex_text).decode()


@dataclass
class Asked:
    """A request that both are given.

    Attributes:
        task: its name.
        fields: by name.
        kind: one of `KINDS`.
        options: of `Request`.
        sampling: of `Sampling`.
    """

    task: str
    fields: dict[str, str]
    kind: str = "answer"
    options: dict[str, Any] = field(default_factory=dict)
    sampling: dict[str, Any] = field(default_factory=dict)

    def line(self) -> str:
        """For the program."""
        words = [f"task={said(self.task)}", f"kind={KINDS[self.kind]}"]
        words += [f"field={said(name)}:{said(text)}" for name, text in self.fields.items()]
        for name, value in (*self.options.items(), *self.sampling.items()):
            if name == "logit_bias":
                words += [f"bias={said(text)}:{number!r}" for text, number in value.items()]
            elif isinstance(value, tuple):
                words += [f"{name}={said(text)}" for text in value]
            elif isinstance(value, bool):
                words.append(f"{name}={int(value)}")
            else:
                words.append(f"{name}={value!r}")
        return " ".join(["submit", *words])

    def request(self) -> Request:
        return Request(self.task, self.fields, sampling=Sampling(**self.sampling), **self.options)

    def expected(self, session: Session) -> Any:
        """What Python's session gives: a `Result`, labels, or the error that refuses it."""
        try:
            request = self.request()
            if self.kind == "answer":
                return _followed(session, request)
            row = session.prepare(request, BestLabelRow if self.kind == "best" else ScoresRow)
            del row
            if self.kind == "best":
                return session.classify([request])[0]
            return session.score([request])[0]
        except PlcError as error:
            return error


def _followed(session: Session, request: Request) -> tuple[Result, str]:
    """The result, and all pieces of its text together."""
    pieces, result = "", None
    for event in session.stream([request]):
        pieces += event.text
        result = event.result or result
    assert result is not None
    return result, pieces


def random_asked(random: Random, tasks: Mapping[str, Sequence[str]], *, closed: set[str]) -> Asked:
    """A request of any kind.

    Args:
        random: what decides.
        tasks: the fields of each task.
        closed: the tasks with choices.
    """
    task = random.choice(list(tasks))
    most = random.choice([2, 8, 8, 30, 120])
    fields = {
        name: " ".join(random.choices(WORDS, k=random.randint(0, most))) for name in tasks[task]
    }
    if random.random() < 0.3:
        name = random.choice(list(fields))
        fields[name] += random.choice([" ", "  ", "\n", ".", "😀"])
    asked = Asked(task, fields)
    if task in closed and random.random() < 0.5:
        asked.kind = random.choice(["best", "all"])
    options: dict[str, Any] = {"max_tokens": random.choice([1, 2, 5, 9, 20, 40])}
    sampling: dict[str, Any] = {}
    for name, chance, value in _choices(random, options["max_tokens"]):
        if random.random() < chance:
            (sampling if name in Sampling.__dataclass_fields__ else options)[name] = value
    if task in closed and random.random() < 0.3:
        sampling["logit_bias"] = {
            random.choice(["itive", "gative", "es", "y", "n", "positive", "zzz"]): 2.5
        }
    asked.options, asked.sampling = options, sampling
    return asked


def _choices(random: Random, most: int) -> Iterator[tuple[str, float, Any]]:
    """Options with how often they are given."""
    yield "min_tokens", 0.2, random.randint(0, most)
    yield (
        "stop",
        0.25,
        tuple(random.sample(["a", "e ", "the", "\n", "é", "ck"], random.randint(1, 2))),
    )
    yield (
        "bad_words",
        0.25,
        tuple(random.sample(["a", "q", "th", "ox", "é", "ti"], random.randint(1, 2))),
    )
    yield "constrain", 0.15, False
    yield "use_prompt", 0.15, False
    yield "priority", 0.3, random.randint(-3, 3)
    yield "log_probs", 0.25, random.randint(0, 5)
    yield "temperature", 0.5, random.choice([0.3, 1.0, 1.7])
    yield "seed", 0.5, random.randint(0, 2**40)
    yield "top_k", 0.3, random.randint(1, 30)
    yield "top_p", 0.3, random.choice([0.5, 0.9, 0.99])
    yield "min_p", 0.2, random.choice([0.01, 0.2])
    yield "repetition_penalty", 0.25, random.choice([0.8, 1.3])
    yield "no_repeat_ngram", 0.25, random.randint(1, 3)


def check(found: str, expected: Any) -> None:
    """Fails unless a line of the program is what Python's session gives."""
    kind, *words = found.split(" ")
    if isinstance(expected, BestLabel):
        assert kind == "labels"
        text, _, log = words[0].split(":")
        assert (read(text), len(words)) == (expected.label, 1)
        assert abs(float(log) - expected.log_probability) <= 1e-5
        return
    result, pieces = expected if isinstance(expected[0], Result) else (None, "")
    if result is None:
        assert kind == "labels"
        assert len(words) == len(expected)
        for word, score in zip(words, expected, strict=True):
            text, probability, log = word.split(":")
            assert read(text) == score.label
            assert abs(float(probability) - score.probability) <= 1e-5
            assert abs(float(log) - score.log_probability) <= 1e-5
        return
    assert kind == "answer", found
    text, all_pieces, ids, finish, prompt, cut, prefix, noted = words
    assert ids == (",".join(map(str, result.token_ids)) or "-")
    assert (read(text), finish) == (result.text, result.finish_reason)
    assert read(all_pieces) == pieces
    counts = (result.prompt_tokens, result.cut_tokens, result.prefix_tokens)
    assert tuple(map(int, (prompt, cut, prefix))) == counts
    _check_log_probs(noted, result)


def _check_log_probs(noted: str, result: Result) -> None:
    of_tokens = [] if noted == "-" else noted.split(";")[:-1]
    assert len(of_tokens) == len(result.log_probs or ())
    for one, expected in zip(of_tokens, result.log_probs or (), strict=True):
        pairs = [pair.split(":") for pair in one.split("/")[:-1]]
        ours = [(expected.token_id, expected.log_prob)]
        ours += [(token, log) for token, _, log in expected.top]
        assert [int(token) for token, _ in pairs] == [token for token, _ in ours]
        for (_, found), (_, log) in zip(pairs, ours, strict=True):
            assert abs(float(found) - log) <= 1e-6
