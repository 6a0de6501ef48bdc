"""The table of families: a file and a row make a family."""

from collections.abc import Mapping
from dataclasses import fields
from types import MappingProxyType

from pl_compile.families.family import Family
from pl_compile.families.gpt2 import GPT2
from pl_compile.families.llama import LLAMA
from pl_compile.families.settings import Settings


def registered(*families: Family) -> Mapping[str, Family]:
    """Families by name.

    Raises:
        ValueError: one does not say what it must, or another has its name.
    """
    table: dict[str, Family] = {}
    for family in families:
        problems = [*_problems(family), *["it is registered twice"] * (family.name in table)]
        if problems:
            raise ValueError(f"registering the family '{family.name}': {'; '.join(problems)}")
        table[family.name] = family
    return MappingProxyType(table)


# The only thing that a family may have none of.
_MAY_BE_EMPTY = {"fast_layers"}


def _problems(family: Family) -> list[str]:
    """What a family does not say, as phrases."""
    empty = [
        f"it says nothing of '{field.name}'"
        for field in fields(family)
        if field.name not in _MAY_BE_EMPTY and getattr(family, field.name) in (None, "", {}, ())
    ]
    return empty or [*_problems_of_keys(family), *_problems_of_weights(family)]


def _problems_of_keys(family: Family) -> list[str]:
    keys = family.keys
    missing = {*family.tiny, *family.tiny_blocks} - keys.known
    problems = [f"its tiny base has '{key}', which is none of its keys" for key in sorted(missing)]
    if not keys.architectures:
        problems.append("it names no class in 'architectures'")
    return problems


def _problems_of_weights(family: Family) -> list[str]:
    vocab = {"vocab_size": 397}
    config = family.read(Settings({**family.tiny, **vocab}, f"reading a tiny {family.title}"))
    names = [weight.name for weight in family.weights(config)]
    problems = [f"it has the weight '{name}' twice" for name in sorted(_twice(names))]
    if config.family != family.name:
        problems.append(f"it reads bases as those of '{config.family}'")
    if not family.embedding.startswith(family.prefix):
        problems.append(f"'{family.embedding}' does not begin with '{family.prefix}'")
    return problems


def _twice(names: list[str]) -> set[str]:
    return {name for name in names if names.count(name) > 1}


# In the order in which messages and docs name them.
FAMILIES = registered(LLAMA, GPT2)
