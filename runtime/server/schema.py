"""Which JSON a request may hold: one table that checks bodies and stands in `/openapi.json`.

The functions make schemas in the words of JSON Schema (2020-12), of which `problems_of` knows just
what they use.
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from pl_compile.config.plain_values import finite, shown, whole
from pl_compile.errors import did_you_mean

Schema = Mapping[str, Any]

_KINDS = {
    "string": "a text",
    "boolean": "true or false",
    "integer": "a whole number",
    "number": "a number",
    "array": "a list",
    "object": "an object",
}
_NULL: Schema = {"type": "null"}


def text(about: str = "", *, most: int | None = None) -> Schema:
    """A text of at most `most` characters."""
    return _described({"type": "string"} | ({} if most is None else {"maxLength": most}), about)


def flag(about: str = "") -> Schema:
    """True or false."""
    return _described({"type": "boolean"}, about)


def number(
    about: str = "", *, least: float, most: float | None, above: bool = False, kind: str = "number"
) -> Schema:
    """A number within limits; with `above`, not `least` itself."""
    limits = {"exclusiveMinimum" if above else "minimum": least}
    limits |= {} if most is None else {"maximum": most}
    return _described({"type": kind, **limits}, about)


def count(about: str = "", *, least: int = 0, most: int | None = None) -> Schema:
    """A whole number within limits."""
    return number(about, least=least, most=most, kind="integer")


def list_of(items: Schema, about: str = "", *, most: int, least: int = 0) -> Schema:
    """A list of `least` to `most` items."""
    limits = {"maxItems": most} | ({"minItems": least} if least else {})
    return _described({"type": "array", "items": items, **limits}, about)


def object_of(
    keys: Mapping[str, Schema], about: str = "", *, required: tuple[str, ...] = ()
) -> Schema:
    """An object with these keys and no others."""
    schema = {"type": "object", "properties": dict(keys), "additionalProperties": False}
    return _described(schema | ({"required": list(required)} if required else {}), about)


def named(values: Schema, about: str = "", *, most: int) -> Schema:
    """An object with any keys, at most `most`."""
    schema = {"type": "object", "additionalProperties": values, "maxProperties": most}
    return _described(schema, about)


def one_of(*schemas: Schema, about: str = "") -> Schema:
    """What fits one of several schemas."""
    return _described({"anyOf": list(schemas)}, about)


def only(*values: Any, about: str = "") -> Schema:
    """One of some values."""
    return _described({"enum": list(values)}, about)


def anything(about: str = "") -> Schema:
    """Any value."""
    return _described({}, about)


def or_null(schema: Schema) -> Schema:
    """The same, or null: clients write null for what they leave out."""
    if "enum" in schema:
        return {**schema, "enum": [*schema["enum"], None]}
    if "anyOf" in schema:
        return {**schema, "anyOf": [*schema["anyOf"], _NULL]}
    return {**schema, "type": [schema["type"], "null"]} if "type" in schema else schema


def problems_of(value: Any, schema: Schema, name: str = "") -> Iterator[tuple[str, str]]:
    """What does not fit: for each problem the key that has it, and a message.

    Args:
        value: what `parse_json` gives.
        schema: made by the functions above.
        name: of the value, with the keys around it; empty for the whole body.
    """
    if "anyOf" in schema:
        tried = [list(problems_of(value, each, name)) for each in schema["anyOf"]]
        if not all(tried):
            return
        # What is wrong within a value says more than that it fits none.
        meant = [
            found
            for each, found in zip(schema["anyOf"], tried, strict=True)
            if any(_is(value, kind) for kind in _kinds_of(each))
        ]
        yield from meant[0] if meant else [(name, _found(name, value, expected(schema)))]
        return
    if "enum" in schema:
        if not any(type(value) is type(each) and value == each for each in schema["enum"]):
            yield name, _found(name, value, expected(schema))
        return
    kinds = _kinds_of(schema)
    if kinds and not any(_is(value, kind) for kind in kinds):
        yield name, _found(name, value, expected(schema))
    elif isinstance(value, dict):
        yield from _problems_of_object(value, schema, name)
    elif isinstance(value, list):
        if not schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", len(value)):
            yield name, f"{_key(name)}{len(value)} items, expected {expected(schema)}"
            return
        for index, item in enumerate(value):
            yield from problems_of(item, schema.get("items", {}), f"{name}[{index}]")
    elif not _is_within(value, schema):
        yield name, _found(name, value, expected(schema))


def expected(schema: Schema) -> str:
    """What fits a schema, in words; null, which is the same as to leave a key out, is not named."""
    if "anyOf" in schema:
        options = dict.fromkeys(expected(each) for each in schema["anyOf"] if each != _NULL)
        return " or ".join(options)
    if "enum" in schema:
        return " or ".join(_json_of(each) for each in schema["enum"] if each is not None)
    parts = []
    for kind in _kinds_of(schema):
        if kind == "null":
            continue
        words = _KINDS[kind]
        if kind in ("integer", "number"):
            words += _limits(schema)
        elif kind == "string" and "maxLength" in schema:
            words += f" of at most {schema['maxLength']} characters"
        elif kind == "array":
            least = schema.get("minItems")
            words += f" of {f'{least} to ' if least else 'at most '}{schema['maxItems']} items"
        parts.append(words)
    return " or ".join(parts) or "any value"


def _problems_of_object(
    value: dict[str, Any], schema: Schema, name: str
) -> Iterator[tuple[str, str]]:
    keys: Mapping[str, Schema] = schema.get("properties", {})
    others = schema.get("additionalProperties", {})
    most = schema.get("maxProperties", len(value))
    if len(value) > most:
        yield name, f"{_key(name)}{len(value)} keys, expected at most {most}"
        return
    for key in schema.get("required", ()):
        if key not in value:
            yield _inside(name, key), f"key '{_inside(name, key)}' is missing"
    for key, item in value.items():
        inside = _inside(name, key)
        if key in keys:
            yield from problems_of(item, keys[key], inside)
        elif others is False:
            hint = did_you_mean(key, set(keys) - set(value))
            yield inside, f"unknown key {shown(inside)}. {hint}".rstrip(" .")
        else:
            yield from problems_of(item, others, inside)


def _is(value: Any, kind: str) -> bool:
    if kind == "integer":
        return whole(value) is not None
    if kind == "number":
        return finite(value) is not None
    types = {"string": str, "boolean": bool, "array": list, "object": dict, "null": type(None)}
    return isinstance(value, types[kind])


def _is_within(value: Any, schema: Schema) -> bool:
    if isinstance(value, str):
        return len(value) <= int(schema.get("maxLength", len(value)))
    if value is None or isinstance(value, bool):
        return True
    least, above = schema.get("minimum"), schema.get("exclusiveMinimum")
    most = schema.get("maximum")
    return not (
        (least is not None and value < least)
        or (above is not None and value <= above)
        or (most is not None and value > most)
    )


def _limits(schema: Schema) -> str:
    above, least, most = (schema.get(k) for k in ("exclusiveMinimum", "minimum", "maximum"))
    if above is not None:
        return f" above {above}" + ("" if most is None else f", at most {most}")
    if least is None:
        return ""
    return f", {least} or more" if most is None else f" from {least} to {most}"


def _kinds_of(schema: Schema) -> list[str]:
    kinds = schema.get("type", [])
    return [kinds] if isinstance(kinds, str) else kinds


def _described(schema: Schema, about: str) -> Schema:
    return {**schema, "description": about} if about else schema


def _json_of(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _found(name: str, value: Any, wanted: str) -> str:
    kind = {dict: "an object", list: "a list", type(None): "null"}.get(type(value))
    if isinstance(value, bool):
        kind = "true" if value else "false"
    return f"{_key(name)}{kind or shown(value)}, expected {wanted}"


def _key(name: str) -> str:
    return f"key '{name}' is " if name else "the body is "


def _inside(name: str, key: str) -> str:
    return f"{name}.{key}" if name else key
