"""While tests run, arrays must have the types and shapes that annotations state.

`pl_compile/shapes.py` says how shapes are written. `check_imports` wraps functions, methods and
dataclasses as their module is imported, before another module can take them from it by name. What
runs in other processes is not checked.

This is a checker of our own, not jaxtyping with beartype. jaxtyping's annotations need jaxtyping
where the program runs, and the base install does not have it. And ours compares results with the
fields of arguments: logits must have as many rows as the `Step` that they are computed from.
"""

import functools
import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from itertools import chain
from operator import methodcaller
from types import FunctionType, ModuleType, NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin

import numpy as np

from pl_compile.shapes import Shape

# How long each dimension is, by its name, and where that was seen first.
Sizes = dict[str, tuple[int, str]]
# Looks at a value, which a message calls by a name; knows the sizes so far, and adds to them.
Check = Callable[[Any, str, Sizes], None]


class ShapeError(AssertionError):
    """An array is not what an annotation states."""


# As modules are imported


def check_imports() -> None:
    """Checks all modules of the package that are imported from now on."""
    early = {name for name in sys.modules if name.startswith("pl_compile.")}
    assert early == {"pl_compile.shapes"}, f"imported too early to be checked: {sorted(early)}"
    sys.meta_path.insert(0, _Finder)


class _Finder(PathFinder):
    @classmethod
    def find_spec(cls, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if not name.startswith("pl_compile."):
            return None
        spec = super().find_spec(name, path, target)
        if spec is not None and isinstance(spec.loader, SourceFileLoader):
            spec.loader = _Loader(spec.loader.name, spec.loader.path)
        return spec


class _Loader(SourceFileLoader):
    def exec_module(self, module: ModuleType) -> None:
        super().exec_module(module)
        check_members(module, module.__name__)


def check_members(owner: ModuleType | type, module: str) -> None:
    """Wraps the functions that a module, or a class in it, defines."""
    for name, member in list(vars(owner).items()):
        function = function_of(member)
        if isinstance(member, type) and member.__module__ == module:
            check_members(member, module)
        elif isinstance(function, FunctionType) and function.__module__ == module:
            setattr(owner, name, _like(member, checked(function, owner)))


def function_of(member: Any) -> Any:
    """The function in a property, a class method or a static method; else what is given."""
    if isinstance(member, classmethod | staticmethod):
        return member.__func__
    return member.fget if isinstance(member, property) else member


def _like(member: Any, function: Callable[..., Any]) -> Any:
    """A function as what `member` is."""
    if isinstance(member, property):
        return property(function, member.fset, member.fdel, member.__doc__)
    return function if isinstance(member, FunctionType) else type(member)(function)


# Calls


def checked(function: Callable[..., Any], owner: Any = None) -> Callable[..., Any]:
    """The same function, with checks of each call where it states shapes.

    The `__init__` of a dataclass is one too: its arguments are the fields.

    Args:
        function: in a module or a class.
        owner: its class; the fields of `self` are looked at before the arguments.
    """
    stated = {name: check_of(hint) for name, hint in function.__annotations__.items()}
    if not any(stated.values()):
        return function
    doing = function.__qualname__.removesuffix(".__init__")
    parameters = tuple(inspect.signature(function).parameters)
    of_result = stated.pop("return", None)
    checks = {
        name: check or check_of_fields(function.__annotations__[name])
        for name, check in stated.items()
    }
    if function.__name__ != "__init__":  # there are no fields before it
        checks["self"] = check_of_fields(owner)

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        sizes: Sizes = {}
        for name, value in chain(zip(parameters, args, strict=False), kwargs.items()):
            if check := checks.get(name):
                check(value, f"{doing}: {name}", sizes)
        result = function(*args, **kwargs)
        if of_result:
            of_result(result, f"{doing}: the result", sizes)
        return result

    return call


def check_of_fields(kind: Any) -> Check | None:
    """The check of a dataclass's fields; None where it has none with shapes."""
    if not (isinstance(kind, type) and is_dataclass(kind)):
        return None
    checks = {field.name: check for field in fields(kind) if (check := check_of(field.type))}

    def check_each(value: Any, name: str, sizes: Sizes) -> None:
        for field, check in checks.items():
            check(getattr(value, field), f"{name}.{field}", sizes)

    return check_each if checks else None


# Values


def check_of(hint: Any) -> Check | None:
    """The check that an annotation states; None where it has no shape.

    Raises:
        TypeError: a shape in something that is not looked into.
    """
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        shape = next((each for each in arguments[1:] if isinstance(each, Shape)), None)
        return None if shape is None else _array(_dtype_of(arguments[0]), shape)
    checks = [check_of(argument) for argument in arguments]
    found = [check for check in checks if check]
    if not found:
        return None
    if origin is tuple and Ellipsis not in arguments:
        return functools.partial(_check_tuple, checks)
    if origin in (Union, UnionType) and NoneType in arguments and len(arguments) == 2:
        return functools.partial(_check_unless_none, found[0])
    if origin in (list, tuple, Sequence):
        return functools.partial(_check_elements, found[0], enumerate)
    if origin in (dict, Mapping):
        return functools.partial(_check_elements, found[0], methodcaller("items"))
    raise TypeError(f"a shape in {hint}, which no check looks into")


def _check_unless_none(check: Check, value: Any, name: str, sizes: Sizes) -> None:
    if value is not None:
        check(value, name, sizes)


def _check_tuple(checks: Sequence[Check | None], value: Any, name: str, sizes: Sizes) -> None:
    for index, (check, element) in enumerate(zip(checks, value, strict=True)):
        if check:
            check(element, f"{name}[{index}]", sizes)


def _check_elements(check: Check, pairs: Any, value: Any, name: str, sizes: Sizes) -> None:
    for key, element in pairs(value):
        check(element, f"{name}[{key!r}]", dict(sizes))


def _dtype_of(array: Any) -> Any:
    """That of `NDArray[...]`; `Any` where it may be any."""
    return get_args(get_args(array)[1])[0]


def _array(dtype: Any, shape: Shape) -> Check:
    dimensions = shape.split()
    if dimensions.count("...") > 1:
        raise TypeError(f"[{shape}] has more than one ...")

    def check(value: Any, name: str, sizes: Sizes) -> None:
        if not isinstance(value, np.ndarray):
            found = f"a {type(value).__name__}"
        elif _has_dtype(value, dtype) and _fits(value.shape, dimensions, name, sizes):
            return
        else:
            found = f"{value.dtype} {list(value.shape)}"
        expected = f"{'any type' if dtype is Any else dtype.__name__} [{shape}]"
        known = [
            f"; '{each}' is {sizes[each][0]} in {sizes[each][1]}"
            for each in dict.fromkeys(dimensions)
            if each in sizes
        ]
        raise ShapeError(f"{name} is {found}, expected {expected}{''.join(known)}")

    return check


def _has_dtype(array: np.ndarray[Any, Any], dtype: Any) -> bool:
    return dtype is Any or array.dtype.type is dtype or np.issubdtype(array.dtype, dtype)


def _fits(shape: tuple[int, ...], dimensions: list[str], name: str, sizes: Sizes) -> bool:
    """Whether a shape has these dimensions; those that were not known become known."""
    if "..." in dimensions:
        at, more = dimensions.index("..."), len(shape) - len(dimensions) + 1
        dimensions = [*dimensions[:at], *["_"] * more, *dimensions[at + 1 :]]
    return len(shape) == len(dimensions) and all(
        each == "_"
        or size == (int(each) if each.isdecimal() else sizes.setdefault(each, (size, name))[0])
        for each, size in zip(dimensions, shape, strict=True)
    )
