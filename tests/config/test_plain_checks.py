"""What many readers ask: is it a number, a text, a float; and what another library said first."""

from decimal import Decimal

import numpy as np
import pytest

from pl_compile.config.floats import FLOATS, check_floats
from pl_compile.config.plain_values import finite
from pl_compile.config.utf8 import is_utf8
from pl_compile.errors import ArtifactError, first_line_of


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ValueError("one\ntwo"), "one"),
        (ValueError("\n  one \ntwo"), "one "),
        (RuntimeError(""), "RuntimeError"),
        (RuntimeError(), "RuntimeError"),
        (KeyError(), "KeyError"),
        (ValueError(" \n "), "ValueError"),
    ],
)
def test_an_error_that_says_nothing_has_its_name(error: Exception, said: str) -> None:
    assert first_line_of(error) == said


def test_weights_are_floats_by_whichever_name() -> None:
    check_floats({kind: kind for kind in (*FLOATS, *FLOATS.values())}, ArtifactError, "doing it")


@pytest.mark.parametrize("kind", ["int8", "I8", "U8", "BOOL", "F8_E4M3", "float8_e5m2", "F4", ""])
def test_what_is_no_float_is_refused_by_name(kind: str) -> None:
    with pytest.raises(ArtifactError) as error:
        check_floats({"a": "F32", "b": kind}, ArtifactError, "doing it")

    assert str(error.value) == f"doing it: 'b' of {kind}; expected floats of 16 bits or more."


def test_of_many_tensors_the_first_are_named() -> None:
    with pytest.raises(ArtifactError, match=r": '0' of I8, .*'4' of I8, …; expected"):
        check_floats({str(index): "I8" for index in range(100)}, ArtifactError, "doing it")


@pytest.mark.parametrize("value", [1, 1.5, np.int8(1), np.float16(1.5), 10**300])
def test_a_number_that_a_double_holds_is_finite(value: float) -> None:
    assert finite(value) == float(value)


@pytest.mark.parametrize(
    "value", [True, np.bool_(True), 10**400, float("inf"), np.float32("nan"), "1", None, Decimal(1)]
)
def test_all_else_is_no_number(value: object) -> None:
    assert finite(value) is None


@pytest.mark.parametrize(("text", "is_text"), [("", True), ("a😀", True), ("\ud83d", False)])
def test_half_of_a_surrogate_pair_is_no_text(text: str, is_text: bool) -> None:
    assert is_utf8(text) is is_text
