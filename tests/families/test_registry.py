"""What a family must say, and what is said to who leaves it out."""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import pytest
from transformers import CONFIG_MAPPING

from pl_compile.families.blocks import Blocks, V
from pl_compile.families.family import Family
from pl_compile.families.gpt2 import GPT2
from pl_compile.families.llama import LLAMA
from pl_compile.families.registry import FAMILIES, registered
from pl_compile.families.settings import Settings
from pl_compile.families.weights import Cut, Weight
from pl_compile.training.frozen.layers import FAST
from pl_compile.weights.listed import weights_of
from pl_compile.weights.open_base import open_base


@dataclass(frozen=True)
class Own:
    """What a family may have of its own, under a name that is taken."""

    hidden: int


def refusal(*families: Family) -> str:
    with pytest.raises(ValueError, match="registering the family") as error:
        registered(*families)
    return str(error.value)


def test_a_family_that_says_nothing_of_some_things_is_refused_with_all_of_them() -> None:
    incomplete = replace(LLAMA, title="", embedding="", tiny={}, attention_options=frozenset())

    assert refusal(GPT2, incomplete) == (
        "registering the family 'llama': it says nothing of 'title'; it says nothing of "
        "'embedding'; it says nothing of 'attention_options'; it says nothing of 'tiny'"
    )


def test_a_field_that_is_left_out_is_named() -> None:
    with pytest.raises(TypeError, match="missing 1 required keyword-only argument: 'weights'"):
        Family(**{name: value for name, value in vars(LLAMA).items() if name != "weights"})


def tiny_settings() -> Settings:
    return Settings({**LLAMA.tiny, "vocab_size": 397}, "reading a tiny base")


def without_sums(b: Blocks[V]) -> V:
    """Names all that Llama's does, but for the sums over ranks."""
    x = b.embedding()
    for i in range(b.config.layers):
        layer = b.layer(i)
        for name in ("attention_norm", "mlp_norm"):
            x = layer.rms_norm(x, name)
        for name in ("attention.q", "attention.k", "attention.v", "attention.o"):
            x = layer.linear(x, name)
        for name in ("mlp.gate", "mlp.up", "mlp.down"):
            x = layer.linear(x, name)
    return b.head(b.rms_norm(x, "final_norm"))


def without_last_norm(b: Blocks[V]) -> V:
    """Llama's, but for the norm before the head."""

    class Whole:
        def __getattr__(self, name: str) -> Any:
            return getattr(b, name)

        def rms_norm(self, x: V, name: str) -> V:
            return x

    return LLAMA.definition(cast(Blocks[V], Whole()))


def with_another_norm(b: Blocks[V]) -> V:
    return b.rms_norm(LLAMA.definition(b), "second_norm")


def divided_norm(weight: Weight) -> Weight:
    return replace(weight, cut=Cut(-1, "ffn")) if weight.name.startswith("final_") else weight


def on_every_rank(weight: Weight) -> Weight:
    return replace(weight, cut=None) if ".attention.o." in weight.name else weight


DIVIDED_BIAS = Weight("layers.1.mlp.down.bias", (24,), "x", cut=Cut(-1, "ffn"))

WRONG: dict[str, tuple[Callable[[Family], Family], str]] = {
    "a size of tests that its config does not know": (
        lambda family: replace(family, tiny={**family.tiny, "n_layer": 3}),
        "its tiny base has 'n_layer', which is not one of its keys",
    ),
    "no class": (
        lambda family: replace(family, keys=replace(family.keys, architectures=())),
        "its keys name no class of 'architectures'",
    ),
    "a weight twice": (
        lambda family: replace(
            family,
            weights=lambda config: [*LLAMA.weights(config), *list(LLAMA.weights(config))[:1]],
        ),
        "it has the weight 'layers.0.attention_norm.weight' twice",
    ),
    "another's reader": (
        lambda family: replace(family, name="lama"),
        "its bases are read as those of 'llama'",
    ),
    "a number of its own with the name of another": (
        lambda family: replace(
            family,
            read=lambda hf: replace(LLAMA.read(hf), own=Own(hidden=3)),
            weights=lambda config: LLAMA.weights(LLAMA.read(tiny_settings())),
        ),
        "its own 'hidden' is a field of DecoderConfig too",
    ),
    "rows that are divided, and terms that nothing adds up": (
        lambda family: replace(family, definition=without_sums),
        "ranks divide the rows of 'layers.0.attention.o', which is not row_parallel; ranks divide "
        "the rows of 'layers.0.mlp.down', which is not row_parallel; ranks divide the rows of "
        "'layers.1.attention.o', which is not row_parallel; ranks divide the rows of "
        "'layers.1.mlp.down', which is not row_parallel",
    ),
    "whole products that are added up": (
        lambda family: replace(
            family, weights=lambda config: map(on_every_rank, LLAMA.weights(config))
        ),
        "'layers.0.attention.o' is row_parallel, and ranks do not divide its rows; "
        "'layers.1.attention.o' is row_parallel, and ranks do not divide its rows",
    ),
    "a bias that each rank would add": (
        lambda family: replace(
            family, weights=lambda config: [*LLAMA.weights(config), DIVIDED_BIAS]
        ),
        "'layers.1.mlp.down' is row_parallel, and ranks divide its bias",
    ),
    "a key that changes nothing": (
        lambda family: replace(
            family, keys=replace(family.keys, read=family.keys.read | {"a_window"})
        ),
        "its key 'a_window' is never read",
    ),
    "a weight that changes nothing": (
        lambda family: replace(family, definition=without_last_norm),
        "its definition does not use 'final_norm'",
    ),
    "a weight that is not there": (
        lambda family: replace(family, definition=with_another_norm),
        "it has no weight for 'second_norm'",
    ),
    "a norm of a part": (
        lambda family: replace(
            family, weights=lambda config: map(divided_norm, LLAMA.weights(config))
        ),
        "ranks divide the norm 'final_norm', and each would norm its own part",
    ),
    "a name without the prefix": (
        lambda family: replace(family, embedding="embed_tokens.weight"),
        "'embed_tokens.weight' does not begin with 'model.'",
    ),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_family_that_contradicts_itself_is_refused(wrong: str) -> None:
    change, said = WRONG[wrong]

    assert refusal(change(LLAMA)).endswith(f"': {said}")


def test_two_families_of_one_name_are_refused() -> None:
    assert refusal(LLAMA, GPT2, LLAMA) == (
        "registering the family 'llama': another one has this name"
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_has_the_name_and_the_sizes_of_its_class_in_transformers(family: str) -> None:
    config = CONFIG_MAPPING[family](**FAMILIES[family].tiny)

    assert config.model_type == family
    for key, value in FAMILIES[family].tiny.items():
        assert getattr(config, key) == value


@pytest.mark.parametrize("family", FAMILIES)
def test_what_training_may_replace_has_a_function_there(family: str) -> None:
    assert {*FAMILIES[family].fast_layers.values()} <= FAST.keys()


@pytest.mark.parametrize("family", FAMILIES)
def test_every_tensor_of_a_base_is_one_of_its_familys_weights(
    tiny_bases: dict[str, Path], family: str
) -> None:
    checkpoint, config = open_base(tiny_bases[family])

    assert {weight.stored for weight in weights_of(config).values()} == {*checkpoint.names}


def test_families_import_nothing_heavy() -> None:
    code = (
        "import pl_compile.families.registry, pl_compile.families.read, sys; print([m for m in "
        "('torch', 'transformers', 'onnx', 'onnx_ir', 'onnxruntime') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout == "[]\n"
