from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from tokenizers import AddedToken, decoders, models, pre_tokenizers, processors
from tokenizers import Tokenizer as HfTokenizer

from pl_compile.config.task import TaskConfig
from pl_compile.errors import DataError
from pl_compile.testing import byte_fallback_tokenizer
from pl_compile.text.notes import notes_on
from pl_compile.text.render import (
    Rendered,
    Renderer,
    SequenceRules,
    TooLongError,
)
from pl_compile.text.template import parse_template
from pl_compile.text.tokenizer import Tokenizer

BOS, EOS = 0, 1
SQUAD = "<|VIRTUAL_PROMPT_0|> Context: {context}\n\nQuestion: {question}\n\nAnswer: {answer}"
FIELDS = {"context": "The year 1987 was cold.", "question": "who was there?"}


@pytest.fixture(scope="module")
def tokenizer(tiny_bases: dict[str, Path]) -> Tokenizer:
    return Tokenizer.from_folder(tiny_bases["llama"])


class Rendering:
    """Makes renderers, and writes and reads ids as people would."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer

    def renderer(
        self,
        template: str,
        total: int = 3,
        *,
        bos_id: int | None = None,
        eos_id: int | None = EOS,
        **settings: Any,
    ) -> Renderer:
        task = TaskConfig("mood", template, total, **settings)
        return Renderer(parse_template(task), self.tokenizer, SequenceRules(bos_id, eos_id))

    def ids(self, *pieces: str) -> list[int]:
        """The ids of texts that were each tokenised by itself."""
        return [
            token_id
            for piece in pieces
            for token_id in self.tokenizer.encode(piece, opens=False, markup=False)
        ]


@pytest.fixture(scope="module")
def rendering(tokenizer: Tokenizer) -> Rendering:
    return Rendering(tokenizer)


def real(rendered: Rendered) -> list[int]:
    """The ids of the real tokens."""
    ids: list[int] = rendered.token_ids[rendered.virtual_rows < 0].tolist()
    return ids


def error_of(renderer: Renderer, fields: dict[str, Any], **arguments: Any) -> str:
    with pytest.raises(DataError) as error:
        renderer.prompt(fields, **arguments)
    return str(error.value)


# One function for both sides


def test_what_is_served_is_the_training_example_cut_at_the_answer(rendering: Rendering) -> None:
    renderer = rendering.renderer(SQUAD, bos_id=BOS)

    served = renderer.prompt(FIELDS)
    trained = renderer.example({**FIELDS, "answer": "nobody at all!"})

    cut = trained.answer_start
    assert served.answer_start == len(served) == cut < len(trained)
    assert served.token_ids.tolist() == trained.token_ids[:cut].tolist()
    assert served.virtual_rows.tolist() == trained.virtual_rows[:cut].tolist()


def test_every_segment_is_tokenised_by_itself(rendering: Rendering) -> None:
    renderer = rendering.renderer("<|VIRTUAL_PROMPT_0|>Con{middle}xt{label}")

    trained = renderer.example({"middle": "te", "label": "s"})

    assert real(trained) == [*rendering.ids("Con", "te", "xt", "s"), EOS]
    assert rendering.ids("Con", "te", "xt") != rendering.ids("Context")


def test_bos_opens_and_eos_ends_a_sequence_where_the_task_has_them(rendering: Rendering) -> None:
    template = "<|VIRTUAL_PROMPT_0|>{text} is{label}"
    fields = {"text": "he", "label": " there"}

    both = rendering.renderer(template, bos_id=BOS).example(fields)
    neither = rendering.renderer(template, eos_id=None).example(fields)

    assert both.token_ids[0] == BOS
    assert both.virtual_rows[0] == -1
    assert both.token_ids[-1] == EOS
    assert both.token_ids[1:-1].tolist() == neither.token_ids.tolist()


def test_a_served_prompt_does_not_end_in_eos(rendering: Rendering) -> None:
    renderer = rendering.renderer("<|VIRTUAL_PROMPT_0|>{text} is{label}")

    assert renderer.prompt({"text": "he"}).token_ids[-1] != EOS


def test_a_template_without_an_answer_is_served_whole_and_without_eos(
    rendering: Rendering,
) -> None:
    renderer = rendering.renderer(
        "<|VIRTUAL_PROMPT_0|>{text} is there", bos_id=BOS, answer_only_loss=False
    )

    served = renderer.prompt({"text": "he"})
    trained = renderer.example({"text": "he"})

    assert real(served) == [BOS, *rendering.ids("he", " is there")]
    assert real(trained) == [BOS, *rendering.ids("he", " is there"), EOS]
    assert served.answer_start == len(served) == trained.answer_start


def test_an_answer_in_the_middle_is_where_the_served_prompt_stops(rendering: Rendering) -> None:
    renderer = rendering.renderer(
        "<|VIRTUAL_PROMPT_0|>{text} is {label}, he was",
        answer_only_loss=False,
        answer_field="label",
    )

    served = renderer.prompt({"text": "he"})
    trained = renderer.example({"text": "he", "label": "cold"})

    assert real(served) == rendering.ids("he", " is")
    assert real(trained) == [*rendering.ids("he", " is", " cold", ", he was"), EOS]


# Blanks


def test_a_blank_before_the_answer_is_learned_with_it_and_not_served(rendering: Rendering) -> None:
    renderer = rendering.renderer("<|VIRTUAL_PROMPT_0|>{text}\nAnswer: {answer}")

    served = renderer.prompt({"text": "he"})
    trained = renderer.example({"text": "he", "answer": "positive"})

    assert real(served) == rendering.ids("he", "\nAnswer:")
    assert real(trained) == [*rendering.ids("he", "\nAnswer:", " positive"), EOS]


def test_only_spaces_move_other_white_space_stays(rendering: Rendering) -> None:
    renderer = rendering.renderer("<|VIRTUAL_PROMPT_0|>{text}\nAnswer:\n{answer}")

    assert real(renderer.prompt({"text": "he\t"})) == rendering.ids("he\t", "\nAnswer:\n")


def test_blanks_at_the_end_of_a_field_belong_to_the_text_after_it(rendering: Rendering) -> None:
    renderer = rendering.renderer("<|VIRTUAL_PROMPT_0|>{text}was{label}")

    assert real(renderer.prompt({"text": "who  "})) == rendering.ids("who", "  was")


def test_a_field_of_blanks_only_hands_them_on(rendering: Rendering) -> None:
    renderer = rendering.renderer("<|VIRTUAL_PROMPT_0|>who {text}was{label}")

    assert real(renderer.prompt({"text": " "})) == rendering.ids("who", "  was")
    assert real(renderer.prompt({"text": ""})) == rendering.ids("who", " was")


def test_blanks_at_the_very_start_and_end_are_dropped(rendering: Rendering) -> None:
    renderer = rendering.renderer("  {text} <|VIRTUAL_PROMPT_0|>{label}", bos_id=BOS, eos_id=None)

    trained = renderer.example({"text": " who", "label": "was  "})

    assert real(trained) == [BOS, *rendering.ids("who", " ", "was")]


def test_a_label_with_its_own_blank_is_all_that_is_learned(rendering: Rendering) -> None:
    renderer = rendering.renderer("<|VIRTUAL_PROMPT_0|> {sentence} sentiment:{label}")

    trained = renderer.example({"sentence": "who was there", "label": " positive"})

    answer = trained.token_ids[trained.answer_start :].tolist()
    assert answer == [*rendering.ids(" positive"), EOS]
    assert trained.virtual_rows[trained.answer_start :].max() == -1


def test_an_empty_answer_is_eos_alone(rendering: Rendering) -> None:
    renderer = rendering.renderer("<|VIRTUAL_PROMPT_0|>{text} is {label}")

    trained = renderer.example({"text": "he", "label": ""})

    assert trained.token_ids[trained.answer_start :].tolist() == [EOS]


# Virtual tokens


def test_splits_give_each_marker_the_next_rows(rendering: Rendering) -> None:
    renderer = rendering.renderer(
        "<|VIRTUAL_PROMPT_0|>{text}<|VIRTUAL_PROMPT_1|>{label}", 10, virtual_token_splits=(7, 3)
    )

    served = renderer.prompt({"text": "who"})

    n_text = len(rendering.ids("who"))
    assert served.virtual_rows.tolist() == [*range(7), *[-1] * n_text, 7, 8, 9]


def test_virtual_tokens_are_ids_above_the_vocabulary_for_a_graph_only(
    rendering: Rendering,
) -> None:
    renderer = rendering.renderer("{text}<|VIRTUAL_PROMPT_0|>{label}", 4)

    served = renderer.prompt({"text": "who"})

    text = rendering.ids("who")
    assert served.token_ids.tolist() == [*text, 0, 0, 0, 0]
    assert served.input_ids(397).tolist() == [*text, 397, 398, 399, 400]
    assert served.input_ids(397).dtype == np.int64


def test_without_virtual_tokens_the_rest_and_the_answer_start_remain(rendering: Rendering) -> None:
    renderer = rendering.renderer(
        "<|VIRTUAL_PROMPT_0|>{text}<|VIRTUAL_PROMPT_1|>:{label}",
        5,
        bos_id=BOS,
        virtual_token_splits=(3, 2),
    )

    bare = renderer.example({"text": "who", "label": " there"}).without_virtual()

    before = [BOS, *rendering.ids("who", ":")]
    assert bare.token_ids.tolist() == [*before, *rendering.ids(" there"), EOS]
    assert bare.virtual_rows.tolist() == [-1] * len(bare)
    assert bare.answer_start == len(before)


def test_blanks_beside_virtual_tokens_are_kept_as_written(rendering: Rendering) -> None:
    renderer = rendering.renderer("who: <|VIRTUAL_PROMPT_0|> {text}{label}", 2, whitespace="keep")

    served = renderer.prompt({"text": "he"})

    assert real(served) == rendering.ids("who:", " ", " he")


def test_nemo_drops_all_white_space_beside_virtual_tokens(rendering: Rendering) -> None:
    template = "who: \n<|VIRTUAL_PROMPT_0|> \n{text} <|VIRTUAL_PROMPT_1|>\t:{label}"

    served = rendering.renderer(template, 5, virtual_token_splits=(3, 2), whitespace="nemo").prompt(
        {"text": " he"}
    )
    kept = rendering.renderer(template, 5, virtual_token_splits=(3, 2)).prompt({"text": " he"})

    assert real(served) == rendering.ids("who:", " he", ":")
    assert real(kept) == rendering.ids("who: \n", " \n", " he", " ", "\t:")


def test_nemo_drops_white_space_of_fields_beside_virtual_tokens_too(rendering: Rendering) -> None:
    renderer = rendering.renderer(
        "<|VIRTUAL_PROMPT_0|>{text}<|VIRTUAL_PROMPT_1|>:{label}",
        5,
        virtual_token_splits=(3, 2),
        whitespace="nemo",
    )

    assert real(renderer.prompt({"text": "\n he \n"})) == rendering.ids("he", ":")


# Data is data


@pytest.mark.parametrize(
    "hostile",
    ["{answer}", "{context}", "<|VIRTUAL_PROMPT_0|>", "<|end|>", "<|start|>", "{{", "}", "\x00"],
)
def test_nothing_in_a_field_is_taken_for_markup(rendering: Rendering, hostile: str) -> None:
    renderer = rendering.renderer("<|VIRTUAL_PROMPT_0|>{context}:{answer}")

    served = renderer.prompt({"context": hostile})

    assert real(served) == rendering.ids(hostile, ":")
    assert served.virtual_rows.tolist()[:3] == [0, 1, 2]
    assert not {BOS, EOS} & set(real(served))
    assert rendering.tokenizer.decode(real(served)) == f"{hostile}:"


def test_a_special_token_of_the_template_is_a_special_token(rendering: Rendering) -> None:
    renderer = rendering.renderer("<|VIRTUAL_PROMPT_0|>{text}<|end|>:{label}")

    served = renderer.prompt({"text": "he"})

    assert real(served) == [*rendering.ids("he"), EOS, *rendering.ids(":")]


def test_numbers_are_written_as_python_writes_them(rendering: Rendering) -> None:
    renderer = rendering.renderer("<|VIRTUAL_PROMPT_0|>{n} and {x}:{label}")

    served = renderer.prompt({"n": 1987, "x": -2.5})

    assert real(served) == rendering.ids("1987", " and", " -2.5", ":")


# Several answers


@pytest.mark.parametrize("template", [SQUAD, SQUAD.replace("Answer: ", "Answer:")])
@pytest.mark.parametrize("eos_id", [EOS, None])
def test_answers_are_what_examples_end_in(
    rendering: Rendering, template: str, eos_id: int | None
) -> None:
    renderer = rendering.renderer(template, bos_id=BOS, eos_id=eos_id)
    texts = ["positive", " positive", "neutral  ", "", "naïve café 😀", "<|end|>"]

    answers = renderer.answers(FIELDS, texts)

    assert answers == [_tail(renderer, {**FIELDS, "answer": text}) for text in texts]


def test_answers_beside_virtual_tokens_are_what_examples_end_in_the_nemo_way(
    rendering: Rendering,
) -> None:
    renderer = rendering.renderer("{text} <|VIRTUAL_PROMPT_0|>{label}", whitespace="nemo")

    answers = renderer.answers({"text": "he"}, ["there", " there"])

    assert answers == [
        _tail(renderer, {"text": "he", "label": label}) for label in ("there", " there")
    ]


_TREES = (
    "<|VIRTUAL_PROMPT_0|><s>{text}<|VIRTUAL_PROMPT_1|>{answer}",
    "<|VIRTUAL_PROMPT_0|><s>{text}[INST]<|VIRTUAL_PROMPT_1|>{answer}",
    "<|VIRTUAL_PROMPT_0|>{text}<|VIRTUAL_PROMPT_1|> {answer}",
    "<|VIRTUAL_PROMPT_0|>who {text}<|VIRTUAL_PROMPT_1|>\n{answer}",
    "<|VIRTUAL_PROMPT_0|>{text}[INST] {answer}<|VIRTUAL_PROMPT_1|>",
    "<s><|VIRTUAL_PROMPT_0|><|VIRTUAL_PROMPT_1|>{text}{answer}",
    "{text} <|VIRTUAL_PROMPT_0|>[INST]{text}<|VIRTUAL_PROMPT_1|><|end|>{answer}",
    " {answer}<|VIRTUAL_PROMPT_0|>{text}<|VIRTUAL_PROMPT_1|>",
)
_VALUES = ("", " ", "who", "who  ", " who", "\n", "[INST]", "7")


@pytest.mark.parametrize("whitespace", ["keep", "nemo", "transformers"])
@pytest.mark.parametrize(
    "kind", ["prepend", "first", "always", "byte level", "byte level with a prefix"]
)
def test_the_tree_of_choices_is_what_examples_end_in_whatever_the_fields_hold(
    tokenizer: Tokenizer, kind: str, whitespace: Any
) -> None:
    file = _whole_tokenizer(kind, tokenizer.text)
    choices = ("there", " was", "who")
    fixed = []
    for template in _TREES:
        task = TaskConfig(
            "mood",
            template,
            4,
            virtual_token_splits=(3, 1),
            answer_field="answer",
            answer_only_loss=template.endswith("{answer}"),
            choices=choices,
            whitespace=whitespace,
        )
        rules = SequenceRules(None, 2)
        renderer = Renderer(parse_template(task), Tokenizer(file.to_str()), rules)
        values = [{"text": value} for value in _VALUES]
        values = [{key: each[key] for key in renderer.template.input_fields} for each in values]

        trees = [renderer.label_trie(fields) for fields in values]

        if template.endswith("{answer}"):
            for fields, tree in zip(values, trees, strict=True):
                tails = [_tail(renderer, {**fields, "answer": label}) for label in choices]
                assert [tree.path(end) for end in tree.ends] == tails, (template, fields)
        assert len({tree.fixed for tree in trees}) == 1
        assert len(set(trees)) == 1 or not trees[0].fixed, template
        fixed.append(trees[0].fixed)
    # One tree: text stands between field and answer, or before both and no token opens anew.
    assert fixed[:4] == [whitespace != "transformers", True, False, True]
    assert fixed[-1]


def test_a_task_keeps_no_more_trees_than_some(rendering: Rendering) -> None:
    renderer = rendering.renderer("<|VIRTUAL_PROMPT_0|>{text}{label}", choices=("who", "was"))

    for count in range(40):
        fields = {"text": "he" + " " * count}
        tree = renderer.label_trie(fields)
        assert tree is renderer.label_trie(fields)
        assert tree.path(tree.ends[0]) == _tail(renderer, {**fields, "label": "who"})

    assert len(renderer._tries) < 20


def test_answers_leave_the_prompt_as_it_is(rendering: Rendering) -> None:
    renderer = rendering.renderer(SQUAD)

    first = renderer.answers(FIELDS, ["positive", "positive"])
    again = renderer.answers(FIELDS, ["positive"])

    assert first[0] == first[1] == again[0]


def _tail(renderer: Renderer, fields: dict[str, str]) -> list[int]:
    trained = renderer.example(fields)
    ids: list[int] = trained.token_ids[trained.answer_start :].tolist()
    return ids


# Wrong fields


def test_a_missing_field_is_named_with_the_near_one_that_was_given(rendering: Rendering) -> None:
    text = error_of(rendering.renderer(SQUAD), {"contxt": "x", "question": "y"})

    assert text.splitlines() == [
        "rendering task 'mood': 2 problems:",
        "  - field 'context' is missing. Did you mean 'contxt'?",
        "  - field 'contxt' is not in the template. Did you mean 'context'?",
        "Its fields: context, question.",
    ]


def test_an_unknown_field_is_refused(rendering: Rendering) -> None:
    text = error_of(rendering.renderer(SQUAD), {**FIELDS, "zzz": "x"})

    assert text == (
        "rendering task 'mood': field 'zzz' is not in the template. Its fields: context, question."
    )


def test_an_answer_given_at_serving_time_is_refused(rendering: Rendering) -> None:
    text = error_of(rendering.renderer(SQUAD), {**FIELDS, "answer": "x"})

    assert text == (
        "rendering task 'mood': field 'answer' is what the model writes: leave it out. "
        "Its fields: context, question."
    )


def test_an_example_without_its_answer_is_refused(rendering: Rendering) -> None:
    with pytest.raises(DataError) as error:
        rendering.renderer(SQUAD).example(FIELDS)

    assert str(error.value) == (
        "rendering task 'mood': field 'answer' is missing. Its fields: context, question, answer."
    )


@pytest.mark.parametrize("value", [None, True, False, ["a"], {"a": 1}, b"a"])
def test_a_value_that_is_no_text_or_number_is_refused_and_shown(
    rendering: Rendering, value: object
) -> None:
    text = error_of(rendering.renderer(SQUAD), {**FIELDS, "context": value})

    assert text == (
        f"rendering task 'mood': field 'context' is {value!r}, expected text or a number. "
        "Its fields: context, question."
    )


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 10**400, 10**5000], ids=range(4))
def test_a_number_that_no_double_holds_is_refused_as_such(
    rendering: Rendering, value: object
) -> None:
    text = error_of(rendering.renderer(SQUAD), {**FIELDS, "context": value})

    assert "expected a finite number that a double can hold: give it as text. Its f" in text


def test_half_a_surrogate_pair_is_refused_as_the_callers_mistake(rendering: Rendering) -> None:
    text = error_of(rendering.renderer(SQUAD), {**FIELDS, "context": "cut \ud83d"})

    assert "'context'" in text


# Length


def test_three_ids_are_cut_from_the_right_end_of_a_field_that_is_two_too_long(
    rendering: Rendering,
) -> None:
    renderer = rendering.renderer(
        "<|VIRTUAL_PROMPT_0|>{context}:{other}:{label}", 10, bos_id=BOS, truncate_field="context"
    )
    context = " the" * 500
    fixed = len(renderer.example({"context": context, "other": "", "label": " positive"}))
    fields = {"context": context, "other": " was" * (2050 - fixed), "label": " positive"}
    assert len(rendering.ids(context)) == 500
    assert len(renderer.example(fields)) == 2050

    fitted = renderer.example(fields, max_length=2048)

    assert len(fitted) == 2047
    assert fitted.token_ids.tolist() == (
        renderer.example({**fields, "context": " the" * 497}).token_ids.tolist()
    )
    assert len(renderer.example(fields, max_length=2050)) == 2050


def test_bos_answer_and_eos_survive_a_cut(rendering: Rendering) -> None:
    renderer = rendering.renderer(
        "<|VIRTUAL_PROMPT_0|>{context} sentiment:{label}", bos_id=BOS, truncate_field="context"
    )
    fields = {"context": "the year was cold and nobody was there", "label": " positive"}

    fitted = renderer.example(fields, max_length=len(renderer.example(fields)) - 4)

    answer = fitted.token_ids[fitted.answer_start :].tolist()
    assert fitted.token_ids[0] == BOS
    assert fitted.virtual_rows[1:4].tolist() == [0, 1, 2]
    assert answer == [*rendering.ids(" positive"), EOS]


def test_a_field_of_two_ids_is_used_up_and_then_named(rendering: Rendering) -> None:
    renderer = rendering.renderer(
        "<|VIRTUAL_PROMPT_0|>{context}:{other}:{label}", truncate_field="context"
    )
    fields = {"context": " the the", "other": " was" * 20, "label": " positive"}
    length = len(renderer.example(fields))
    assert len(rendering.ids(" the the")) == 2

    fitted = renderer.example(fields, max_length=length - 2)
    with pytest.raises(TooLongError) as error:
        renderer.example(fields, max_length=length - 3)

    assert len(fitted) == length - 2
    assert str(error.value) == (
        f"rendering task 'mood': {length - 2} tokens, its field 'context' used up; "
        f"expected at most {length - 3}. "
        "Shorten the example, or name a longer truncate_field in the task."
    )


def test_a_field_of_bytes_that_are_no_tokens_cannot_be_cut() -> None:
    """The tokenizer of the default base has none for 21 control characters, and leaves them out."""
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    left_out = {"\u0104", "\u0106"}  # what stands for the bytes 4 and 6
    vocab = {sign: number for number, sign in enumerate(sorted(set(alphabet) - left_out))}
    library = HfTokenizer(models.BPE(vocab=vocab, merges=[]))
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    rendering = Rendering(Tokenizer(library.to_str()))
    template = "<|VIRTUAL_PROMPT_0|>{context}{other}:{label}"
    renderer = rendering.renderer(template, truncate_field="context")
    assert rendering.ids("\x04\x06") == []

    for context in ("\x04" * 9, "\x04\x06" * 30 + "a", "\x04"):
        with pytest.raises(TooLongError, match="its field 'context' used up"):
            renderer.prompt({"context": context, "other": "b" * 20}, max_length=10)


def test_without_a_truncate_field_what_is_too_long_is_refused(rendering: Rendering) -> None:
    renderer = rendering.renderer("<|VIRTUAL_PROMPT_0|>{context}:{label}")

    with pytest.raises(TooLongError) as error:
        renderer.prompt({"context": " the" * 9}, max_length=12)

    assert str(error.value) == (
        "rendering task 'mood': 13 tokens, no truncate_field; expected at most 12. "
        "Shorten the example, or name a longer truncate_field in the task."
    )


def test_what_just_fits_is_left_alone(rendering: Rendering) -> None:
    renderer = rendering.renderer("<|VIRTUAL_PROMPT_0|>{context}:{label}", truncate_field="context")

    assert len(renderer.prompt({"context": " the" * 9}, max_length=13)) == 13


class _ImpatientTokenizer(Tokenizer):
    """Encodes 1000 times and no more: a test of it fails where it would never end."""

    n_encoded = 0

    def encode(self, text: str, *, opens: bool, markup: bool) -> list[int]:
        self.n_encoded += 1
        assert self.n_encoded <= 1000, "the same text is cut again and again"
        return super().encode(text, opens=opens, markup=markup)


@pytest.mark.parametrize("room", [0, 1, 2])
def test_cutting_through_a_character_of_several_tokens_comes_to_an_end(
    tokenizer: Tokenizer, room: int
) -> None:
    rendering = Rendering(_ImpatientTokenizer(tokenizer.text))
    renderer = rendering.renderer("<|VIRTUAL_PROMPT_0|>{context}{label}", truncate_field="context")
    assert len(rendering.ids("🦊")) == 3

    fitted = renderer.prompt({"context": "🦊"}, max_length=3 + room)

    assert len(fitted) <= 3 + room


@pytest.mark.parametrize("too_many", range(1, 9))
def test_a_cut_drops_a_whole_character_rather_than_leave_a_broken_one(
    tokenizer: Tokenizer, too_many: int
) -> None:
    rendering = Rendering(_ImpatientTokenizer(tokenizer.text))
    renderer = rendering.renderer("<|VIRTUAL_PROMPT_0|>{context}{label}", truncate_field="context")
    context = "who was 🦊🦊🦊"
    length = len(renderer.prompt({"context": context}))

    fitted = renderer.prompt({"context": context}, max_length=length - too_many)

    kept = tokenizer.decode(real(fitted))
    assert kept.startswith("who")
    assert context.startswith(kept)


def test_serving_cuts_like_training(rendering: Rendering) -> None:
    renderer = rendering.renderer(SQUAD, bos_id=BOS, truncate_field="context")
    whole = renderer.prompt(FIELDS)

    fitted = renderer.prompt(FIELDS, max_length=len(whole) - 3)

    assert len(fitted) == len(whole) - 4
    assert _common_head(whole.token_ids.tolist(), fitted.token_ids.tolist()) >= 4
    assert fitted.token_ids[-3:].tolist() == whole.token_ids[-3:].tolist()


def _common_head(one: Sequence[int], other: Sequence[int]) -> int:
    pairs = zip(one, other, strict=False)
    return next((n for n, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))


# As transformers tokenises a whole text

_CONTROL: list[dict[str, Any]] = [
    {"content": "[INST]", "special": True},
    {"content": "[/INST]"},
    {"content": "<|user|>", "special": True, "rstrip": True},
    {"content": "<|end|>", "special": True, "lstrip": True},
    # Looked for in text that was normalised, as `add_tokens` of transformers adds them.
    {"content": "<sep>", "normalized": True},
    {"content": "<pad>", "normalized": True, "special": True, "rstrip": True},
    {"content": "<cut>", "normalized": True, "lstrip": True},
]
_WHOLE = (
    "{q}",
    "<s>{q}",
    "<s> {q}",
    "<s>{q} Answer: {a}",
    "<s>What is {q} Answer:",
    "<s>[INST]{q}[/INST]{a}",
    "<s>[INST] {q} [/INST] {a} [/INST]",
    "[INST]{q}[/INST]who",
    "[INST]<s>{q}",
    "<s>{q}[INST]who[/INST]was {a}",
    "<s><|user|> {q} <|end|>{a} <|end|>",
    "<s><s>{q}</s>{a}",
    "<s><|user|>{b}{q}",
    "<s><|user|> {b} {b}\n who",
    "<s>{q} <sep> {a}",
    "<s><sep> {q} {a}",
    "<s>{q}<sep>{a}",
    "<s>who <sep> was {q} <sep>{b}",
    "[INST] <sep> {q}<|end|> <sep>[/INST] {a} <sep>",
    "<sep>{q} <pad> {a} <pad>",
    "<s>{q}{b}<|end|>{a}",
    "<s>{e}<|end|> {q}",
    "<s>{q}\n{e} <|end|>{a}",
    "<s>{e} {b}  <|end|>{b}{e}</s>",
    "<s>{q}{e} <cut> {e}<cut>who",
)


def _whole_tokenizer(kind: str, byte_level: str) -> HfTokenizer:
    if not kind.startswith("byte level"):
        return HfTokenizer.from_str(byte_fallback_tokenizer(cast(Any, kind), _CONTROL))
    file = HfTokenizer.from_str(byte_level)
    file.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space="prefix" in kind)
    file.add_tokens([AddedToken("<s>", special=True), AddedToken("</s>", special=True)])
    file.add_tokens([AddedToken(**token) for token in _CONTROL])
    bos = file.token_to_id("<s>")
    file.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", bos)])
    return file


@pytest.mark.parametrize(
    "kind", ["prepend", "first", "always", "byte level", "byte level with a prefix"]
)
@pytest.mark.parametrize("template", _WHOLE)
def test_a_template_for_transformers_gives_the_ids_of_the_whole_text(
    tokenizer: Tokenizer, kind: str, template: str
) -> None:
    file = _whole_tokenizer(kind, tokenizer.text)
    task = TaskConfig(
        "ask",
        f"<|VIRTUAL_PROMPT_0|>{template}",
        3,
        answer_only_loss=False,
        whitespace="transformers",
    )
    renderer = Renderer(parse_template(task), Tokenizer(file.to_str()), SequenceRules())
    fields = {"q": "who was there", "a": "nobody", "b": " \n", "e": "who\n\t "}
    fields = {name: fields[name] for name in renderer.template.fields}
    text = template.format(**fields)

    trained = renderer.example(fields)

    # BOS at the start is what the tokenizer itself puts before a text.
    expected = file.encode(text.removeprefix("<s>"), add_special_tokens=text.startswith("<s>"))
    assert real(trained) == expected.ids
    assert len(renderer.opening()) <= len(trained)


def test_tasks_that_were_trained_here_keep_their_ids_after_control_tokens() -> None:
    tokenizer = Tokenizer(byte_fallback_tokenizer("prepend", _CONTROL))
    task = TaskConfig("ask", "<|VIRTUAL_PROMPT_0|><s>[INST]{q}", 3, answer_only_loss=False)
    renderer = Renderer(parse_template(task), tokenizer, SequenceRules())

    served = real(renderer.example({"q": "who"}))

    assert served[-1:] == tokenizer.encode("who", opens=False, markup=False)[-1:]
    assert tokenizer.decode(served) == "who"
    assert "▁" not in tokenizer.token_name(served[2])


# Ids without a row


def _tokenizer_beyond(tokenizer: Tokenizer) -> Tokenizer:
    """Of a base with one row less than the vocabulary, whose last token writes a text."""
    return Tokenizer(tokenizer.text, vocab=396)


@pytest.mark.parametrize(
    ("template", "settings", "rules"),
    [
        ("{q}%s", {"answer_only_loss": False}, SequenceRules()),
        ("{q}{a}", {"choices": ("x", "%s")}, SequenceRules()),
        ("{q}{a}", {}, SequenceRules(bos_id=396)),
        ("{q}{a}", {}, SequenceRules(eos_id=50256)),
    ],
)
def test_what_each_prompt_of_a_task_holds_must_be_rows_of_the_base(
    tokenizer: Tokenizer, template: str, settings: dict[str, Any], rules: SequenceRules
) -> None:
    last = tokenizer.decode([396])
    if "choices" in settings:
        settings = {"choices": tuple(choice.replace("%s", last) for choice in settings["choices"])}
    task = TaskConfig("ask", f"<|VIRTUAL_PROMPT_0|>{template.replace('%s', last)}", 3, **settings)

    Renderer(parse_template(task), tokenizer, SequenceRules())
    with pytest.raises(DataError, match=r"reading task 'ask': .*has no row for"):
        Renderer(parse_template(task), _tokenizer_beyond(tokenizer), rules)


@pytest.mark.parametrize(
    ("template", "settings", "is_refused"),
    [
        ("was{q}who", {}, False),
        ("was who", {}, True),
        ("who{q}", {}, True),  # it opens the text
        ("{q}who", {}, True),  # where the field is empty
        ("was{q}{a}", {"choices": ("who", "was")}, False),
        ("was {a}", {"choices": ("who", "was")}, True),
        ("was {q}{a}", {"choices": ("who", "was")}, True),
    ],
)
def test_rows_are_needed_for_the_tokens_that_occur_and_for_no_others(
    template: str, settings: dict[str, Any], is_refused: bool
) -> None:
    """A tokenizer writes a word otherwise where it opens a text, or stands after a blank."""
    words = HfTokenizer(models.WordLevel({"who": 0, "was": 1, "▁was": 2, "▁": 3, "▁who": 4}, ""))
    words.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer = Tokenizer(words.to_str(), vocab=4)
    only = "choices" in settings
    task = TaskConfig(
        "ask", f"<|VIRTUAL_PROMPT_0|>{template}", 3, answer_only_loss=only, **settings
    )

    with (
        pytest.raises(DataError, match=r"reading task 'ask': .*'▁who' with id 4, which the base")
        if is_refused
        else nullcontext()
    ):
        Renderer(parse_template(task), tokenizer, SequenceRules())


def test_a_field_with_a_token_that_the_base_has_no_row_for_is_refused(tokenizer: Tokenizer) -> None:
    task = TaskConfig("ask", "<|VIRTUAL_PROMPT_0|>{q}", 3, answer_only_loss=False)
    renderer = Renderer(
        parse_template(task), _tokenizer_beyond(tokenizer), SequenceRules(eos_id=EOS)
    )

    assert len(renderer.example({"q": "who"})) > 3
    with pytest.raises(DataError, match="with id 396, which the base has no row for"):
        renderer.example({"q": tokenizer.decode([396])})


def test_a_real_id_is_never_a_row_of_the_prompt() -> None:
    rendered = Rendered(np.array([3, 0, 5]), np.array([-1, 0, -1]), 3)

    assert rendered.input_ids(6).tolist() == [3, 6, 5]
    with pytest.raises(AssertionError, match="would be a prompt row"):
        rendered.input_ids(5)


def test_a_user_is_told_what_the_tokenizer_cannot_express(tokenizer: Tokenizer) -> None:
    task = TaskConfig("ask", "<|VIRTUAL_PROMPT_0|>ü{q}", 3, answer_only_loss=False)
    templates = [parse_template(task)]
    letters = HfTokenizer(models.BPE({"a": 0, "b": 1}, []))
    letters.decoder = decoders.Fuse()

    larger = notes_on(Tokenizer(tokenizer.text, vocab=395), templates)
    lossy = notes_on(Tokenizer(letters.to_str(), vocab=2), templates)

    assert notes_on(Tokenizer(tokenizer.text, vocab=397), templates) == []
    assert len(larger) == 1
    assert "2 tokens" in larger[0]
    assert "(id 395)" in larger[0]
    assert len(lossy) == 2
    assert "'ü' of the template and the choices of task 'ask'" in lossy[1]
