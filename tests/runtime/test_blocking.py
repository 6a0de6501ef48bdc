"""Repeated sequences and bad words: what may not come next."""

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from pl_compile.config.build import BuildOptions
from pl_compile.driver.export import export_bundle
from pl_compile.driver.export_request import ExportRequest
from pl_compile.errors import RequestError
from pl_compile.runtime import Request, Sampling, Session
from pl_compile.runtime.blocking import BadWords, Ngrams
from pl_compile.runtime.sampling import next_token
from pl_compile.testing import byte_fallback_tokenizer, random_table
from pl_compile.text.tokenizer import Tokenizer

VOCAB = 397


@pytest.fixture(scope="module")
def folders(
    tiny_bases: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """Bundles whose graph chooses tokens, and whose host does."""
    folder = tmp_path_factory.mktemp("blocking")
    table = random_table(tiny_bases["llama"], folder / "table.safetensors")
    ways = {"graph": BuildOptions(sampling="graph", candidates=20), "host": BuildOptions()}
    for name, options in ways.items():
        export_bundle(
            ExportRequest(
                table,
                tiny_bases["llama"],
                folder / name,
                capacity=96,
                options=options,
                measure_parity=False,
            )
        )
    return {name: folder / name for name in ways}


@pytest.fixture(scope="module")
def session(folders: dict[str, Path]) -> Session:
    return Session.open(folders["host"])


@pytest.fixture(scope="module")
def tokenizers(tiny_bases: dict[str, Path]) -> dict[str, Tokenizer]:
    return {
        "byte level": Tokenizer.from_folder(tiny_bases["llama"]),
        "byte fallback": Tokenizer(byte_fallback_tokenizer("prepend")),
    }


def asked(text: str = "why?", **options: Any) -> Request:
    fields = {"question": text, "place": "a"}
    return Request("ask", fields, **{"max_tokens": 24, "min_tokens": 24, **options})


# Repeated sequences


@settings(max_examples=200, deadline=None)
@given(tokens=st.lists(st.integers(0, 4), max_size=20), size=st.integers(1, 5))
def test_repeated_sequences_are_those_of_transformers(tokens: list[int], size: int) -> None:
    torch = pytest.importorskip(
        "torch",
        reason="needs torch (the extra train); without it: "
        "test_no_sequence_stands_twice_in_prompt_and_answer",
    )
    from transformers.generation.logits_process import NoRepeatNGramLogitsProcessor

    ids = torch.tensor([tokens], dtype=torch.int64)
    scores = NoRepeatNGramLogitsProcessor(size)(ids, torch.zeros(1, 6))

    blocked = Ngrams(size, tokens).blocked()

    assert blocked == set(torch.isneginf(scores[0]).nonzero().flatten().tolist())


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_no_sequence_stands_twice_in_prompt_and_answer(
    session: Session, size: int, temperature: float
) -> None:
    sampling = Sampling(temperature=temperature, no_repeat_ngram=size, seed=4)
    request = asked("a", max_tokens=70, min_tokens=70, sampling=sampling)
    rendered = session.tasks["ask"].renderer.prompt(request.fields)
    prompt = rendered.input_ids(VOCAB).tolist()

    (result,) = session.generate([request])

    new = _sequences([*prompt, *result.token_ids], size)[len(_sequences(prompt, size)) :]
    assert len(result.token_ids) == 70
    assert len(set(new)) == len(new)
    assert not set(new) & set(_sequences(prompt, size))
    free = replace(request, sampling=replace(sampling, no_repeat_ngram=0))
    assert (session.generate([free])[0].token_ids != result.token_ids) or size == 3


def _sequences(tokens: Sequence[int], size: int) -> list[tuple[int, ...]]:
    return [tuple(tokens[place : place + size]) for place in range(len(tokens) - size + 1)]


def test_a_choice_is_not_changed_by_sequences_of_the_prompt(session: Session) -> None:
    fields = {"sentence": "positive negative neutral"}
    request = Request("tone", fields, sampling=Sampling(no_repeat_ngram=1))

    assert session.generate([request]) == session.generate([Request("tone", fields)])


# Bad words

_TEXTS = ("a", " a", "b", "ab", " ", "\n", "e", "the", "who was", "é", "日", "a\n", "😀")
_PIECES = st.sampled_from(("a", "b", " ", "\n", "é", "日", "😀", " who", " was", "the"))


@pytest.mark.parametrize("kind", ["byte level", "byte fallback"])
@settings(max_examples=200, deadline=None)
@given(data=st.data(), words=st.lists(st.sampled_from(_TEXTS), min_size=1, max_size=3))
def test_the_text_of_tokens_that_were_allowed_never_has_a_bad_word(
    tokenizers: dict[str, Tokenizer], kind: str, data: st.DataObject, words: list[str]
) -> None:
    """And a token that was not would have written one."""
    tokenizer = tokenizers[kind]
    pieces = data.draw(st.lists(_PIECES, max_size=10))
    ids = [key for text in pieces for key in tokenizer.encode(text, opens=False, markup=False)]
    ids += data.draw(st.lists(st.integers(0, VOCAB - 1), max_size=6))
    bad, taken = BadWords(tokenizer, words), list[int]()

    for token_id in ids:
        text = tokenizer.decode([*taken, token_id])
        assert bad.allows(token_id) == (not any(word in text for word in words))
        if bad.allows(token_id):
            bad.push(token_id)
            taken.append(token_id)


@pytest.mark.parametrize("kind", ["byte level", "byte fallback"])
@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_what_transformers_blocks_is_blocked(
    tokenizers: dict[str, Tokenizer], kind: str, data: st.DataObject
) -> None:
    """The tokens of a word, with and without a blank before it."""
    torch = pytest.importorskip(
        "torch",
        reason="needs torch (the extra train); without it: test_an_answer_never_has_a_bad_word",
    )
    from transformers.generation.logits_process import NoBadWordsLogitsProcessor

    tokenizer = tokenizers[kind]
    word = data.draw(st.sampled_from(("the", "who was", "nobody", "é", "ab")))
    ways = [tokenizer.encode(text, opens=False, markup=False) for text in (word, f" {word}")]
    written = data.draw(st.lists(st.integers(3, VOCAB - 1), max_size=5))
    written += data.draw(st.sampled_from(ways))[:-1]
    bad = BadWords(tokenizer, [word])
    for token_id in written:
        assume(bad.allows(token_id))
        bad.push(token_id)
    ids = torch.tensor([written], dtype=torch.int64)
    scores = NoBadWordsLogitsProcessor(ways)(ids, torch.zeros(1, 1000))

    theirs = torch.isneginf(scores[0]).nonzero().flatten().tolist()

    assert theirs
    assert not any(bad.allows(token_id) for token_id in theirs)


@pytest.mark.parametrize("temperature", [0.0, 0.8, 3.0])
def test_an_answer_never_has_a_bad_word(session: Session, temperature: float) -> None:
    requests = [
        asked(text, sampling=Sampling(temperature=temperature, top_k=top_k, seed=seed))
        for seed, (text, top_k) in enumerate([("why?", 0), ("who?", 3), ("the dog", 1)])
    ]
    before = session.generate(requests)
    words = [(*re.findall("[a-z]+", result.text)[:3], " ") for result in before]
    assert all(len(each) > 2 for each in words)

    limited = [
        replace(request, bad_words=bad) for request, bad in zip(requests, words, strict=True)
    ]
    after = session.generate(limited)

    for bad, result in zip(words, after, strict=True):
        assert result.text
        assert len(result.token_ids) == 24
        assert not any(word in result.text for word in bad)
    assert after == [session.generate([request])[0] for request in limited]


def test_tokens_are_drawn_as_often_as_without_the_bad_ones() -> None:
    logits = np.log(np.asarray([0.4, 0.3, 0.2, 0.1], np.float32))
    generator = np.random.default_rng(2)
    sampling = Sampling(temperature=1.0)

    drawn = [
        next_token(logits, sampling, generator, fits=lambda token: token != 0) for _ in range(4000)
    ]

    shares = np.bincount(np.asarray(drawn, np.int64), minlength=4) / 4000
    assert shares == pytest.approx([0, 3 / 6, 2 / 6, 1 / 6], abs=0.032)


def test_where_no_candidate_fits_the_likeliest_of_the_others_comes() -> None:
    logits = np.asarray([4.0, 3.0, 2.0, 1.0], np.float32)
    sampling = Sampling(temperature=1.0, top_k=2)

    def one(**options: Any) -> int | None:
        return next_token(logits, sampling, np.random.default_rng(0), **options)

    assert one(fits=lambda token: token > 1) == 2
    assert one(fits=lambda token: token > 1, blocked={2}) == 3
    assert one(fits=lambda token: False) is None
    assert one(blocked={0, 1, 2, 3}) is None
    assert next_token(logits, Sampling(), np.random.default_rng(0), fits=lambda t: t == 1) == 1


@pytest.mark.parametrize("stop", [(), ("never there",)])
def test_an_answer_ends_where_no_token_may_follow(
    session: Session, monkeypatch: pytest.MonkeyPatch, stop: tuple[str, ...]
) -> None:
    expected = session.generate([asked(max_tokens=5, min_tokens=5, bad_words=("\x00",))])[0]
    monkeypatch.setattr(
        BadWords, "allows", lambda self, token: _count(self) < 5 and "\x00" not in self._certain
    )
    monkeypatch.setattr(BadWords, "push", _counting)

    (result,) = session.generate([asked(bad_words=("\x00",), stop=stop, log_probs=0)])

    assert result.finish_reason == "stop"
    assert result.token_ids == expected.token_ids
    assert result.text == expected.text
    assert result.log_probs is not None
    assert len(result.log_probs) == 5


def _count(bad: Any) -> int:
    return int(getattr(bad, "taken", 0))


def _counting(bad: Any, token_id: int) -> None:
    bad.taken = _count(bad) + 1


def test_a_graph_is_not_asked_for_tokens_that_it_cannot_choose(folders: dict[str, Path]) -> None:
    graph, host = Session.open(folders["graph"]), Session.open(folders["host"])
    assert graph.engine.candidates
    requests = [
        asked(
            min_tokens=0,  # before them the host chooses
            sampling=Sampling(temperature=temperature, top_k=top_k, no_repeat_ngram=n, seed=3),
        )
        for temperature, top_k in ((0.0, 0), (0.9, 12))
        for n in (0, 2)
    ]
    requests = [*requests, *(replace(each, bad_words=("a", "e")) for each in requests)]

    answers = graph.generate(requests)

    assert answers == host.generate(requests)
    assert not any("a" in each.text or "e" in each.text for each in answers[4:])
    assert all("a" in each.text or "e" in each.text for each in answers[:4])


def test_a_bad_word_in_a_choice_is_refused_by_name(session: Session) -> None:
    request = Request("tone", {"sentence": "x"}, bad_words=("zzz", "eutr"))

    with pytest.raises(RequestError) as error:
        session.generate([request])

    assert str(error.value) == (
        "serving request 0: the bad word 'eutr' in the choice 'neutral'. Leave it out, or ask with "
        "constrain=False."
    )
    harmless = replace(request, bad_words=("zzz",))
    assert session.generate([harmless]) == session.generate([replace(request, bad_words=())])
    free = replace(request, constrain=False, max_tokens=9)
    assert "eutr" not in session.generate([free])[0].text


@pytest.mark.parametrize("words", [("",), ("a", "\ufffd")])
def test_bad_words_that_cannot_be_kept_out_are_refused(words: tuple[str, ...]) -> None:
    with pytest.raises(RequestError, match=r"bad_words .*; expected texts that are not empty"):
        Request("tone", {}, bad_words=words)


@settings(max_examples=40, deadline=None)
@given(
    stop=st.lists(st.sampled_from(("a", "e ", "th", "\n", "an", "o")), max_size=2),
    bad=st.lists(st.sampled_from(("s", "e", "is", " a", "ab")), max_size=2),
    size=st.integers(0, 3),
    temperature=st.sampled_from((0.0, 0.7, 2.0)),
    seed=st.integers(0, 3),
)
def test_stop_texts_and_seeds_hold_with_what_is_blocked(
    session: Session, stop: list[str], bad: list[str], size: int, temperature: float, seed: int
) -> None:
    sampling = Sampling(temperature=temperature, no_repeat_ngram=size, seed=seed)
    request = asked(bad_words=bad, sampling=sampling)
    stopped = replace(request, stop=tuple(stop))

    whole, cut = session.generate([request, stopped])

    assert session.generate([stopped, request]) == [cut, whole]
    assert whole.token_ids[: len(cut.token_ids)] == cut.token_ids
    text = session.tokenizer.decode(list(cut.token_ids))
    places = [text.find(each) for each in stop if each in text]
    assert cut.text == text[: min(places, default=len(text))].strip(" ")
    assert cut.finish_reason == ("stop" if places else "length")
    assert not any(word in whole.text for word in bad)
