"""Makes options of commands from dataclass fields, with their type, choices, default and help."""

from collections.abc import Callable, Mapping
from pathlib import Path
from types import NoneType
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import click

Command = TypeVar("Command", bound=Callable[..., Any])
T = TypeVar("T")


def option_of(kind: type, name: str, flag: str = "", **how: Any) -> Callable[[Command], Command]:
    """The option of a field; its parameter has the field's name.

    Args:
        kind: the dataclass.
        name: of the field, whose type is `Annotated` with the help.
        flag: on the command line; made from the name if empty.
        how: arguments for click that add to those of the field, or replace them.
    """
    default = getattr(kind, name, None)
    hint = get_type_hints(kind, include_extras=True)[name]
    kind_of_value, text = get_args(hint)
    shown = how.get("default", default)
    how = {
        "default": default,
        "show_default": shown is not None and not isinstance(shown, bool | tuple),
        "help": text,
        **_form_of(kind_of_value),
        **how,
    }
    return click.option(flag or f"--{name.replace('_', '-')}", name, **how)


def given_for(kind: type[T], given: Mapping[str, Any], **more: Any) -> T:
    """A dataclass made from the parameters that are its fields.

    Args:
        kind: the dataclass.
        given: parameters of a command, by name.
        more: further fields.
    """
    own = {name: given[name] for name in get_type_hints(kind) if name in given}
    return kind(**own, **more)


def _form_of(hint: Any) -> dict[str, Any]:
    """How click reads a value of a type."""
    if hint is bool:
        return {"is_flag": True}
    if get_origin(hint) is tuple:
        return {"multiple": True, **_form_of(get_args(hint)[0])}
    choices = _choices_of(hint)
    if choices:
        texts = {str(choice): choice for choice in choices}
        return {
            "type": click.Choice(list(texts)),
            "callback": lambda _context, _option, given: texts.get(given),
        }
    kinds = [each for each in get_args(hint) or (hint,) if each is not NoneType]
    return {"type": click.Path(path_type=Path) if kinds == [Path] else kinds[0]}


def _choices_of(hint: Any) -> tuple[Any, ...]:
    """The values of a `Literal`, or of the `Literal`s of a union; empty for other types."""
    if get_origin(hint) is Literal:
        return get_args(hint)
    return tuple(choice for each in get_args(hint) for choice in _choices_of(each))
