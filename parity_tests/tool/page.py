"""The report of a parity run as one HTML page that needs nothing else: a strip for each level, plots, tables."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape

from triport.parity_tests.tool.checks import allowed_loss
from triport.parity_tests.tool.findings import Finding, Report, number
from triport.parity_tests.tool.page_style import CSS
from triport.parity_tests.tool.svg import Series, plot, strip

EQUAL = 1e-8  # where differences that are 0 stand on a logarithmic axis
WIDE, NARROW = 980, 350  # pixels; the page shows the one that fits

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
    kind = "good" if report.passed else "bad"
    body = [
        f'<header class="{kind}"><h1>Parity of {escape(report.recipe)}</h1>',
        f'<p class="verdict"><b>{"✓" if report.passed else "✗"}</b> {escape(report.verdict)}</p>',
        *(f'<p class="bad">{escape(report.sentence(f))}</p>' for f in [f for f in report.findings if not f.passed][:5]),
        f"<p>{escape(report.about)}; {report.seconds:.0f} s</p>",
        f"<p>{legend(report)}</p></header>",
        "<section><h2>The ladder at a glance</h2>",
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
    return document(f"Parity of {report.recipe}", body)


def document(title: str, body: Sequence[str]) -> str:
    """A page around some content, its style within."""
    head = '<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
    return f"{head}<title>{escape(title)}</title><style>{CSS}</style><main>{''.join(body)}</main></html>\n"


def both(draw: Callable[[int], str]) -> str:
    """A drawing for wide windows and for phones."""
    return f'<div class="wide">{draw(WIDE)}</div><div class="narrow">{draw(NARROW)}</div>'


def legend(report: Report) -> str:
    """The frameworks in their colours, the missing ones with their remedy."""
    found = [f'<span class="key"><i class="{name}"></i>{escape(said)}</span>' for name, said in report.backends.items()]
    found += [f'<span class="key none">{escape(remedy)}</span>' for remedy in report.missing.values()]
    return " ".join(found)


# ---------------------------------------------------------------- at a glance
def level(report: Report, name: str) -> str:
    """A level: what it is, its dots, how many hold."""
    rows = [f for f in report.findings if f.level == name]
    bad = sum(not f.passed for f in rows)
    dots = [(_kind(report, f), report.sentence(f), share(f)) for f in rows]
    count = "not run" if not rows else f"{bad} of {len(rows)} depart" if bad else f"{len(rows)} hold"
    word = f'<span class="{"bad" if bad or not rows else "good"}">{"✗" if bad or not rows else "✓"} {count}</span>'
    drawing = f'<div class="wide">{strip(dots, width=560)}</div><div class="narrow">{strip(dots, width=320)}</div>'
    return f'<div class="level"><div><b>{name}</b><small>{LEVELS[name]}</small></div>{drawing}{word}</div>'


def share(f: Finding) -> float:
    """A difference as a share of what is allowed; over 1 where it does not hold."""
    if f.allowed:
        return f.largest / f.allowed
    return 0.0 if f.passed else float("inf")


def _kind(report: Report, f: Finding) -> str:
    """The colour of a comparison: the framework's, or of a pair both."""
    return f"{f.backend} {f.against}-ring" if f.against in report.backends else f.backend


# ---------------------------------------------------------------- plots
def layers(report: Report) -> str:
    """Error by layer against the reference."""
    if not report.layers:
        return ""
    first = next(iter(report.layers.values()))
    names = [name for name, *_ in first]
    series = [
        Series(report.name(backend), backend, [max(row[1], EQUAL) for row in rows], [row[0] for row in rows])
        for backend, rows in report.layers.items()
    ]
    allowed = [row[3] for row in first]

    def draw(width: int) -> str:
        ticks, x_name = layer_ticks(names, width), "layers in order of computation"
        how = {"width": width, "height": 300, "log": True, "x_name": x_name, "title": "error by layer"}
        return plot(series, ticks=ticks, allowed=allowed, equal=EQUAL, **how)  # type: ignore[arg-type]

    text = (
        "Largest difference of each layer's output from the float64 reference in the first training step, relative to "
        "the layer's largest value. The shaded area is over the bound, which grows where rounding itself does: behind "
        "batch norms."
    )
    return f"<section><h2>Error by layer</h2><p>{text}</p>{both(draw)}{legend(report)}</section>"


def layer_ticks(names: Sequence[str], width: int) -> list[tuple[int, str]]:
    """Where a new part of the model begins. Names that would touch make room for the longest parts."""
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
        start = max(min(i * space, width - 60 - 7 * len(shown)), 0.0)  # it ends where it would leave the drawing
        if all(start > right or start + 7 * len(shown) < left for left, right in taken):
            taken.append((start - 8, start + 7 * len(shown) + 8))
            ticks.append((i, shown))
    return sorted(ticks)


def losses(report: Report) -> str:
    """Loss curves over each other, and their differences on a logarithmic axis."""
    if not report.losses:
        return ""
    curves = [Series(report.name(name), name, values) for name, values in report.losses.items()]
    return loss_plots(curves, report.noise, allowed_loss(list(report.noise))) + "</section>"


def apart_by(loss: float, other: float) -> float:
    """How far a loss is from another, relative; at least EQUAL, which float32 cannot tell from 0."""
    return max(abs(loss - other) / max(abs(other), 1e-12), EQUAL)


def loss_plots(curves: Sequence[Series], noise: Sequence[float], allowed: Sequence[float]) -> str:
    """Curves, then each curve's distance from the first one beside what a last bit does."""
    count = len(curves[0].values)
    step = max(count // 10, 1)
    first = curves[0]
    apart = [
        Series(f"{s.name} from {first.name}", s.kind, [apart_by(v, w) for v, w in zip(s.values, first.values)])
        for s in curves[1:]
    ]
    rounding = Series(f"{first.name} from itself, last bits changed", "rounding", [max(n, EQUAL) for n in noise])

    def ticks(width: int) -> list[tuple[int, str]]:
        apart_ = step if width > NARROW else max(count // 5, 1)
        return [(i, str(i)) for i in range(0, count, apart_)]

    def losses_(width: int) -> str:
        return plot(curves, width=width, height=240, ticks=ticks(width), x_name="step", title="losses")

    def differences(width: int) -> str:
        series = [*apart, *([rounding] if noise else [])]
        how = {"width": width, "height": 260, "log": True, "x_name": "step", "title": "differences of losses"}
        return plot(series, ticks=ticks(width), allowed=allowed, equal=EQUAL, **how)  # type: ignore[arg-type]

    keys = "".join(f'<span class="key"><i class="{s.kind}"></i>{escape(s.name)}</span>' for s in curves)
    others = "".join(f'<span class="key"><i class="{s.kind}"></i>{escape(s.name)}</span>' for s in [*apart, rounding])
    return (
        "<section><h2>Losses over each other</h2>"
        f"<p>The same initial values and the same batches. Where one line covers another they agree.</p>{both(losses_)}"
        f"{keys}<h2>Their differences</h2><p>Relative to the loss, on a logarithmic axis. The dotted line is what "
        "rounding can do: the same run with weights and pixels changed in their last bits. The shaded area is over "
        f"the bound.</p>{both(differences)}{others}"
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
    rows = [
        f"<tr><td>{word}</td><td>{escape(str(report.environment[key]))}</td></tr>"
        for key, word in known.items()
        if key in report.environment
    ]
    packages = ", ".join(f"{name} {found}" for name, found in report.environment.get("packages", {}).items())
    rows.append(f"<tr><td>packages</td><td>{escape(packages)}</td></tr>")
    return f"<section><h2>Made with</h2><table>{''.join(rows)}</table></section>"
