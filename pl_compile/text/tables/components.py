"""The parts of a tokenizer around its model, as what the tables can say.

Each is given as the library writes it down: an object of JSON with a `type` and all its settings.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pl_compile.errors import TablesError
from pl_compile.text.tables.automata import matches_everywhere, table_of
from pl_compile.text.tables.code_points import CodePoints, divide, numeric
from pl_compile.text.tables.patterns import InOrder, Node, OneOf, Repeat, literal, parse, sets_of

Component = Mapping[str, Any]

# What the library's ByteLevel splits by (GPT-2).
BYTE_LEVEL_PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_BLANK_SIGN = "▁"  # U+2581, which stands for a blank in vocabularies in the manner of SentencePiece


@dataclass(frozen=True)
class Prepend:
    """Puts a text before each text that is not empty."""

    text: str


@dataclass(frozen=True)
class Open:
    """Puts a text before each text that neither is empty nor begins with it.

    Attributes:
        text: what is put.
        once: whether only the text that begins the whole one gets it, not one after an added token.
    """

    text: str
    once: bool


@dataclass(frozen=True)
class Replace:
    """Replaces each place where a text stands, from left to right."""

    old: str
    new: str


@dataclass(frozen=True)
class Nfc:
    """Normalises to NFC."""


Step = Prepend | Open | Replace | Nfc


@dataclass
class PreTokenizer:
    """What a pre-tokenizer does, in this order.

    Attributes:
        steps: those of the normalizer, and those that the pre-tokenizer takes before it splits.
        prefix_space: whether a blank is put before a text that does not begin with one.
        splits: each divides the pieces that the one before it left.
        byte_level: whether the model is given a character for each byte.
    """

    steps: list[Step]
    prefix_space: bool = False
    splits: list[Node] = field(default_factory=list)
    byte_level: bool = False


def steps_of(normalizer: Component | None) -> list[Step]:
    """The steps of a normalizer.

    Raises:
        TablesError: one of its parts is not supported.
    """
    steps: list[Step] = []
    for part in _flat(normalizer, "normalizers"):
        steps += _step(part, steps)
    return steps


def pre_tokenizer_of(spec: Component | None, steps: Sequence[Step]) -> PreTokenizer:
    """What a pre-tokenizer does after the steps of the normalizer.

    Raises:
        TablesError: one of its parts is not supported, or not in its place.
    """
    made = PreTokenizer(list(steps))
    for part in _flat(spec, "pretokenizers"):
        if made.byte_level:
            raise TablesError(f"the pre-tokenizer {part['type']} after ByteLevel")
        add = _PRE_TOKENIZERS.get(part["type"])
        if add is None:
            raise TablesError(
                f"the pre-tokenizer {part['type']}", expected=", ".join(_PRE_TOKENIZERS)
            )
        add(part, made)
    return made


def check_decoder(decoder: Component | None, *, byte_level: bool) -> int:
    """How many blanks a decoder takes off the start of a text.

    Raises:
        TablesError: it is not the one that such a tokenizer has.
    """
    parts = list(_flat(decoder, "decoders"))
    names = [part["type"] for part in parts]
    if byte_level:
        _check_decoders(names == ["ByteLevel"], names, "ByteLevel")
        return 0
    stripped = names[3:] == ["Strip"]
    as_known = names[: -1 if stripped else None] == ["Replace", "ByteFallback", "Fuse"]
    expected = f"Replace '{_BLANK_SIGN}' by ' ', ByteFallback, Fuse, and maybe Strip of blanks"
    _check_decoders(as_known, names, expected)
    replaced = (parts[0]["pattern"], parts[0]["content"]) == ({"String": _BLANK_SIGN}, " ")
    blanks = not stripped or (parts[3]["content"], parts[3]["stop"]) == (" ", 0)
    _check_decoders(replaced and blanks, names, expected)
    return int(parts[3]["start"]) if stripped else 0


def trims_of(post_processor: Component | None) -> tuple[bool, ...]:
    """The passes that take blanks off the places of tokens; True for one with add_prefix_space."""
    parts = _flat(post_processor, "processors")
    return tuple(bool(part["add_prefix_space"]) for part in parts if part.get("trim_offsets"))


def _check_decoders(holds: bool, names: Sequence[str], expected: str) -> None:
    if not holds:
        found = f"the decoder {', '.join(names)}" if names else "no decoder"
        raise TablesError(f"{found} or its settings" if names else found, expected=expected)


def _flat(component: Component | None, key: str) -> Iterator[Component]:
    """A component's parts, where it is a sequence of them; nothing where there is none."""
    if component is None:
        return
    if component["type"] == "Sequence":
        for part in component[key]:
            yield from _flat(part, key)
    else:
        yield component


def _step(part: Component, before: Sequence[Step]) -> list[Step]:
    if part["type"] == "NFC":
        return [Nfc()]
    if part["type"] == "Prepend":
        # The library prepends nothing to a text that earlier steps emptied.
        emptied = any(isinstance(step, Replace) and not step.new for step in before)
        if emptied or not part["prepend"]:
            raise TablesError(
                "the normalizer Prepend" + (" after a Replace by nothing" if emptied else " of ''")
            )
        return [Prepend(part["prepend"])]
    if part["type"] == "Replace":
        old = part["pattern"].get("String")
        if not old:
            raise TablesError(f"the normalizer Replace of {part['pattern']}", expected="a text")
        return [Replace(old, part["content"])]
    raise TablesError(f"the normalizer {part['type']}", expected="Prepend, Replace or NFC")


def _add_byte_level(part: Component, made: PreTokenizer) -> None:
    if part["add_prefix_space"] and made.splits:
        raise TablesError("the pre-tokenizer ByteLevel with add_prefix_space after a split")
    made.byte_level = True
    made.prefix_space = part["add_prefix_space"]
    if part["use_regex"]:
        made.splits.append(parse(BYTE_LEVEL_PATTERN))


def _add_digits(part: Component, made: PreTokenizer) -> None:
    digit = OneOf(numeric())
    made.splits.append(digit if part["individual_digits"] else Repeat(digit, 1, None))


def _add_split(part: Component, made: PreTokenizer) -> None:
    pattern, behavior, inverts = part["pattern"], part["behavior"], part["invert"]
    if "String" in pattern and not pattern["String"]:
        raise TablesError("the pre-tokenizer Split by ''")
    if "String" in pattern and not inverts and never_holds(made.steps, pattern["String"]):
        return  # what is not there does not split, whatever the behavior
    node = literal(pattern["String"]) if "String" in pattern else parse(pattern["Regex"])
    # Pieces that are "Isolated" are the same whether they match or lie between matches. "Removed"
    # with `invert` removes what lies between, which may be nothing at all.
    if behavior != "Isolated" and not (behavior == "Removed" and inverts and _leaves_none(node)):
        name = f"the pre-tokenizer Split with behavior {behavior}"
        raise TablesError(
            f"{name} and invert" if inverts else name,
            expected="Isolated; or Removed and invert, where everything matches",
        )
    made.splits.append(node)


def _leaves_none(node: Node) -> bool:
    """Whether nothing lies between the matches of a split."""
    return matches_everywhere(table_of(node, divide(sets_of(node))))


def _add_metaspace(part: Component, made: PreTokenizer) -> None:
    """Metaspace as a Replace, an Open, and a split before each of its signs."""
    scheme, sign = part["prepend_scheme"], part["replacement"]
    if made.splits:
        raise TablesError("the pre-tokenizer Metaspace after a split")
    if scheme == "first" and any(map(_may_move_start, made.steps)):
        raise TablesError(
            "the pre-tokenizer Metaspace with prepend_scheme 'first' after a Replace of several "
            "characters, or by nothing"
        )
    made.steps.append(Replace(" ", sign))
    if scheme != "never":
        made.steps.append(Open(sign, once=scheme == "first"))
    if part["split"]:
        codes = CodePoints.of(sign)
        made.splits.append(InOrder((OneOf(codes), Repeat(OneOf(~codes), 0, None))))


def _may_move_start(step: Step) -> bool:
    """Whether the first character may have another place in the text than its start.

    To the library a text is the first one where that place is 0. What a Replace writes has the
    place of the last character that it took away.
    """
    return isinstance(step, Replace) and (len(step.old) > 1 or not step.new)


_PRE_TOKENIZERS = {
    "ByteLevel": _add_byte_level,
    "Digits": _add_digits,
    "Metaspace": _add_metaspace,
    "Split": _add_split,
}


def never_holds(steps: Sequence[Step], text: str) -> bool:
    """Whether it is certain that no text holds a text after some steps.

    It is where one of its characters is replaced by what does not have it, and no later step can
    bring it back. (Gemma: each blank is replaced, so a split by a blank never splits.)
    """
    return any(_is_removed(steps, character) for character in text)


def _is_removed(steps: Sequence[Step], character: str) -> bool:
    removed = False
    for step in steps:
        match step:
            case Nfc():
                removed = False  # it writes characters of its own
            case Prepend(prefix) | Open(prefix):
                removed = removed and character not in prefix
            case Replace(old, new):
                removed = (removed or old == character) and character not in new
    return removed
