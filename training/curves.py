"""The loss curves of a run as a picture, from its records."""

import io
from collections.abc import Sequence
from typing import Any


def draw_curves(records: Sequence[dict[str, Any]], baseline: float | None) -> bytes:
    """A PNG of training and validation loss over steps, with the no-prompt loss as a line.

    Args:
        records: what the loop logged, in order.
        baseline: validation loss of the base without any prompt, if measured.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot()
    for key, style, label in (
        ("train_loss", {"color": "tab:blue", "alpha": 0.6}, "training"),
        ("val_loss", {"color": "tab:orange", "marker": "o"}, "validation"),
    ):
        points = [(record["step"], record[key]) for record in records if key in record]
        if points:
            axes.plot(*zip(*points, strict=True), label=label, **style)
    if baseline is not None:
        axes.axhline(baseline, color="tab:gray", linestyle="--", label="validation, no prompt")
    axes.set(xlabel="step", ylabel="loss per answer token", yscale="log")
    axes.grid(alpha=0.3, which="both")
    axes.legend()
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=120)
    return picture.getvalue()
