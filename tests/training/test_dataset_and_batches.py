from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer as HfTokenizer
from tokenizers import decoders, models

from pl_compile.config.task import TaskConfig
from pl_compile.errors import DataError
from pl_compile.text.examples import Example
from pl_compile.text.render import Rendered, Renderer, SequenceRules
from pl_compile.text.template import parse_template
from pl_compile.text.tokenizer import Tokenizer
from pl_compile.training.data.batches import BatchOrder, for_validation
from pl_compile.training.data.dataset import SkipReport, TrainingSequence, render_examples

BOS, EOS = 0, 1


@pytest.fixture(scope="module")
def tokenizer(tiny_bases: dict[str, Path]) -> Tokenizer:
    return Tokenizer.from_folder(tiny_bases["gpt2"])


def _renderer(
    tokenizer: Tokenizer, rules: SequenceRules | None = None, **settings: Any
) -> Renderer:
    template = "<|VIRTUAL_PROMPT_0|>{text} is {label}"
    task = TaskConfig("mood", template, 3, **settings)
    return Renderer(parse_template(task), tokenizer, rules or SequenceRules(BOS, EOS))


def _example(text: str, label: str = "cold", where: str = "a.jsonl:1") -> Example:
    return Example("mood", {"text": text, "label": label}, where)


def too_long(limit: int) -> str:
    return (
        f"longer than {limit} tokens, and task 'mood' has no truncate_field: name one, or raise "
        "data.max_seq_length where the base has more positions"
    )


# Examples to sequences


def test_the_loss_of_an_answer_covers_the_answer_and_eos_only(tokenizer: Tokenizer) -> None:
    (sequence,), _ = render_examples(
        [_example("who")], {"mood": _renderer(tokenizer)}, max_length=99
    )

    learned = sequence.rendered.token_ids[sequence.in_loss].tolist()
    assert learned == [*tokenizer.encode(" cold", opens=False, markup=False), EOS]
    assert sequence.in_loss.tolist() == sorted(sequence.in_loss.tolist())


def test_the_loss_of_a_whole_sequence_leaves_out_virtual_tokens_only(tokenizer: Tokenizer) -> None:
    (sequence,), _ = render_examples(
        [_example("who")], {"mood": _renderer(tokenizer, answer_only_loss=False)}, max_length=99
    )

    assert sequence.in_loss.tolist() == (sequence.rendered.virtual_rows < 0).tolist()
    assert np.count_nonzero(~sequence.in_loss) == 3


def test_the_baseline_sees_the_same_loss_without_virtual_tokens(tokenizer: Tokenizer) -> None:
    (sequence,), _ = render_examples(
        [_example("who")], {"mood": _renderer(tokenizer)}, max_length=99
    )

    bare = sequence.without_virtual()

    assert len(bare) == len(sequence) - 3
    assert bare.rendered.token_ids[bare.in_loss].tolist() == (
        sequence.rendered.token_ids[sequence.in_loss].tolist()
    )


def test_tasks_are_numbered_in_the_order_of_their_renderers(tokenizer: Tokenizer) -> None:
    renderer = _renderer(tokenizer)
    examples = [Example(name, {"text": "who", "label": "x"}, "w") for name in ("b", "a", "b")]

    sequences, report = render_examples(examples, {"a": renderer, "b": renderer}, max_length=99)

    assert [sequence.task for sequence in sequences] == [1, 0, 1]
    assert (report.total, report.count, report.lines()) == (3, 0, [])


def test_what_is_left_out_is_reported_by_reason_with_its_places(tokenizer: Tokenizer) -> None:
    renderer = _renderer(tokenizer, SequenceRules(BOS, None))
    shortest = len(renderer.example({"text": "", "label": ""}))
    examples = [
        _example("who", where="a.jsonl:1"),
        *(_example(" the" * 30, where=f"a.jsonl:{line}") for line in range(2, 6)),
        _example("", label="", where="a.jsonl:6"),
        _example("who was", label="", where="a.jsonl:7"),
        _example(" the" * 31, where="b.jsonl:1"),
    ]

    sequences, report = render_examples(
        examples, {"mood": renderer}, max_length=20, min_length=shortest + 1
    )

    assert len(sequences) == 1
    assert report.count == 7
    assert report.lines() == [
        f"left out 5 of 8: {too_long(20)} (a.jsonl:2, a.jsonl:3, a.jsonl:4 …)",
        f"left out 1 of 8: shorter than {shortest + 1} tokens (a.jsonl:6)",
        "left out 1 of 8: no token to learn from (a.jsonl:7)",
    ]


def test_an_example_that_fits_after_truncation_is_used(tokenizer: Tokenizer) -> None:
    renderer = _renderer(tokenizer, truncate_field="text")

    (sequence,), report = render_examples(
        [_example(" the" * 30)], {"mood": renderer}, max_length=20
    )

    assert len(sequence) <= 20
    assert sequence.rendered.token_ids[-1] == EOS
    assert report.count == 0


def test_what_is_cut_to_fit_is_reported_with_its_places(tokenizer: Tokenizer) -> None:
    renderer = _renderer(tokenizer, truncate_field="text")
    longest = _example(" the" * 40, where="a.jsonl:2")
    examples = [
        _example("who", where="a.jsonl:1"),
        longest,
        _example(" the" * 30, where="a.jsonl:3"),
        _example("who", label=" the" * 30, where="a.jsonl:4"),
    ]

    sequences, report = render_examples(examples, {"mood": renderer}, max_length=20)

    lost = len(renderer.example(longest.fields)) - len(sequences[1])
    assert report.lines() == [
        "left out 1 of 4: longer than 20 tokens even after truncation (a.jsonl:4)",
        f"cut 2 of 4 to fit 20 tokens, by up to {lost} (a.jsonl:2, a.jsonl:3)",
    ]


def test_empty_answers_and_inputs_are_used_and_counted(tokenizer: Tokenizer) -> None:
    examples = [
        _example("who", where="a.jsonl:1"),
        _example("who", label="", where="a.jsonl:2"),
        _example(" ", label=" \t", where="a.jsonl:3"),
        _example("", where="a.jsonl:4"),
    ]

    sequences, report = render_examples(examples, {"mood": _renderer(tokenizer)}, max_length=99)

    assert len(sequences) == 4
    assert report.lines() == [
        "2 of 4 have an empty answer, which the task learns to give (a.jsonl:2, a.jsonl:3)",
        "2 of 4 have no text in any input field (a.jsonl:3, a.jsonl:4)",
    ]


def test_data_of_which_nothing_is_usable_is_refused_with_the_reasons(tokenizer: Tokenizer) -> None:
    examples = [_example(" the" * 30, where="a.jsonl:1"), _example("", "", where="a.jsonl:2")]
    renderer = _renderer(tokenizer, SequenceRules(None, None))

    with pytest.raises(DataError) as error:
        render_examples(examples, {"mood": renderer}, max_length=9)

    assert str(error.value) == (
        "rendering the examples: none is usable: "
        f"left out 1 of 2: {too_long(9)} (a.jsonl:1); "
        "left out 1 of 2: no token to learn from (a.jsonl:2)."
    )


def test_examples_that_cannot_be_rendered_are_refused_together_with_their_places(
    tokenizer: Tokenizer,
) -> None:
    short = Tokenizer(tokenizer.text, vocab=396)
    last = tokenizer.decode([396])
    examples = [
        _example("who", where="a:1"),
        _example(last, where="a:2"),
        _example("who", last, where="a:3"),
    ]

    with pytest.raises(DataError) as error:
        render_examples(examples, {"mood": _renderer(short)}, max_length=99)

    assert "2 problems" in str(error.value)
    assert "a:1" not in str(error.value)
    for place in ("a:2", "a:3"):
        assert f"{place}: tokenising" in str(error.value)


def test_examples_that_lose_characters_are_used_and_told() -> None:
    letters = HfTokenizer(models.BPE({c: i for i, c in enumerate("whois cold")}, []))
    letters.decoder = decoders.Fuse()
    renderer = _renderer(Tokenizer(letters.to_str()), SequenceRules())
    examples = [
        _example("who", where="a:1"),
        _example("wüh", where="a:2"),
        _example("who", "cold 😀", where="a:3"),
    ]

    sequences, report = render_examples(examples, {"mood": renderer}, max_length=99)

    assert (len(sequences), report.count) == (3, 0)
    assert report.lines() == [
        "2 of 3 hold characters that the base's tokenizer cannot write and leaves out or takes "
        "for unknown: 'ü😀' (a:2, a:3)"
    ]


def test_a_report_shows_as_many_places_as_asked_for() -> None:
    report = SkipReport(total=9)
    for line in range(4):
        report.add("too odd", f"x:{line}")

    assert report.lines(most=1) == ["left out 4 of 9: too odd (x:0 …)"]
    assert report.lines(most=4) == ["left out 4 of 9: too odd (x:0, x:1, x:2, x:3)"]


# The order of a run


def _order(n: int = 131, *, seed: int = 3, shuffle: bool = True) -> BatchOrder:
    return BatchOrder(n, global_batch_size=12, micro_batch_size=4, seed=seed, shuffle=shuffle)


def _epoch(order: BatchOrder, epoch: int) -> list[list[int]]:
    steps = range(epoch * order.steps_per_epoch, (epoch + 1) * order.steps_per_epoch)
    return [micro for step in steps for micro in order.step(step)]


def test_1811_examples_in_eights_make_226_steps_an_epoch() -> None:
    order = BatchOrder(1811, global_batch_size=8, micro_batch_size=8, seed=0)

    assert order.steps_per_epoch == 226
    assert 3 * order.steps_per_epoch == 678


def test_a_step_is_one_global_batch_of_equal_micro_batches() -> None:
    order = _order()

    for step in range(2 * order.steps_per_epoch):
        assert [len(micro) for micro in order.step(step)] == [4, 4, 4]


def test_an_epoch_takes_no_example_twice_and_leaves_out_less_than_a_batch() -> None:
    order = _order()

    for epoch in range(3):
        taken = [index for micro in _epoch(order, epoch) for index in micro]
        assert len(taken) == len(set(taken)) == 120
        assert set(taken) <= set(range(131))


def test_another_epoch_has_another_order_and_leaves_out_others() -> None:
    order = _order()

    first, second = _epoch(order, 0), _epoch(order, 1)

    assert first != second
    assert {i for micro in first for i in micro} != {i for micro in second for i in micro}


def test_without_shuffling_every_epoch_has_the_order_of_the_files() -> None:
    order = _order(shuffle=False)

    for epoch in range(2):
        assert [index for micro in _epoch(order, epoch) for index in micro] == list(range(120))


def test_a_resumed_run_finds_its_place_from_the_step_alone() -> None:
    from_the_start = _order()
    order = [from_the_start.step(step) for step in range(25)]

    assert [_order().step(step) for step in reversed(range(25))] == order[::-1]


def test_another_seed_is_another_order() -> None:
    assert _order(seed=3).step(0) != _order(seed=4).step(0)


# Validation


def test_validation_takes_every_example_once_and_neighbours_are_alike() -> None:
    def of_length(length: int, task: int) -> TrainingSequence:
        ids = np.full(length, 3, np.int64)
        return TrainingSequence(task, Rendered(ids, ids - 4, 0), ids > 0)

    sequences = [of_length(*pair) for pair in ((5, 1), (2, 0), (9, 0), (2, 1), (7, 1))]

    batches = for_validation(sequences, 2)

    assert [[(each.task, len(each)) for each in batch] for batch in batches] == [
        [(0, 2), (0, 9)],
        [(1, 2), (1, 5)],
        [(1, 7)],
    ]
    assert for_validation([], 2) == []
