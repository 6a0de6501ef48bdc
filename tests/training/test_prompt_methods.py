"""The methods by themselves: sizes, initial rows, and that exported rows are the trained ones."""

from pathlib import Path
from typing import Any

import pytest
import torch

from pl_compile.config.read import build, node_from_plain
from pl_compile.config.train import TrainConfig
from pl_compile.testing import TASKS, tiny_train_config
from pl_compile.text.tokenizer import Tokenizer
from pl_compile.training.base_model import FrozenBase
from pl_compile.training.methods import METHODS, stacked_rows
from pl_compile.training.methods.p_tuning import LstmEncoder, PTuning
from pl_compile.training.methods.prompt_method import PromptMethod


@pytest.fixture(scope="module")
def base(tiny_bases: dict[str, Path]) -> FrozenBase:
    return FrozenBase(tiny_bases["llama"])


@pytest.fixture(scope="module")
def tokenizer(tiny_bases: dict[str, Path]) -> Tokenizer:
    return Tokenizer.from_folder(tiny_bases["llama"])


def build_method(
    folder: Path, base: FrozenBase, tokenizer: Tokenizer, **changes: Any
) -> PromptMethod:
    plain = tiny_train_config(folder, Path("unused"), **changes)
    config = build(TrainConfig, node_from_plain(plain, "test"), doing="test")
    return METHODS[config.virtual_prompt_style].build(config, config.tasks, base, tokenizer)


def test_a_text_shorter_than_the_prompt_is_repeated(
    base: FrozenBase, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    task = {**TASKS[0], "total_virtual_tokens": 7, "init_text": "abc"}
    ids = tokenizer.encode("abc", opens=True, markup=False)

    method = build_method(tmp_path, base, tokenizer, tasks=[task], prompt_tuning={"init": "text"})

    expected = base.embeddings_of(torch.tensor((ids * 7)[:7]))
    assert torch.equal(method.rows(0), expected)


def test_equal_seeds_start_from_equal_rows_and_others_do_not(
    base: FrozenBase, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    one, same, other = (
        build_method(tmp_path, base, tokenizer, seed=seed).rows(0) for seed in (1, 1, 2)
    )

    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_two_layer_lstm_encoder_has_the_published_size() -> None:
    encoder = LstmEncoder(hidden=768, inner=384, layers=2, dropout=0.0)

    method = PTuning(10, encoder, [torch.zeros(2, 768)])

    assert sum(p.numel() for p in method.parameters()) == 8_279_040


@pytest.mark.parametrize("encoder", ["mlp", "lstm"])
def test_rows_in_a_mixed_batch_are_the_rows_that_are_exported(
    base: FrozenBase, tokenizer: Tokenizer, tmp_path: Path, encoder: str
) -> None:
    long_name = "a_taskname_of_many_tokens"
    method = build_method(
        tmp_path,
        base,
        tokenizer,
        tasks=[TASKS[0], {**TASKS[0], "taskname": long_name}],
        virtual_prompt_style="p-tuning",
        p_tuning={"encoder_type": encoder},
    )

    in_batch = stacked_rows(method, torch.tensor([1, 0, 1]))

    assert torch.equal(in_batch[0], method.rows(1))
    assert torch.equal(in_batch[1], method.rows(0))
    assert not torch.equal(method.rows(0), method.rows(1))


def test_prompts_of_different_lengths_are_padded_with_zeros(
    base: FrozenBase, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    method = build_method(tmp_path, base, tokenizer)

    rows = stacked_rows(method, torch.tensor([0, 1]))

    assert rows.shape == (2, 5, 24)
    assert torch.equal(rows[0, 3:], torch.zeros(2, 24))
