"""The log probabilities of an answer's tokens are those of the base, however they were chosen."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pl_compile.config.build import BuildOptions
from pl_compile.driver.export import export_bundle
from pl_compile.driver.export_request import ExportRequest
from pl_compile.runtime import Request, Sampling, Session, TokenLogProbs
from pl_compile.runtime.log_probs import log_total
from pl_compile.runtime.rows import Row
from pl_compile.runtime.stepping import Output
from pl_compile.testing import random_table


@pytest.fixture(scope="module", params=["host", "graph"])
def session(
    tiny_bases: dict[str, Path],
    tmp_path_factory: pytest.TempPathFactory,
    request: pytest.FixtureRequest,
) -> Session:
    folder = tmp_path_factory.mktemp("log_probs")
    table = random_table(tiny_bases["llama"], folder / "table.safetensors")
    ways = {"graph": BuildOptions(sampling="graph", candidates=20), "host": BuildOptions()}
    asked = ExportRequest(
        table,
        tiny_bases["llama"],
        folder / "bundle",
        capacity=96,
        options=ways[request.param],
        measure_parity=False,
    )
    return Session.open(export_bundle(asked).bundle)


def asked(**options: Any) -> Request:
    return Request("ask", {"question": "why?", "place": "a"}, **{"max_tokens": 12, **options})


SAMPLINGS = [
    Sampling(),
    Sampling(temperature=0.9, top_k=9, top_p=0.9, seed=3),
    Sampling(temperature=2.0, repetition_penalty=1.5, no_repeat_ngram=2),
]


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("count", [0, 1, 5, 20])
def test_they_are_those_of_torch_for_the_logits_of_the_step(
    session: Session, sampling: Sampling, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch = pytest.importorskip(
        "torch",
        reason="needs torch (the extra train); without it: "
        "test_those_of_a_choice_sum_up_to_its_score",
    )
    logits, advance = [], Row.advance

    def noting(row: Row, output: Output) -> Any:
        logits.append(output.logits.copy())
        return advance(row, output)

    monkeypatch.setattr(Row, "advance", noting)
    (result,) = session.generate([asked(sampling=sampling, log_probs=count)])

    assert result.log_probs is not None
    assert len(result.log_probs) == len(result.token_ids) == len(logits)
    for token_id, noted, given_logits in zip(
        result.token_ids, result.log_probs, logits, strict=True
    ):
        expected = torch.log_softmax(torch.from_numpy(given_logits).double(), -1)
        values, ids = expected.topk(count) if count else (torch.zeros(0), torch.zeros(0))
        assert noted.token_id == token_id
        assert noted.log_prob == pytest.approx(float(expected[token_id]), abs=1e-6)
        assert [log_prob for _, _, log_prob in noted.top] == pytest.approx(values.tolist())
        assert [key for key, _, _ in noted.top] == ids.tolist()


def test_to_ask_for_them_changes_nothing_else(session: Session) -> None:
    requests = [asked(sampling=sampling) for sampling in SAMPLINGS]
    plain = session.generate(requests)

    noted = session.generate([replace(request, log_probs=3) for request in requests])

    assert {result.log_probs for result in plain} == {None}
    assert [replace(result, log_probs=None) for result in noted] == plain


def test_those_of_a_choice_sum_up_to_its_score(session: Session) -> None:
    request = Request("tone", {"sentence": "so cold"}, log_probs=0)
    scores = {each.label: each.log_probability for each in session.score([request])[0]}
    for seed in range(4):
        sampling = Sampling(temperature=5.0, seed=seed)

        (result,) = session.generate([replace(request, sampling=sampling)])

        assert result.log_probs is not None
        total = sum(each.log_prob for each in result.log_probs)
        assert total == pytest.approx(scores[result.text], rel=1e-4)


def test_texts_are_those_of_the_answer_and_an_end_token_has_its_name(session: Session) -> None:
    request = Request("tone", {"sentence": "so cold"}, log_probs=2)

    (result,) = session.generate([request])

    assert result.log_probs is not None
    *texts, end = [each.text for each in result.log_probs]
    assert "".join(texts).strip() == result.text
    assert end == session.tokenizer.token_name(result.token_ids[-1])
    assert [len(each.top) for each in result.log_probs] == [2] * len(result.token_ids)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(-(2.0**20), 2.0**20, width=32), min_size=1, max_size=9))
def test_large_logits_neither_overflow_nor_vanish(values: list[float]) -> None:
    logits = np.asarray(values, np.float32)

    log = logits.astype(np.float64) - log_total(logits)

    assert np.isfinite(log).all()
    assert np.exp(log).sum() == pytest.approx(1, rel=1e-6)


def test_they_can_be_written_as_plain_data() -> None:
    noted = TokenLogProbs(3, " a", -0.5, ((3, " a", -0.5), (1, "b", -1.5)))

    assert noted.record() == {
        "token_id": 3,
        "text": " a",
        "log_prob": -0.5,
        "top": [
            {"token_id": 3, "text": " a", "log_prob": -0.5},
            {"token_id": 1, "text": "b", "log_prob": -1.5},
        ],
    }
