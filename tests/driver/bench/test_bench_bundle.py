"""`plc bench BUNDLE`: what is asked of a bundle, and what the figures are made of."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pl_compile.config.sizes import MOST
from pl_compile.driver.bench.bundle import (
    DEFAULT_BATCHES,
    BundleLoad,
    _Prompts,
    _Sample,
    bench_bundle,
)
from pl_compile.driver.bench.machine import Watch, memory_of, this_machine, tree_of, versions
from pl_compile.driver.bench.numbers import Percentiles, Spread
from pl_compile.driver.bench.texts import most_words, words
from pl_compile.errors import RequestError
from pl_compile.runtime import Request, Session

SMALL = BundleLoad(batch=(1, 3), input_tokens=(6,), tokens=4, repeat=2)


def test_a_report_holds_every_figure(work: Path) -> None:
    report = bench_bundle(work / "bundle", SMALL, threads=1)

    assert report.load.tasks == ("tone", "ask")
    assert [(each.task, each.input_tokens) for each in report.prompts] == [("tone", 6), ("ask", 6)]
    assert [each.batch for each in report.decode] == [1, 3]
    assert report.runs_on.threads == 1
    assert report.runs_on.slots == 3
    for spread in (
        *(each.first_token_seconds for each in report.prompts),
        *(each.prefill_tokens_per_second for each in report.prompts),
        *(each.tokens_per_second for each in report.decode),
        *(each.between_tokens_p50_seconds for each in report.decode),
    ):
        assert len(spread.samples) == 2
        assert 0 < spread.least <= spread.median <= spread.most
    assert report.memory is not None
    assert report.opened is not None
    assert 0 < report.opened.resident_mib <= report.memory.peak_mib


def test_prompts_are_as_long_as_the_session_counts_them(work: Path) -> None:
    report = bench_bundle(work / "bundle", SMALL)

    with Session.open(work / "bundle") as session:
        for each in report.prompts:
            fields = session.tasks[each.task].renderer.template.input_fields
            bare = len(session.tasks[each.task].renderer.prompt(dict.fromkeys(fields, "")))
            held = session.tasks[each.task].prefix_kv

            assert bare < each.prompt_tokens <= bare + 6 + len(fields)
            assert each.prefix_tokens == (0 if held is None else held.shape[3])


def test_every_answer_has_its_length_whatever_the_base_would_write(work: Path) -> None:
    prompts = _Prompts("tone", 6, 3, ("sentence",))

    with Session.open(work / "bundle") as session:
        (result,) = session.generate([prompts.request(seed=1, tokens=20)])

    assert len(result.token_ids) == 20
    assert result.finish_reason == "length"


def test_equal_seeds_give_equal_requests_and_others_do_not() -> None:
    prompts = _Prompts("ask", 6, 4, ("place", "question"))

    assert prompts.request(1, 4) == prompts.request(1, 4)
    assert prompts.request(1, 4) != prompts.request(2, 4)
    fields = prompts.request(1, 4).fields
    assert fields["place"] != fields["question"]


def test_batches_by_default_are_those_that_there_are_slots_for(work: Path) -> None:
    report = bench_bundle(work / "bundle", BundleLoad(input_tokens=(4,), tokens=2, repeat=1))

    assert report.load.batch == DEFAULT_BATCHES
    assert report.runs_on.slots == 16


def test_a_size_that_is_not_asked_for_is_left_out_where_it_does_not_fit(work: Path) -> None:
    with Session.open(work / "bundle") as session:
        capacity = session.engine.capacity
    assert 64 + 20 < capacity < 512

    report = bench_bundle(work / "bundle", BundleLoad(batch=(1,), tokens=2, repeat=1))

    assert report.load.input_tokens == (64,)


def test_what_does_not_fit_is_refused(work: Path) -> None:
    load = BundleLoad(batch=(1,), input_tokens=(500,), tokens=2, repeat=1)

    with pytest.raises(RequestError, match=r"measuring task 'tone': prompts of up to \d+ tokens"):
        bench_bundle(work / "bundle", load)


def test_an_unknown_task_is_refused(work: Path) -> None:
    with pytest.raises(RequestError, match=r"task 'tome' does not exist. Did you mean 'tone'"):
        bench_bundle(work / "bundle", BundleLoad(tasks=("tome",)))


@pytest.mark.parametrize(
    "wrong", [{"tokens": 1}, {"repeat": 0}, {"batch": (0,)}, {"input_tokens": (4, 0)}]
)
def test_numbers_that_cannot_be_measured_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(RequestError, match=f"{next(iter(wrong))} "):
        BundleLoad(**wrong)


def test_rows_are_counted_while_all_of_them_decode() -> None:
    # A token each 1 s. The second row begins at 2 and ends at 5, the first one ends at 4; within a
    # step, the second row's token comes a little later.
    sample = _Sample(((1.0, 2.0, 3.0, 4.0), (2.1, 3.1, 4.1, 5.1)))

    assert sample.while_all_decode() == [(2.0, 3.0, 4.0), (2.1, 3.1)]
    assert sample.tokens_per_second == pytest.approx(2.0)
    assert sample.gaps.count == 3
    assert sample.gaps.p95 == pytest.approx(1.0)


def test_a_row_alone_is_counted_from_its_first_token_to_its_last() -> None:
    sample = _Sample(((3.0, 3.5, 4.0, 4.5, 5.0),))

    assert sample.tokens_per_second == pytest.approx(2.0)


def test_medians_and_percentiles() -> None:
    assert Spread.of([3.0, 1.0, 2.0]) == Spread(2.0, 1.0, 3.0, (3.0, 1.0, 2.0))
    found = Percentiles.of([float(number) for number in range(101)])
    assert found == Percentiles(101, 50.0, 50.0, 95.0, 99.0, 100.0)
    assert Percentiles.of([]) is None


def test_texts_are_the_same_in_every_release() -> None:
    assert words(5, seed=7) == "we they him that some"
    assert words(0, seed=7) == ""


@pytest.mark.parametrize(("tokens", "expected"), [(1, 1), (5, 2), (6, 3), (7, 3), (90, 45)])
def test_the_most_words_that_have_at_most_so_many_tokens(tokens: int, expected: int) -> None:
    assert most_words(tokens, lambda count: 2 * count) == expected


def test_the_machine_is_said() -> None:
    machine = this_machine()

    assert 1 <= machine.usable_cores <= machine.cores == os.cpu_count()
    assert versions().keys() >= {"plc", "python", "numpy", "onnxruntime", "tokenizers"}
    assert tree_of(os.getpid())[0] == os.getpid()


def test_children_count_as_their_parent() -> None:
    alone = memory_of(os.getpid())
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        tree, together, own = tree_of(os.getpid()), memory_of(os.getpid()), memory_of(child.pid)
        child.communicate(b"\n")

    assert child.pid in tree
    assert alone is not None
    assert together is not None
    assert own is not None
    assert together.peak_mib >= alone.peak_mib + own.resident_mib / 2


def test_a_process_that_is_gone_has_no_memory() -> None:
    assert memory_of(2**22 + 1) is None


def test_our_own_load_is_not_that_of_others() -> None:
    watch = Watch(os.getpid())
    sum(number * number for number in range(300_000))

    others = watch.others()

    assert others is None or 0 <= others <= 1


def test_the_command_prints_a_table(plc: Any, work: Path) -> None:
    numbers = ["--batch", "1,2", "--input-tokens", "6", "--tokens", "3", "--repeat", "1"]

    code, out, err = plc("bench", work / "bundle", "--task", "ask", *numbers)

    assert code == 0, err
    assert "One prompt alone: medians of 1, least and most" in out
    assert "Rows that are decoded together, 3 tokens each" in out
    assert "memory, MiB:" in out
    assert "│ ask" in out
    assert "│ tone" not in out


def test_the_command_prints_one_json_object(plc: Any, work: Path) -> None:
    numbers = ["--batch", "1", "--input-tokens", "6", "--tokens", "3", "--repeat", "2"]

    code, out, _ = plc("bench", work / "bundle", *numbers, "--json")
    report = json.loads(out)

    assert code == 0
    assert (report["format"], report["version"]) == ("plc.bench.bundle", 1)
    assert report["load"]["batch"] == [1]
    assert len(report["decode"][0]["tokens_per_second"]["samples"]) == 2


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "Give either BUNDLE or --server."),
        (["bundle", "--server", "localhost:1"], "Give either BUNDLE or --server."),
        (["bundle", "--clients", "4"], "--clients goes with --server."),
        (["bundle", "--batch", "1,x"], "Invalid value for '--batch'"),
        (["bundle", "--batch", "0"], "Invalid value for '--batch'"),
        (["--server", "localhost:1", "--repeat", "5"], "--repeat goes with BUNDLE."),
        (["--server", "localhost:1", "--provider", "cpu"], "--provider goes with BUNDLE."),
        (["--server", "localhost:1", "--input-tokens", "1,2"], "takes one number with --server"),
        (["--server", "x:1", "--rate", "2", "--clients", "2"], "--rate goes without --clients"),
    ],
)
def test_misuse_is_exit_code_2(plc: Any, arguments: list[str], said: str) -> None:
    code, out, err = plc("bench", *arguments)

    assert (code, out) == (2, "")
    assert said in err


def test_a_bundle_that_is_not_there_is_one_line(plc: Any) -> None:
    code, out, err = plc("bench", "nothing")

    assert (code, out) == (1, "")
    assert err.startswith("error: ")
    assert len(err.splitlines()) == 1


def test_prompts_may_be_longer_than_batches_are_wide(plc: Any) -> None:
    code, _, err = plc("bench", "nothing", "--input-tokens", str(MOST["max_batch"] + 1))

    assert code == 1
    assert "there is no such folder" in err


def test_requests_are_plain_ones() -> None:
    request = _Prompts("tone", 6, 3, ("sentence",)).request(0, 5)

    assert request == Request(
        "tone", {"sentence": words(3, 0)}, max_tokens=5, min_tokens=5, constrain=False
    )
