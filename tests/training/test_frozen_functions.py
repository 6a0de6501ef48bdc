"""The functions with a backward pass of their own, against numeric and torch's own gradients."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pl_compile.families.registry import FAMILIES
from pl_compile.testing import assert_close
from pl_compile.text.render import Rendered
from pl_compile.training.data.dataset import TrainingSequence
from pl_compile.training.data.packing import pack
from pl_compile.training.frozen import attention
from pl_compile.training.frozen.attention import _Kind, _PackedAttention, lay_out_attention
from pl_compile.training.frozen.layers import _RmsNorm, _SwiGlu, replace_layers
from pl_compile.training.frozen.loss import frozen_cross_entropy
from pl_compile.training.frozen.workspace import Workspace

FAST_LAYERS = [(name, kind) for name, family in FAMILIES.items() for kind in family.fast_layers]


@pytest.fixture(params=["workspace", "no workspace"])
def workspace(request: pytest.FixtureRequest) -> Workspace | None:
    return Workspace() if request.param == "workspace" else None


def double(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def rows(task: int, lengths: Sequence[int], shared: int) -> list[TrainingSequence]:
    """Rows of a task that open with `shared` equal tokens."""
    made = []
    for index, length in enumerate(lengths):
        ids = np.asarray([9] * shared + [index + 1] * length, np.int64)
        virtual = np.full(len(ids), -1)
        made.append(TrainingSequence(task, Rendered(ids, virtual, 0), virtual < 0))
    return made


# Attention

LINES: dict[str, list[TrainingSequence]] = {
    "a row alone": rows(0, [4], 1),
    "rows with common tokens": rows(0, [2, 1, 3], 2),
    "padding inside a chunk": rows(0, [4, 5, 5, 1], 0),
    "two tasks": rows(0, [3, 4], 1) + rows(2, [2], 0),
}
HEADS = {"each key head has its query head": (2, 2), "query heads share key heads": (4, 2)}
WIDTH = 3


def prefixes_of(tasks: set[int], kv_heads: int, length: int) -> dict[int, Tensor | None]:
    return {task: double(1, 2, kv_heads, length, WIDTH, seed=task + 5) for task in tasks}


@pytest.mark.parametrize("line", LINES)
@pytest.mark.parametrize("heads", HEADS.values(), ids=HEADS.keys())
@pytest.mark.parametrize(("prefix", "window"), [(0, 0), (2, 0), (2, 3)])
def test_the_gradient_of_packed_attention_is_the_numeric_one(
    line: str, heads: tuple[int, int], prefix: int, window: int, workspace: Workspace | None
) -> None:
    batch = pack(LINES[line])
    tasks = {0} if prefix else set()  # of two tasks, the other has none
    layout = lay_out_attention(batch, prefixes_of(tasks, heads[1], prefix), workspace)
    count = len(batch.token_ids)
    query, key, value = (
        double(size, count, WIDTH, seed=seed).requires_grad_()
        for seed, size in enumerate((heads[0], heads[1], heads[1]))
    )
    parts = [
        part
        for each in layout.prefixes
        for part in ((None, None) if each is None else (each[0, 0].clone(), each[0, 1].clone()))
    ]
    learned = [part.requires_grad_() for part in parts if part is not None]

    def attend(query: Tensor, key: Tensor, value: Tensor, *learned: Tensor) -> Tensor:
        left = list(learned)
        given = [None if part is None else left.pop(0) for part in parts]
        kind = _Kind(0.6, window)
        output: Tensor = _PackedAttention.apply(query, key, value, kind, layout, *given)  # type: ignore[no-untyped-call]
        return output

    assert torch.autograd.gradcheck(attend, (query, key, value, *learned))
    padded = any(not chunk.real.all() for chunk in layout.chunks)
    assert padded or line != "padding inside a chunk"


@pytest.mark.parametrize("window", [0, 1, 3, 5])
@pytest.mark.parametrize("prefix", [0, 2])
def test_packed_attention_is_softmax_over_head_prefix_and_the_row_itself(
    prefix: int, window: int
) -> None:
    batch = pack(LINES["padding inside a chunk"] + rows(1, [3, 4, 1], 2))
    layout = lay_out_attention(batch, prefixes_of({0, 1}, 2, prefix) if prefix else {}, None)
    query = double(4, len(batch.token_ids), WIDTH, seed=1)
    key, value = (double(2, len(batch.token_ids), WIDTH, seed=seed) for seed in (2, 3))
    parts = [part for each in layout.prefixes for part in (None, None) if each is None] or [
        part for each in layout.prefixes if each is not None for part in each[0]
    ]

    kind = _Kind(0.6, window)
    found = _PackedAttention.apply(query, key, value, kind, layout, *parts)  # type: ignore[no-untyped-call]

    for number, group in enumerate(batch.groups):
        common = list(range(group.common.start, group.common.start + group.common.length))
        learned = layout.prefixes[number]
        for span in (group.common, *group.rows):
            own = list(range(span.start, span.start + span.length))
            for at, place in enumerate(own):
                seen = own[: at + 1] if span == group.common else common + own[: at + 1]
                for query_head in range(4):
                    keys, values = key[query_head // 2, seen], value[query_head // 2, seen]
                    if learned is not None:
                        keys = torch.cat([learned[0, 0, query_head // 2], keys])
                        values = torch.cat([learned[0, 1, query_head // 2], values])
                    keys, values = keys[-window:], values[-window:]  # all of them where it is 0
                    weights = (keys @ query[query_head, place] * 0.6).softmax(-1)
                    torch.testing.assert_close(found[place, query_head], weights @ values)


def test_rows_are_split_where_padding_would_cost_more_than_a_quarter() -> None:
    batch = pack(rows(0, [20, 19, 18, 4, 3, 3], 0))

    layout = lay_out_attention(batch, {}, None)

    assert [tuple(chunk.index.shape) for chunk in layout.chunks] == [(3, 20), (3, 4)]
    places = torch.cat([chunk.places for chunk in layout.chunks])
    assert sorted(places.tolist()) == list(range(len(batch.token_ids)))


def test_rows_are_split_where_their_scores_would_take_too_much(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(attention, "_SCORES", 2 * 6 * 6)
    batch = pack(rows(0, [6, 6, 6, 6, 6], 0))

    layout = lay_out_attention(batch, {}, None)

    assert [tuple(chunk.index.shape) for chunk in layout.chunks] == [(2, 6), (2, 6), (1, 6)]


# Norm and MLP


@pytest.fixture
def in_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    """What goes through float32 goes through float64, so that numeric gradients have digits."""
    monkeypatch.setattr(Tensor, "float", Tensor.double)


@pytest.mark.usefixtures("in_float64")
def test_the_gradient_of_the_norm_is_the_numeric_one(workspace: Workspace | None) -> None:
    hidden, weight = double(2, 3, 5).requires_grad_(), double(5, seed=1)

    def norm(hidden: Tensor) -> Tensor:
        output: Tensor = _RmsNorm.apply(hidden, weight, 1e-5, workspace)  # type: ignore[no-untyped-call]
        return output

    assert torch.autograd.gradcheck(norm, (hidden,))


def test_the_gradient_of_the_mlp_is_the_numeric_one(workspace: Workspace | None) -> None:
    hidden = double(2, 3, 5).requires_grad_()
    gate, up, down = double(7, 5, seed=1), double(7, 5, seed=2), double(5, 7, seed=3)

    def mlp(hidden: Tensor) -> Tensor:
        output: Tensor = _SwiGlu.apply(hidden, gate, up, down, workspace)  # type: ignore[no-untyped-call]
        return output

    assert torch.autograd.gradcheck(mlp, (hidden,))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("family", "kind"), FAST_LAYERS)
def test_a_replaced_module_computes_what_it_did(
    family: str, kind: str, dtype: torch.dtype, workspace: Workspace | None
) -> None:
    module, other = (_module(family, kind).to(dtype).requires_grad_(False) for _ in range(2))
    other.load_state_dict(module.state_dict())
    hidden = double(1, 6, 24, seed=4).to(dtype)
    upstream = double(1, 6, 24, seed=5).to(dtype)

    assert replace_layers(other, FAMILIES[family].fast_layers, workspace) == 1

    expected, expected_grad = _value_and_gradient(module, hidden, upstream)
    found, found_grad = _value_and_gradient(other, hidden, upstream)
    relative = {torch.float32: 1e-6, torch.bfloat16: 0.02, torch.float16: 0.002}[dtype]
    assert found.dtype == found_grad.dtype == dtype
    assert_close(found.float().numpy(), expected.float().numpy(), relative=relative)
    assert_close(found_grad.float().numpy(), expected_grad.float().numpy(), relative=relative)


def test_a_module_with_a_bias_keeps_its_own_forward() -> None:
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaMLP

    module = LlamaMLP(
        LlamaConfig(hidden_size=24, num_attention_heads=3, intermediate_size=40, mlp_bias=True)
    )

    assert replace_layers(module, FAMILIES["llama"].fast_layers, None) == 0


def _module(family: str, kind: str) -> torch.nn.Module:
    """A layer of the family's tiny model, by its class's name."""
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM

    torch.manual_seed(2)
    config = CONFIG_MAPPING[family](**FAMILIES[family].tiny, vocab_size=31)
    modules = AutoModelForCausalLM.from_config(config).modules()
    module: torch.nn.Module = next(each for each in modules if type(each).__name__ == kind)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return module


def _value_and_gradient(module: Any, hidden: Tensor, upstream: Tensor) -> tuple[Tensor, Tensor]:
    hidden = hidden.clone().requires_grad_()
    output = module(hidden)
    torch.autograd.backward(output, upstream)
    assert hidden.grad is not None
    return output.detach(), hidden.grad


# The loss


@pytest.mark.parametrize("count", [1, 127, 128, 129, 300])
def test_the_loss_and_its_gradient_are_those_of_torch(count: int) -> None:
    weight = double(31, 8, seed=1).float()
    targets = torch.randint(31, (count,), generator=torch.Generator().manual_seed(2))
    upstream = double(count, seed=3).float()  # each target has a weight of its own
    ours, theirs = (double(count, 8).float().requires_grad_() for _ in range(2))

    found = frozen_cross_entropy(ours, weight, targets)
    expected = torch.nn.functional.cross_entropy(theirs @ weight.T, targets, reduction="none")
    torch.autograd.backward([found, expected], [upstream, upstream])

    assert ours.grad is not None
    assert theirs.grad is not None
    assert_close(found.detach().numpy(), expected.detach().numpy(), relative=1e-6)
    assert_close(ours.grad.numpy(), theirs.grad.numpy(), relative=1e-6)


@pytest.mark.usefixtures("in_float64")
def test_the_gradient_of_the_loss_is_the_numeric_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pl_compile.training.frozen.loss._TARGETS", 3)
    monkeypatch.setattr(torch, "float32", torch.float64)
    hidden, weight = double(7, 5).requires_grad_(), double(11, 5, seed=1)
    targets = torch.tensor([0, 10, 3, 3, 7, 1, 2])

    def loss(hidden: Tensor) -> Tensor:
        return frozen_cross_entropy(hidden, weight, targets)

    assert torch.autograd.gradcheck(loss, (hidden,))


def test_the_loss_of_no_target_is_nothing() -> None:
    hidden = torch.zeros(0, 8, requires_grad=True)

    losses = frozen_cross_entropy(hidden, torch.zeros(31, 8), torch.zeros(0, dtype=torch.int64))

    assert losses.shape == (0,)


def test_a_loss_of_half_precision_is_float32() -> None:
    hidden = double(3, 8).bfloat16().requires_grad_()

    losses = frozen_cross_entropy(hidden, double(31, 8).bfloat16(), torch.tensor([1, 2, 3]))
    torch.autograd.backward(losses.sum())

    assert losses.dtype == torch.float32
    assert hidden.grad is not None
    assert hidden.grad.dtype == torch.bfloat16


# The workspace


def test_pieces_of_a_workspace_do_not_overlap() -> None:
    workspace = Workspace()
    shapes = [(3, 5), (1,), (7, 11, 2), (64,), (0,), (13,)]
    kinds = [torch.float32, torch.bfloat16, torch.float64] * 2

    pieces = [
        workspace.empty(*shape, like=torch.empty(0, dtype=kind)).fill_(index)
        for index, (shape, kind) in enumerate(zip(shapes, kinds, strict=True))
    ]

    for index, (piece, shape, kind) in enumerate(zip(pieces, shapes, kinds, strict=True)):
        assert (piece.shape, piece.dtype) == (shape, kind)
        assert (piece == index).all()
        assert piece.data_ptr() % 64 == 0


def test_a_workspace_gives_the_same_memory_again_after_a_reset() -> None:
    workspace, like = Workspace(), torch.empty(0)

    def places() -> list[int]:
        # The third piece no longer fits into the first block of 64 MiB.
        return [workspace.empty(count, like=like).data_ptr() for count in (9 << 20, 7, 8 << 20, 5)]

    first = places()
    workspace.reset()

    assert places() == first
    assert len(set(first)) == 4


def test_a_piece_larger_than_a_block_is_memory_of_its_own() -> None:
    workspace, like = Workspace(), torch.empty(0)
    small = workspace.empty(3, like=like).fill_(7)

    large = workspace.empty(17 << 20, like=like)
    workspace.reset()
    workspace.empty(3, like=like).fill_(8)

    assert large.shape == (17 << 20,)
    assert small.tolist() == [8, 8, 8]


def test_what_is_kept_is_a_copy() -> None:
    workspace = Workspace()
    source = torch.arange(6.0).view(2, 3).T  # not contiguous

    kept = workspace.keep(source)
    source.zero_()

    assert kept.tolist() == [[0, 3], [1, 4], [2, 5]]


def test_writing_one_piece_does_not_spoil_the_saved_one_of_another() -> None:
    workspace = Workspace()
    weight = torch.ones(4, requires_grad=True)
    saved = workspace.keep(torch.arange(4.0))

    product = (weight * saved).sum()
    workspace.empty(4, like=weight.detach()).fill_(9.0)
    torch.autograd.backward(product)

    assert weight.grad is not None
    assert weight.grad.tolist() == [0, 1, 2, 3]


def test_scratch_memory_is_used_again_under_its_name_and_by_no_other() -> None:
    workspace, like = Workspace(), torch.empty(0)
    kept = workspace.empty(3, like=like).fill_(5)
    first = workspace.scratch("a", 4, 5, like=like).fill_(1)
    other = workspace.scratch("b", 4, 5, like=like).fill_(2)
    half = workspace.scratch("a", 4, 5, like=like.bfloat16()).fill_(3)

    smaller = workspace.scratch("a", 2, 3, like=like)
    larger = workspace.scratch("a", 40, 5, like=like).fill_(4)

    assert smaller.data_ptr() == first.data_ptr() != larger.data_ptr()
    assert [{*tensor.flatten().tolist()} for tensor in (kept, first, other, half, larger)] == [
        {5},
        {1},
        {2},
        {3},
        {4},
    ]


def test_tensors_of_other_devices_are_left_alone() -> None:
    workspace = Workspace()
    other = torch.empty(3, device="meta")

    assert workspace.keep(other) is other
    assert workspace.empty(2, like=other).device.type == "meta"
    assert workspace.scratch("a", 2, like=other).device.type == "meta"
