from typing import Any

import pytest

from pl_compile.config.task import TaskConfig
from pl_compile.errors import ConfigError
from pl_compile.text.template import (
    Field,
    Template,
    Text,
    Virtual,
    literal_escapes,
    parse_template,
    texts_of,
    without_input,
)


def parse(template: str, total: int = 5, **settings: Any) -> Template:
    return parse_template(TaskConfig("mood", template, total, **settings))


def refusal(template: str, total: int = 5, **settings: Any) -> str:
    with pytest.raises(ConfigError) as error:
        parse(template, total, **settings)
    return str(error.value)


# What a good template becomes


def test_a_template_becomes_virtual_tokens_text_and_fields_in_order() -> None:
    template = parse(
        "<|VIRTUAL_PROMPT_0|> Context: {context}<|VIRTUAL_PROMPT_1|>\nAnswer:{answer}",
        10,
        virtual_token_splits=(7, 3),
    )

    assert template.segments == (
        Virtual(0, 7),
        Text(" Context: "),
        Field("context"),
        Virtual(7, 3),
        Text("\nAnswer:"),
        Field("answer"),
    )
    assert template.fields == ("context", "answer")
    assert template.input_fields == ("context",)
    assert template.answer_field == "answer"


def test_without_splits_all_virtual_tokens_stand_at_the_only_marker() -> None:
    assert parse("{x}<|VIRTUAL_PROMPT_0|>{y}", 11).segments[1] == Virtual(0, 11)


def test_the_field_that_ends_the_template_is_the_answer() -> None:
    assert parse("<|VIRTUAL_PROMPT_0|>{text} {label}").answer_field == "label"


def test_blanks_after_the_answer_are_dropped() -> None:
    for blanks in (" ", "   "):
        template = parse(f"<|VIRTUAL_PROMPT_0|>{{text}} {{label}}{blanks}")

        assert template.segments == parse("<|VIRTUAL_PROMPT_0|>{text} {label}").segments
        assert template.answer_field == "label"


@pytest.mark.parametrize("end", ["\n", " \n", ".", " {{", "\u00a0"])
def test_other_text_after_the_answer_is_refused(end: str) -> None:
    assert "needs the answer at the end" in refusal(f"<|VIRTUAL_PROMPT_0|>{{text}} {{label}}{end}")


@pytest.mark.parametrize(
    ("field", "name"),
    [
        ("label!r", "label"),
        ("label!s:>4", "label"),
        ("my label:>10", "my label"),
        ("label:10", "label"),
        ("label:.2f", "label"),
        ("label:*^8s", "label"),
        ("label:,", "label"),
    ],
)
def test_a_field_takes_no_format(field: str, name: str) -> None:
    assert refusal(f"<|VIRTUAL_PROMPT_0|>{{text}} {{{field}}}") == (
        f"parsing the template of task 'mood': {{{field}}} at character 28: a field is a name "
        f"alone, without a format; write {{{name}}}."
    )


@pytest.mark.parametrize("name", ["text:en", "really?!", "Question:", "a:b", "user.name", "x[0]"])
def test_other_signs_belong_to_a_fields_name(name: str) -> None:
    assert parse(f"<|VIRTUAL_PROMPT_0|>{{{name}}} {{label}}").input_fields == (name,)


def test_a_task_without_input_is_told() -> None:
    only = "<|VIRTUAL_PROMPT_0|> Message: {message}"

    assert without_input(parse(only)) == (
        "task 'mood' takes no input: its only field, 'message', is what the model writes. If "
        "'message' is given to it, put a field for the answer at the end"
    )
    assert without_input(parse(f"{only} {{label}}")) == ""
    assert without_input(parse(f"{only}.", answer_only_loss=False)) == ""


def test_a_template_that_ends_in_text_has_no_answer_unless_one_is_named() -> None:
    text = "<|VIRTUAL_PROMPT_0|>{text} {label}."

    unnamed = parse(text, answer_only_loss=False)
    named = parse(text, answer_only_loss=False, answer_field="label")

    assert unnamed.answer_field is None
    assert unnamed.input_fields == ("text", "label")
    assert named.answer_field == "label"
    assert named.input_fields == ("text",)


def test_a_field_that_is_used_twice_is_listed_once() -> None:
    template = parse("{word}<|VIRTUAL_PROMPT_0|>{word} means {sense}")

    assert template.fields == ("word", "sense")


def test_doubled_braces_are_braces() -> None:
    template = parse('<|VIRTUAL_PROMPT_0|>{{"a": {{{a}}}}} {label}')

    assert template.segments == (
        Virtual(0, 5),
        Text('{"a": {'),
        Field("a"),
        Text("}} "),
        Field("label"),
    )


def test_text_around_doubled_braces_is_one_segment() -> None:
    template = parse("a{{b}}c<|VIRTUAL_PROMPT_0|>{x}")

    assert template.segments[0] == Text("a{b}c")


def test_only_a_whole_marker_is_a_marker() -> None:
    others = "<|VIRTUAL_PROMPT_|><|virtual_prompt_0|><|VIRTUAL_PROMPT_\u0660|>"
    template = parse(f"{others}<|VIRTUAL_PROMPT_0|>{{x}}")

    assert template.segments[0] == Text(others)


# Markers and splits


@pytest.mark.parametrize(
    ("template", "n_markers", "splits"),
    [
        ("<|VIRTUAL_PROMPT_0|>{x}", 1, (3, 2)),
        ("<|VIRTUAL_PROMPT_0|>{a}<|VIRTUAL_PROMPT_1|>{x}", 2, (2, 2, 1)),
        ("{x}", 0, (3, 2)),
    ],
)
def test_markers_and_splits_of_different_number_are_refused_with_both(
    template: str, n_markers: int, splits: tuple[int, ...]
) -> None:
    text = refusal(template, virtual_token_splits=splits)

    assert text == (
        f"parsing the template of task 'mood': the template has {n_markers} <|VIRTUAL_PROMPT_n|> "
        f"markers, but virtual_token_splits has {len(splits)} numbers."
    )


def test_two_markers_need_splits() -> None:
    text = refusal("<|VIRTUAL_PROMPT_0|>{a}<|VIRTUAL_PROMPT_1|>{x}")

    assert "the template has 2 <|VIRTUAL_PROMPT_n|> markers" in text


def test_splits_that_do_not_sum_to_the_total_show_both_numbers() -> None:
    text = refusal(
        "<|VIRTUAL_PROMPT_0|>{a}<|VIRTUAL_PROMPT_1|>{x}", 10, virtual_token_splits=(7, 2)
    )

    assert text == (
        "parsing the template of task 'mood': virtual_token_splits [7, 2] sum to 9, "
        "but total_virtual_tokens is 10."
    )


@pytest.mark.parametrize(("first", "second"), [(1, 0), (1, 2), (0, 0), (0, 2)])
def test_markers_are_numbered_from_zero_each_once_and_in_order(first: int, second: int) -> None:
    text = refusal(
        f"<|VIRTUAL_PROMPT_{first}|>{{a}}<|VIRTUAL_PROMPT_{second}|>{{x}}",
        virtual_token_splits=(3, 2),
    )

    assert text == (
        f"parsing the template of task 'mood': markers are numbered [{first}, {second}], "
        "expected 0, 1, 2 … in this order."
    )


def test_a_marker_with_a_number_that_is_much_too_long_is_refused_like_others() -> None:
    text = refusal(f"<|VIRTUAL_PROMPT_{'1' * 5000}|>{{a}}{{x}}")

    assert "markers are numbered [111111111], expected 0, 1, 2" in text


@pytest.mark.parametrize("splits", [(5, 0), (6, -1)])
def test_no_marker_may_stand_for_nothing(splits: tuple[int, int]) -> None:
    text = refusal("<|VIRTUAL_PROMPT_0|>{a}<|VIRTUAL_PROMPT_1|>{x}", virtual_token_splits=splits)

    assert text == (
        f"parsing the template of task 'mood': virtual_token_splits {list(splits)}: "
        "each must be at least 1."
    )


@pytest.mark.parametrize("total", [0, -1, 10**7, 10**30])
def test_a_task_has_at_least_one_virtual_token_and_no_more_than_memory_holds(total: int) -> None:
    text = refusal("<|VIRTUAL_PROMPT_0|>{x}", total)

    assert f"total_virtual_tokens is {total}, expected 1 to 1000000" in text


# Fields


def test_an_unknown_truncate_field_is_refused_with_the_near_name() -> None:
    text = refusal("<|VIRTUAL_PROMPT_0|>{context} {answer}", truncate_field="contxt")

    assert text == (
        "parsing the template of task 'mood': truncate_field: field 'contxt' does not exist. "
        "Did you mean 'context'? Known fields: context, answer."
    )


def test_an_unknown_answer_field_is_refused_with_the_near_name() -> None:
    text = refusal("<|VIRTUAL_PROMPT_0|>{context} {answer}", answer_field="anwser")

    assert (
        "answer_field: field 'anwser' does not exist. Did you mean 'answer'? "
        "Known fields: context, answer."
    ) in text


def test_the_answer_cannot_be_what_is_cut() -> None:
    text = refusal("<|VIRTUAL_PROMPT_0|>{context} {answer}", truncate_field="answer")

    assert text == (
        "parsing the template of task 'mood': truncate_field and answer_field are both 'answer'."
    )


def test_loss_on_the_answer_needs_the_answer_at_the_end() -> None:
    text = refusal("<|VIRTUAL_PROMPT_0|>{context} {answer} and more", answer_field="answer")

    assert text == (
        "parsing the template of task 'mood': answer_only_loss needs the answer at the end of the "
        "template, but it ends in 'er} and more'; move the answer or set answer_only_loss: false."
    )


def test_loss_on_the_answer_needs_the_named_answer_at_the_end() -> None:
    text = refusal("<|VIRTUAL_PROMPT_0|>{answer} {context}", answer_field="answer")

    assert "but it ends in 'r} {context}'" in text


def test_the_answer_stands_once() -> None:
    text = refusal("{label}<|VIRTUAL_PROMPT_0|>{label}")

    assert text == "parsing the template of task 'mood': the answer field 'label' is used 2 times."


# Braces


@pytest.mark.parametrize(
    ("template", "brace", "place"),
    [
        ("a } b<|VIRTUAL_PROMPT_0|>{x}", "}", 3),
        ("a { b<|VIRTUAL_PROMPT_0|>{x}", "{", 3),
        ("<|VIRTUAL_PROMPT_0|>{{{{{ {x}", "{", 25),
        ("<|VIRTUAL_PROMPT_0|>{x}}{y}", "}", 24),
    ],
)
def test_a_single_brace_is_refused_with_its_place(template: str, brace: str, place: int) -> None:
    assert refusal(template) == (
        f"parsing the template of task 'mood': a single '{brace}' at character {place}: "
        f"write '{brace * 2}' for a brace."
    )


@pytest.mark.parametrize("field", ["{}", "{ }"])
def test_an_empty_field_is_refused_with_its_place(field: str) -> None:
    assert refusal(f"<|VIRTUAL_PROMPT_0|>{field} {{x}}") == (
        "parsing the template of task 'mood': an empty field at character 21: name it."
    )


# All together


def test_all_that_is_wrong_with_a_template_is_said_at_once() -> None:
    text = refusal(
        "<|VIRTUAL_PROMPT_0|>{context} } {} <|VIRTUAL_PROMPT_1|>{answer}.",
        10,
        virtual_token_splits=(7, 0, 2),
        truncate_field="kontext",
        answer_field="answer",
    )

    assert text.splitlines() == [
        "parsing the template of task 'mood': 7 problems:",
        "  - a single '}' at character 31: write '}}' for a brace",
        "  - an empty field at character 33: name it",
        "  - the template has 2 <|VIRTUAL_PROMPT_n|> markers, but virtual_token_splits has 3 "
        "numbers",
        "  - virtual_token_splits [7, 0, 2] sum to 9, but total_virtual_tokens is 10",
        "  - virtual_token_splits [7, 0, 2]: each must be at least 1",
        "  - truncate_field: field 'kontext' does not exist. Did you mean 'context'? "
        "Known fields: context, answer.",
        "  - answer_only_loss needs the answer at the end of the template, but it ends in "
        "'1|>{answer}.'; move the answer or set answer_only_loss: false.",
    ]


# Backslashes


def test_a_backslash_before_n_t_or_r_is_kept_and_said() -> None:
    task = TaskConfig(
        "mood",
        r"<|VIRTUAL_PROMPT_0|> {text}\n\nmood:{label}",
        5,
        choices=(r"\tup", "down\n", r"C:\dir"),
        init_text=r"a\r\n",
    )

    assert Text(r"\n\nmood:") in parse_template(task).segments
    advice = "if a line end or a tab is meant, use double quotes in YAML, and $'…' in the shell"
    assert literal_escapes(texts_of(task)) == [
        rf"prompt_template of task 'mood' holds \n as a backslash and the letter n; {advice}",
        rf"init_text of task 'mood' holds \r as a backslash and the letter r; {advice}",
        rf"choices.0 of task 'mood' holds \t as a backslash and the letter t; {advice}",
    ]
