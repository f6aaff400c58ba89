"""The report of a parity run as one HTML page that needs nothing else: a strip for each level, plots, tables."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from html import escape

from triport.core.record import page
from triport.core.record.chart import Curve, Dot, draw, strip
from triport.core.record.svg import FRAMEWORKS
from triport.parity_tests.tool.bounds import LIMITS
from triport.parity_tests.tool.findings import Finding, Report, number

EQUAL = {"float64": 1e-17}  # where differences that are 0 stand on a logarithmic axis; else NEAR
NEAR = 1e-8
WIDE, NARROW = 1060, 350  # units of a drawing; the page shows the one that fits
# How a framework's line is drawn, so that equal ones are seen over each other: style, width, opacity.
LOOKS = {"torch": ("-", 4.5, 0.45), "paddle": ("-", 1.8, 1.0), "oneflow": ("--", 1.8, 1.0), "soft": (":", 2.0, 1.0)}

LEVELS = {
    "files": "weights to the bit, through the model and the framework's files",
    "data": "initial values, order, draws and pixels, made in each interpreter",
    "forward": "every layer against numpy in float64, and between frameworks",
    "gradients": "slopes of the float64 loss, and array by array",
    "optimizer": "moments, weights, momentum encoder against their formulas",
    "training": "losses step by step between frameworks",
    "processes": "two processes with half a batch each against one",
}


def html(report: Report) -> str:
    """The whole page."""
    failed = [f'<p class="bad">{escape(report.sentence(f))}</p>' for f in report.findings if not f.passed][:5]
    title = f"Parity of {report.recipe}"
    body = [
        page.header(
            title, "good" if report.passed else "bad", report.verdict, [f"{report.about}; {report.seconds:.0f} s"]
        ),
        *failed,
        f"<p>{legend(report)}</p>",
        "<section><h2>The levels at a glance</h2>",
        "<p>Each dot is a comparison. Left is closer: the left end is equal to the bit, each mark is ten times nearer "
        "to what is allowed, and right of the red line nothing may stand.</p>",
        '<div class="levels">',
        *(level(report, name) for name in report.levels),
        "</div></section>",
        layers(report),
        losses(report),
        f"<section><h2>All comparisons</h2>{''.join(table(report, name) for name in report.levels)}</section>",
        environment(report),
    ]
    return page.document(title, body)


def both(drawing: Callable[[int], str]) -> str:
    """A drawing for wide windows and for phones."""
    return f'<div class="wide">{drawing(WIDE)}</div><div class="narrow">{drawing(NARROW)}</div>'


def legend(report: Report) -> str:
    """The frameworks in their colours, the missing ones with their remedy."""
    found = page.keys(Curve(printed, (), name) for name, printed in report.backends.items())
    return found + "".join(f' <span class="key none">{escape(remedy)}</span>' for remedy in report.missing.values())


# ---------------------------------------------------------------- at a glance
def level(report: Report, name: str) -> str:
    """A level: what it is, its dots, how many hold."""
    rows = [f for f in report.findings if f.level == name]
    bad = sum(not f.passed for f in rows)
    dots = [_dot(f, report) for f in rows]
    count = "not run" if not rows else f"{bad} of {len(rows)} depart" if bad else f"{len(rows)} hold"
    word = f'<span class="{"bad" if bad or not rows else "good"}">{"✗" if bad or not rows else "✓"} {count}</span>'
    wide, narrow = strip(dots, name, 560), strip(dots, name, 320)
    drawing = f'<div class="wide">{wide}</div><div class="narrow">{narrow}</div>'
    return f'<div class="level"><div><b>{name}</b><small>{LEVELS[name]}</small></div>{drawing}{word}</div>'


def share(f: Finding) -> float:
    """A difference as a share of what is allowed; over 1 where it does not hold."""
    if f.allowed:
        return f.largest / f.allowed
    return 0.0 if f.passed else float("inf")


def _dot(f: Finding, report: Report) -> Dot:
    """A comparison in the framework's colour, with a ring in that of the other where it is of two."""
    own = f.backend if f.backend in FRAMEWORKS else "soft"
    return Dot(own, report.sentence(f), share(f), f.against if f.against in FRAMEWORKS else "paper")


# ---------------------------------------------------------------- plots
def layers(report: Report) -> str:
    """Error by layer against the reference."""
    if not report.layers:
        return ""
    first, equal = next(iter(report.layers.values())), EQUAL.get(report.precision, NEAR)
    names = [name for name, *_ in first]
    curves = [
        curve(report.name(backend), backend, [max(row[1], equal) for row in rows], [row[0] for row in rows])
        for backend, rows in report.layers.items()
    ]
    allowed = [(at, row[3]) for at, row in enumerate(first)]

    def drawing(width: int) -> str:
        return draw(
            curves,
            "error by layer",
            x_label="layers in order of computation",
            y_label="largest difference" if width > NARROW else "",
            log=True,
            ticks=layer_ticks(names, width),
            allowed=allowed,
            equal=equal,
            size=(width, 300),
        )

    text = (
        "Largest difference of each layer's output from the float64 reference in the first training step, relative to "
        "the layer's largest value. The shaded area is over the bound."
    )
    return page.section("Error by layer", f"<p>{text}</p>{both(drawing)}{page.keys(curves)}")


def curve(name: str, kind: str, values: Sequence[float], tips: Sequence[str] = ()) -> Curve:
    """Values over their places 0, 1, 2 ...; equal ones stay visible: the first framework's is broad and pale."""
    style, width, alpha = LOOKS.get(kind, LOOKS["soft"])
    printed = [f"{tips[at] if tips else f'step {at}'}: {value:.8g}" for at, value in enumerate(values)]
    return Curve(name, list(enumerate(values)), kind, style, width, alpha, printed)


def layer_ticks(names: Sequence[str], width: int) -> list[tuple[float, str]]:
    """Where a new part of the model begins. Names that would touch make space for the longest parts."""
    begins: list[tuple[int, str]] = []
    for i, name in enumerate(names):
        parts = name.split(".")
        shown = parts[0] if "encoder" in parts[0] else ".".join(parts[:2] if parts[0].endswith("blocks") else parts[:1])
        if not begins or shown != begins[-1][1]:
            begins.append((i, shown))
    space = (width - 60) / max(len(names), 1)
    ends = [i for i, _ in begins[1:]] + [len(names)]
    taken: list[tuple[float, float]] = []
    ticks = []
    for (i, shown), _ in sorted(zip(begins, ends), key=lambda part: part[0][0] - part[1]):
        half = 4 * len(shown)  # of the name's width; it stands in the middle of its tick
        if all(i * space - half > right or i * space + half < left for left, right in taken):
            taken.append((i * space - half - 8, i * space + half + 8))
            ticks.append((float(i), shown))
    return sorted(ticks)


def losses(report: Report) -> str:
    """Loss curves over each other, and their differences on a logarithmic axis."""
    if not report.losses:
        return ""
    curves = [curve(report.name(name), name, values) for name, values in report.losses.items()]
    wide, steps = report.precision == "float64", len(curves[0].points)
    allowed = [LIMITS["float64-training"]] * steps if wide else [LIMITS["forward-full"]]
    return loss_plots(curves, (), allowed, EQUAL.get(report.precision, NEAR))


def apart_by(loss: float, other: float, equal: float = NEAR) -> float:
    """How far a loss is from another, relative; at least `equal`, which the precision cannot tell from 0."""
    return max(abs(loss - other) / max(abs(other), 1e-12), equal)


def _number(value: float | None) -> float:
    return math.nan if value is None else value


def loss_plots(curves: Sequence[Curve], noise: Sequence[float], allowed: Sequence[float], equal: float = NEAR) -> str:
    """Curves, then each curve's distance from the first one beside what a last bit does, where that was measured."""
    first = curves[0]
    apart = [
        curve(
            f"{c.name} from {first.name}",
            c.colour,
            [apart_by(_number(v), _number(w), equal) for (_, v), (_, w) in zip(c.points, first.points)],
        )
        for c in curves[1:]
    ]
    if noise:
        apart.append(curve(f"{first.name} from itself, last bits changed", "soft", [max(n, equal) for n in noise]))

    def losses_(width: int) -> str:
        return draw(curves, "losses", x_label="step", y_label="loss", size=(width, 240))

    def differences(width: int) -> str:
        edge = list(enumerate(allowed))
        label = "relative, logarithmic"
        how = {"x_label": "step", "y_label": label, "log": True, "allowed": edge, "equal": equal, "size": (width, 260)}
        return draw(apart, "differences of losses", **how)  # type: ignore[arg-type]

    over = "The same initial values and the same batches. Where one line covers another they agree."
    text = "Relative to the loss, on a logarithmic axis. The shaded area is over the bound." + (
        " The dotted line is what rounding can do: the same run with last bits changed." if noise else ""
    )
    return page.section("Losses over each other", f"<p>{over}</p>", both(losses_), page.keys(curves)) + page.section(
        "Their differences", f"<p>{text}</p>", both(differences), page.keys(apart)
    )


# ---------------------------------------------------------------- tables
def table(report: Report, name: str) -> str:
    """All comparisons of a level, opened where one does not hold."""
    rows = [f for f in report.findings if f.level == name]
    if not rows:
        return ""
    bad = any(not f.passed for f in rows)
    cells = "".join(
        f'<tr class="{"" if f.passed else "bad"}"><td>{"✓" if f.passed else "✗"}</td>'
        f"<td>{escape(f.message or f.what)}</td>"
        f"<td>{escape(report.name(f.backend))}</td><td>{escape(report.name(f.against))}</td>"
        f"<td>{f.difference}</td><td>{'' if f.message else number(f.mean, 1)}</td>"
        f"<td>{'' if f.message else f.limit}</td><td><code>{escape(f.where)}</code></td></tr>"
        for f in rows
    )
    head = "".join(f"<th>{word}</th>" for word in ("", "what", "of", "against", "largest", "mean", "allowed", "at"))
    inside = f"<div class=scroll><table><tr>{head}</tr>{cells}</table></div>"
    return f"<details{' open' if bad else ''}><summary>{name}: {len(rows)}</summary>{inside}</details>"


def environment(report: Report) -> str:
    """The machine and the program."""
    known = {"python": "Python", "platform": "system", "cores": "cores", "begun": "begun"}
    rows = [(word, str(report.environment[key])) for key, word in known.items() if key in report.environment]
    packages = report.environment.get("packages", {})
    rows.append(("packages", ", ".join(f"{name} {found}" for name, found in packages.items())))
    return page.section("Made with", page.table((), rows, "facts"))
