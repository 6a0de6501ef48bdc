"""The picture of a run: what is drawn in it, asked of matplotlib."""

import math
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pl_compile.training.curves import draw_curves


def losses(count: int) -> list[dict[str, Any]]:
    records: list[dict[str, Any]] = []
    for step in range(1, count + 1):
        records.append({"step": step, "train_loss": 4 / step})
        if step % 5 == 0:
            records.append({"step": step, "val_loss": 5 / step})
    return records


def scores(step: int, **metrics: dict[str, float]) -> dict[str, Any]:
    return {"step": step, "val_loss": 1.0, "val_metrics": metrics}


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that were saved since the test began."""
    saved: list[Figure] = []
    save = Figure.savefig

    def noted(self: Figure, *arguments: Any, **options: Any) -> None:
        saved.append(self)
        save(self, *arguments, **options)

    monkeypatch.setattr(Figure, "savefig", noted)
    return saved


def lines(axes: Axes) -> dict[str, list[tuple[float, float]]]:
    return {
        str(line.get_label()): [
            (float(x), float(y)) for x, y in np.asarray(line.get_xydata(), dtype=float)
        ]
        for line in axes.get_lines()
    }


def test_a_run_without_scores_is_one_panel(figures: list[Figure]) -> None:
    picture = draw_curves(losses(10), 6.0)

    assert picture.startswith(b"\x89PNG")
    (panel,) = figures[0].axes
    assert set(lines(panel)) == {"training", "validation", "validation, no prompt"}
    assert lines(panel)["validation"] == [(5, 1.0), (10, 0.5)]


def test_scores_have_a_panel_below_with_a_line_for_each_task_and_metric(
    figures: list[Figure],
) -> None:
    records = [
        *losses(10),
        scores(5, tone={"accuracy": 60.0, "total": 8}, ask={"f1": 20.0, "exact_match": 10.0}),
        scores(10, tone={"accuracy": 80.0, "total": 8}, ask={"f1": 45.0, "exact_match": 30.0}),
    ]

    draw_curves(records, None)

    _, below = figures[0].axes
    assert lines(below) == {
        "tone: accuracy": [(5, 60.0), (10, 80.0)],
        "ask: f1": [(5, 20.0), (10, 45.0)],
        "ask: exact_match": [(5, 10.0), (10, 30.0)],
    }
    drawn = {str(line.get_label()): line for line in below.get_lines()}
    assert drawn["ask: f1"].get_color() == drawn["ask: exact_match"].get_color()
    assert drawn["ask: f1"].get_color() != drawn["tone: accuracy"].get_color()
    assert drawn["ask: f1"].get_linestyle() != drawn["ask: exact_match"].get_linestyle()


def test_skipped_steps_are_marked_and_their_losses_are_not_drawn(figures: list[Figure]) -> None:
    skipped = [
        {"step": 3, "train_loss": math.nan, "skipped_rows": [1, 2]},
        {"step": 7, "skipped_rows": [5]},
    ]

    draw_curves([*losses(2), *skipped, {"step": 8, "train_loss": 0.5, "skipped_rows": []}], None)

    (panel,) = figures[0].axes
    assert [step for step, _ in lines(panel)["skipped steps (2)"]] == [3, 7]
    assert [step for step, _ in lines(panel)["training"]] == [1, 2, 8]


def test_many_tasks_keep_colours_of_their_own(figures: list[Figure]) -> None:
    metrics = {f"task{number}": {"accuracy": 4.0 * number} for number in range(23)}

    draw_curves([scores(5, **metrics)], None)

    colours = [line.get_color() for line in figures[0].axes[1].get_lines()]
    assert len(set(map(str, colours))) == 23


def test_nothing_logged_is_an_empty_picture() -> None:
    assert draw_curves([], None).startswith(b"\x89PNG")
