"""Templates and fields of all shapes, hostile ones included: what must hold for each of them."""

import json
import string
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from pl_compile.artifact.bundle import Manifest
from pl_compile.artifact.prompt_table import (
    BaseIdentity,
    PromptTable,
    TaskEntry,
    read_prompt_table,
    write_prompt_table,
)
from pl_compile.config.contract import GraphContract
from pl_compile.config.read import build, node_from_plain, plain_from_config
from pl_compile.config.task import TaskConfig
from pl_compile.config.train import (
    DataConfig,
    OptimConfig,
    PTuningConfig,
    ScheduleConfig,
    TrainConfig,
    TrainerConfig,
)
from pl_compile.testing import byte_fallback_tokenizer
from pl_compile.text.render import Rendered, Renderer, SequenceRules, TooLongError
from pl_compile.text.template import Field, Template, Virtual, parse_template
from pl_compile.text.tokenizer import Tokenizer

ALWAYS_THE_SAME = settings(
    derandomize=True,
    deadline=None,
    max_examples=150,
    database=None,
    phases=(Phase.explicit, Phase.generate, Phase.shrink),
)

_TEXTS = (
    *("Context:", " ", "\n", "a", "{", "}", "  ", "é", "😀", "Answer:", "\n\n", "the year"),
    *("[INST]", "x[INST]y", "[USER] "),  # added tokens of some tokenizers
)
_HOSTILE = (
    "{answer}",
    "{f0}",
    "<|VIRTUAL_PROMPT_0|>",
    "<|end|>",
    "<|start|>",
    "<|",
    "end|>",
    "{",
    "}}",
    " ",
    "   ",
    "\n",
    "\t",
    "😀",
    "🦊",
    "é",
    "the year 1987",
    "nobody",
)


@dataclass(frozen=True)
class Case:
    """A task with values for all its fields."""

    template: Template
    rules: SequenceRules
    fields: Mapping[str, str]

    @property
    def inputs(self) -> dict[str, str]:
        return {name: self.fields[name] for name in self.template.input_fields}

    def renderer(self, tokenizer: Tokenizer) -> Renderer:
        return Renderer(self.template, tokenizer, self.rules)


_VALUES = st.lists(st.sampled_from(_HOSTILE) | st.text(max_size=4), max_size=5).map("".join)


@st.composite
def cases(draw: st.DrawFn, *, truncate: bool = False, bare: bool = False) -> Case:
    """A template of up to eight segments before the answer, and hostile values.

    Args:
        draw: of hypothesis.
        truncate: whether the template has a field that may be cut.
        bare: whether sequences have neither BOS nor EOS.
    """
    kinds = draw(st.lists(st.sampled_from(("text", "field", "virtual")), max_size=7))
    kinds.insert(draw(st.integers(0, len(kinds))), "virtual")
    if truncate:
        kinds.insert(draw(st.integers(0, len(kinds))), "field")
    pieces: list[str] = []
    splits: list[int] = []
    for kind in kinds:
        if kind == "text":
            text = draw(st.sampled_from(_TEXTS))
            pieces.append(text.replace("{", "{{").replace("}", "}}"))
        elif kind == "field":
            pieces.append(f"{{f{draw(st.integers(0, 2))}}}")
        else:
            pieces.append(f"<|VIRTUAL_PROMPT_{len(splits)}|>")
            splits.append(draw(st.integers(1, 4)))
    pieces.append(draw(st.sampled_from(("", " ", "\nAnswer: "))) + "{answer}")
    task = TaskConfig(
        taskname="t",
        prompt_template="".join(pieces),
        total_virtual_tokens=sum(splits),
        virtual_token_splits=tuple(splits),
        whitespace=draw(st.sampled_from(("keep", "nemo", "transformers"))),
    )
    template = parse_template(task)
    if truncate:
        cut = draw(st.sampled_from(template.input_fields))
        template = parse_template(replace(task, truncate_field=cut))
    rules = SequenceRules(
        None if bare else draw(st.sampled_from((None, 0))),
        None if bare else draw(st.sampled_from((None, 1))),
    )
    fields = {name: draw(_VALUES) for name in template.fields}
    if truncate:  # most cuts meet a character of several tokens
        fields[cut] += draw(st.sampled_from(("", "🦊", "a🦊🦊", "ࠀࠀ", "🦊 the year")))
    return Case(template, rules, fields)


class _ImpatientTokenizer(Tokenizer):
    """Encodes 300 times between two resets and no more, so that nothing can go on for ever."""

    n_encoded = 0

    def encode(self, text: str, *, opens: bool, markup: bool) -> list[int]:
        self.n_encoded += 1
        assert self.n_encoded <= 300, "the same text is cut again and again"
        return super().encode(text, opens=opens, markup=markup)


@pytest.fixture(scope="module", params=["byte level", "prepend", "first"])
def tokenizer(tiny_bases: dict[str, Path], request: pytest.FixtureRequest) -> Tokenizer:
    if request.param == "byte level":
        return Tokenizer.from_folder(tiny_bases["llama"])
    control = [
        {"content": "[INST]", "special": True},
        {"content": "[USER]", "rstrip": True},
    ]
    return Tokenizer(byte_fallback_tokenizer(request.param, control))


@pytest.fixture(scope="module")
def impatient(tokenizer: Tokenizer) -> _ImpatientTokenizer:
    return _ImpatientTokenizer(tokenizer.text)


def _same(one: Rendered, other: Rendered, length: int) -> bool:
    """Whether two sequences agree in their first `length` tokens."""
    return bool(
        np.array_equal(one.token_ids[:length], other.token_ids[:length])
        and np.array_equal(one.virtual_rows[:length], other.virtual_rows[:length])
    )


# Rendering


@ALWAYS_THE_SAME
@given(case=cases())
def test_a_served_prompt_is_the_training_example_cut_at_the_answer(
    tokenizer: Tokenizer, case: Case
) -> None:
    renderer = case.renderer(tokenizer)

    served = renderer.prompt(case.inputs)
    trained = renderer.example(case.fields)

    assert served.answer_start == len(served) == trained.answer_start
    assert _same(served, trained, len(served))


@ALWAYS_THE_SAME
@given(case=cases())
def test_answers_are_what_training_examples_end_in(tokenizer: Tokenizer, case: Case) -> None:
    renderer = case.renderer(tokenizer)

    trained = renderer.example(case.fields)
    answers = renderer.answers(case.inputs, [case.fields["answer"], "other"])

    assert answers[0] == trained.token_ids[trained.answer_start :].tolist()


@ALWAYS_THE_SAME
@given(case=cases())
def test_what_a_shorter_template_is_served_as_opens_the_training_example(
    tokenizer: Tokenizer, case: Case
) -> None:
    trained = case.renderer(tokenizer).example(case.fields)

    for index, following in enumerate(case.template.segments):
        if case.template.task.whitespace == "nemo" and isinstance(following, Virtual):
            continue  # it takes white space off the segment before it
        head = case.template.segments[:index]
        shorter = Template(case.template.task, (*head, Field("answer")), "answer")
        fields = {name: case.fields[name] for name in shorter.input_fields}
        served = Renderer(shorter, tokenizer, case.rules).prompt(fields)
        assert _same(served, trained, len(served)), head


@ALWAYS_THE_SAME
@given(case=cases())
def test_virtual_rows_come_once_each_and_in_order_whatever_the_fields_say(
    tokenizer: Tokenizer, case: Case
) -> None:
    trained = case.renderer(tokenizer).example(case.fields)

    rows = trained.virtual_rows[trained.virtual_rows >= 0]
    assert rows.tolist() == list(range(case.template.task.total_virtual_tokens))
    assert not trained.token_ids[trained.virtual_rows >= 0].any()


@ALWAYS_THE_SAME
@given(case=cases(bare=True))
def test_no_special_token_comes_out_of_a_field(tokenizer: Tokenizer, case: Case) -> None:
    trained = case.renderer(tokenizer).example(case.fields)

    assert not np.isin(trained.token_ids[trained.virtual_rows < 0], (0, 1)).any()


@ALWAYS_THE_SAME
@given(case=cases())
def test_without_virtual_tokens_exactly_the_real_ones_remain(
    tokenizer: Tokenizer, case: Case
) -> None:
    trained = case.renderer(tokenizer).example(case.fields)

    bare = trained.without_virtual()

    total = case.template.task.total_virtual_tokens
    assert len(bare) == len(trained) - total
    assert bare.answer_start == trained.answer_start - total
    assert (bare.virtual_rows == -1).all()
    assert (trained.input_ids(500) >= 500).sum() == total


@ALWAYS_THE_SAME
@given(case=cases(truncate=True), share=st.floats(0, 1))
def test_what_is_fitted_fits_keeps_its_ends_and_is_never_cut_for_ever(
    impatient: _ImpatientTokenizer, case: Case, share: float
) -> None:
    renderer = case.renderer(impatient)
    impatient.n_encoded = 0
    room = round(share * len(renderer.example(case.fields)))

    try:
        fitted = renderer.example(case.fields, max_length=room)
    except TooLongError:
        return

    assert len(fitted) <= room
    rows = fitted.virtual_rows[fitted.virtual_rows >= 0]
    assert rows.tolist() == list(range(case.template.task.total_virtual_tokens))
    if case.rules.bos_id is not None:
        assert fitted.token_ids[0] == case.rules.bos_id
    if case.rules.eos_id is not None:
        assert fitted.token_ids[-1] == case.rules.eos_id


@ALWAYS_THE_SAME
@given(case=cases(truncate=True), too_many=st.integers(1, 12))
def test_a_cut_example_is_the_one_of_a_field_that_ended_earlier(
    tokenizer: Tokenizer, impatient: _ImpatientTokenizer, case: Case, too_many: int
) -> None:
    renderer = case.renderer(tokenizer)
    whole = renderer.example(case.fields)
    name = case.template.task.truncate_field or ""
    value = case.fields[name]
    impatient.n_encoded = 0

    try:
        fitted = case.renderer(impatient).example(case.fields, max_length=len(whole) - too_many)
    except TooLongError:
        return

    shorter = (
        renderer.example({**case.fields, name: value[:length]}) for length in range(len(value))
    )
    assert any(len(fitted) == len(other) and _same(fitted, other, len(other)) for other in shorter)


# Round trips

_NAMES = st.text(string.ascii_letters + string.digits + "_-", min_size=1, max_size=12).filter(
    lambda name: not name.startswith(("-", "__"))
)
_IDS = st.none() | st.integers(0, 1000)
_CHOICES = st.lists(
    st.text(min_size=1, max_size=6).filter(lambda text: text.strip() == text),
    max_size=3,
    unique=True,
).map(tuple)
_SPLITS = st.lists(st.integers(1, 5), min_size=1, max_size=3).map(tuple)


@st.composite
def _some_tasks(draw: st.DrawFn) -> TaskConfig:
    """Any names and texts that a template can hold."""
    splits = draw(_SPLITS)
    markers = "".join(f"<|VIRTUAL_PROMPT_{index}|>" for index in range(len(splits)))
    text = draw(st.text(max_size=20)).replace("{", "{{").replace("}", "}}")
    field = draw(st.text(string.printable, min_size=1, max_size=5).filter(_may_name_a_field))
    return TaskConfig(
        taskname=draw(_NAMES),
        prompt_template=f"{markers}{text.replace('<|', '< |')}{{{field}}} {{answer}}",
        total_virtual_tokens=sum(splits),
        virtual_token_splits=splits,
        truncate_field=draw(st.sampled_from((None, field))),
        answer_field=draw(st.sampled_from((None, "answer"))),
        answer_only_loss=draw(st.booleans()),
        choices=draw(_CHOICES),
        whitespace=draw(st.sampled_from(("keep", "nemo", "transformers"))),
        init_text=draw(st.none() | st.text(max_size=9)),
    )


def _may_name_a_field(text: str) -> bool:
    return bool(text.strip()) and not set(text) & set("{}") and text != "answer"


_TASKS = _some_tasks()
_FLOATS = st.floats(1e-6, 0.99)
_BASES = st.builds(
    BaseIdentity,
    name=st.text(max_size=9),
    fingerprint=st.text("0123456789abcdef", min_size=4, max_size=8),
    hidden=st.integers(1, 7),
    vocab=st.integers(1001, 2000),
)


@st.composite
def tables(draw: st.DrawFn) -> PromptTable:
    """Up to three tasks of different virtual-token counts, their rows any finite bits."""
    base = draw(_BASES)
    entries = {}
    for task in draw(st.lists(_TASKS, min_size=1, max_size=3, unique_by=lambda t: t.taskname)):
        size = task.total_virtual_tokens * base.hidden
        numbers = draw(
            st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1)
        )
        rows = np.resize(np.asarray(numbers, np.float32), size).reshape(-1, base.hidden)
        entries[task.taskname] = TaskEntry(
            task, rows, SequenceRules(draw(_IDS), draw(_IDS)), draw(_NAMES)
        )
    return PromptTable(base, entries)


@settings(ALWAYS_THE_SAME, max_examples=50)
@given(table=tables())
def test_a_prompt_table_comes_back_bit_for_bit(
    tmp_path_factory: pytest.TempPathFactory, table: PromptTable
) -> None:
    path = tmp_path_factory.getbasetemp() / "round-trip.safetensors"

    write_prompt_table(table, path)
    back = read_prompt_table(path)

    assert back.base == table.base
    assert list(back.entries) == list(table.entries)
    for name, entry in table.entries.items():
        read = back.entries[name]
        assert read.rows.tobytes() == entry.rows.tobytes()
        assert read.rows.shape == entry.rows.shape
        assert (read.task, read.rules, read.method) == (entry.task, entry.rules, entry.method)


@ALWAYS_THE_SAME
@given(
    manifest=st.builds(
        Manifest,
        base=_BASES,
        target=_NAMES,
        graph=st.builds(
            GraphContract,
            layers=st.integers(1, 9),
            kv_heads=st.integers(1, 9),
            head_dim=st.integers(1, 9),
            hidden=st.integers(1, 9),
            vocab=st.integers(1, 9),
            capacity=st.integers(1, 9),
            prompts=st.sampled_from(("input", "baked")),
            baked_tasks=st.lists(_NAMES, max_size=3).map(tuple),
        ),
        tasks=st.lists(_NAMES, min_size=1, max_size=3, unique=True).map(tuple),
        toolchain=st.dictionaries(st.text(max_size=5), st.text(max_size=5), max_size=3),
        parity=st.sampled_from(("passed", "failed", "not measured")),
    )
)
def test_a_manifest_comes_back_from_json(manifest: Manifest) -> None:
    text = json.dumps(plain_from_config(manifest))

    assert build(Manifest, node_from_plain(json.loads(text), "x"), doing="reading") == manifest


@ALWAYS_THE_SAME
@given(
    config=st.builds(
        TrainConfig,
        base=st.text(max_size=9),
        tasks=st.lists(_TASKS, min_size=1, max_size=2, unique_by=lambda task: task.taskname).map(
            tuple
        ),
        data=st.builds(
            DataConfig,
            train=st.lists(_NAMES.map(Path), min_size=1, max_size=2).map(tuple),
            max_seq_length=st.none() | st.integers(2, 99),
            add_bos=st.booleans(),
        ),
        trainer=st.builds(
            TrainerConfig,
            max_epochs=st.none() | st.integers(1, 9),
            max_steps=st.integers(1, 9),
            val_check_interval=st.integers(1, 9) | st.floats(0.01, 1),
        ),
        p_tuning=st.builds(PTuningConfig, dropout=_FLOATS),
        optim=st.builds(
            OptimConfig,
            lr=st.none() | _FLOATS,
            betas=st.tuples(_FLOATS, _FLOATS),
            sched=st.builds(ScheduleConfig, warmup_steps=st.none() | st.integers(0, 9)),
        ),
        existing_table=st.none() | _NAMES.map(Path),
        seed=st.integers(0, 99),
    )
)
def test_a_training_config_comes_back_from_json(config: TrainConfig) -> None:
    text = json.dumps(plain_from_config(config))

    assert build(TrainConfig, node_from_plain(json.loads(text), "x"), doing="reading") == config


def test_the_generated_templates_hold_what_they_claim_to() -> None:
    seen: set[type] = set()

    @ALWAYS_THE_SAME
    @given(case=cases(truncate=True))
    def collect(case: Case) -> None:
        seen.update(type(segment) for segment in case.template.segments)
        assert any(isinstance(segment, Virtual) for segment in case.template.segments)
        assert case.template.task.truncate_field in case.template.input_fields

    collect()

    assert len(seen) == 3
