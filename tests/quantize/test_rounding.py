"""Weights in a few bits: how near the codes come, and what GPTQ gains over the nearest ones."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pl_compile.errors import ExportError
from pl_compile.quantize.gptq import gptq
from pl_compile.quantize.scheme import (
    LOSSLESS,
    Scheme,
    block_error,
    error_on_full_range,
    relative_error,
    round_to_nearest,
)
from pl_compile.testing import as_published


def weight(inputs: int = 64, outputs: int = 24, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(inputs, outputs)).astype(np.float32)


@pytest.mark.parametrize("scheme", [Scheme(8, 16), Scheme(4, 16), Scheme(8, 0), Scheme(4, 0)])
def test_codes_and_scales_have_the_shapes_of_the_scheme(scheme: Scheme) -> None:
    quantized = round_to_nearest(weight(), scheme)

    blocks = 64 // (scheme.block or 64)
    assert quantized.codes.shape == (64, 24)
    assert quantized.grid.scales.shape == (blocks, 24)
    assert quantized.codes.dtype == np.int8
    assert quantized.grid.scales.dtype == np.float32
    assert np.abs(quantized.codes.astype(int)).max() <= scheme.largest + 1


def test_eight_bits_are_within_half_a_step_everywhere() -> None:
    w = weight()

    quantized = round_to_nearest(w, Scheme(8, 32))

    step = np.repeat(quantized.grid.scales, 32, axis=0)
    assert (np.abs(quantized.dequantized() - w) <= 0.5 * step + 1e-7).all()


def test_the_scale_with_the_least_error_is_better_than_the_one_that_reaches_everything() -> None:
    w = weight()
    blocks = w.reshape(2, 32, 24)
    scales = np.abs(blocks).max(1, keepdims=True) / 7
    reaching = np.clip(np.rint(blocks / scales), -8, 7) * scales

    found = round_to_nearest(w, Scheme(4, 32)).dequantized().reshape(blocks.shape)

    assert ((found - blocks) ** 2).sum() < 0.95 * ((reaching - blocks) ** 2).sum()


@settings(derandomize=True, deadline=None, max_examples=60, database=None)
@given(
    seed=st.integers(0, 1000),
    scale=st.floats(1e-6, 1e4),
    bits=st.sampled_from([4, 8]),
    zeros=st.booleans(),
)
def test_what_codes_already_is_stays_as_it_is(
    seed: int, scale: float, bits: int, zeros: bool
) -> None:
    generator = np.random.default_rng(seed)
    scheme = Scheme(bits, 16)  # type: ignore[arg-type]
    codes = generator.integers(-scheme.largest, scheme.largest + 1, (32, 5))
    codes[0], codes[16] = scheme.largest, -scheme.largest  # the block's reach is used
    if zeros:
        codes[:16, 2] = 0
    w = (codes * np.float32(scale)).astype(np.float32)

    again = round_to_nearest(w, scheme)

    np.testing.assert_allclose(again.dequantized(), w, rtol=1e-5, atol=1e-9)


def test_blocks_that_do_not_divide_are_refused_with_both_numbers() -> None:
    with pytest.raises(ExportError) as error:
        Scheme(4, 32).check("layers.0.mlp.down.weight", 40)

    assert str(error.value) == (
        "quantising layers.0.mlp.down.weight to int4: 40 inputs, blocks of 32; expected a block "
        "that divides the inputs. Choose another --block, or 0 for one scale a channel."
    )


@pytest.mark.parametrize("scheme", [Scheme(4, 16), Scheme(4, 32), Scheme(4, 0)])
def test_gptq_gives_products_closer_to_the_floats_on_activations_it_has_not_seen(
    scheme: Scheme,
) -> None:
    w = weight()
    # Correlated, with directions that are much larger than others: as those of a decoder are.
    mixing = np.random.default_rng(3).normal(size=(64, 64)) * np.geomspace(8, 0.1, 64)
    seen = np.random.default_rng(4).normal(size=(400, 64)) @ mixing
    unseen = np.random.default_rng(5).normal(size=(100, 64)) @ mixing

    nearest = round_to_nearest(w, scheme).dequantized()
    careful = gptq(w, scheme, seen.T @ seen).dequantized()

    def error(of: np.ndarray) -> float:
        return float(((unseen @ of - unseen @ w) ** 2).sum())

    assert error(careful) < 0.6 * error(nearest)


def test_gptq_with_nothing_seen_is_the_nearest_codes() -> None:
    w = weight()

    assert (
        gptq(w, Scheme(4, 16), np.eye(64)).codes == round_to_nearest(w, Scheme(4, 16)).codes
    ).all()


@pytest.mark.parametrize("block", [32, 64])
def test_offsets_keep_what_lies_on_a_line_of_sixteen_steps(block: int) -> None:
    """As llama.cpp's Q4_1 stores it: a float16 scale and a float16 minimum for 32 weights."""
    generator = np.random.default_rng(0)
    codes = generator.integers(0, 16, (2, 32, 24))
    codes[:, 0], codes[:, 1] = 0, 15  # both ends of the line are in use
    scales = generator.uniform(0.001, 0.02, (2, 1, 24)).astype(np.float16).astype(np.float32)
    lowest = generator.normal(scale=0.1, size=(2, 1, 24)).astype(np.float16).astype(np.float32)
    w = (codes * scales + lowest).reshape(64, 24).astype(np.float32)

    with_offsets, without = (
        round_to_nearest(w, Scheme(4, block, offset=offset, half=True)).dequantized()
        for offset in (True, False)
    )

    kept = np.abs(with_offsets - w).max() / np.abs(w).max()
    lost = np.abs(without - w).max() / np.abs(w).max()
    assert kept < (1e-3 if block == 32 else 0.1)
    assert lost > 0.02


def test_gptq_keeps_what_its_codes_can_hold() -> None:
    generator = np.random.default_rng(1)
    codes = generator.integers(0, 16, (64, 24))
    codes[0::32], codes[1::32] = 0, 15
    w = (codes * np.float32(0.0078125) - np.float32(0.03125)).astype(np.float32)
    x = generator.normal(size=(200, 64))

    found = gptq(w, Scheme(4, 32, offset=True, half=True), x.T @ x)

    assert np.abs(found.dequantized() - w).max() < 1e-4


@pytest.mark.parametrize(("bits", "lost"), [(4, 5e-2), (8, 3e-3)])
def test_the_block_that_loses_most_counts_beside_one_of_large_weights(
    bits: int, lost: float
) -> None:
    w = weight(576, 512)
    w[:32, 0] = np.where(np.arange(32) % 2, 30000, -30000)
    scheme = Scheme(bits, 32, offset=bits == 4, half=True)  # type: ignore[arg-type]

    quantized = round_to_nearest(w, scheme)

    assert relative_error(w, quantized) < LOSSLESS  # the norm of all sees next to nothing of it
    assert lost < block_error(w, quantized) <= error_on_full_range(w, scheme)


# As llama.cpp's Q4_0 stores it: a float16 scale for 32 weights, of either sign, and the weight
# furthest from 0 has the code -8. Few blocks of a real base use all the others.
Q4_0_SCALES = np.random.default_rng(2).uniform(0.001, 0.02, (2, 1, 24)).astype(np.float16)


def q4_0(scales: np.ndarray, *, highest: int) -> np.ndarray:
    codes = np.random.default_rng(3).integers(-7, highest + 1, (2, 32, 24))
    codes[:, 5] = -8
    codes[0, :, 3] = 0  # a block of zeros
    return (codes * scales.astype(np.float32)).reshape(64, 24).astype(np.float32)


@pytest.mark.parametrize("highest", [7, 4, 0])
@pytest.mark.parametrize(
    "scheme",
    [
        Scheme(4, 32, negative_scales=True),
        Scheme(4, 32, negative_scales=True, half=True),
        Scheme(4, 32, offset=True, half=True),
    ],
)
def test_weights_that_reach_the_lowest_code_stay_as_they_are(scheme: Scheme, highest: int) -> None:
    signs = np.where(np.arange(48).reshape(2, 1, 24) % 3 == 0, 1, -1)
    w = q4_0(Q4_0_SCALES * signs, highest=highest)

    quantized = round_to_nearest(w, scheme)

    assert np.array_equal(quantized.dequantized(), w)
    assert error_on_full_range(w, scheme) == 0
    assert quantized.codes.min() >= -8
    assert quantized.codes.max() <= 7


def test_a_scale_is_below_zero_only_where_the_scheme_says_so() -> None:
    above, below = q4_0(Q4_0_SCALES, highest=4), q4_0(-Q4_0_SCALES, highest=4)
    scheme = Scheme(4, 32)

    assert np.array_equal(round_to_nearest(above, scheme).dequantized(), above)
    assert (round_to_nearest(below, scheme).grid.scales > 0).all()
    assert (round_to_nearest(below, replace(scheme, negative_scales=True)).grid.scales < 0).any()


@pytest.mark.parametrize("offset", [False, True])
def test_gptq_keeps_weights_that_reach_the_lowest_code(offset: bool) -> None:
    w = q4_0(-Q4_0_SCALES, highest=4)
    x = np.random.default_rng(1).normal(size=(200, 64))

    found = gptq(w, Scheme(4, 32, offset=offset, half=offset, negative_scales=not offset), x.T @ x)

    assert np.abs(found.dequantized() - w).max() < 1e-6


def test_blocks_of_zeros_lose_nothing() -> None:
    w = np.zeros((64, 3), np.float32)

    for scheme in (Scheme(4, 32, offset=True, half=True), Scheme(8, 32, half=True), Scheme(8, 0)):
        assert error_on_full_range(w, scheme) == 0


@pytest.mark.parametrize("form", ["q4_0", "q4_1", "q8_0"])
def test_a_published_weight_may_have_blocks_of_zeros(form: str) -> None:
    w = weight().T.copy()
    w[:, :32] = 0

    published = as_published(w, form)

    assert not published[:, :32].any()
    assert np.isfinite(published).all()
    assert np.abs(published - w).max() < 0.2 * np.abs(w).max()


def test_an_offset_that_is_rounded_to_float16_is_no_loss() -> None:
    """A grid of 16 steps that float16 holds, below one weight so large that its half is not."""
    step, low = np.float32(np.float16(0.3337)), np.float32(np.float16(-0.01234))
    codes = np.zeros((32, 1), np.float32)
    codes[0] = 15

    error = error_on_full_range(codes * step + low, Scheme(4, 32, offset=True, half=True))

    assert 1e-4 < error < LOSSLESS


def test_a_weight_that_is_not_finite_is_never_without_loss() -> None:
    w = weight()
    w[3, 3] = np.nan

    with np.errstate(invalid="ignore"):
        assert not error_on_full_range(w, Scheme(8, 32)) <= LOSSLESS
