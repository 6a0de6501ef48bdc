"""Public functions, methods and fields of some rooms state the shapes of their arrays."""

import importlib
import pkgutil
from collections.abc import Iterator
from functools import cache
from types import FunctionType
from typing import Annotated, Any, get_args, get_origin

import numpy as np
import pytest
import shape_checker
from shape_checker import ShapeError, function_of

from pl_compile.config.sampling import Sampling
from pl_compile.quantize.gptq import gptq
from pl_compile.quantize.scheme import Grid, Quantized, Scheme
from pl_compile.runtime.engines.padded import Step, pad_right
from pl_compile.runtime.sampling import next_token
from pl_compile.shapes import Shape
from pl_compile.text.render import Rendered

ROOMS = ("quantize", "runtime", "text", "weights")

# Dimensions have these names only: one that is misspelt would be compared with no other.
DIMENSIONS = {
    "batch": "rows of a step",
    "block": "inputs of a weight that share a scale",
    "blocks": "of a weight's inputs",
    "draws": "how a graph chooses the tokens of some rows",
    "head_dim": "numbers of a key or a value",
    "hidden": "numbers of an embedding",
    "inputs": "of a weight",
    "kv_heads": "heads of keys and values",
    "layers": "of the base",
    "longest": "tokens of the longest of some rows",
    "outputs": "of a weight; of a row, the tokens after which logits are asked for",
    "prefix": "positions of keys and values that a task brings",
    "rows": "of a tensor, as many as are asked for",
    "seq": "tokens of a row",
    "tokens": "among which one is chosen",
    "top_k": "the likeliest tokens",
    "virtual": "rows of a task's prompt",
    "vocab": "tokens that the base knows",
}


@cache
def defined() -> dict[str, Any]:
    """The public functions and classes of these rooms, by their places."""
    found = {}
    for room in ROOMS:
        package = importlib.import_module(f"pl_compile.{room}")
        for each in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if not each.name.rpartition(".")[2].startswith("_"):  # the kernels are no Python
                module = importlib.import_module(each.name)
                for part in defined_in(module, each.name):
                    found[f"{each.name}.{part.__qualname__}"] = part
    return found


def defined_in(owner: Any, module: str) -> Iterator[Any]:
    for name, member in vars(owner).items():
        part = function_of(member)
        is_private = name.startswith("_") and name != "__init__"
        if isinstance(part, FunctionType | type) and part.__module__ == module and not is_private:
            yield part
            if isinstance(part, type):
                yield from defined_in(part, module)


def annotations() -> dict[str, Any]:
    """Those of parameters, results and fields, by their places."""
    return {
        f"{place}.{name}": hint
        for place, part in defined().items()
        for name, hint in part.__annotations__.items()
    }


def parts_of(hint: Any) -> Iterator[Any]:
    """An annotation and all that stands in it, but not the array that a shape belongs to."""
    yield hint
    if not shapes_of(hint):
        for part in get_args(hint):
            yield from parts_of(part)


def shapes_of(hint: Any) -> list[Shape]:
    metadata = get_args(hint)[1:] if get_origin(hint) is Annotated else ()
    return [each for each in metadata if isinstance(each, Shape)]


def shapes_in(hint: Any) -> list[Shape]:
    return [shape for part in parts_of(hint) for shape in shapes_of(part)]


def test_every_public_array_has_a_shape() -> None:
    without = [
        place
        for place, hint in annotations().items()
        if any(np.ndarray in (part, get_origin(part)) for part in parts_of(hint))
    ]
    assert without == []


def test_no_array_hides_in_an_annotation_that_is_text() -> None:
    parts = [part for hint in annotations().values() for part in parts_of(hint)]
    texts = {part for part in parts if isinstance(part, str)}
    assert "Step" in texts
    assert [text for text in texts if any(word in text for word in ("rray", "Float", "Int"))] == []


def test_shapes_are_stated_in_every_room() -> None:
    stated = [place for place, hint in annotations().items() if shapes_in(hint)]
    assert {place.split(".")[1] for place in stated} == set(ROOMS)


def test_dimensions_have_the_names_of_one_list() -> None:
    shapes = [shape for hint in annotations().values() for shape in shapes_in(hint)]
    names = {name for shape in shapes for name in shape.split() if not name.isdecimal()}
    assert names == {*DIMENSIONS, "_", "..."}


def test_what_states_shapes_is_checked() -> None:
    functions = {
        place: part
        for place, part in defined().items()
        if isinstance(part, FunctionType) and any(map(shapes_in, part.__annotations__.values()))
    }
    unchecked = [
        place for place, part in functions.items() if part.__globals__ is not vars(shape_checker)
    ]
    assert functions
    assert unchecked == []


# Calls that would go wrong in silence


def ints(*shape: int) -> Any:
    return np.zeros(shape, np.int64)


def floats(*shape: int) -> Any:
    return np.zeros(shape, np.float32)


def test_a_step_with_too_few_lengths_is_found() -> None:
    with pytest.raises(ShapeError, match=r"Step: past_lengths is int64 \[1\].*'batch' is 2"):
        Step(0, ints(2, 3), ints(1), ints(2), [], [])


def test_a_row_of_another_type_is_found() -> None:
    with pytest.raises(ShapeError, match=r"pad_right: rows\[1\] is int32 \[4\], expected int64"):
        pad_right([ints(3), ints(4).astype(np.int32)])


def test_logits_of_a_batch_are_found_where_those_of_a_row_are_taken() -> None:
    with pytest.raises(ShapeError, match=r"next_token: logits is float32 \[1, 8\]"):
        next_token(floats(1, 8), Sampling(), np.random.default_rng(0))


def test_tokens_without_their_virtual_rows_are_found() -> None:
    with pytest.raises(ShapeError, match=r"Rendered: virtual_rows is int64 \[2\].*'seq' is 3"):
        Rendered(ints(3), ints(2), 0)


def test_moments_of_the_outputs_are_found() -> None:
    with pytest.raises(ShapeError, match=r"gptq: moment is float64 \[4, 4\].*'inputs' is 8"):
        gptq(floats(8, 4), Scheme(4, 8), np.eye(4))


def test_codes_on_the_grid_of_another_weight_are_found() -> None:
    grid = Grid(floats(1, 5), None)
    with pytest.raises(ShapeError, match=r"Quantized: grid.scales is .*'outputs' is 4"):
        Quantized(np.zeros((8, 4), np.int8), grid, Scheme(4, 8))
