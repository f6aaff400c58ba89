"""Curves as SVG, written by hand: drawn from numbers alone, so that a report needs no plotting library."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from itertools import groupby

WIDTH, HEIGHT = 440, 260  # of the whole drawing, in its own units
LEFT, RIGHT, TOP, BOTTOM = 72, 14, 12, 44  # margins around the curves
DOTS = 50  # points of a curve up to which each is shown

Points = Sequence[tuple[float, "float | None"]]  # (place, value); None where a value was not finite


@dataclass(frozen=True)
class Curve:
    """A name and its points, in the order of their places; where they are few each one is shown."""

    name: str
    points: Points


@dataclass(frozen=True)
class Axis:
    """From numbers to places of the drawing; `low` and `high` are the ends of the axis."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def place(self, value: float) -> float:
        """Where a number stands."""
        low, high = (math.log10(self.low), math.log10(self.high)) if self.log else (self.low, self.high)
        share = ((math.log10(value) if self.log else value) - low) / (high - low)
        return self.start + share * (self.end - self.start)


def draw(curves: Sequence[Curve], title: str, *, log: bool = False, percent: bool = False, last: float = 1.0) -> str:
    """Return an <svg> of curves over the epochs from 0 to `last`; "" where there is nothing to show.

    log: the values' axis is logarithmic, and values that are not above 0 are left out.
    """
    shown = [Curve(c.name, [(x, y) for x, y in c.points if _fits(y, log)]) for c in curves]
    values = [y for curve in shown for _, y in curve.points if y is not None]
    if not values:
        return ""
    across = Axis(0.0, max(last, 1e-9), LEFT, WIDTH - RIGHT)
    up = Axis(*_ends(min(values), max(values), log), HEIGHT - BOTTOM, TOP, log)
    parts = [*_grid(across, up, percent)]
    for number, curve in enumerate(shown):  # an empty one keeps its colour from the next
        parts.append(_curve(curve, across, up, f"c{number}") if curve.points else "")
    label = escape(f"{title}, over the epochs", quote=True)
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">{"".join(parts)}</svg>'


def _fits(value: float | None, log: bool) -> bool:
    return value is None or (math.isfinite(value) and (value > 0 or not log))


# ---------------------------------------------------------------- axes
def _ends(low: float, high: float, log: bool) -> tuple[float, float]:
    """The ends of the values' axis: whole powers of ten, or a little more than the values take."""
    if log:
        ends = math.floor(math.log10(low)), math.ceil(math.log10(high))
        return 10.0 ** ends[0], 10.0 ** max(ends[1], ends[0] + 1)
    room = 0.05 * (high - low) or 0.5 * abs(high) or 1.0
    return (0.0 if 0 <= low < 0.3 * high else low - room), high + room


def ticks(low: float, high: float, count: int = 6) -> list[float]:
    """Return at most `count` + 1 round numbers between `low` and `high`, evenly apart."""
    rough = (high - low) / count
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(unit * size for size in (1, 2, 5, 10) if unit * size >= rough * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    return [n * step for n in range(first, math.floor(high / step + 1e-9) + 1)]


def powers(low: float, high: float, count: int = 6) -> list[float]:
    """Return powers of ten from `low` to `high`, at most about `count` of them."""
    first, last = round(math.log10(low)), round(math.log10(high))
    return [10.0**n for n in range(first, last + 1, max(1, math.ceil((last - first) / count)))]


def number(value: float) -> str:
    """Return a number as an axis shows it."""
    return f"{value:.4g}".replace("e-0", "e-").replace("e+0", "e+")


def _grid(across: Axis, up: Axis, percent: bool) -> list[str]:
    parts = []
    for value in powers(up.low, up.high) if up.log else ticks(up.low, up.high):
        y = up.place(value)
        text = f"{number(100 * value)} %" if percent else number(value)
        parts.append(f'<path class="grid" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{y + 5:.1f}" text-anchor="end">{text}</text>')
    for value in ticks(across.low, across.high):
        x = across.place(value)
        parts.append(f'<path class="tick" d="M{x:.1f} {HEIGHT - BOTTOM}v5"/>')
        parts.append(f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 21}" text-anchor="middle">{number(value)}</text>')
    parts.append(f'<path class="axis" d="M{LEFT} {HEIGHT - BOTTOM}H{WIDTH - RIGHT}"/>')
    parts.append(f'<text x="{WIDTH - RIGHT}" y="{HEIGHT - 3}" text-anchor="end">epoch</text>')
    return parts


# ---------------------------------------------------------------- curves
def thinned(points: Points, last: float, columns: int = WIDTH - LEFT - RIGHT) -> list[tuple[float, float | None]]:
    """Return fewer points of which no peak is lost: of each column of the drawing the smallest and the largest."""
    if len(points) <= 2 * columns:
        return list(points)
    kept: list[tuple[float, float | None]] = []
    for _, group in groupby(points, key=lambda point: int(columns * point[0] / last)):
        column = list(group)
        finite = sorted((point for point in column if point[1] is not None), key=lambda point: point[1] or 0.0)
        kept += [point for point in column if point[1] is None or point in (finite[0], finite[-1])]
    return kept


def _curve(curve: Curve, across: Axis, up: Axis, colour: str) -> str:
    words, begun, dots = [], False, []
    for x, y in thinned(curve.points, across.high):
        if y is None:
            begun = False  # a gap where a value was not finite
            continue
        px, py = across.place(min(x, across.high)), up.place(y)
        words.append(f"{'L' if begun else 'M'}{px:.1f} {py:.1f}")
        begun = True
        if len(curve.points) <= DOTS:
            name = escape(f"{curve.name}, epoch {number(x)}: {number(y)}")
            dots.append(f'<circle cx="{px:.1f}" cy="{py:.1f}" r="3.5"><title>{name}</title></circle>')
    return f'<g class="{colour}"><path d="{"".join(words)}"/>{"".join(dots)}</g>'
