"""The packed line against `transformers` itself, each row alone: the same losses and gradients."""

import dataclasses
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pl_compile.errors import BaseModelError
from pl_compile.families.registry import FAMILIES
from pl_compile.testing import assert_close
from pl_compile.text.render import Rendered
from pl_compile.training.base_model import FrozenBase
from pl_compile.training.data.dataset import TrainingSequence
from pl_compile.training.data.packing import pack
from pl_compile.training.frozen.attention import lay_out_attention, packed_attention
from pl_compile.training.soft_prompt import SoftPrompt

RELATIVE = 1e-5

# Rows of the prompts of tasks 0, 1 and 2.
VIRTUAL = (3, 5, 2)


def row(
    task: int, *parts: Sequence[int], answer: Sequence[int], whole: bool = False
) -> TrainingSequence:
    """A row of parts: real ids, or virtual rows where the part is a range."""
    ids: list[int] = []
    virtual: list[int] = []
    for part in (*parts, answer):
        is_virtual = isinstance(part, range)
        ids += [0] * len(part) if is_virtual else part
        virtual += part if is_virtual else [-1] * len(part)
    start = len(ids) - len(answer)
    rows = np.asarray(virtual, np.int64)
    in_loss = rows < 0 if whole else np.arange(len(ids)) >= start
    return TrainingSequence(task, Rendered(np.asarray(ids, np.int64), rows, start), in_loss)


def text(length: int, seed: int) -> list[int]:
    return [int(each) for each in np.random.default_rng(seed).integers(2, 390, length)]


V0, V1, V2 = (range(count) for count in VIRTUAL)
HEAD = text(17, 0)

BATCHES: dict[str, list[TrainingSequence]] = {
    "markers at the start": [
        row(0, V0, text(length, length), answer=text(2, 90 + length)) for length in (6, 5, 9)
    ],
    "markers after fields": [
        row(1, [7, 8], text(length, length), V1[:3], [9], text(2, length), V1[3:], answer=[5, 1])
        for length in (3, 8, 4)
    ],
    "several tasks in one batch": [
        row(1, [7, 8], text(4, 1), V1[:3], [9], V1[3:], answer=text(3, 2)),
        row(0, V0, text(30, 3), answer=[11, 1]),
        row(2, V2, text(1, 4), answer=text(9, 5)),
        row(0, V0, text(2, 6), answer=[12, 1]),
        row(1, [7, 8], text(20, 7), V1[:3], [9], V1[3:], answer=text(2, 8)),
    ],
    "loss over whole sequences": [
        row(1, [7, 8], text(length, length), V1[:3], [9], V1[3:], answer=[5, 1], whole=True)
        for length in (3, 6)
    ]
    + [row(0, V0, text(length, length), answer=[4, 1], whole=True) for length in (2, 40)],
    "a row alone": [row(0, V0, text(7, 1), answer=[4, 1])],
    "rows alone in their tasks": [
        row(0, V0, text(7, 1), answer=[4, 1]),
        row(1, [7], V1, text(4, 2), answer=[5, 1]),
    ],
    "long common heads": [
        row(task, virtual, HEAD, text(length, length), answer=[6, 1], whole=whole)
        for task, virtual, whole in ((0, V0, True), (2, V2, False))
        for length in (1, 2, 11)
    ],
    "identical rows": [row(0, V0, HEAD, answer=[6, 1])] * 3,
    "a row that another one opens with": [
        row(0, V0, [5, 6], answer=[7, 8], whole=True),
        row(0, V0, [5, 6, 7, 8, 9], answer=[10, 1], whole=True),
    ],
    "rows that share nothing": [
        row(2, [length], V2, text(length, length), answer=[6, 1]) for length in (3, 4, 5)
    ],
    "rows without virtual tokens beside others": [
        row(0, text(length, length), answer=[6, 1], whole=True) for length in (3, 12)
    ]
    + [row(2, V2, text(4, 1), answer=[6, 1])],
    "lengths far apart": [
        row(0, V0, text(length, length), answer=[6, 1]) for length in (1, 60, 2, 31, 58, 1)
    ],
}

PREFIX_BATCHES: dict[str, list[TrainingSequence]] = {
    "several tasks in one batch": [
        row(0, V0, text(6, 1), answer=[11, 1]),
        row(1, V1, text(3, 2), answer=text(5, 3)),
        row(0, V0, text(30, 4), answer=[12, 1]),
        row(0, V0, text(5, 5), answer=[12, 1]),
        row(1, V1, text(4, 6), answer=text(4, 7)),
    ],
    "loss over whole sequences": [
        row(0, V0, text(length, length), answer=[4, 1], whole=True) for length in (2, 40)
    ],
    "long common heads": [
        row(0, V0, HEAD, text(length, length), answer=[6, 1], whole=True) for length in (1, 2, 11)
    ],
    "a row alone": [row(2, V2, text(7, 1), answer=[4, 1])],
    "identical rows": [row(0, V0, HEAD, answer=[6, 1])] * 2,
}

Load = Callable[..., FrozenBase]


@pytest.fixture(scope="module")
def load(tiny_bases: dict[str, Path]) -> Load:
    """A base by family and options, each loaded once."""
    bases: dict[tuple[Any, ...], FrozenBase] = {}

    def loaded(family: str, **options: Any) -> FrozenBase:
        key = (family, *sorted(options.items()))
        if key not in bases:
            bases[key] = FrozenBase(tiny_bases[family], **options)
        return bases[key]

    return loaded


def row_prompts(base: FrozenBase) -> dict[int, Tensor]:
    generator = torch.Generator().manual_seed(5)
    return {
        task: torch.randn(count, base.hidden, generator=generator).requires_grad_()
        for task, count in enumerate(VIRTUAL)
    }


def prefix_prompts(base: FrozenBase) -> dict[int, Tensor]:
    generator = torch.Generator().manual_seed(5)
    config = base.config
    return {
        task: torch.randn(
            config.layers, 2, config.kv_heads, count, config.head_dim, generator=generator
        ).requires_grad_()
        for task, count in enumerate(VIRTUAL)
    }


def packed_losses(
    base: FrozenBase, rows: Sequence[TrainingSequence], learned: Mapping[int, Tensor], prefix: bool
) -> Tensor:
    prompts = {
        task: SoftPrompt(prefix_kv=tensor) if prefix else SoftPrompt(rows=tensor)
        for task, tensor in learned.items()
    }
    return base.token_losses(pack(rows, learned_prefix=prefix), prompts)


def losses_row_by_row(
    model: Any, rows: Sequence[TrainingSequence], learned: Mapping[int, Tensor], prefix: bool
) -> Tensor:
    """What `transformers` computes for each row alone, in the order of the packed line."""
    from transformers import DynamicCache

    losses = []
    for each in sorted(rows, key=lambda each: each.task):  # a stable sort
        virtual = torch.from_numpy(each.rendered.virtual_rows)
        ids, in_loss = torch.from_numpy(each.rendered.token_ids), torch.from_numpy(each.in_loss)
        cache = None
        if prefix:
            cache = DynamicCache(config=model.config)
            for layer, (keys, values) in enumerate(learned[each.task]):
                cache.update(keys[None], values[None], layer)
            real = virtual < 0
            virtual, ids, in_loss = virtual[real], ids[real], in_loss[real]
        embedded = model.get_input_embeddings()(ids)
        chosen = learned[each.task].new_zeros(embedded.shape)
        if not prefix:
            chosen = learned[each.task][virtual.clamp(min=0)]
        inputs = torch.where(virtual[:, None] >= 0, chosen, embedded)
        logits = model(inputs_embeds=inputs[None], cache=cache).logits[0, :-1]
        wanted = in_loss[1:]
        losses.append(
            torch.nn.functional.cross_entropy(logits[wanted], ids[1:][wanted], reduction="none")
        )
    return torch.cat(losses)


def gradients(losses: Tensor, learned: Mapping[int, Tensor]) -> list[Tensor]:
    """Of a sum of the losses in which each has a weight of its own."""
    weights = torch.randn(len(losses), generator=torch.Generator().manual_seed(8))
    found = torch.autograd.grad(
        (losses * weights).sum(), list(learned.values()), materialize_grads=True
    )
    return list(found)


def same(actual: Tensor, expected: Tensor) -> None:
    assert_close(actual.detach().numpy(), expected.detach().numpy(), relative=RELATIVE)


def transformers_model(base: Path) -> Any:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base, attn_implementation="eager")
    return model.eval().requires_grad_(False)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    ("batch", "prefix"),
    [(name, False) for name in BATCHES] + [(f"{name} ", True) for name in PREFIX_BATCHES],
)
def test_losses_and_gradients_are_those_of_each_row_alone(
    load: Load, tiny_bases: dict[str, Path], family: str, batch: str, prefix: bool
) -> None:
    base, model = load(family), transformers_model(tiny_bases[family])
    rows = (PREFIX_BATCHES if prefix else BATCHES)[batch.strip()]
    learned = prefix_prompts(base) if prefix else row_prompts(base)

    expected = losses_row_by_row(model, rows, learned, prefix)
    expected_gradients = gradients(expected, learned)
    losses = packed_losses(base, rows, learned, prefix)
    found_gradients = gradients(losses, learned)

    same(losses, expected)
    used = {each.task for each in rows}
    for task, (found, wanted) in enumerate(zip(found_gradients, expected_gradients, strict=True)):
        if task in used and wanted.any():
            same(found, wanted)
        else:
            assert not found.any()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("prefix", [False, True])
@pytest.mark.parametrize(
    "options", [{"as_is": True}, {"activation_checkpointing": True}], ids=["as is", "checkpointing"]
)
def test_other_ways_through_the_base_end_at_the_same_numbers(
    load: Load, family: str, prefix: bool, options: dict[str, bool]
) -> None:
    rows = (PREFIX_BATCHES if prefix else BATCHES)["several tasks in one batch"]
    usual, other = load(family), load(family, **options)
    learned = prefix_prompts(usual) if prefix else row_prompts(usual)

    expected = packed_losses(usual, rows, learned, prefix)
    expected_gradients = gradients(expected, learned)
    losses = packed_losses(other, rows, learned, prefix)

    same(losses, expected)
    for found, wanted in zip(gradients(losses, learned)[:2], expected_gradients[:2], strict=True):
        same(found, wanted)


@pytest.mark.skipif(
    shutil.which("g++") is None,
    reason="torch.compile needs g++; other ways through the base are checked above",
)
# torch's own look at a tensor that it traces; nothing of ours.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
def test_a_compiled_base_ends_at_the_same_numbers(load: Load) -> None:
    rows = BATCHES["several tasks in one batch"]
    usual, compiled = load("gpt2"), load("gpt2", compile=True)
    learned = row_prompts(usual)

    expected = packed_losses(usual, rows, learned, prefix=False)
    expected_gradients = gradients(expected, learned)
    losses = packed_losses(compiled, rows, learned, prefix=False)

    same(losses, expected)
    for found, wanted in zip(gradients(losses, learned), expected_gradients, strict=True):
        same(found, wanted)


@pytest.mark.parametrize(
    ("capability", "options"),
    [("AVX2", {"cpp.simdlen": 256}), ("AVX512", {"cpp.simdlen": 512}), ("DEFAULT", {})],
)
def test_what_was_compiled_for_another_processor_is_not_used(
    tiny_bases: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
    capability: str,
    options: dict[str, int],
) -> None:
    """torch's cache on disk is by settings: one folder of it, filled with AVX-512, made NaN of a
    base on AVX2."""
    compiled: list[Any] = []
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(
        torch.nn.Module, "compile", lambda module, **given: compiled.append(given["options"])
    )

    FrozenBase(tiny_bases["gpt2"], compile=True)

    assert compiled
    assert all(each == options for each in compiled)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("prefix", [False, True])
@pytest.mark.parametrize("batch", ["several tasks in one batch", "loss over whole sequences"])
def test_a_base_that_is_trained_too_gets_the_gradients_of_transformers(
    load: Load, tiny_bases: dict[str, Path], family: str, prefix: bool, batch: str
) -> None:
    base = load(family, trainable=True)
    model = transformers_model(tiny_bases[family]).requires_grad_(True)
    rows = (PREFIX_BATCHES if prefix else BATCHES)[batch]
    learned = prefix_prompts(base) if prefix else row_prompts(base)

    expected = losses_row_by_row(model, rows, learned, prefix)
    torch.autograd.backward(expected.mean())
    losses = packed_losses(base, rows, learned, prefix)
    torch.autograd.backward(losses.mean())

    same(losses, expected)
    theirs = dict(model.named_parameters())
    for name, parameter in base.model.named_parameters():
        assert parameter.grad is not None
        same(parameter.grad, theirs[name].grad)
    base.model.zero_grad()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("prefix", [False, True])
def test_a_row_has_no_influence_on_another(load: Load, family: str, prefix: bool) -> None:
    base = load(family)
    rows = list((PREFIX_BATCHES if prefix else BATCHES)["several tasks in one batch"])
    learned = prefix_prompts(base) if prefix else row_prompts(base)
    before = packed_losses(base, rows, learned, prefix)
    counts = [int(each.in_loss.sum()) for each in sorted(rows, key=lambda each: each.task)]

    # The first row of task 1 gets other tokens after what the rows of the task share.
    changed = next(index for index, each in enumerate(rows) if each.task == 1)
    ids = rows[changed].rendered.token_ids.copy()
    ids[-4:] = ids[-4:] % 50 + 60
    rendered = Rendered(ids, rows[changed].rendered.virtual_rows, 0)
    rows[changed] = TrainingSequence(1, rendered, rows[changed].in_loss)
    after = packed_losses(base, rows, learned, prefix)

    before_rows, after_rows = (torch.split(each, counts) for each in (before, after))
    first_of_task_1 = sum(each.task == 0 for each in rows)
    for index, (one, other) in enumerate(zip(before_rows, after_rows, strict=True)):
        assert torch.equal(one, other) == (index != first_of_task_1)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("prefix", [False, True])
def test_a_frozen_base_gets_no_gradients(load: Load, family: str, prefix: bool) -> None:
    base = load(family)
    digest = base.digest()
    learned = prefix_prompts(base) if prefix else row_prompts(base)

    rows = (PREFIX_BATCHES if prefix else BATCHES)["several tasks in one batch"]
    torch.autograd.backward(packed_losses(base, rows, learned, prefix).mean())

    assert all(parameter.grad is None for parameter in base.model.parameters())
    assert learned[0].grad is not None
    assert base.digest() == digest


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_names_the_options_that_its_attention_is_given(
    tiny_bases: dict[str, Path], monkeypatch: pytest.MonkeyPatch, family: str
) -> None:
    given: set[str] = set()

    def noted(*heads: Any, **options: Any) -> Any:
        given.update(name for name, value in options.items() if value is not None)
        return packed_attention(*heads, **options)

    monkeypatch.setattr("pl_compile.training.frozen.attention.packed_attention", noted)
    base = FrozenBase(tiny_bases[family])
    packed_losses(base, BATCHES["a row alone"], row_prompts(base), False)

    # Options that change no number: the layout says which token sees which; nothing is dropped.
    without_effect = {"layout", "dropout", "position_ids", "use_cache"}
    assert given - without_effect == FAMILIES[family].attention_options


def test_an_option_that_a_family_does_not_name_is_refused_though_it_could_be_computed(
    load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = load("llama")
    plain = dataclasses.replace(FAMILIES["llama"], attention_options=frozenset())
    monkeypatch.setattr("pl_compile.training.frozen.attention.FAMILIES", {"llama": plain})

    with pytest.raises(
        BaseModelError,
        match="LlamaAttention: its options scaling; expected only options that training computes",
    ):
        packed_losses(base, BATCHES["a row alone"], row_prompts(base), False)


@pytest.mark.parametrize("option", [{"sliding_window": 4}, {"softcap": 50.0}, {"dropout": 0.1}])
def test_attention_of_another_kind_is_refused_and_not_computed_as_ours(
    load: Load, option: dict[str, Any]
) -> None:
    base = load("llama")
    batch = pack(BATCHES["a row alone"])
    layout = lay_out_attention(batch, {}, None)
    heads = torch.zeros(1, base.config.heads, len(batch.token_ids), base.config.head_dim)

    with pytest.raises(
        BaseModelError,
        match=f"its options {next(iter(option))}; expected only options that training computes",
    ):
        packed_attention(base.model, heads, heads, heads, None, layout=layout, **option)
    packed_attention(base.model, heads, heads, heads, None, layout=layout, sliding_window=None)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_the_modules_compute_is_not_changed_for_others(
    load: Load, tiny_bases: dict[str, Path], family: str
) -> None:
    base, model = load(family), transformers_model(tiny_bases[family])
    packed_losses(base, BATCHES["a row alone"], row_prompts(base), prefix=False)
    ids = torch.tensor([text(9, 1), text(9, 2)])

    with torch.no_grad():
        same(base.model(ids).logits, model(ids).logits)


@pytest.mark.parametrize("family", FAMILIES)
def test_half_precision_stays_near(load: Load, family: str) -> None:
    rows = BATCHES["several tasks in one batch"]
    exact, rough = load(family), load(family, precision="bf16")
    learned = row_prompts(exact)

    losses = packed_losses(rough, rows, learned, prefix=False)
    expected = packed_losses(exact, rows, learned, prefix=False)

    assert losses.dtype == torch.float32
    assert (losses - expected).abs().max() < 0.1 * expected.max()
    assert all(found.dtype == torch.float32 for found in gradients(losses, learned))
