"""Data files and configs of strangers: JSON lines, delimited files, data sets, YAML.

The oracle is what was written: each row comes back as it was, or the file is refused.
"""

import csv
import io
import json
from pathlib import Path
from typing import Any

import yaml
from fuzzing import (
    VALUES,
    attempt,
    damaged,
    fresh,
    fuzzed,
    json_texts,
    places,
    spoiled,
    tiny_base,
    utf8,
)
from hypothesis import strategies as st

from pl_compile.config.read import build, node_from_plain
from pl_compile.config.task import TaskConfig
from pl_compile.config.train import TrainConfig
from pl_compile.errors import PlcError
from pl_compile.testing import TASKS, tiny_examples, tiny_train_config
from pl_compile.text.examples import Example, read_examples
from pl_compile.text.template import parse_templates
from pl_compile.training.prepare import (
    prepare_assistant,
    prepare_csv,
    prepare_phrasebank,
    prepare_squad,
)
from pl_compile.training.read_config import read_train_config

_TEMPLATES = parse_templates(
    [build(TaskConfig, node_from_plain(task, "TASKS"), doing="reading TASKS") for task in TASKS]
)
# Line ends of other kinds, blanks, quotes, and text of any script.
_TEXT = st.lists(
    st.sampled_from(("the year", ",", ";", "\t", '"', '""', "|", " ", "\u2028", "\x85", "é", "\\n"))
    | st.text(max_size=4).filter(lambda text: not any("\ud800" <= c <= "\udfff" for c in text)),
    min_size=1,
    max_size=4,
).map("".join)


def _written(name: str, data: bytes) -> Path:
    path = fresh("data") / name
    path.write_bytes(data)
    return path


# JSON lines


@st.composite
def json_lines(draw: st.DrawFn) -> str:
    """A data file with some wrong rows, as lines or as an array."""
    rows: list[Any] = list(tiny_examples(draw(st.integers(1, 4))))
    if draw(st.booleans()):
        return draw(json_texts(rows))
    lines = [draw(json_texts(row)) if draw(st.booleans()) else json.dumps(row) for row in rows]
    return draw(st.sampled_from(("\n", "\r\n", "\n\n", "\r"))).join(lines)


def _strict(text: str) -> Any:
    """JSON as it is written: of doubled keys all, of numbers their text."""
    return json.loads(
        text,
        object_pairs_hook=lambda pairs: dict(pairs) if len(dict(pairs)) == len(pairs) else pairs,
        parse_constant=lambda name: [name],
    )


def _check_examples(examples: list[Example], text: str) -> None:
    text = io.StringIO(text.removeprefix("\ufeff"), newline=None).read()  # all line ends are one
    if text.lstrip().startswith("["):
        expected = _strict(text)
    else:
        expected = [_strict(line) for line in text.split("\n") if line.strip()]
    assert [{"taskname": e.taskname, **e.fields} for e in examples] == expected


@fuzzed(150, text=json_lines())
def test_json_lines_are_read_as_they_are_written_or_refused(text: str) -> None:
    path = _written("rows.jsonl", utf8(text))

    found = attempt(lambda: read_examples([path], _TEMPLATES))

    if not isinstance(found, PlcError):
        _check_examples(found, text)


@st.composite
def line_bytes(draw: st.DrawFn) -> bytes:
    """A data file with wrong bytes."""
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in tiny_examples(3))
    return draw(damaged(text.encode()))


@fuzzed(100, data=line_bytes())
def test_wrong_bytes_of_json_lines_are_refused_or_text(data: bytes) -> None:
    path = _written("rows.jsonl", data)

    found = attempt(lambda: read_examples([path], _TEMPLATES))

    if not isinstance(found, PlcError):
        _check_examples(found, data.decode())


# Delimited files


@st.composite
def tables(draw: st.DrawFn) -> tuple[bytes, list[dict[str, str]], str]:
    """A delimited file as programs write it, its rows, and its delimiter's name."""
    names = draw(st.lists(st.sampled_from(("text", "label", "id", "né")), min_size=2, unique=True))
    rows = [
        {name: draw(_TEXT | st.just("")) for name in names} for _ in range(draw(st.integers(1, 4)))
    ]
    # An empty line at the end is no row: no program writes a row of nothing but delimiters so.
    delimiter, character = draw(
        st.sampled_from((("comma", ","), ("semicolon", ";"), ("tab", "\t")))
    )
    stream = io.StringIO()
    writer = csv.writer(
        stream,
        delimiter=character,
        quoting=draw(st.sampled_from((csv.QUOTE_MINIMAL, csv.QUOTE_ALL))),
        lineterminator=draw(st.sampled_from(("\n", "\r\n", "\r"))),
    )
    writer.writerow(names)
    writer.writerows(row.values() for row in rows)
    mark = draw(st.sampled_from((b"", b"\xef\xbb\xbf")))
    return mark + stream.getvalue().encode(), rows, delimiter


def _rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@fuzzed(150, table=tables(), named=st.booleans())
def test_each_row_of_a_delimited_file_comes_back(
    table: tuple[bytes, list[dict[str, str]], str], named: bool
) -> None:
    data, rows, delimiter = table
    path = _written("rows.csv", data)
    name = delimiter if named else None

    found = attempt(lambda: prepare_csv(path, path.parent, taskname="t", delimiter=name))

    if not isinstance(found, PlcError):
        assert _rows(path.parent / "rows.jsonl") == [{"taskname": "t", **row} for row in rows]


@st.composite
def table_bytes(draw: st.DrawFn) -> bytes:
    """A delimited file with wrong bytes."""
    return draw(damaged(b'text,label\nthe year,a\n"a ""quote"", and\nmore",b\nlast,c\n'))


@fuzzed(120, data=table_bytes())
def test_wrong_bytes_of_a_delimited_file_are_refused_or_rows(data: bytes) -> None:
    path = _written("rows.csv", data)

    found = attempt(lambda: prepare_csv(path, path.parent, taskname="t"))

    if not isinstance(found, PlcError):
        rows = _rows(path.parent / "rows.jsonl")
        assert len({tuple(row) for row in rows}) == 1


# Data sets


@st.composite
def squads(draw: st.DrawFn) -> str:
    """A file in SQuAD's form with wrong values."""
    answers = [{"text": "in 1987", "answer_start": 3}, {"text": "1987", "answer_start": 6}]
    qas = [
        {"id": "1", "question": "When was it cold?", "answers": answers, "is_impossible": False},
        {"id": "2", "question": "Why?", "answers": [], "is_impossible": True},
    ]
    paragraph = {"context": "It was in 1987.", "qas": qas}
    document = {"version": "v2.0", "data": [{"title": "Cold", "paragraphs": [paragraph]}]}
    return draw(json_texts(document))


@fuzzed(120, text=squads(), topic=st.booleans())
def test_squad_is_read_as_it_is_written_or_refused(text: str, topic: bool) -> None:
    folder = fresh("squad")
    for kind in ("train", "dev"):
        (folder / f"{kind}.json").write_bytes(utf8(text))

    found = attempt(lambda: prepare_squad(folder, folder / "out", include_topic=topic))

    if not isinstance(found, PlcError):
        for row in _rows(folder / "out" / "squad_test_ground_truth.jsonl"):
            values = [row["context"], row["question"], *row["answer"]]
            assert all(isinstance(value, str) for value in values)
            # ASCII escapes and plain characters are the same text.
            texts = json.dumps(json.loads(text.removeprefix("\ufeff")))
            assert all(json.dumps(value)[1:-1] in texts for value in values)


@fuzzed(80, data=damaged(b"The year was cold.@negative\r\nIt rose, x@y.com@positive\r\n"))
def test_phrases_are_read_or_refused(data: bytes) -> None:
    path = _written("Sentences_AllAgree.txt", data * 20)

    attempt(lambda: prepare_phrasebank(path, path.parent / "out"))


_ASSISTANT = (
    b"userid;answerid;scenario;intent;status;answer_annotation;notes\n"
    b'1;2;alarm;set;null;"wake me at [time : six] ; please";\n'
    b"1;3;alarm;set;null;call [who : the boss] now;x\n"
)


@fuzzed(80, data=damaged(_ASSISTANT))
def test_utterances_are_read_or_refused(data: bytes) -> None:
    fold = fresh("assistant") / "KFold_1"
    for part in ("trainset", "testset/csv"):
        (fold / part).mkdir(parents=True)
        (fold / part / "alarm_set.csv").write_bytes(data)

    attempt(lambda: prepare_assistant(fold, fold / "out", include_options=True))


# Configs of runs


@st.composite
def run_configs(draw: st.DrawFn) -> bytes:
    """A training config in YAML, with wrong values or bytes."""
    config = tiny_train_config(fresh("config"), tiny_base("llama"))
    if draw(st.integers(0, 3)) == 0:
        return draw(damaged(yaml.safe_dump(config).encode()))
    plain = draw(spoiled(config, VALUES | st.sampled_from(("fp32", "bf16", "cosine", 10))))
    text = yaml.safe_dump(plain, allow_unicode=draw(st.booleans()))
    return utf8(text)


@fuzzed(120, data=run_configs())
def test_a_config_of_a_run_is_read_or_refused(data: bytes) -> None:
    path = _written("run.yaml", data)

    found = attempt(lambda: read_train_config(path))

    assert isinstance(found, PlcError | TrainConfig)


_NEMO: dict[str, Any] = {
    "name": "run",
    "trainer": {
        "devices": 1,
        "precision": 16,
        "max_epochs": 3,
        "max_steps": -1,
        "val_check_interval": 1.0,
        "gradient_clip_val": 1.0,
    },
    "exp_manager": {
        "checkpoint_callback_params": {"monitor": "val_loss", "save_top_k": 2, "mode": "min"},
        "early_stopping_callback_params": {"monitor": "val_loss", "patience": 10},
    },
    "model": {
        "seed": 1234,
        "nemo_path": "${name}.nemo",
        "virtual_prompt_style": "p-tuning",
        "language_model_path": "tiny",
        "new_tasks": ["tone"],
        "task_templates": [
            {
                "taskname": "tone",
                "prompt_template": "<|VIRTUAL_PROMPT_0|> {sentence} sentiment:{label}",
                "total_virtual_tokens": 3,
                "virtual_token_splits": [3],
                "truncate_field": None,
                "answer_only_loss": True,
            }
        ],
        "p_tuning": {"encoder_type": "tpmlp", "dropout": 0.0, "num_layers": 2, "init_std": 0.02},
        "data": {
            "train_ds": ["train.jsonl"],
            "validation_ds": ["validation.jsonl"],
            "add_eos": True,
            "max_seq_length": 90,
            "shuffle": True,
        },
        "optim": {
            "name": "fused_adam",
            "lr": 0.0001,
            "weight_decay": 0.01,
            "betas": [0.9, 0.98],
            "sched": {"name": "CosineAnnealing", "warmup_steps": 50, "min_lr": 0.0},
        },
        "global_batch_size": 8,
        "micro_batch_size": 8,
    },
}


@st.composite
def nemo_configs(draw: st.DrawFn) -> bytes:
    """A config with NeMo's names, with wrong values."""
    names = st.sampled_from(
        ("${model.seed}", "${name}", "${", "${x.y}", "${multiply:2,4}", "ptuning")
    )
    return utf8(yaml.safe_dump(draw(spoiled(_NEMO, VALUES | names))))


@fuzzed(100, data=nemo_configs())
def test_a_config_with_names_of_nemo_is_read_or_refused(data: bytes) -> None:
    path = _written("run.yaml", data)

    found = attempt(lambda: read_train_config(path))

    assert isinstance(found, PlcError | TrainConfig)


@st.composite
def changes(draw: st.DrawFn) -> str:
    """What is given to `--set`: a key that there is, as a rule, and any value."""
    config = tiny_train_config(fresh("config"), tiny_base("llama"))
    keys = [".".join(map(str, place)) for place in places(config)]
    key = draw(st.sampled_from(keys) | st.text(max_size=4))
    value = draw(VALUES.map(json.dumps) | st.text(max_size=5))
    return key + draw(st.sampled_from(("=", "=", "=", "", "=="))) + value


@fuzzed(60, change=changes())
def test_a_setting_is_taken_or_refused(change: str) -> None:
    config = tiny_train_config(fresh("config"), tiny_base("llama"))
    path = _written("run.yaml", yaml.safe_dump(config).encode())

    found = attempt(lambda: read_train_config(path, [change]))

    assert isinstance(found, PlcError | TrainConfig)
