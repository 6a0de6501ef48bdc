import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import save
from safetensors.torch import save_file as torch_save

from pl_compile.artifact.prompt_table import BaseIdentity, PromptTable, TaskEntry
from pl_compile.config.decoder import DecoderConfig
from pl_compile.config.task import TaskConfig
from pl_compile.errors import ArtifactError
from pl_compile.importers.peft import read_peft_adapter, write_peft_adapter
from pl_compile.text.render import SequenceRules

VIRTUAL, HIDDEN = 3, 6
BASE = BaseIdentity("tiny", "5eed" * 16, HIDDEN, 397)
CONFIG = DecoderConfig(
    "llama",
    layers=2,
    hidden=HIDDEN,
    heads=6,
    kv_heads=3,
    head_dim=4,
    ffn=5,
    vocab=397,
    positions=9,
    norm_eps=1e-6,
    tied=True,
)
TASK = TaskConfig("mood", "<|VIRTUAL_PROMPT_0|>{text} is {label}", VIRTUAL)
ROWS = np.arange(VIRTUAL * HIDDEN, dtype=np.float32).reshape(VIRTUAL, HIDDEN)
PREFIX = np.arange(2 * 2 * 3 * VIRTUAL * 4, dtype=np.float32).reshape(2, 2, 3, VIRTUAL, 4)
WRITTEN = {
    "peft_type": "PROMPT_TUNING",
    "task_type": "CAUSAL_LM",
    "num_virtual_tokens": VIRTUAL,
    "base_model_name_or_path": "tiny",
}


def table(*, bos_id: int | None = None, **changes: Any) -> PromptTable:
    rules = SequenceRules(bos_id, 1)
    entry = replace(TaskEntry(TASK, ROWS, rules, "prompt-tuning"), **changes)
    return PromptTable(BASE, {"mood": entry})


def adapter(
    folder: Path, rows: NDArray[Any] = ROWS, name: str = "prompt_embeddings", **config: Any
) -> Path:
    folder.mkdir()
    text = json.dumps({**WRITTEN, **config})
    (folder / "adapter_config.json").write_text(text, encoding="utf-8")
    (folder / "adapter_model.safetensors").write_bytes(save({name: rows}, {"format": "pt"}))
    return folder


def refusal(folder: Path) -> str:
    with pytest.raises(ArtifactError) as error:
        read_peft_adapter(folder)
    return str(error.value).removeprefix(f"reading the PEFT adapter {folder}: ")


# Writing


def test_rows_are_written_as_they_are(tmp_path: Path) -> None:
    write_peft_adapter(table(), "mood", tmp_path / "new" / "a", "smollm")

    config = json.loads((tmp_path / "new/a/adapter_config.json").read_text())
    with safe_open(tmp_path / "new/a/adapter_model.safetensors", framework="numpy") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        assert file.metadata() == {"format": "pt"}
    assert config["peft_type"] == "PROMPT_TUNING"
    assert config["base_model_name_or_path"] == "smollm"
    assert (config["num_virtual_tokens"], config["token_dim"]) == (VIRTUAL, HIDDEN)
    assert list(tensors) == ["prompt_embeddings"]
    assert tensors["prompt_embeddings"].tobytes() == ROWS.tobytes()


def test_a_prefix_is_written_token_by_token_and_read_back(tmp_path: Path) -> None:
    written = table(rows=ROWS[:0], prefix_kv=PREFIX)

    write_peft_adapter(written, "mood", tmp_path / "a", "tiny")
    read = read_peft_adapter(tmp_path / "a")

    config = json.loads((tmp_path / "a/adapter_config.json").read_text())
    assert config["peft_type"] == "PREFIX_TUNING"
    assert (config["num_layers"], config["num_attention_heads"], config["token_dim"]) == (2, 3, 12)
    # Token 1: the keys of layer 0, head by head, come first.
    assert read.embeddings[1, :8].tolist() == [*PREFIX[0, 0, 0, 1], *PREFIX[0, 0, 1, 1]]
    assert read.learned(CONFIG).tolist() == PREFIX.tolist()


@pytest.mark.parametrize(
    "changes",
    [
        {"prompt_template": "Q: <|VIRTUAL_PROMPT_0|>{text} {label}"},
        {"prompt_template": "{text}<|VIRTUAL_PROMPT_0|> {label}"},
        {
            "prompt_template": "<|VIRTUAL_PROMPT_0|>{text}<|VIRTUAL_PROMPT_1|> {label}",
            "virtual_token_splits": (1, 2),
        },
    ],
)
def test_virtual_tokens_elsewhere_than_in_front_are_refused(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    with pytest.raises(ArtifactError) as error:
        write_peft_adapter(table(task=replace(TASK, **changes)), "mood", tmp_path / "a", "tiny")

    assert str(error.value) == (
        "writing task 'mood' for PEFT: a template that does not open with all of its virtual "
        "tokens; expected all of them before everything else: PEFT can put them nowhere else."
    )
    assert not (tmp_path / "a").exists()


def test_rows_after_a_bos_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="a BOS before the virtual tokens"):
        write_peft_adapter(table(bos_id=0), "mood", tmp_path / "a", "tiny")


def test_an_unknown_task_is_named(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="Did you mean 'mood'"):
        write_peft_adapter(table(), "mod", tmp_path / "a", "tiny")


def test_an_adapter_of_ours_is_replaced_and_another_folder_is_not(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    write_peft_adapter(table(), "mood", folder, "old")
    write_peft_adapter(table(), "mood", folder, "new")
    assert read_peft_adapter(folder).base == "new"

    (folder / "README.md").write_text("mine")
    with pytest.raises(ArtifactError, match="a folder with other things in it"):
        write_peft_adapter(table(), "mood", folder, "newer")
    assert read_peft_adapter(folder).base == "new"


# Reading


@pytest.mark.parametrize("kind", [np.float16, np.float64, ml_dtypes.bfloat16])
def test_rows_of_other_precisions_become_float32(tmp_path: Path, kind: Any) -> None:
    read = read_peft_adapter(adapter(tmp_path / "a", (ROWS / 4).astype(kind)))

    assert read.learned(CONFIG).dtype == np.float32
    assert read.learned(CONFIG).tolist() == (ROWS / 4).tolist()


@pytest.mark.parametrize(
    ("peft_type", "method"), [("PROMPT_TUNING", "prompt-tuning"), ("P_TUNING", "p-tuning")]
)
def test_the_method_and_the_base_are_told(tmp_path: Path, peft_type: str, method: str) -> None:
    read = read_peft_adapter(adapter(tmp_path / "a", peft_type=peft_type))

    assert (read.method, read.base, read.virtual) == (method, "tiny", VIRTUAL)


@pytest.mark.parametrize(
    ("kind", "name"),
    [(np.int8, "I8"), (np.uint8, "U8"), (np.int64, "I64"), (np.bool_, "BOOL")],
)
def test_rows_that_are_codes_are_refused(tmp_path: Path, kind: Any, name: str) -> None:
    text = refusal(adapter(tmp_path / "a", ROWS.astype(kind)))

    assert f"'prompt_embeddings' of {name}; expected floats of 16 bits or more" in text


def test_rows_of_8_bits_are_refused_by_their_name(tmp_path: Path) -> None:
    folder = adapter(tmp_path / "a")
    rows = torch.from_numpy(ROWS).to(torch.float8_e4m3fn)
    torch_save({"prompt_embeddings": rows}, folder / "adapter_model.safetensors")

    text = refusal(folder)

    assert "'prompt_embeddings' of F8_E4M3; expected floats of 16 bits or more" in text


@pytest.mark.parametrize("number", [np.nan, np.inf, 1e300])
def test_rows_that_are_not_finite_in_float32_are_refused(tmp_path: Path, number: float) -> None:
    rows = ROWS.astype(np.float64)
    rows[1, 2] = number

    assert "with numbers that are not finite" in refusal(adapter(tmp_path / "a", rows))


def test_true_is_no_number_of_virtual_tokens(tmp_path: Path) -> None:
    folder = adapter(tmp_path / "a", ROWS[:1], num_virtual_tokens=True)

    assert "num_virtual_tokens is True; expected a whole number, such as 1" in refusal(folder)


def test_an_adapter_may_name_no_base(tmp_path: Path) -> None:
    assert read_peft_adapter(adapter(tmp_path / "a", base_model_name_or_path=None)).base == ""


def test_rows_of_another_width_are_refused_with_both(tmp_path: Path) -> None:
    read = read_peft_adapter(adapter(tmp_path / "a", ROWS[:, :5].copy()))

    with pytest.raises(ArtifactError) as error:
        read.learned(CONFIG)

    assert str(error.value) == (
        "matching the adapter with the base: 5 numbers for a virtual token; "
        "expected 6: the base's width. Name the base that the adapter was trained on with --base."
    )


def test_a_prefix_of_another_base_is_refused(tmp_path: Path) -> None:
    write_peft_adapter(table(rows=ROWS[:0], prefix_kv=PREFIX), "mood", tmp_path / "a", "tiny")

    with pytest.raises(ArtifactError, match=r"48 numbers .*; expected 72: layers \* 2 \* kv_heads"):
        read_peft_adapter(tmp_path / "a").learned(replace(CONFIG, layers=3))


@pytest.mark.parametrize(
    "said",
    [
        {"num_layers": 3},
        {"num_attention_heads": 4},
        {"token_dim": 13},
        {"num_layers": "2"},
        {"num_layers": [2]},
    ],
)
def test_rows_whose_base_had_other_sizes_are_refused(tmp_path: Path, said: dict[str, Any]) -> None:
    read = read_peft_adapter(adapter(tmp_path / "a", **said))

    [(name, value)] = said.items()
    with pytest.raises(
        ArtifactError, match=f"says {name} {re.escape(repr(value))}, and the base"
    ) as error:
        read.learned(CONFIG)

    assert str(error.value).endswith("Name the base that the adapter was trained on with --base.")


def test_sizes_that_are_those_of_the_base_or_are_left_out_are_taken(tmp_path: Path) -> None:
    sizes: dict[str, Any] = {"num_layers": 2, "num_attention_heads": 6, "token_dim": HIDDEN}
    read = read_peft_adapter(adapter(tmp_path / "a", **sizes))
    assert read.learned(CONFIG).tolist() == ROWS.tolist()

    sizes["num_attention_heads"] = CONFIG.kv_heads  # as some releases count grouped heads
    assert read_peft_adapter(adapter(tmp_path / "c", **sizes)).learned(CONFIG).shape == (3, 6)

    unknown: dict[str, Any] = dict.fromkeys(sizes)
    assert read_peft_adapter(adapter(tmp_path / "b", **unknown)).learned(CONFIG).shape == (3, 6)


def test_a_prefix_of_other_heads_is_refused_though_it_has_as_many_numbers(tmp_path: Path) -> None:
    write_peft_adapter(table(rows=ROWS[:0], prefix_kv=PREFIX), "mood", tmp_path / "a", "tiny")

    other = replace(CONFIG, layers=1, kv_heads=6)
    with pytest.raises(ArtifactError, match="num_layers 2, and the base has 1") as error:
        read_peft_adapter(tmp_path / "a").learned(other)

    assert "num_attention_heads 3, and the base has 6" in str(error.value)


def test_a_lora_is_refused_with_what_makes_a_base_of_it(tmp_path: Path) -> None:
    assert "merge_and_unload()" in refusal(adapter(tmp_path / "a", peft_type="LORA"))


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"peft_type": "LORA"}, "peft_type is 'LORA', and only PROMPT_TUNING, P_TUNING, PREFIX"),
        ({"peft_type": "MULTITASK_PROMPT_TUNING"}, "peft_type is 'MULTITASK_PROMPT_TUNING'"),
        ({"peft_type": ["LORA"]}, "peft_type is ['LORA']"),
        ({"task_type": "SEQ_2_SEQ_LM"}, "task_type is 'SEQ_2_SEQ_LM', and only 'CAUSAL_LM'"),
        ({"task_type": None}, "task_type is None"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save: the adapter changes the base"),
        (
            {"num_virtual_tokens": "3"},
            "num_virtual_tokens is '3'; expected a whole number, such as 3",
        ),
        ({"num_virtual_tokens": True}, "num_virtual_tokens is True"),
        ({"num_virtual_tokens": 4}, "'prompt_embeddings' of shape (3, 6); expected num_virtual"),
        ({"rows": np.zeros((3, 2, 3), np.float32)}, "'prompt_embeddings' of shape (3, 2, 3)"),
        ({"name": "lm_head.weight"}, "tensors lm_head.weight; expected 'prompt_embeddings' alone"),
    ],
)
def test_what_is_no_prompt_of_one_task_is_refused(
    tmp_path: Path, changes: dict[str, Any], found: str
) -> None:
    assert refusal(adapter(tmp_path / "a", **changes)).startswith(found)


def test_a_pickle_is_refused_by_name_unless_somebody_reads_it(tmp_path: Path) -> None:
    folder = adapter(tmp_path / "a")
    (folder / "adapter_model.safetensors").unlink()
    (folder / "adapter_model.bin").write_bytes(b"\x80\x04")

    assert refusal(folder) == (
        "adapter_model.bin, a pickle; expected adapter_model.safetensors. "
        "Save the adapter again with safetensors, or give --allow-pickle."
    )
    read = read_peft_adapter(folder, unpickle=lambda path: {"prompt_embeddings": ROWS})
    assert read.learned(CONFIG).tolist() == ROWS.tolist()


def test_a_folder_that_is_no_adapter_is_refused(tmp_path: Path) -> None:
    assert refusal(tmp_path / "no").startswith("no adapter_config.json; expected a folder that")

    folder = adapter(tmp_path / "a")
    (folder / "adapter_model.safetensors").unlink()
    assert "No such file" in refusal(folder)


@pytest.mark.parametrize("text", ["", "{", "[]", "[" * 100_000, "\xff", '{"a": 1, "a": 2}', "NaN"])
def test_a_damaged_config_is_refused(tmp_path: Path, text: str) -> None:
    folder = adapter(tmp_path / "a")
    (folder / "adapter_config.json").write_text(text, encoding="latin-1")

    assert ", adapter_config.json: " in refusal(folder)


@pytest.mark.parametrize("n_bytes", [0, 9, -1])
def test_damaged_weights_are_refused(tmp_path: Path, n_bytes: int) -> None:
    path = adapter(tmp_path / "a") / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:n_bytes])

    assert refusal(tmp_path / "a").endswith("expected a safetensors file. Copy it again.")
