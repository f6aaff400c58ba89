"""What the verbs' pages draw that other pages do not: a confusion table as a picture."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from triport.core.record import page, svg

MOST = 100  # classes that a picture shows


def confusion_picture(table: np.ndarray, classes: Sequence[str]) -> str:
    """Return an <svg> figure of a confusion table (classes, classes), rows are the truth; "" above MOST classes.

    A field's strength is the share of its row's pictures.
    """
    if len(classes) > MOST:
        return f"<p>{len(classes)} classes are too many for a picture; measure.json has the accuracy of each.</p>"
    shares = table / np.maximum(table.sum(axis=1, keepdims=True), 1)
    side = 480
    figure = svg.empty((side, side))
    figure.set_layout_engine("constrained")
    axes = figure.subplots()
    axes.patch.set_visible(False)
    for row, column in np.argwhere(shares > 0):
        colour = svg.COLOURS["c2" if row == column else "bad"]
        share = float(shares[row, column])
        axes.fill_between([column, column + 1], row, row + 1, color=colour, alpha=share, linewidth=0)
    axes.set(xlim=(0, len(classes)), ylim=(len(classes), 0), aspect="equal")
    places = np.arange(len(classes)) + 0.5
    names = [name if len(name) <= 14 else f"{name[:13]}…" for name in classes]
    size = max(4, min(12, 240 // max(len(classes), 1)))
    axes.set_xticks(places, names, rotation=90, fontsize=size)
    axes.set_yticks(places, names, fontsize=size)
    axes.tick_params(length=0, labelcolor=svg.COLOURS["soft"])
    for spine in axes.spines.values():
        spine.set_color(svg.COLOURS["line"])
    drawing = svg.text(figure, "confusion of the linear probe")
    drawn = page.figure("rows: the truth; columns: the answer", drawing, "stronger is a larger share of the row")
    return f'<div class="square">{drawn}</div>'
