"""The table of families: a file beside this one, and a row here, make a family."""

from collections.abc import Mapping
from dataclasses import fields

from pl_compile.config.decoder import DecoderConfig
from pl_compile.families.family import Family
from pl_compile.families.gemma3 import GEMMA3
from pl_compile.families.gpt2 import GPT2
from pl_compile.families.llama import LLAMA
from pl_compile.families.named import Named, names_of
from pl_compile.families.settings import Settings
from pl_compile.families.weights import Weight


def registered(*families: Family) -> Mapping[str, Family]:
    """Families by name, in this order.

    Raises:
        ValueError: one leaves out what it must say, or contradicts itself.
    """
    table: dict[str, Family] = {}
    for family in families:
        taken = ["another one has this name"] if family.name in table else []
        problems = taken or _left_out(family) or _contradictions(family)
        if problems:
            raise ValueError(f"registering the family '{family.name}': {'; '.join(problems)}")
        table[family.name] = family
    return table


def _left_out(family: Family) -> list[str]:
    # Not every family has layers that training computes faster.
    must = (field.name for field in fields(family) if field.name != "fast_layers")
    return [f"it says nothing of '{name}'" for name in must if not getattr(family, name)]


def _contradictions(family: Family) -> list[str]:
    unknown = {*family.tiny, *family.tiny_blocks} - family.keys.known
    settings = Settings({**family.tiny, "vocab_size": 397}, "reading a tiny base")
    config = family.read(settings)
    unread = family.keys.read - settings.asked - _READ_ELSEWHERE
    weights = list(family.weights(config))
    names = [weight.name for weight in weights]
    twice = sorted({name for name in names if names.count(name) > 1})
    problems = [
        f"its tiny base has '{key}', which is not one of its keys" for key in sorted(unknown)
    ]
    # Such a key would be taken for one that is computed, and change nothing.
    problems += [f"its key '{key}' is never read" for key in sorted(unread)]
    problems += [f"it has the weight '{name}' twice" for name in twice]
    # Both enter the fingerprint by their names.
    shared = vars(config).keys() & (vars(config.own).keys() if config.own else {})
    problems += [f"its own '{name}' is a field of DecoderConfig too" for name in sorted(shared)]
    problems += _wrongly_used(weights, names_of(family.definition, config))
    if not family.keys.architectures:
        problems.append("its keys name no class of 'architectures'")
    if config.family != family.name:
        problems.append(f"its bases are read as those of '{config.family}'")
    if not family.embedding.startswith(family.prefix):
        problems.append(f"'{family.embedding}' does not begin with '{family.prefix}'")
    return problems


def _wrongly_used(weights: list[Weight], used: Named) -> list[str]:
    """Weights that the definition does not use, or otherwise than ranks divide them.

    Args:
        weights: of a base.
        used: what its definition names.
    """
    problems = []
    had = {weight.name.rpartition(".")[0] for weight in weights}
    problems += [f"its definition does not use '{name}'" for name in sorted(had - used.weights)]
    problems += [f"it has no weight for '{name}'" for name in sorted(used.weights - had)]
    for weight in weights:
        name, _, kind = weight.name.rpartition(".")
        by_rows = weight.cut is not None and weight.cut.axis == 0
        if weight.cut is not None and name in used.norms:
            problems.append(f"ranks divide the norm '{name}', and each would norm its own part")
        elif kind == "weight" and by_rows and name not in used.summed:
            problems.append(f"ranks divide the rows of '{name}', which is not row_parallel")
        elif kind == "weight" and not by_rows and name in used.summed:
            problems.append(f"'{name}' is row_parallel, and ranks do not divide its rows")
        elif kind == "bias" and weight.cut is not None and name in used.summed:
            problems.append(f"'{name}' is row_parallel, and ranks divide its bias")
    return problems


# `text.end_tokens` reads it.
_READ_ELSEWHERE = {"eos_token_id"}

# In the order in which messages and pages name them.
FAMILIES = registered(LLAMA, GPT2, GEMMA3)


def smallest_window(config: DecoderConfig) -> int:
    """How many tokens a token sees in the layer where it sees the fewest; 0 if it sees all."""
    return min(names_of(FAMILIES[config.family].definition, config).windows, default=0)
