"""The curves of a run as a picture, from its records."""

import io
import math
from collections.abc import Sequence
from typing import Any

from pl_compile.training.loggers.logger import percentages

_Curves = dict[tuple[str, str], list[tuple[int, float]]]  # (task, metric) -> (step, percent)

_LINE_STYLES = ("-", "--", ":", "-.")
_LEGEND_ROWS = 18


def draw_curves(records: Sequence[dict[str, Any]], baseline: float | None) -> bytes:
    """A PNG of training and validation loss over steps, with the no-prompt loss as a line.

    Skipped steps are marked below the losses. If there are validation scores, a second panel below
    shows them: a colour for each task, a line style for each metric.

    Args:
        records: what the loop logged, in order.
        baseline: validation loss of the base without any prompt, if measured.
    """
    from matplotlib.figure import Figure

    curves = _score_curves(records)
    columns = math.ceil(len(curves) / _LEGEND_ROWS)  # of the legend beside the scores
    figure = Figure(
        figsize=(6.5 + 2.5 * columns, 7.5) if curves else (8, 4.5), layout="constrained"
    )
    panels = figure.subplots(2 if curves else 1, sharex=True, squeeze=False)[:, 0]
    # Legends stand beside two panels: scores may lie anywhere in theirs.
    beside = {"loc": "center left", "bbox_to_anchor": (1.0, 0.5), "fontsize": "small"}
    _draw_losses(panels[0], records, baseline)
    if panels[0].get_lines():
        panels[0].legend(**(beside if curves else {}))
    if curves:
        _draw_scores(panels[1], curves)
        panels[1].legend(ncols=columns, **beside)
    for axes in panels:
        axes.grid(alpha=0.3, which="both")
    panels[-1].set_xlabel("step")
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=120)
    return picture.getvalue()


def _draw_losses(axes: Any, records: Sequence[dict[str, Any]], baseline: float | None) -> None:
    for key, style, label in (
        ("train_loss", {"color": "tab:blue", "alpha": 0.6}, "training"),
        ("val_loss", {"color": "tab:orange", "marker": "o"}, "validation"),
    ):
        points = [
            (record["step"], record[key])
            for record in records
            if record.get(key) is not None and math.isfinite(record[key])
        ]
        if points:
            axes.plot(*zip(*points, strict=True), label=label, **style)
    if baseline is not None:
        axes.axhline(baseline, color="tab:gray", linestyle="--", label="validation, no prompt")
    skipped = [record["step"] for record in records if record.get("skipped_rows")]
    if skipped:
        axes.plot(
            skipped,
            [0.03] * len(skipped),  # of the panel's height: a skipped step has no loss to sit on
            transform=axes.get_xaxis_transform(),
            color="tab:red",
            marker="x",
            linestyle="none",
            label=f"skipped steps ({len(skipped)})",
        )
    axes.set(ylabel="loss per answer token", yscale="log")


def _score_curves(records: Sequence[dict[str, Any]]) -> _Curves:
    curves: _Curves = {}
    for record in records:
        for task, metric, percent in percentages(record):
            curves.setdefault((task, metric), []).append((record["step"], percent))
    return curves


def _draw_scores(axes: Any, curves: _Curves) -> None:
    from matplotlib import colormaps

    tasks = list(dict.fromkeys(task for task, _ in curves))
    metrics = list(dict.fromkeys(metric for _, metric in curves))
    palette = colormaps["tab10" if len(tasks) <= 10 else "turbo"]
    for (task, metric), points in curves.items():
        place = tasks.index(task)
        axes.plot(
            *zip(*points, strict=True),
            color=palette(place if len(tasks) <= 10 else place / (len(tasks) - 1)),
            linestyle=_LINE_STYLES[metrics.index(metric) % len(_LINE_STYLES)],
            marker="o",
            markersize=4,
            label=f"{task}: {metric}",
        )
    axes.set(ylabel="validation score, %", ylim=(-2, 102))
