"""The checker of shapes, on functions and classes of these tests."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import pytest
from numpy.typing import NDArray
from shape_checker import ShapeError, check_members, check_of, checked

from pl_compile.shapes import Float32, Int64, Shape

Logits = Annotated[Float32, Shape("batch vocab")]
Tokens = Annotated[Int64, Shape("batch")]


def zeros(*shape: int) -> Float32:
    return np.zeros(shape, np.float32)


def ints(*shape: int) -> Int64:
    return np.zeros(shape, np.int64)


# Functions


@checked
def added(logits: Logits, tokens: Tokens | None = None) -> Logits:
    return logits if tokens is None else logits[:1]


def test_arrays_as_they_are_stated_pass() -> None:
    assert added(zeros(2, 5)).shape == (2, 5)
    assert added(zeros(1, 5), ints(1)).shape == (1, 5)


def test_another_number_of_dimensions_is_named_with_function_argument_and_both_shapes() -> None:
    with pytest.raises(ShapeError) as error:
        added(zeros(5))
    assert str(error.value) == "added: logits is float32 [5], expected float32 [batch vocab]"


def test_another_type_is_refused() -> None:
    with pytest.raises(ShapeError, match=r"logits is float64 \[2, 5\], expected float32"):
        added(np.zeros((2, 5)))


def test_what_is_no_array_is_refused() -> None:
    with pytest.raises(ShapeError, match="logits is a list, expected float32"):
        added([[0.0]])


def test_arguments_agree_on_a_dimension_of_one_name() -> None:
    with pytest.raises(ShapeError) as error:
        added(zeros(2, 5), tokens=ints(3))
    assert str(error.value) == (
        "added: tokens is int64 [3], expected int64 [batch]; 'batch' is 2 in added: logits"
    )


def test_the_result_agrees_with_the_arguments() -> None:
    with pytest.raises(ShapeError, match=r"added: the result is float32 \[1, 5\].*'batch' is 2"):
        added(zeros(2, 5), ints(2))


def test_one_array_agrees_with_itself() -> None:
    check = check_of(Annotated[Float32, Shape("inputs inputs")])
    assert check is not None
    check(zeros(3, 3), "moment", {})
    with pytest.raises(ShapeError, match="'inputs' is 3 in moment"):
        check(zeros(3, 4), "moment", {})


@pytest.mark.parametrize(
    ("shape", "fits", "not_fits"),
    [
        ("layers 2 prefix", (7, 2, 0), (7, 3, 0)),
        ("_ _", (3, 4), (3,)),
        ("... vocab", (5,), ()),
        ("batch ...", (5, 1, 1), ()),
        ("batch ... batch", (5, 1, 1, 5), (5, 1)),
        ("...", (), None),
        ("", (), (1,)),
    ],
)
def test_a_shape_is_read_as_it_is_written(
    shape: str, fits: tuple[int, ...], not_fits: tuple[int, ...] | None
) -> None:
    check = check_of(Annotated[NDArray[Any], Shape(shape)])
    assert check is not None
    check(ints(*fits), "array", {})
    if not_fits is not None:
        with pytest.raises(ShapeError):
            check(ints(*not_fits), "array", {})


def test_tuples_are_looked_into() -> None:
    check = check_of(tuple[Logits, Tokens | None, int])
    assert check is not None
    check((zeros(2, 5), None, 1), "pair", {})
    with pytest.raises(ShapeError, match=r"pair\[1\] is int64 \[3\]"):
        check((zeros(2, 5), ints(3), 1), "pair", {})


@pytest.mark.parametrize("kind", [Sequence[Logits], list[Logits], tuple[Logits, ...]])
def test_elements_agree_with_what_is_known_and_not_with_each_other(kind: Any) -> None:
    check = check_of(kind)
    assert check is not None
    check([zeros(2, 5), zeros(3, 6)], "rows", {})
    with pytest.raises(ShapeError, match=r"rows\[1\] is float32 \[3, 6\].*'batch' is 2 in ids"):
        check([zeros(2, 5), zeros(3, 6)], "rows", {"batch": (2, "ids")})


@pytest.mark.parametrize("kind", [Mapping[str, Tokens], dict[str, Tokens]])
def test_the_values_of_a_mapping_are_looked_at(kind: Any) -> None:
    check = check_of(kind)
    assert check is not None
    with pytest.raises(ShapeError, match=r"by_name\['b'\] is int64 \[2, 2\]"):
        check({"a": ints(3), "b": ints(2, 2)}, "by_name", {})


@pytest.mark.parametrize("kind", [Iterator[Tokens], Tokens | Logits, Tokens | Logits | None])
def test_a_shape_that_would_not_be_looked_at_is_refused(kind: Any) -> None:
    with pytest.raises(TypeError, match="no check looks into"):
        check_of(kind)


def test_a_function_without_shapes_is_left_as_it_is() -> None:
    def plain(array: Float32, name: str) -> Float32:
        return array

    assert checked(plain) is plain


# Classes


@dataclass(frozen=True)
class Fed:
    tokens: Annotated[Int64, Shape("batch seq")]
    lengths: Tokens

    def logits(self, rows: int) -> Logits:
        return zeros(rows, 5)

    @property
    def half(self) -> Logits:
        """Half as many rows as there are."""
        return zeros(len(self.lengths) // 2, 5)

    @classmethod
    def of(cls, lengths: Tokens) -> "Fed":
        return cls(ints(len(lengths), 1), lengths)

    @staticmethod
    def longest(lengths: Tokens) -> int:
        return int(lengths.max())


def run(fed: Fed, rows: int) -> Logits:
    return zeros(rows, 5)


check_members(Fed, __name__)
checked_run = checked(run)


def test_the_fields_of_a_dataclass_agree() -> None:
    with pytest.raises(ShapeError) as error:
        Fed(ints(2, 7), ints(3))
    assert str(error.value) == (
        "Fed: lengths is int64 [3], expected int64 [batch]; 'batch' is 2 in Fed: tokens"
    )


def test_methods_agree_with_the_fields_of_their_object() -> None:
    fed = Fed(ints(2, 7), ints(2))
    assert len(fed.logits(2)) == 2
    with pytest.raises(ShapeError, match=r"Fed.logits: .*'batch' is 2 in Fed.logits: self.tokens"):
        fed.logits(3)


def test_a_property_is_checked_and_keeps_its_text() -> None:
    with pytest.raises(ShapeError, match=r"Fed.half: the result"):
        assert Fed(ints(2, 7), ints(2)).half
    assert Fed.half.__doc__ == "Half as many rows as there are."


def test_class_methods_and_static_methods_are_checked() -> None:
    assert len(Fed.of(ints(2)).lengths) == 2
    with pytest.raises(ShapeError, match=r"Fed.of: lengths"):
        Fed.of(ints(2, 2))
    with pytest.raises(ShapeError, match=r"Fed.longest: lengths"):
        Fed.longest(ints(2, 2))


def test_a_result_agrees_with_the_fields_of_an_argument() -> None:
    fed = Fed(ints(2, 7), ints(2))
    assert len(checked_run(fed, 2)) == 2
    with pytest.raises(ShapeError, match=r"'batch' is 2 in run: fed.tokens"):
        checked_run(fed, 3)
