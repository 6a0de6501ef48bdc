"""How a token is chosen from its logits: the one table of the numbers that decide it.

Each field of `Sampling` is a row: its range, its help, and how a graph is given it where graphs can
choose by it. Requests check against the table, the options of `plc generate` are made of it, and a
manifest records by name which numbers its graph takes. So another number is a field here, and what
it does: in `runtime/sampling.py`, and in `passes/sample_in_graph.py` where graphs can do it too.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from pl_compile.config.plain_values import finite, shown, whole
from pl_compile.errors import RequestError, check_all


@dataclass(frozen=True)
class SamplingNumber:
    """A row of the table.

    Attributes:
        name: of the field, and of the graph's input.
        kind: a whole number, or a number with a fraction.
        default: at which it has no effect.
        least: the smallest number, or what every number is above.
        above: whether it is the latter.
        most: the largest number; None where there is none.
        expected: both in words.
        help: what a command line says of it.
        in_graph: its dtype as an input of a graph, `[batch]`; None where only the host can do it.
    """

    name: str
    kind: type[int] | type[float]
    default: float
    least: float
    most: float | None
    expected: str
    help: str
    above: bool
    in_graph: Literal["float32", "int64"] | None

    def read(self, value: object) -> float | None:
        """The number that a caller gave, as Python's own; None unless it is one within range."""
        number = whole(value) if self.kind is int else finite(value)
        if number is None or number < self.least or (self.above and number == self.least):
            return None
        return None if self.most is not None and number > self.most else number


def _number(default: float, least: float, most: float | None, expected: str, **said: Any) -> Any:
    row = {"kind": type(default), "default": default, "least": least, "most": most}
    row |= {"expected": expected, "above": False, "in_graph": None}
    return field(default=default, metadata=row | said)


@dataclass(frozen=True)
class Sampling:
    """How a token is chosen from its logits.

    Attributes:
        temperature: 0 takes the likeliest token; above 0 logits are divided by it and drawn from.
        top_k: only the `top_k` likeliest tokens; 0 for all.
        top_p: only the likeliest tokens that together reach this probability; 1 for all.
        repetition_penalty: 0.001 to 1000, 1 for none; above 1 makes tokens of prompt and answer
            less likely (positive logits are divided by it, negative ones multiplied;
            arXiv:1909.05858).
        seed: of the draws. A result depends on its request only, not on what ran beside it.
        min_p: only tokens at least this times as probable as the likeliest one; 0 for all
            (arXiv:2407.01082).
        logit_bias: of a closed set of answers: -100 to 100, added to the logits of tokens by their
            texts, before all else. A text is that of one token of the choices, without blanks at
            its ends; a token that has none, as EOS, goes by its name in the vocabulary.
        no_repeat_ngram: no sequence of so many tokens stands twice in prompt and answer together;
            0 for off. A choice and a copied answer are not changed by it.
    """

    temperature: float = _number(
        0.0, 0, None, "a finite number, 0 or more", help="0 is greedy.", in_graph="float32"
    )
    top_k: int = _number(
        0, 0, None, "a whole number, 0 or more", help="0 is off.", in_graph="int64"
    )
    top_p: float = _number(
        1.0,
        0,
        1,
        "a number above 0, at most 1",
        above=True,
        help="1 is off.",
        in_graph="float32",
    )
    # Beyond its range a penalty makes logits that are not finite.
    repetition_penalty: float = _number(
        1.0, 0.001, 1000, "a number from 0.001 to 1000", help="1 is off."
    )
    seed: int = _number(0, 0, None, "a whole number, 0 or more", help="Of the draws.")
    min_p: float = _number(0.0, 0, 1, "a number from 0 to 1", help="0 is off.", in_graph="float32")
    logit_bias: Mapping[str, float] = field(default_factory=dict, hash=False)
    no_repeat_ngram: int = _number(
        0,
        0,
        None,
        "a whole number, 0 or more",
        help="No sequence of so many tokens twice in prompt and answer. 0 is off.",
    )

    def __post_init__(self) -> None:
        """Refuses what is not a finite number, and numbers outside their ranges."""
        numbers = {row.name: row.read(getattr(self, row.name)) for row in SAMPLING_NUMBERS}
        checks = {
            f"{row.name} {shown(getattr(self, row.name))}, expected {row.expected}": (
                numbers[row.name] is not None
            )
            for row in SAMPLING_NUMBERS
        }
        bias = _bias(self.logit_bias)
        expected = "numbers from -100 to 100 by the texts of tokens"
        checks[f"logit_bias {shown(self.logit_bias)}, expected {expected}"] = bias is not None
        check_all(RequestError, "reading the sampling options", checks)
        for name, value in {**numbers, "logit_bias": bias}.items():
            object.__setattr__(self, name, value)  # of numpy's types, Python's

    @property
    def changed(self) -> frozenset[str]:
        """The numbers that have an effect, by name; `seed` has none of its own."""
        rows = (row for row in SAMPLING_NUMBERS if row.name != "seed")
        return frozenset(row.name for row in rows if getattr(self, row.name) != row.default)


def _bias(given: object) -> dict[str, float] | None:
    """Numbers by text, whatever their types; None of anything else."""
    if not isinstance(given, Mapping):
        return None
    bias = {text: finite(number) for text, number in given.items() if isinstance(text, str)}
    sound = {text: n for text, n in bias.items() if n is not None and -100 <= n <= 100}
    return sound if len(sound) == len(given) else None


SAMPLING_NUMBERS = tuple(
    SamplingNumber(row.name, **row.metadata) for row in fields(Sampling) if row.metadata
)

# What a graph that chooses the next token takes of each row: dtypes by name, `[batch]` each.
IN_GRAPH = {row.name: row.in_graph for row in SAMPLING_NUMBERS if row.in_graph is not None}

# What graphs took before manifests said so.
FIRST_IN_GRAPH = ("temperature", "top_k", "top_p")
