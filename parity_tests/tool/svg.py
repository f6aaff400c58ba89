"""Small line plots and dot strips as inline SVG: no script, no library; colours and fonts come from the page's CSS."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from html import escape

from triport.core.record import chart

LEFT, RIGHT, TOP, BOTTOM = 46, 10, 8, 40  # margins in pixels
MANY = 150  # values of a line from which on its dots are small


@dataclass(frozen=True)
class Series:
    """One line of a plot; `kind` is its CSS class, `labels` what a pointer shows at each value."""

    name: str
    kind: str
    values: Sequence[float]
    labels: Sequence[str] = ()


@dataclass(frozen=True)
class Axes:
    """Where values stand: x is the place in a series, y linear or logarithmic between `low` and `high`."""

    width: int
    height: int
    count: int
    low: float
    high: float
    log: bool
    equal: float = 0.0  # the decade where what is equal stands

    def x(self, place: float) -> float:
        """Pixels from the left."""
        return LEFT + (self.width - LEFT - RIGHT) * (place + 0.5) / max(self.count, 1)

    def y(self, value: float) -> float:
        """Pixels from the top; what lies beyond the axis stands on its edge."""
        inside = min(max(value, self.low), self.high)
        return chart.Axis(self.low, self.high, self.height - BOTTOM, TOP, self.log).place(inside)


def plot(
    series: Sequence[Series],
    *,
    width: int,
    height: int = 280,
    log: bool = False,
    ticks: Sequence[tuple[int, str]] = (),
    x_name: str = "",
    allowed: Sequence[float] = (),
    title: str = "",
    equal: float = 0.0,
) -> str:
    """Lines over their places 0, 1, 2 ...; `ticks` names places, `allowed` is drawn as the edge of what may be.

    equal: the value that stands for 0 on a logarithmic axis.
    """
    axes = replace(_axes([*(s.values for s in series), allowed], width, height, log), equal=equal)
    parts = [f'<svg viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img">']
    parts += [f"<title>{escape(title)}</title>"]
    parts += [_grid(axes, value) for value in (chart.powers if log else chart.ticks)(axes.low, axes.high)]
    parts += [_tick(axes, place, text, place == ticks[-1][0]) for place, text in ticks]
    if allowed:
        corners = [(axes.x(0) - 4, axes.y(allowed[0]))]
        corners += [(axes.x(i), axes.y(v)) for i, v in enumerate(allowed)]
        edge = " ".join(f"{x:.1f},{y:.1f}" for x, y in corners)
        right = f"{axes.x(len(allowed) - 1):.1f},{TOP} {axes.x(0) - 4:.1f},{TOP}"
        parts.append(f'<polygon class="over" points="{edge} {right}"/><polyline class="edge" points="{edge}"/>')
    for s in series:
        parts += _line(axes, s)
    parts.append(
        f'<text class="name" x="{(LEFT + width) / 2:.0f}" y="{height - 4}" text-anchor="middle">{escape(x_name)}</text>'
    )
    return "".join([*parts, "</svg>"])


def _axes(values: Sequence[Sequence[float]], width: int, height: int, log: bool) -> Axes:
    count = max((len(v) for v in values), default=1)
    finite = [v for row in values for v in row if math.isfinite(v)] or [1.0]
    if log:
        positive = [v for v in finite if v > 0] or [1e-8]
        low, high = math.floor(math.log10(min(positive))), math.ceil(math.log10(max(positive)) + 1e-9)
        low, high = max(low, -18), max(high, low + 1)
        return Axes(width, height, count, 10.0**low, 10.0**high, True)
    room = (max(finite) - min(finite)) * 0.06 or abs(max(finite)) * 0.05 or 1.0
    return Axes(width, height, count, min(finite) - room, max(finite) + room, False)


def _grid(axes: Axes, value: float) -> str:
    y = axes.y(value)
    text = f"1e{round(math.log10(value))}" if axes.log else chart.number(value)
    text = "equal" if axes.log and value == axes.equal else text
    line = f'<line class="grid" x1="{LEFT}" x2="{axes.width - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
    return f'{line}<text class="tick" x="{LEFT - 5}" y="{y + 4:.1f}" text-anchor="end">{text}</text>'


def _tick(axes: Axes, place: int, text: str, last: bool) -> str:
    x, y = axes.x(place), axes.height - BOTTOM
    line = f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{y + 4}"/>'
    far = last and x + 6.2 * len(text) > axes.width
    anchor = "end" if far else "middle" if len(text) < 4 else "start"
    return f'{line}<text class="tick" x="{x:.1f}" y="{y + 15}" text-anchor="{anchor}">{escape(text)}</text>'


def _line(axes: Axes, s: Series) -> list[str]:
    """The line, and dots that say their values under a pointer. A value that is no number breaks the line."""
    runs: list[list[tuple[float, float]]] = [[]]
    dots = []
    for i, value in enumerate(s.values):
        if not math.isfinite(value):
            runs.append([])
            continue
        x, y = axes.x(i), axes.y(value)
        runs[-1].append((x, y))
        label = s.labels[i] if i < len(s.labels) else str(i)
        text = escape(f"{s.name}, {label}: {value:.3g}" if axes.log else f"{s.name}, {label}: {value:.8g}")
        place = f'cx="{x:.1f}" cy="{y:.1f}" r="{2.4 if len(s.values) < MANY else 1.3}"'
        dots.append(f'<circle class="dot {s.kind}" {place}><title>{text}</title></circle>')
    points = [" ".join(f"{x:.1f},{y:.1f}" for x, y in run) for run in runs]
    return [*(f'<polyline class="line {s.kind}" points="{p}"/>' for p in points if p), *dots]


def strip(dots: Sequence[tuple[str, str, float]], *, width: int) -> str:
    """Dots (CSS class, text, share of what is allowed) on a logarithmic axis that ends a little beyond 1.

    What is equal to the bit stands at the left end, what is over its bound right of the line.
    """
    height, low, high = 34, -5.0, 1.0
    place = {power: 14 + (width - 28) * (power - low) / (high - low) for power in range(-5, 2)}
    parts = [f'<svg viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img">']
    parts.append(f'<rect class="over" x="{place[0]:.1f}" y="2" width="{width - place[0]:.1f}" height="{height - 4}"/>')
    parts.append(f'<line class="axis" x1="6" x2="{width - 6}" y1="{height / 2}" y2="{height / 2}"/>')
    parts += [
        f'<line class="axis" x1="{x:.1f}" x2="{x:.1f}" y1="{height / 2 - 3}" y2="{height / 2 + 3}"/>'
        for x in place.values()
    ]
    parts.append(f'<line class="edge" x1="{place[0]:.1f}" x2="{place[0]:.1f}" y1="2" y2="{height - 2}"/>')
    for i, (kind, text, share) in enumerate(dots):
        if not math.isfinite(share):
            share = 10.0
        power = min(max(math.log10(max(share, 1e-30)), low), high)
        x = 14 + (width - 28) * (power - low) / (high - low)
        y = height / 2 + (i % 5 - 2) * 3.2  # dots at one place stay apart
        parts.append(
            f'<circle class="dot {kind}" cx="{x:.1f}" cy="{y:.1f}" r="4.5"><title>{escape(text)}</title></circle>'
        )
    return "".join([*parts, "</svg>"])
