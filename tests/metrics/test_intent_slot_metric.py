import pytest
from hypothesis import given
from hypothesis import strategies as st

from pl_compile.errors import DataError
from pl_compile.metrics.intent_slot import (
    IntentAndSlots,
    intent_slot_scores,
    parse_intent_and_slots,
)


def slots_of(text: str) -> set[str]:
    return set(parse_intent_and_slots(f"Intent: x\nSlots: {text}").slots)


def test_an_answer_is_read_without_case_and_order() -> None:
    answer = parse_intent_and_slots("\nIntent: Alarm_Set\nSlots: time(Nine AM), date( today )")

    assert answer == IntentAndSlots("alarm_set", frozenset({"date(today)", "time(nine am)"}))


def test_none_means_no_slots() -> None:
    assert parse_intent_and_slots("Intent: qa_maths\nSlots: None") == IntentAndSlots(
        "qa_maths", frozenset()
    )


@pytest.mark.parametrize(
    ("text", "slots"),
    [
        ("list(eggs, milk), date(today)", {"list(eggs, milk)", "date(today)"}),
        ("note(milk (fresh), eggs), date(today)", {"note(milk (fresh), eggs)", "date(today)"}),
        ("note(f (a), b(c))", {"note(f (a), b(c))"}),
        ("post(bye :), all), date(today)", {"post(bye :), all)", "date(today)"}),
        (
            "post(bye :( ), date(today)",
            {"post(bye :( ), date(today)"},
        ),  # no partner: takes the rest
        ("a(b),c(d)", {"a(b)", "c(d)"}),
        ("a(b), a(b)", {"a(b)"}),
        ("a(b), ", {"a(b)"}),
        ("a(b), c(to", {"a(b)", "c(to"}),  # cut off in a value
        ("a(b), tim", {"a(b)", "tim"}),  # cut off in a name
    ],
)
def test_values_may_hold_commas_and_parentheses(text: str, slots: set[str]) -> None:
    assert slots_of(text) == slots


@pytest.mark.parametrize("text", ["", "no idea", "Slots: None"])
def test_an_answer_in_another_form_has_no_intent(text: str) -> None:
    assert parse_intent_and_slots(text) == IntentAndSlots("", frozenset())


def test_scores_count_slots_over_all_rows() -> None:
    references = [
        "\nIntent: alarm_set\nSlots: time(six), date(today)",
        "\nIntent: play_music\nSlots: artist(adele)",
        "\nIntent: qa_maths\nSlots: None",
        "\nIntent: general_joke\nSlots: None",
    ]
    predictions = [
        "Intent: alarm_set\nSlots: date(today), time(six)",  # all right
        "Intent: play_music\nSlots: song(adele)",  # the slot is wrong
        "Intent: qa_factoid\nSlots: None",  # the intent is wrong
        "Intent: general_joke\nSlots: name(joke)",  # a slot too many
    ]

    # 2 hits of 4 predicted and of 3 right slots.
    assert intent_slot_scores(predictions, references) == {
        "intent_accuracy": 75,
        "slot_precision": 50,
        "slot_recall": pytest.approx(200 / 3),
        "slot_f1": pytest.approx(400 / 7),
        "joint_accuracy": 25,
        "total": 4,
    }


def test_slot_scores_are_full_where_no_slots_exist_and_none_are_invented() -> None:
    nothing = "Intent: a\nSlots: None"
    one = "Intent: a\nSlots: b(c)"

    full = intent_slot_scores([nothing], [nothing])
    missed = intent_slot_scores([nothing], [one])
    invented = intent_slot_scores([one], [nothing])

    ratios = ("slot_precision", "slot_recall", "slot_f1")
    assert [full[name] for name in ratios] == [100, 100, 100]
    assert [missed[name] for name in ratios] == [0, 0, 0]
    assert [invented[name] for name in ratios] == [0, 0, 0]


def test_a_reference_in_another_form_is_refused_with_its_row() -> None:
    with pytest.raises(DataError) as error:
        intent_slot_scores(["x", "y"], ["Intent: a\nSlots: None", " positive"])

    assert str(error.value) == (
        "scoring intent_slot: row 2: ' positive'; expected references such as "
        r"'Intent: NAME\nSlots: a(b), c(d)' or '... Slots: None'."
    )


_names = st.text(alphabet="abc_", min_size=1, max_size=5)
_flat = st.text(alphabet="xy z,", min_size=1, max_size=8).map(lambda text: f"v{text.strip()}")
_values = st.one_of(_flat, st.tuples(_flat, _flat).map(lambda pair: f"{pair[0]} ({pair[1]})"))


@given(_names, st.lists(st.tuples(_names, _values), max_size=4))
def test_what_is_written_is_read_back(intent: str, slots: list[tuple[str, str]]) -> None:
    written = [f"{name}({value})" for name, value in slots]

    answer = parse_intent_and_slots(f"\nIntent: {intent}\nSlots: {', '.join(written) or 'None'}")

    assert answer == IntentAndSlots(intent, frozenset(written))
