"""Charts by matplotlib: curves over epochs or steps, dots on a strip, points in the plane."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from triport.core.record import svg
from triport.core.record.svg import COLOURS, PALETTE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SIZE = (440, 260)  # width and height of a chart, in its own units; text is FONT of them high
FONT = 14
DOTS = 50  # points of a curve up to which each is shown
SMALLEST, LARGEST = 1e-290, 1e290  # what a logarithmic axis shows

Points = Sequence[tuple[float, "float | None"]]  # (place, value); None where a value was not finite


@dataclass(frozen=True)
class Curve:
    """A name and its points in the order of their places; where they are few each one is shown, with its tip."""

    name: str
    points: Points
    colour: str = "c0"
    style: str = "-"  # as matplotlib writes it
    width: float = 1.6
    alpha: float = 1.0
    tips: Sequence[str] = ()  # what a pointer shows at each point
    plain: bool = False  # a line without dots, as of what a curve is compared with


@dataclass(frozen=True)
class Dot:
    """A dot on a strip: a share of what is allowed, in a framework's colour, with a ring in that of another."""

    colour: str
    tip: str
    share: float
    ring: str = "paper"


def number(value: float) -> str:
    """Return a number as an axis shows it."""
    return f"{value:.4g}".replace("e-0", "e-").replace("e+0", "e+")


def thinned(points: Points, last: float, columns: int = SIZE[0]) -> list[tuple[float, float | None]]:
    """Return fewer points of which no peak is lost: of each column of the drawing the smallest and the largest."""
    if len(points) <= 2 * columns:
        return list(points)
    values = np.array([math.nan if y is None else y for _, y in points])
    column = (np.array([x for x, _ in points]) * (columns / last)).astype(int)
    order = np.lexsort((values, column))  # in each column from the smallest, what is not finite at its end
    finite, begins = np.isfinite(values[order]), np.diff(column[order], prepend=-1) != 0
    largest = finite & np.append(begins[1:] | ~finite[1:], True)
    gap = ~finite & (begins | np.append(False, finite[:-1]))
    return [points[at] for at in sorted(order[begins | largest | gap])]


def draw(
    curves: Sequence[Curve],
    title: str,
    *,
    x_label: str = "epoch",
    y_label: str = "",
    log: bool = False,
    percent: bool = False,
    last: float = 0.0,
    ticks: Sequence[tuple[float, str]] = (),
    allowed: Points = (),
    equal: float = 0.0,
    size: tuple[int, int] = SIZE,
) -> str:
    """Return an <svg> of curves over the places from 0 to `last`; "" where there is nothing to show.

    log: the values' axis is logarithmic, and values that are not above 0 are left out. allowed: the edge of what may
    be; what is over it is shaded. equal: the value that stands for 0 on a logarithmic axis. ticks: named places.
    """
    shown = [_fitting(curve.points, log) for curve in curves]
    edge = [(x, y) for x, y in _fitting(allowed, log) if y is not None]
    values = [y for points in shown for _, y in points if y is not None] + [y for _, y in edge]
    if len(values) == len(edge):
        return ""
    figure, axes = _axes(size)
    last = last or max(x for points in shown for x, _ in points)
    low, high = _ends(min(values), max(values), log)
    axes.set(xlim=(0.0, max(last, 1e-9)), ylim=(low, high), xlabel=x_label, ylabel=y_label)
    _scale(axes, log, percent, equal)
    if ticks:
        axes.set_xticks([x for x, _ in ticks], [text for _, text in ticks])
    if edge:
        across, over = [x for x, _ in edge], [y for _, y in edge]
        axes.fill([*across, across[-1], across[0]], [*over, high, high], color=COLOURS["bad"], alpha=0.1, linewidth=0)
        axes.plot(across, over, color=COLOURS["bad"], linewidth=1.4)
    tips: list[Sequence[str]] = []
    for curve, points in zip(curves, shown, strict=True):
        _line(axes, curve, thinned(points, max(last, 1e-9), size[0]), tips)
    return svg.text(figure, title, tips)


def strip(dots: Sequence[Dot], title: str, width: int) -> str:
    """Return an <svg> of dots on a logarithmic axis that ends a little beyond 1, which is what is allowed.

    What is equal to the bit stands at the left end, what is over its bound right of the line.
    """
    figure, axes = _axes((width, 34), bare=True)
    axes.set(xlim=(-5.3, 1.3), ylim=(-1, 1))
    axes.axvspan(0, 1.3, color=COLOURS["bad"], alpha=0.1, linewidth=0)
    axes.plot([-5.2, 1.2], [0, 0], color=COLOURS["line"], linewidth=1.4)
    axes.plot(range(-5, 2), [0] * 7, "|", color=COLOURS["line"], markersize=7)
    axes.axvline(0, color=COLOURS["bad"], linewidth=1.4)
    tips: list[Sequence[str]] = []
    places = [
        (min(max(math.log10(max(dot.share, 1e-30)), -5), 1) if math.isfinite(dot.share) else 1, at % 5 / 4 - 0.5)
        for at, dot in enumerate(dots)  # dots at one place stay apart
    ]
    for kind in dict.fromkeys((dot.colour, dot.ring) for dot in dots):
        own = [(place, dot.tip) for place, dot in zip(places, dots, strict=True) if (dot.colour, dot.ring) == kind]
        (line,) = axes.plot([x for (x, _), _ in own], [y for (_, y), _ in own], "o", color=COLOURS[kind[0]])
        line.set(markeredgecolor=COLOURS[kind[1]], markeredgewidth=1 if kind[1] == "paper" else 2, markersize=8)
        line.set_gid(svg.gid(len(tips)))
        tips.append([tip for _, tip in own])
    return svg.text(figure, title, tips)


def cloud(groups: Mapping[str, Sequence[tuple[float, float]]], title: str, size: int = 360) -> tuple[str, list[Curve]]:
    """Return an <svg> of points in the plane, a colour and a mark for each group, and curves for the key."""
    figure, axes = _axes((size, size), bare=True)
    axes.set_aspect("equal", "datalim")
    curves = []
    for at, (name, points) in enumerate(groups.items()):
        mark, colour = "o^sDv"[at // PALETTE % 5], f"c{at % PALETTE}"
        axes.plot([x for x, _ in points], [y for _, y in points], mark, color=COLOURS[colour], markersize=4, alpha=0.7)
        sign = f" {'●▲■◆▼'[at // PALETTE % 5]}" if len(groups) > PALETTE else ""
        curves.append(Curve(f"{name}{sign}", list(points), colour))
    return svg.text(figure, title), curves


# ---------------------------------------------------------------- axes
def _axes(size: tuple[int, int], bare: bool = False) -> tuple[Figure, Axes]:
    """Return a figure of this many units with its axes; `bare` ones fill it and have no scale."""
    figure = svg.empty(size)
    figure.set_layout_engine("none" if bare else "constrained")
    axes = figure.add_axes((0, 0, 1, 1)) if bare else figure.subplots()
    axes.patch.set_visible(False)
    axes.set_axisbelow(True)
    if bare:
        axes.set_axis_off()
        return figure, axes
    for side in ("top", "left", "right"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(COLOURS["line"])
    axes.grid(axis="y", color=COLOURS["line"], linewidth=1)
    axes.tick_params(colors=COLOURS["line"], labelcolor=COLOURS["soft"], labelsize=FONT)
    axes.tick_params(axis="y", length=0)
    axes.tick_params(axis="x", pad=6)  # the first number of both axes are neighbours
    for axis in (axes.xaxis, axes.yaxis):
        axis.label.set(color=COLOURS["soft"], fontsize=FONT)
    return figure, axes


def _scale(axes: Axes, log: bool, percent: bool, equal: float) -> None:
    """Choose where the values' axis has its ticks, and how they read."""
    from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

    if log:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(numticks=7))
        axes.yaxis.set_minor_locator(NullLocator())
    else:
        axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_locator(MaxNLocator(5))

    def shown(value: float, _: object = None) -> str:
        if log and math.isclose(value, equal):
            return "equal"
        return f"{number(100 * value)} %" if percent else number(value)

    axes.yaxis.set_major_formatter(shown)
    axes.xaxis.set_major_formatter(lambda value, _: number(value))


def _ends(low: float, high: float, log: bool) -> tuple[float, float]:
    """The ends of the values' axis: whole powers of ten, or a little more than the values take."""
    if log:
        ends = math.floor(math.log10(low)), math.ceil(math.log10(high))
        return 10.0 ** ends[0], 10.0 ** max(ends[1], ends[0] + 1)
    margin = 0.05 * (high - low) or 0.5 * abs(high) or 1.0
    return (0.0 if 0 <= low < 0.3 * high else low - margin), high + margin


# ---------------------------------------------------------------- curves
def _fitting(points: Points, log: bool) -> list[tuple[float, float | None]]:
    """The points that can be shown; None stays where a value was not finite, as a gap."""
    found: list[tuple[float, float | None]] = []
    for x, y in points:
        if y is None or not math.isfinite(y):
            found.append((x, None))
        elif not log:
            found.append((x, y))
        elif y > 0:
            found.append((x, min(max(y, SMALLEST), LARGEST)))
    return found


def _line(axes: Axes, curve: Curve, points: Points, tips: list[Sequence[str]]) -> None:
    """Draw a curve; its points as dots where they are few or where each has a tip."""
    dotted = len(curve.points) <= DOTS or bool(curve.tips)
    (line,) = axes.plot(
        [x for x, _ in points],
        [math.nan if y is None else y for _, y in points],
        curve.style,
        color=COLOURS[curve.colour],
        linewidth=curve.width,
        alpha=curve.alpha,
        solid_joinstyle="round",
        clip_on=False,
    )
    if not dotted or curve.plain:
        return
    line.set(marker="o", markersize=5 if len(points) <= DOTS else 3, markeredgewidth=0)
    line.set_gid(svg.gid(len(tips)))
    # A tip for each point that is drawn: what is not finite has none.
    known = dict(zip((x for x, _ in curve.points), curve.tips, strict=False))
    tips.append(
        [f"{curve.name}, {known.get(x) or f'epoch {number(x)}: {number(y)}'}" for x, y in points if y is not None]
    )
