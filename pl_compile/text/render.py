"""A template and an example's fields, rendered to token ids: the one function for both sides.

Training and serving call the same `Renderer`; a served prompt is a training example cut where the
answer starts, id for id. Rules:

- Every segment is tokenised by itself, so a segment boundary is always a token boundary, and no
  field can merge with the text around it.
- Blanks (U+0020) at the end of a segment belong to the text that follows, as byte-pair tokenizers
  write words; where no text follows they are dropped. So "Answer: {answer}" is served as "Answer:"
  and the answer is learned as " Paris". (NeMo strips the same blanks from the whole string.)
- Virtual tokens are out of band: positions with a row number, never ids of the vocabulary.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import Annotated, NamedTuple, TypeVar

import numpy as np

from pl_compile.config.plain_values import shown
from pl_compile.errors import DataError, did_you_mean, list_problems
from pl_compile.shapes import Int64, Shape
from pl_compile.text.field_value import expected_value, is_field_value
from pl_compile.text.label_trie import LabelTrie
from pl_compile.text.spans import Piece, SpanWalk
from pl_compile.text.template import Field, Template, Text, Virtual
from pl_compile.text.tokenizer import Tokenizer

T = TypeVar("T")

# One value of each kind that changes the tokens of what follows a field.
_KINDS_OF_VALUES = ("", " ", "a", "a ")

# White space that a stripping token takes: Unicode's, which lacks four characters of Python's.
_WHITE_SPACE = "".join(
    c for c in map(chr, range(0x3001)) if c.isspace() and c not in "\x1c\x1d\x1e\x1f"
)

# How many trees of answers a task keeps. Blanks at the end of a field need a tree of their own.
_MOST_TRIES = 16


class TooLongError(DataError):
    """A sequence does not fit, and there is nothing left that may be cut."""


@dataclass(frozen=True)
class SequenceRules:
    """How the sequences of a task were made in its training.

    Attributes:
        bos_id: the id before everything, or None.
        eos_id: the id after an answer, or None.
        end_ids: further ids that end a generated answer, each once. A base may have several;
            training appends only `eos_id`.
        rendering: the version of the rules that turned fields into tokens
            (`text.tokenizer.RENDERING`); 1 also where all versions give the base's tokenizer the
            same tokens. Nothing is rendered by it: a lint compares it.
    """

    bos_id: int | None = None
    eos_id: int | None = None
    end_ids: tuple[int, ...] = ()
    rendering: int = 1

    @property
    def ends(self) -> tuple[int, ...]:
        """All ids that end a generated answer."""
        return self.end_ids if self.eos_id is None else (self.eos_id, *self.end_ids)


@dataclass(frozen=True)
class Rendered:
    """A sequence of real and virtual tokens.

    Attributes:
        token_ids: int64 `[seq]`; 0 where the token is virtual.
        virtual_rows: int64 `[seq]`; the row of the task's prompt, -1 where the token is real.
        answer_start: position of the first answer token; `seq` in a served prompt.
    """

    token_ids: Annotated[Int64, Shape("seq")]
    virtual_rows: Annotated[Int64, Shape("seq")]
    answer_start: int

    def __len__(self) -> int:
        return len(self.token_ids)

    def input_ids(self, vocab: int) -> Annotated[Int64, Shape("seq")]:
        """The ids a compiled graph takes, int64 `[seq]`: row `r` of the prompt is `vocab + r`."""
        ids = self.token_ids
        if len(ids) and not 0 <= ids.min() <= ids.max() < vocab:  # virtual tokens are 0 there
            raise AssertionError(f"an id outside the base's {vocab} rows would be a prompt row")
        return np.where(self.virtual_rows >= 0, vocab + self.virtual_rows, self.token_ids)

    def without_virtual(self) -> "Rendered":
        """The same sequence without its virtual tokens, for the base alone (the baseline)."""
        real = self.virtual_rows < 0
        start = int(np.count_nonzero(real[: self.answer_start]))
        return Rendered(self.token_ids[real], self.virtual_rows[real], start)

    def after(self, count: int) -> "Rendered":
        """The same sequence without its first `count` tokens."""
        start = max(0, self.answer_start - count)
        return Rendered(self.token_ids[count:], self.virtual_rows[count:], start)


class _Place(NamedTuple):
    """A place in a sequence. The tokens of a text depend on the text and on this, nothing else.

    Attributes:
        blanks: blanks that end the text before; they wait for the text that follows.
        opens: whether no text stands before, or none since an added token opened a section.
        empty: whether nothing but BOS stands before.
        first: whether no real token stands before; BOS is one.
        strips: whether the token before takes the white space that follows.
    """

    blanks: str = ""
    opens: bool = True
    empty: bool = True
    first: bool = True
    strips: bool = False

    def with_text(self, text: str) -> tuple[str, "_Place"]:
        """What is tokenised here of a text that is not markup, and the place after it."""
        text = self.blanks + text
        if self.empty:
            text = text.lstrip(" ")
        if self.strips:
            text = text.lstrip(_WHITE_SPACE)
        body = text.rstrip(" ")
        blanks = text[len(body) :]
        return body, _Place(blanks, False, False, False) if body else self._replace(blanks=blanks)


class Renderer:
    """Renders the examples of one task.

    Args:
        template: the parsed template.
        tokenizer: the base's.
        rules: BOS and EOS.

    Raises:
        DataError: the base has no row for a token that the task always has: one of the template's
            text, of its choices, BOS or EOS. Or two choices are the same tokens.
    """

    def __init__(self, template: Template, tokenizer: Tokenizer, rules: SequenceRules) -> None:
        self.template = template
        self.rules = rules
        self._tokenizer = tokenizer
        segments = template.segments
        places = [i for i, s in enumerate(segments) if s == Field(template.answer_field or "")]
        self._answer_index = places[0] if places else len(segments)
        self._tries: dict[_Place, LabelTrie] = {}
        self._check_rows()

    def _check_rows(self) -> None:
        """Raises `DataError` unless the base has a row for each token of the task's own text.

        The text is tokenised twice: as in a prompt with empty fields, and as in one with text.
        """
        doing = f"reading task '{self.template.task.taskname}'"
        opens = () if self.rules.bos_id is None else (self.rules.bos_id,)
        for token_id in (*opens, *self.rules.ends):
            self._tokenizer.check_row(token_id, doing)
        try:
            for value in ("", "a"):
                place = self._opened().place
                for index in range(len(self.template.segments)):
                    if index == self._answer_index:
                        self._choices_at(_for_answer(place))
                    place = self._after(place, index, value)
        except DataError as error:
            raise DataError(doing, found=str(error)) from error

    @cached_property
    def _answer_places(self) -> frozenset[_Place]:
        """All places where an answer may stand, one for each way to tokenise it."""
        places = {self._opened().place}
        for index, segment in enumerate(self.template.segments[: self._answer_index]):
            values = _KINDS_OF_VALUES if isinstance(segment, Field) else ("",)
            later = set()
            for place, value in product(places, values):
                with suppress(DataError):  # such a prompt is refused: nothing follows it
                    later.add(self._after(place, index, value))
            places = later
        return frozenset(map(_for_answer, places))

    def _after(self, place: _Place, index: int, value: str) -> _Place:
        """The place after segment `index`, which stands at `place`.

        Args:
            place: where the segment stands.
            index: of the segment.
            value: what fills it, if it is a field. Its tokens are not needed.
        """
        if isinstance(self.template.segments[index], Field):
            return place.with_text(self._laid_out(value, index))[1]
        sequence = self._from(place)
        self._append(sequence, index, {})
        return sequence.place

    def unwritten(self, fields: Mapping[str, object]) -> str:
        """The characters of an example that the tokenizer cannot write, each once."""
        texts = [value for value in fields.values() if isinstance(value, str)]
        return "".join(dict.fromkeys("".join(map(self._tokenizer.unwritten, texts))))

    def prompt(self, fields: Mapping[str, object], *, max_length: int | None = None) -> Rendered:
        """What the model is given to continue: all that stands before the answer.

        Args:
            fields: a value (text or number) for every input field.
            max_length: longest allowed, in tokens; the truncate field is cut to fit.

        Raises:
            DataError: a missing or unknown field, a value that is not text or a number, or a prompt
                that is too long and cannot be cut.
        """
        values = self._values(fields, self.template.input_fields)
        return self._fitted(self._rendered, values, max_length, len)

    def prompt_and_choices(
        self, fields: Mapping[str, object], *, max_length: int
    ) -> tuple[Rendered, LabelTrie]:
        """A prompt of a task with choices that leaves room for each of them, and their tree.

        Args:
            fields: as for `prompt`.
            max_length: longest allowed, in tokens, the longest choice included.

        Raises:
            DataError: as for `prompt`.
        """

        def make(values: Mapping[str, str]) -> tuple[Rendered, LabelTrie]:
            # A cut field may end in other blanks, and then the choices have other tokens.
            return self._rendered(values), self.label_trie(values)

        def length(made: tuple[Rendered, LabelTrie]) -> int:
            return len(made[0]) + made[1].longest

        values = self._values(fields, self.template.input_fields)
        return self._fitted(make, values, max_length, length, " with the longest choice")

    def prompt_and_spans(
        self, fields: Mapping[str, object], *, max_length: int | None = None
    ) -> tuple[Rendered, SpanWalk]:
        """A prompt of a task whose answers are copied, and the answers that can be copied.

        They are parts of the field as it stands in the prompt, which may have been cut.

        Args:
            fields: as for `prompt`.
            max_length: as for `prompt`.

        Raises:
            DataError: as for `prompt`.
        """

        def make(values: Mapping[str, str]) -> tuple[Rendered, Mapping[str, str]]:
            return self._rendered(values), values

        copied = self.template.task.answer
        assert copied is not None
        given = self._values(fields, self.template.input_fields)
        rendered, values = self._fitted(make, given, max_length, lambda made: len(made[0]))
        place = self._place_of_answer(values)

        def pieces(text: str) -> list[Piece]:
            body, _ = place.with_text(self._laid_out(text, self._answer_index))
            before = len(body) - len(text)
            try:
                found = self._tokenizer.pieces(body, opens=place.opens)
            except DataError:  # the base has no row for a token of it: no answer
                return []
            return [Piece(key, begin - before, end - before) for key, begin, end in found]

        return rendered, SpanWalk(values[copied.span], pieces)

    def example(self, fields: Mapping[str, object], *, max_length: int | None = None) -> Rendered:
        """What the model is trained on: prompt, answer and EOS.

        Args:
            fields: a value for every field, the answer included.
            max_length: as for `prompt`; BOS, EOS and the answer are never cut.

        Raises:
            DataError: as for `prompt`.
        """
        values = self._values(fields, self.template.fields)
        return self._fitted(self._answered, values, max_length, len)

    def opening(self) -> Rendered:
        """What every prompt of the task begins with: all that stands before the first field.

        Each segment is tokenised by itself, so no value of a field can change a token of it. Blanks
        at its end are not a part of it: they wait for the field.
        """
        sequence = self._opened()
        for index in range(self._answer_index):
            if isinstance(self.template.segments[index], Field):
                break
            self._append(sequence, index, {})
        return sequence.rendered(len(sequence.ids))

    def label_trie(self, fields: Mapping[str, object] | None = None) -> LabelTrie:
        """The task's choices as a tree of tokens.

        Args:
            fields: of the prompt; by default all are empty. The tree depends on them only where it
                is not `fixed`: blanks at the end of a field may move into the answer, and where no
                text stands before the answer, it opens the text.

        Raises:
            DataError: as for `prompt`.
        """
        place = self._place_of_answer(fields or dict.fromkeys(self.template.input_fields, ""))
        trie = self._tries.get(place)
        if trie is None:
            if len(self._tries) == _MOST_TRIES:
                self._tries.pop(next(iter(self._tries)))
            labels = self.template.task.choices
            fixed = len(self._answer_places) == 1
            trie = LabelTrie.of(labels, self._choices_at(place), fixed=fixed)
            self._tries[place] = trie
        return trie

    def answers(self, fields: Mapping[str, object], texts: Sequence[str]) -> list[list[int]]:
        """The ids of several answers after one prompt, EOS included, as in `example`.

        Raises:
            DataError: as for `prompt`.
        """
        return self._answers(self._place_of_answer(fields), texts)

    def _place_of_answer(self, fields: Mapping[str, object]) -> _Place:
        """The place where the answer stands."""
        values = self._values(fields, self.template.input_fields)
        place = self._opened().place
        for index, segment in enumerate(self.template.segments[: self._answer_index]):
            value = values[segment.name] if isinstance(segment, Field) else ""
            place = self._after(place, index, value)
        return _for_answer(place)

    def _choices_at(self, place: _Place) -> list[list[int]]:
        """The ids of the task's choices. Two choices with equal ids are refused."""
        choices = self.template.task.choices
        answers = self._answers(place, choices)
        first: dict[tuple[int, ...], str] = {}
        for choice, ids in zip(choices, answers, strict=True):
            other = first.setdefault(tuple(ids), choice)
            if other != choice:
                raise DataError(
                    "tokenising its choices",
                    found=f"{other!r} and {choice!r} are the same tokens",
                    expected="choices that have different tokens in the base's tokenizer",
                    fix="The tokenizer may ignore capitals, or lack a character: change a choice.",
                )
        return answers

    def _answers(self, place: _Place, texts: Sequence[str]) -> list[list[int]]:
        end = [] if self.rules.eos_id is None else [self.rules.eos_id]
        answers = []
        for text in texts:
            sequence = self._from(place)
            # The place of the answer decides which white space stays.
            sequence.add_text(self._laid_out(text, self._answer_index), markup=False)
            answers.append(sequence.ids + end)
        return answers

    def _values(self, fields: Mapping[str, object], wanted: tuple[str, ...]) -> dict[str, str]:
        problems = []
        values: dict[str, str] = {}
        for name in wanted:
            value = fields.get(name)
            if name not in fields:
                hint = did_you_mean(name, set(fields) - set(wanted))
                problems.append(f"field '{name}' is missing. {hint}".rstrip())
            elif not is_field_value(value):
                problems.append(
                    f"field '{name}' is {shown(value)}, expected {expected_value(value)}"
                )
            else:
                # `str` of a text could differ from it: a subclass may print itself otherwise.
                values[name] = value if isinstance(value, str) else str(value)
        for name in fields:
            if name not in wanted:
                if name == self.template.answer_field:
                    problems.append(f"field '{name}' is what the model writes: leave it out")
                else:
                    hint = did_you_mean(name, set(wanted) - set(fields))
                    problems.append(f"field '{name}' is not in the template. {hint}".rstrip())
        if problems:
            listed = ", ".join(wanted) or "none"
            raise DataError(
                f"rendering task '{self.template.task.taskname}'",
                found=list_problems(problems),
                fix=f"Its fields: {listed}.",
            )
        return values

    def _fitted(
        self,
        make: Callable[[Mapping[str, str]], T],
        values: dict[str, str],
        most: int | None,
        length_of: Callable[[T], int],
        counted: str = "",
    ) -> T:
        """What is made of the values, with the truncate field cut until it fits.

        Args:
            make: turns values into what is wanted.
            values: of all fields.
            most: longest allowed, in tokens; None for any length.
            length_of: the length of what was made, in tokens.
            counted: what it counts besides the prompt, for a message.

        Raises:
            TooLongError: it does not fit, however much is cut.
        """
        field = self.template.task.truncate_field
        # Each cut takes one token more than needed (NeMo's rule), since the text that is left may
        # be tokenised a little differently. In the rare case that it still does not fit, cut again.
        while True:
            made = make(values)
            length = length_of(made)
            if most is None or length <= most:
                return made
            text = shorter = "" if field is None else values[field]
            if field is not None and text:
                left = max(0, self._tokenizer.count(text) - (length - most + 1))
                shorter = self._tokenizer.cut_to_tokens(text, left)
            # Of characters that are no tokens nothing can be cut.
            if field is None or shorter == text:
                state = "no truncate_field" if field is None else f"its field '{field}' used up"
                raise TooLongError(
                    f"rendering task '{self.template.task.taskname}'",
                    found=f"{length} tokens{counted}, {state}",
                    expected=f"at most {most}",
                    fix="Shorten the example, or name a longer truncate_field in the task.",
                )
            values = {**values, field: shorter}

    def _rendered(self, values: Mapping[str, str]) -> Rendered:
        sequence = self._sequence(values)
        return sequence.rendered(len(sequence.ids))

    def _answered(self, values: Mapping[str, str]) -> Rendered:
        sequence = self._sequence(values)
        answer_start = len(sequence.ids)
        for index in range(self._answer_index, len(self.template.segments)):
            self._append(sequence, index, values)
        if self.rules.eos_id is not None:
            sequence.add([self.rules.eos_id])
        return sequence.rendered(answer_start)

    def _sequence(self, values: Mapping[str, str]) -> "_Sequence":
        """All that stands before the answer."""
        sequence = self._opened()
        for index in range(self._answer_index):
            self._append(sequence, index, values)
        return sequence

    def _opened(self) -> "_Sequence":
        """A sequence that holds nothing but its BOS, if it has one."""
        sequence = self._from(_Place(first=self.rules.bos_id is None))
        if self.rules.bos_id is not None:
            sequence.add([self.rules.bos_id])
        return sequence

    def _from(self, place: _Place) -> "_Sequence":
        """An empty sequence that starts at a place."""
        as_one = self.template.task.whitespace == "transformers"
        return _Sequence(self._tokenizer, as_one=as_one, place=place)

    def _append(self, sequence: "_Sequence", index: int, values: Mapping[str, str]) -> None:
        segment = self.template.segments[index]
        if isinstance(segment, Virtual):
            keep_blanks = self.template.task.whitespace != "nemo"
            sequence.add_virtual(segment, keep_blanks=keep_blanks)
            return
        if isinstance(segment, Text):
            sequence.add_text(self._laid_out(segment.text, index), markup=True)
            return
        text = self._laid_out(values[segment.name], index)
        body = text.rstrip(" ")
        blanks = text[len(body) :]
        shorter = body.rstrip(_WHITE_SPACE)
        if shorter != body and self._is_taken_after(index, blanks, values):
            text = shorter + blanks
        sequence.add_text(text, markup=False)

    def _is_taken_after(self, index: int, blanks: str, values: Mapping[str, str]) -> bool:
        """Whether a token of the template takes the white space that segment `index` ends in.

        Args:
            index: of the segment.
            blanks: that end the segment, and so stand between it and the token.
            values: of the fields.
        """
        if self.template.task.whitespace != "transformers":
            return False
        between = blanks
        for segment in self.template.segments[index + 1 : self._answer_index]:
            if isinstance(segment, Virtual):
                return False
            if isinstance(segment, Text) and segment.text.strip(" "):
                return self._tokenizer.takes_white_space(between + segment.text)
            text = segment.text if isinstance(segment, Text) else values[segment.name]
            if text.strip(_WHITE_SPACE):
                return False
            between += text
        return False

    def _laid_out(self, text: str, index: int) -> str:
        """The text of segment `index` with the white space that the task's `whitespace` keeps."""
        segments = self.template.segments
        if self.template.task.whitespace == "nemo":
            # Python's white space, which has four characters more than `_WHITE_SPACE`: transformers
            # 4.30, by which NeMo stripped around its tokens, did so in Python.
            if index > 0 and isinstance(segments[index - 1], Virtual):
                text = text.lstrip()
            if index + 1 < len(segments) and isinstance(segments[index + 1], Virtual):
                text = text.rstrip()
        return text


def _for_answer(place: _Place) -> _Place:
    """The same place for text that is not markup: a BOS before it makes no difference."""
    return place._replace(first=False)


class _Sequence:
    """A sequence under construction, or the rest of one from a place on.

    Args:
        tokenizer: the base's.
        as_one: whether texts of the template are tokenised as parts of one whole text.
        place: where it starts.
    """

    def __init__(self, tokenizer: Tokenizer, *, as_one: bool, place: _Place) -> None:
        self.ids: list[int] = []
        self.rows: list[int] = []
        self.place = place
        self._tokenizer = tokenizer
        self._as_one = as_one

    def rendered(self, answer_start: int) -> Rendered:
        ids, rows = np.asarray(self.ids, np.int64), np.asarray(self.rows, np.int64)
        return Rendered(ids, rows, answer_start)

    def add(self, ids: list[int]) -> None:
        self.ids += ids
        self.rows += [-1] * len(ids)

    def add_virtual(self, segment: Virtual, *, keep_blanks: bool) -> None:
        place = self.place
        if place.blanks and keep_blanks:  # blanks cannot move across virtual tokens
            self.add(self._tokenizer.encode(place.blanks, opens=place.opens, markup=False))
            place = place._replace(first=False)
        self.ids += [0] * segment.count
        self.rows += range(segment.start, segment.start + segment.count)
        self.place = place._replace(blanks="", empty=False, strips=False)

    def add_text(self, text: str, *, markup: bool) -> None:
        here = self.place
        body, self.place = here.with_text(text)
        if body and markup and self._as_one:
            piece = self._tokenizer.encode_template(body, opens=here.opens, first=here.first)
            self.add(piece.ids)
            blanks = "" if piece.strips else self.place.blanks
            self.place = self.place._replace(opens=piece.opens, blanks=blanks, strips=piece.strips)
        elif body:
            self.add(self._tokenizer.encode(body, opens=here.opens, markup=markup))
