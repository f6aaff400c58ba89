"""The demo's page: did it learn, what does it see, do the frameworks agree, does it survive being killed."""

from __future__ import annotations

import base64
import io
from html import escape
from pathlib import Path

import numpy as np
from PIL import Image

from triport.core.record import chart, page
from triport.core.record.chart import Curve
from triport.demo import moved, passage
from triport.demo.result import Result
from triport.demo.scores import Query
from triport.demo.strips import OWN, judged, strip

STYLE = """<style>
.pairs { display: grid; gap: 10px 24px; grid-template-columns: repeat(auto-fit, minmax(min(100%, 430px), 1fr)); }
.pairs h3 { margin-top: 8px; } .row { display: grid; grid-template-columns: 1fr; gap: 1px; margin-bottom: 6px; }
.row img { width: 100%; max-width: 560px; height: auto; image-rendering: pixelated; display: block; }
.row small { color: var(--soft); } .bars { display: grid; gap: 14px; margin-top: 18px; max-width: 760px; }
.bars p { margin: 0 0 3px; color: var(--ink); font-weight: 500; }
.bar { display: grid; grid-template-columns: 116px 1fr 62px; gap: 8px; align-items: center; font-size: 14px; }
.bar span:first-child { color: var(--soft); }
.bar span:last-child { text-align: right; font-variant-numeric: tabular-nums; }
.bar i { display: block; height: 13px; border-radius: 3px; background: var(--soft); opacity: 0.55; }
.bar.own i { background: var(--good); opacity: 1; } .bar.own { font-weight: 600; }
.bar.own span:first-child { color: var(--ink); }
.wide-row img { max-width: 900px; } .one-chart { max-width: 660px; }
.steps td:last-child { font-family: ui-monospace, monospace; }
</style>"""


def write(result: Result, shown: moved.Shown, path: Path) -> Path:
    """Write the page; UserError where a file that triport did not write stands there."""
    return page.write(path, render(result, shown, path.parent), "Name another --out.")


def render(result: Result, shown: moved.Shown, folder: Path) -> str:
    """Return the page as HTML that needs no other file."""
    kind = "good" if result.good else "bad"
    head = page.header("MoCo v3, learned without labels", kind, result.verdict(), result.facts())
    parts = [
        STYLE,
        head,
        numbers(result),
        page.section("The same measure for pixels and network", explained(result), bars(result)),
        page.section("The same picture, moved: whose pictures are near?", near_words(), pairs(result, shown)),
        page.section("A masked autoencoder sees a quarter of the patches", mae_words(), masked(result, folder)),
        page.section(*frameworks(result)),
        page.section("Killed, and resumed to the same bits", killed(result)),
        page.section("Through the frameworks' own files, and back", carried(result)),
    ]
    return page.document("triport demo", parts)


def numbers(result: Result) -> str:
    """The key figures."""
    last = result.scores.scores[moved.CHANGES[-1].name]
    cells = [
        (f"{100 * last.trained:.1f} %", f"kNN by the network, pictures {last.title}"),
        (f"{100 * last.pixels:.1f} %", "kNN by raw pixels, the same pictures"),
        (f"{result.minutes:.1f} min", f"on {result.machine}"),
        (f"{len(result.curves)}", f"framework{'s' * (len(result.curves) != 1)}, one recipe: {result.named()}"),
    ]
    inside = "".join(f"<div><b>{escape(value)}</b><span>{escape(words)}</span></div>" for value, words in cells)
    return f'<div class="numbers">{inside}</div>'


# ---------------------------------------------------------------- what it learned
def explained(result: Result) -> str:
    """How the accuracies come about."""
    return (
        f"<p>Each of {result.tested:,} held-out pictures gets the class of its {result.neighbours} nearest training "
        f"pictures (cosine, votes weighted as in DINO's protocol). Pixels know nothing of a shift; a network that was "
        "trained to recognise two views of a picture as the same does. Nothing is averaged over views at test time.</p>"
    )


def bars(result: Result) -> str:
    """Accuracies as bars, a group for each change."""
    groups = []
    for score in result.scores.scores.values():
        rows = (("raw pixels", score.pixels, ""), ("untrained", score.untrained, ""), ("trained", score.trained, "own"))
        inside = "".join(
            f'<div class="bar {kind}"><span>{name}</span><i style="width: {100 * share:.1f}%"></i>'
            f"<span>{100 * share:.1f} %</span></div>"
            for name, share, kind in rows
        )
        groups.append(f"<div><p>{escape(f'Pictures {score.title}')}</p>{inside}</div>")
    return f'<div class="bars">{"".join(groups)}</div>'


def near_words() -> str:
    """What the strips show."""
    return (
        f"<p>Left the first held-out picture of each class, {moved.CHANGES[-1].title}; right of it the training "
        "pictures nearest to it. A green frame is the same class, a red one another.</p>"
    )


def pairs(result: Result, shown: moved.Shown) -> str:
    """Strips of neighbours, by pixels on the left and by the network on the right."""
    sides = []
    for title, key in (("By raw pixels", "pixels"), ("By the network", "trained")):
        rows = [near_strip(query, shown, key) for query in result.scores.queries]
        right, total = result.fitting(shown.train.labels, key)
        sides.append(f"<div><h3>{title}: {right} of {total} fit</h3>{''.join(rows)}</div>")
    return f'<div class="pairs">{"".join(sides)}</div>'


def near_strip(query: Query, shown: moved.Shown, key: str) -> str:
    """One query and its neighbours by "pixels" or "trained" as a picture with words."""
    places: list[int] = getattr(query, key)
    labels = [int(shown.train.labels[at]) for at in places]
    pixels = shown.tests[moved.CHANGES[-1].name].pixels[query.place]
    images = [pixels, *(shown.train.pixels[at] for at in places)]
    own = shown.classes[query.label]
    words = f"{own}; near: {', '.join(shown.classes[at] for at in labels)}"
    return row(strip(images, [OWN, *judged(query.label, labels)]), own, words)


def row(pixels: np.ndarray, caption: str, words: str) -> str:
    """A strip as an <img> with a caption."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", optimize=True)
    text = base64.b64encode(file.getvalue()).decode()
    return (
        f'<div class="row"><small>{escape(caption)}</small>'
        f'<img alt="{escape(words, quote=True)}" src="data:image/png;base64,{text}"></div>'
    )


def mae_words() -> str:
    """What the reconstructions show."""
    return (
        "<p>Another run, of MAE, for a few epochs. From above: what the encoder sees, what the decoder makes of it, "
        "the original. The decoder predicts each patch normalised by its own mean and variance, which are taken from "
        "the original to show it.</p>"
    )


def masked(result: Result, folder: Path) -> str:
    """MAE's pictures, three strips over each other."""
    rows = (("seen", "masked"), ("reconstructed", "pasted"), ("original", "original"))
    with np.load(folder / result.answers) as arrays:
        strips = [
            row(strip(list(arrays[name]), [OWN] * len(arrays[name])), words, f"{words}: the first of each class")
            for words, name in rows
        ]
    return f'<div class="wide-row">{"".join(strips)}</div>'


# ---------------------------------------------------------------- what it holds
def frameworks(result: Result) -> tuple[str, str, str]:
    """The frameworks' losses over each other, and what is said of them."""
    title = f"One recipe on {result.named()}"
    if len(result.curves) < 2:
        return title, f"<p>{escape(result.missing)}</p>", ""
    widths = ((9.0, 0.35), (4.5, 0.8), (1.8, 1.0))
    steps = set.intersection(*map(set, result.curves.values()))
    curves = [
        Curve(name, [(step, points[step]) for step in sorted(steps)], name, "-", *widths[min(at, 2)])
        for at, (name, points) in enumerate(result.curves.items())
    ]
    drawing = chart.draw(curves, "loss", x_label="step", y_label="loss", last=max(steps))
    words = (
        f"<p>Weights, batches and schedules are the same arrays on each. The losses of the first {len(steps)} steps "
        f"differ by {result.apart:.1e} of their value at most: roundings differ between frameworks, and training lets "
        f'them grow. More: <a href="frameworks.html">frameworks.html</a>.</p>'
    )
    return title, words, f'<div class="one-chart">{page.figure("loss", drawing, "", curves)}</div>'


def killed(result: Result) -> str:
    """What was done to a run, and what came of it."""
    found = result.resumed
    rows = [
        ("undisturbed", f"{found.undisturbed[:32]}…"),
        (f"SIGKILL after step {found.killed_at}, resumed from step {found.resumed_at}", f"{found.resumed[:32]}…"),
    ]
    words = "equal to the bit" if found.equal else "NOT EQUAL"
    table = page.table(("run", "SHA-256 of weights and optimizer state"), rows, "steps")
    return f"<p>A short run twice; the second was killed in the middle: {words}.</p>{table}"


def carried(result: Result) -> str:
    """The files that an encoder went through."""
    rows = [(stop.framework, stop.file, stop.layout, f"{stop.digest[:32]}…") for stop in result.stops]
    words = "equal to the bit" if passage.equal(result.stops) else "NOT EQUAL"
    table = page.table(("framework", "file", "layout", "SHA-256 of its arrays"), rows, "steps")
    return f"<p>The encoder of MAE's run, converted from each file to the next: {words}.</p>{table}"
