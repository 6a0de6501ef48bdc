"""Every exception that a user of `plc` can meet.

    PlcError                    exit code 1
    ├── ConfigError             a config file, an option or a template is wrong
    │   └── OptionError         a --set that cannot be read: exit code 2
    ├── DataError               a data file or an example is wrong
    ├── BaseModelError          the base is missing, unsupported or damaged
    ├── TrainingError           a run cannot start, resume or go on
    ├── ArtifactError           a prompt table or bundle is missing, damaged or foreign
    │   ├── FingerprintError    it belongs to another base
    │   └── AnswerError         its numbers are not finite for some requests; the others are done
    ├── RequestError            a request to the runtime cannot be served as asked
    ├── RankError               the processes that share a base cannot start, or one of them ended
    ├── KernelsError            the C++ kernels are of another version, or lack what is asked for
    ├── ExportError             a target cannot be built
    │   └── TablesError         the tokenizer cannot be written as tables
    ├── MissingExtraError       a package of an optional extra is not installed
    └── ParityError             built, but its numbers differ from the reference: exit code 3

Misuse of the command line is click's `UsageError`: exit code 2. A mistake in our own code stays an
`AssertionError` or another exception of Python: it is not turned into a message for users.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

# The longest message: texts from a file may be of any length.
_MOST_CHARACTERS = 8000


class PlcError(Exception):
    """A mistake that the reader of the message can correct.

    Args:
        doing: what was being done, as a phrase without a full stop ("reading tasks.yaml").
        found: what was found there, with its values.
        expected: what should have been there; empty where `found` already says it.
        fix: what to do next, as a sentence.
    """

    exit_code = 1

    def __init__(self, doing: str, *, found: str, expected: str = "", fix: str = "") -> None:
        self.doing = doing
        self.found = found
        self.expected = expected
        self.fix = fix
        text = f"{doing}: {found}"
        if expected:
            text += f"; expected {expected}"
        if not text.endswith((".", "?", "!")):
            text += "."
        if len(text) > _MOST_CHARACTERS:
            text = f"{text[:_MOST_CHARACTERS]} … ({len(text)} characters)."
        separator = "\n" if "\n" in text else " "
        whole = f"{text}{separator}{fix}".rstrip()
        # A path or a value may hold half of a surrogate pair, which no terminal or file takes.
        super().__init__(whole.encode("utf-8", "backslashreplace").decode())


class ConfigError(PlcError):
    """A config file, an option or a template is wrong."""


class OptionError(ConfigError):
    """A setting given on the command line cannot be read."""

    exit_code = 2


class DataError(PlcError):
    """A data file or an example in it is wrong."""


class BaseModelError(PlcError):
    """The base is missing, unsupported or damaged."""


class TrainingError(PlcError):
    """A training run cannot start, resume or go on."""


class ArtifactError(PlcError):
    """A prompt table or a bundle is missing, damaged or of an unknown form."""


class FingerprintError(ArtifactError):
    """An artifact belongs to another base than the one given."""


class AnswerError(ArtifactError):
    """Some requests have no answer: their logits are infinite or NaN.

    All other requests were answered before it is raised.

    Args:
        doing: what was being done.
        places: the requests without an answer: their names in the message, by their index.
        results: the result of each request, None for those without an answer. Empty for a stream,
            whose events were handed out already.
    """

    def __init__(
        self, doing: str, places: Mapping[int, str], *, results: Sequence[Any] = ()
    ) -> None:
        self.places = dict(places)
        self.results = tuple(results)
        problems = [f"{place}: logits that are not finite numbers" for place in places.values()]
        super().__init__(
            doing,
            found=list_problems(problems),
            fix="The numbers of the prompt or of the base are too large: train it again, or verify "
            "the bundle.",
        )


class RequestError(PlcError):
    """A request to the runtime cannot be served as asked."""


class RankError(PlcError):
    """The processes that share a base cannot start, or one of them has ended."""


class KernelsError(PlcError):
    """The C++ kernels belong to another version, or lack what PLC_KERNELS asks for."""


class ExportError(PlcError):
    """A target cannot be built."""


class TablesError(ExportError):
    """A base's tokenizer cannot be written as tables: a part of it is not supported.

    Args:
        found: the part, by the name that `tokenizer.json` gives it.
        expected: what is supported in its place; may be empty.
    """

    def __init__(self, found: str, *, expected: str = "") -> None:
        super().__init__(
            "writing the tokenizer as tables",
            found=found,
            expected=expected,
            fix="What needs no tables serves this base all the same: the Python runtime.",
        )


class MissingExtraError(PlcError):
    """A package of an optional extra is not installed."""

    def __init__(self, doing: str, *, package: str, extra: str) -> None:
        super().__init__(
            doing,
            found=f"the package '{package}' is not installed",
            fix=f"Install it with: pip install 'pl-compile[{extra}]'",
        )


class ParityError(PlcError):
    """An artifact was built, but its numbers differ from the reference."""

    exit_code = 3


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A question that suggests the known name nearest to `name`, or an empty string."""
    import difflib

    near = difflib.get_close_matches(name, list(known), n=1)
    return f"Did you mean '{near[0]}'?" if near else ""


def unknown_name(name: str, known: Sequence[str], *, what: str) -> tuple[str, str]:
    """The `found` and `fix` of an error about a name that is not one of `known`.

    Args:
        name: the name that was given.
        known: the names that exist, in the order to list them.
        what: the kind of thing, in the singular ("task", "field").
    """
    plural = f"{what[:-1]}ies" if what.endswith("y") else f"{what}s"
    listed = f"Known {plural}: {_some(known)}." if known else f"There is no {what} yet."
    return f"{what} '{name}' does not exist", f"{did_you_mean(name, known)} {listed}".strip()


def _some(names: Sequence[str], *, most: int = 50) -> str:
    """Names for a message; of a thousand, nobody reads all."""
    left = len(names) - most
    return ", ".join(names[:most]) + (f" and {left} more" if left > 0 else "")


def list_problems(problems: Sequence[str], *, most: int = 20) -> str:
    """Several problems as the `found` of one error: one on the same line, more as a list."""
    if len(problems) == 1:
        return problems[0]
    shown = [f"\n  - {problem}" for problem in problems[:most]]
    if len(problems) > most:
        shown.append(f"\n  - and {len(problems) - most} more")
    return f"{len(problems)} problems:{''.join(shown)}"


def reason_of(error: Exception) -> str:
    """The text of another error for the `found` of ours, without Python's numbers and names."""
    if isinstance(error, PlcError):
        return error.found
    if isinstance(error, RecursionError):
        return "values nested too deep"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error)


def first_line_of(error: object) -> str:
    """The first line of another library's error; its class where it has no text."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def check_all(error: type[PlcError], doing: str, checks: Mapping[str, bool]) -> None:
    """Raises `error` with every problem (a key of `checks`) whose check does not hold.

    A comparison with NaN does not hold, so NaN is refused wherever a range is checked.
    """
    problems = [problem for problem, holds in checks.items() if not holds]
    if problems:
        raise error(doing, found=list_problems(problems))
