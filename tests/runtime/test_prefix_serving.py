"""Tasks with a learned prefix in a session: beside other tasks, in a full cache, without prompt."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pl_compile.artifact.prompt_table import TaskEntry, read_prompt_table, write_prompt_table
from pl_compile.config.build import BuildOptions, FoldMode, Quantization
from pl_compile.config.contract import PromptsMode
from pl_compile.driver.export import export_bundle
from pl_compile.driver.export_request import ExportRequest
from pl_compile.errors import ArtifactError, ExportError, RequestError
from pl_compile.runtime import Request, Result, Session
from pl_compile.testing import random_table, write_tiny_base

CAPACITY = 80


@pytest.fixture(scope="module", params=["input", "baked"])
def bundle(
    tiny_bases: dict[str, Path],
    tmp_path_factory: pytest.TempPathFactory,
    request: pytest.FixtureRequest,
) -> Path:
    folder = tmp_path_factory.mktemp("bundle")
    base = tiny_bases["llama"]
    table = random_table(base, folder / "table.safetensors", prefix=True)
    mode: PromptsMode = request.param
    export_bundle(
        ExportRequest(
            table,
            base,
            folder / "bundle",
            prompts=mode,
            capacity=CAPACITY,
            measure_parity=False,
        )
    )
    return folder / "bundle"


@pytest.fixture(scope="module")
def session(bundle: Path) -> Session:
    return Session.open(bundle)


def order(request: str, **options: object) -> Request:
    return Request("order", {"request": request}, **{"max_tokens": 12, **options})  # type: ignore[arg-type]


def tone(sentence: str, **options: object) -> Request:
    options = {"max_tokens": 12, "constrain": False, **options}
    return Request("tone", {"sentence": sentence}, **options)  # type: ignore[arg-type]


def test_prefixes_rows_and_no_prompts_in_one_batch_equal_one_by_one(session: Session) -> None:
    requests = [
        tone("the year was cold"),
        order("lights off in the kitchen"),
        order("lights off in the kitchen", use_prompt=False),
        Request("ask", {"question": "who was there at all?", "place": "a café"}, max_tokens=9),
        order("timer", max_tokens=30, min_tokens=30),
        tone("a parcel", use_prompt=False, max_tokens=2),
        order("a bill or a login, whatever comes first"),
    ]

    together = session.generate(requests)

    assert together == [session.generate([request])[0] for request in requests]
    assert together == session.generate(requests[::-1])[::-1]


def test_the_prefix_changes_the_answer_and_counts_as_tokens(session: Session) -> None:
    with_, without = session.generate(
        [
            order("off", min_tokens=12),
            order("off", min_tokens=12, use_prompt=False),
        ]
    )

    assert with_.token_ids != without.token_ids
    assert with_.prompt_tokens == without.prompt_tokens + 4


def test_a_row_that_is_left_by_a_prefix_is_clean(session: Session) -> None:
    before = session.generate([tone("cold")])

    session.generate([order("off")])

    assert session.generate([tone("cold")]) == before


def test_rows_too_long_to_stand_beside_a_prefix_are_stepped_apart(session: Session) -> None:
    # 79 tokens and a prefix of 4 would be written 3 entries beyond the cache of the prefix's row.
    long = [tone("cold " * count) for count in range(60, 72)]
    fitting = [request for request in long if _fits(session, request)]
    assert session.generate(fitting[-1:])[0].prompt_tokens > CAPACITY - 4
    requests = [order("off"), *fitting[-1:], order("lights off in the kitchen")]

    together = session.generate(requests)

    assert together == [session.generate([request])[0] for request in requests]


def _fits(session: Session, request: Request) -> bool:
    try:
        session.check(request)
    except RequestError:
        return False
    return True


def test_an_answer_after_a_prefix_ends_where_the_cache_does(session: Session) -> None:
    result = session.generate([order("cold " * 20, max_tokens=200, min_tokens=200)])[0]

    assert result.finish_reason == "length"
    assert result.prompt_tokens + len(result.token_ids) == CAPACITY


def test_a_field_after_a_prefix_is_cut_to_fit(session: Session) -> None:
    result = session.generate([order("who was there? " * 40, max_tokens=10)])[0]

    assert result.cut_tokens > 0
    assert result.prompt_tokens == pytest.approx(CAPACITY - 10, abs=3)


# What cannot be served


@pytest.mark.parametrize(
    "template",
    [
        "Order: <|VIRTUAL_PROMPT_0|>{request} becomes {order}",
        "{request}<|VIRTUAL_PROMPT_0|> becomes {order}",
        "<|VIRTUAL_PROMPT_0|>{request}<|VIRTUAL_PROMPT_1|> becomes {order}",
    ],
)
def test_a_template_that_does_not_open_with_its_prefix_is_refused_before_and_after_the_export(
    session: Session, tiny_bases: dict[str, Path], tmp_path: Path, template: str
) -> None:
    base = tiny_bases["llama"]
    path = random_table(base, tmp_path / "table.safetensors", prefix=True)
    table = read_prompt_table(path)
    splits = (1, 3) if "PROMPT_1" in template else ()
    entry = _with_template(table.entry("order"), template, splits)
    write_prompt_table(replace(table, entries={"order": entry}), path)
    expected = (
        "matching the prefix of task 'order' with its template: a template with virtual tokens "
        "after its start; expected one marker, at the very start: a prefix stands before "
        "everything. Move the marker to the start and train the task again."
    )

    with pytest.raises(ArtifactError) as exporting:
        export_bundle(ExportRequest(path, base, tmp_path / "bundle", measure_parity=False))
    with pytest.raises(ArtifactError) as serving:
        Session.of_entries(session.tokenizer, {"order": entry}, session.engine)

    assert str(exporting.value) == str(serving.value) == expected
    assert not (tmp_path / "bundle").exists()


def test_a_template_that_cannot_be_parsed_is_not_written(
    tiny_bases: dict[str, Path], tmp_path: Path
) -> None:
    base = tiny_bases["llama"]
    path = random_table(base, tmp_path / "table.safetensors", prefix=True)
    table = read_prompt_table(path)
    entry = _with_template(table.entry("order"), "{request} becomes {order}")

    with pytest.raises(ArtifactError, match="the template of task 'order': the template has 0"):
        write_prompt_table(replace(table, entries={"order": entry}), path)


def test_a_prefix_of_another_base_is_not_exported(
    tiny_bases: dict[str, Path], tmp_path: Path
) -> None:
    base = tiny_bases["llama"]
    path = random_table(base, tmp_path / "table.safetensors", prefix=True)
    table = read_prompt_table(path)
    entry = replace(table.entry("order"), prefix_kv=np.zeros((3, 2, 2, 4, 8), np.float32))
    write_prompt_table(replace(table, entries={"order": entry}), path)

    with pytest.raises(ArtifactError) as caught:
        export_bundle(ExportRequest(path, base, tmp_path / "bundle"))

    assert str(caught.value) == (
        "exporting task 'order': prefix of 'order': float32 (3, 2, 2, 4, 8); "
        "expected float32 (2, 2, 2, 4, 8). Train the task again on this base."
    )


def test_a_prefix_needs_a_token_after_it(
    session: Session, tiny_bases: dict[str, Path], tmp_path: Path
) -> None:
    base = tiny_bases["llama"]
    path = random_table(base, tmp_path / "table.safetensors", prefix=True)
    table = read_prompt_table(path)
    entry = table.entry("order")
    entry = replace(entry, task=replace(entry.task, truncate_field=None))
    entry = _with_template(entry, "<|VIRTUAL_PROMPT_0|>{order}")
    write_prompt_table(replace(table, entries={"order": entry}), path)

    with pytest.raises(RequestError, match="empty prompt; expected at least one token after the"):
        Session.of_entries(session.tokenizer, {"order": entry}, session.engine).generate(
            [Request("order", {})]
        )
    with pytest.raises(ExportError) as caught:
        export_bundle(ExportRequest(path, base, tmp_path / "bundle"))
    assert str(caught.value) == (
        "comparing task 'order' with the reference: a template that gives no token after the "
        "prefix; expected text or a field before the answer."
    )


def _with_template(entry: TaskEntry, template: str, splits: tuple[int, ...] = ()) -> TaskEntry:
    task = replace(entry.task, prompt_template=template, virtual_token_splits=splits)
    return replace(entry, task=task)


@pytest.mark.parametrize("length", [3, 16])
@pytest.mark.parametrize("quantize", ["none", "int8"])
def test_a_prompt_that_its_folded_prefix_holds_to_the_end_is_answered(
    tmp_path: Path, quantize: Quantization, length: int
) -> None:
    """A task without a field: its last token is computed again, within its prefix."""
    base = write_tiny_base(tmp_path / "base", "llama", blocks=True)
    task = {
        "taskname": "fixed",
        "prompt_template": "<|VIRTUAL_PROMPT_0|>{answer}",
        "total_virtual_tokens": length,
        "answer_field": "answer",
    }
    table = random_table(base, tmp_path / "table.safetensors", tasks=[task])

    def answers(fold: FoldMode) -> list[Result]:
        request = ExportRequest(
            table,
            base,
            tmp_path / fold,
            target="native-cpu",
            options=BuildOptions(quantize),
            fold=fold,
            measure_parity=False,
        )
        session = Session.open(export_bundle(request).bundle)
        assert (session.generate([Request("fixed", {})])[0].prefix_tokens > 0) == (fold != "never")
        # One after the other: the second one may share what the first one left.
        return [session.generate([Request("fixed", {}, min_tokens=4)])[0] for _ in range(2)]

    folded, computed = answers("always"), answers("never")

    assert [each.token_ids for each in folded] == [each.token_ids for each in computed]
