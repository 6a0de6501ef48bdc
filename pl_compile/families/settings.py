"""The settings of a config.json, each checked as it is read."""

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from pl_compile.config.sizes import MOST
from pl_compile.errors import BaseModelError, list_problems

T = TypeVar("T")

ANOTHER_BASE = "Use another base: docs/importing.md says which are read."

# The largest float32, in which bases compute.
_FLOAT32_MAX = 3.4e38

_KINDS = {
    int: "a whole number",
    float: "a number with a point, such as 1e-05",
    bool: "true or false",
    dict: "settings by name",
    list: "a list",
}


class Settings:
    """A config file's settings with the checks a reader of them needs.

    Attributes:
        asked: the keys that were asked for so far, whether they are there or not.
    """

    def __init__(self, values: Mapping[str, Any], doing: str) -> None:
        self.asked: set[str] = set()
        self._values = values
        self._doing = doing

    def _value(self, key: str) -> Any:
        self.asked.add(key)
        return self._values.get(key)

    def get(self, key: str, kind: type[T], default: T | None = None, *, null: bool = False) -> T:
        """The value of `key`.

        Args:
            key: its name.
            kind: its type. A whole number does not count as a float, as in transformers.
            default: what it is where it is absent.
            null: whether null stands for the default.

        Raises:
            BaseModelError: a value of another type; or there is neither a value nor a default.
        """
        value = self._value(key)
        if value is None and default is not None and (null or key not in self._values):
            return default
        if key not in self._values:
            raise BaseModelError(
                self._doing,
                found=f"'{key}' is missing",
                expected=_KINDS[kind],
                fix="Add what the base was made with, or save it again with save_pretrained.",
            )
        if type(value) is not kind:
            found = f"'{key}' is {'null' if value is None else repr(value)[:80]}"
            raise BaseModelError(self._doing, found=found, expected=_KINDS[kind])
        result: T = value
        return result

    def size(self, key: str, name: str, default: int | None = None, *, null: bool = False) -> int:
        """The value of `key`, the size that is called `name` in `MOST`; see `get`."""
        value = self.get(key, int, default, null=null)
        if not 1 <= value <= MOST[name]:
            found, expected = f"'{key}' is {value!r:.80}", f"1 to {MOST[name]}"
            raise BaseModelError(self._doing, found=found, expected=expected)
        return value

    def epsilon(self, key: str, default: float) -> float:
        """What a normalisation adds, so that it never divides by zero."""
        value = self.get(key, float, default)
        if not 0 < value < 1:
            found = f"'{key}' is {value!r:.80}"
            raise BaseModelError(self._doing, found=found, expected="above 0 and below 1")
        return value

    def heads_of(self, heads: str, hidden: str) -> tuple[int, int]:
        """How many heads there are, and the width that they divide."""
        count, width = self.size(heads, "heads"), self.size(hidden, "hidden")
        if width % count:
            raise BaseModelError(
                self._doing,
                found=f"'{heads}' is {count}, and '{hidden}' is {width}",
                expected="a multiple",
            )
        return count, width

    def layer_kinds(self, known: Sequence[str], usual: Sequence[str]) -> Sequence[str]:
        """The kind of each layer, as `layer_types` lists them.

        Args:
            known: the kinds that are computed.
            usual: those of all layers where there is no list.

        Raises:
            BaseModelError: another kind, or not one for each layer.
        """
        kinds = self.get("layer_types", list, list(usual), null=True)
        if len(kinds) != len(usual) or not all(kind in known for kind in kinds):
            raise BaseModelError(
                self._doing,
                found=f"'layer_types' is {kinds!r:.80}",
                expected=f"{' or '.join(known)} for each of {len(usual)} layers",
            )
        return kinds

    def rope_theta(
        self,
        kind: str = "",
        *,
        theta: str = "rope_theta",
        scaling: str = "rope_scaling",
        default: float = 10000.0,
    ) -> float:
        """The base of the rotary frequencies, from whichever place a config has it in.

        Args:
            kind: of the layers, where `rope_parameters` has settings for each kind.
            theta: its older place.
            scaling: the older place of the settings beside it; "" where they never had another.
            default: what it is where nothing says it.

        Raises:
            BaseModelError: positions that are scaled, or places that contradict each other.
        """
        ropes = [self._rope("rope_parameters", kind), self._rope(scaling)]
        if all(ropes) and ropes[0] != ropes[1]:
            # transformers takes the second whole: what the first alone says would be lost.
            raise BaseModelError(
                self._doing,
                found=f"'rope_parameters' is {ropes[0]!r:.80}, and '{scaling}' is {ropes[1]!r:.80}",
                expected="one of the two",
            )
        rope = ropes[1] or ropes[0]
        given = {}
        if "rope_theta" in rope:
            given["rope_theta of its rotary settings"] = rope["rope_theta"]
        # Null beside a number says nothing; alone it is refused below.
        if self._value(theta) is not None or (theta in self._values and not given):
            given[theta] = self._values[theta]
        for place, value in given.items():
            if type(value) not in (int, float) or not 1 <= value <= _FLOAT32_MAX:
                raise BaseModelError(
                    self._doing,
                    found=f"{place} is {value!r:.80}",
                    expected="a number, at least 1 and finite",
                )
        if len(set(given.values())) > 1:
            said = ", and ".join(f"{place} is {value!r:.80}" for place, value in given.items())
            raise BaseModelError(self._doing, found=said, expected="one number")
        return float(next(iter(given.values()), default))

    def _rope(self, key: str, kind: str = "") -> dict[str, Any]:
        """The settings of rotary positions that are not scaled; of a kind of layers, if given."""
        rope = self._value(key) or {}
        if not isinstance(rope, dict):
            raise BaseModelError(self._doing, found=f"'{key}' is {rope!r:.80}", expected="a dict")
        if kind:
            if not all(isinstance(each, dict | None) for each in rope.values()):
                raise BaseModelError(
                    self._doing,
                    found=f"'{key}' is {rope!r:.80}",
                    expected="a dict for each kind of layers",
                )
            rope = rope.get(kind) or {}
        # Some files give a factor and no type: programs took those positions for scaled, too.
        problems = [
            f"'{name}' is {value!r:.80}, and scaled positions are not supported"
            for name, value in rope.items()
            if name != "rope_theta" and value is not None and value != _NOT_SCALED.get(name)
        ]
        if problems:
            raise BaseModelError(
                f"{self._doing}, '{key}'", found=list_problems(problems), fix=ANOTHER_BASE
            )
        return rope

    def pad_id_within(self, vocab: int) -> None:
        """Raises unless the padding token has a row, for which transformers asks."""
        pad = self._value("pad_token_id")
        if pad is not None and not (type(pad) is int and -vocab <= pad < vocab):
            raise BaseModelError(
                self._doing,
                found=f"'pad_token_id' is {pad!r:.80}",
                expected=f"null, or an id below {vocab}, the vocabulary",
            )

    def token_id(self, key: str) -> int | None:
        """A token's id, or None."""
        value = self._value(key)
        if value is not None and type(value) is not int:
            raise BaseModelError(
                self._doing, found=f"'{key}' is {value!r:.80}", expected="a token's id, or null"
            )
        return value


# What may stand beside rotary positions, with the value at which they are not scaled.
_NOT_SCALED = {"rope_type": "default", "type": "default", "partial_rotary_factor": 1}
