"""The demo on one picture, for a README: what is near, how well, on which frameworks, and that nothing is lost."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from triport.core import atomic
from triport.core.record import svg
from triport.demo import moved, passage
from triport.demo.result import Result
from triport.demo.strips import OWN, judged, strip

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SIZE = (1280, 720)  # pixels
COLOURS = 200  # of the PNG's palette
ROWS = 10  # queries that are shown
INK, SOFT, PAPER, GOOD, GREY = "#1a1f29", "#5a6372", "#ffffff", "#17793f", "#a9b1bd"
FRAMEWORK = {"torch": "#d9480f", "paddle": "#1c63d5", "oneflow": "#0b8f6a"}  # as on every page


def write(result: Result, shown: moved.Shown, path: Path) -> Path:
    """Draw the poster as a PNG with a palette, whole or not at all."""
    figure = svg.empty(SIZE)
    figure.set_dpi(100)
    figure.set_size_inches(SIZE[0] / 100, SIZE[1] / 100)
    figure.patch.set(visible=True, facecolor=PAPER)
    with np.load(path.parent / result.answers) as arrays:
        pictures = {name: arrays[name] for name in ("masked", "pasted", "original")}
    words(figure, result)
    neighbours(figure, result, shown)
    bars(figure.add_axes((0.64, 0.475, 0.325, 0.34)), result)
    curves(figure.add_axes((0.685, 0.175, 0.28, 0.2)), result)
    reconstructions(figure, pictures)
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=100)
    made = Image.open(stream).convert("RGB").quantize(COLOURS, method=Image.Quantize.MEDIANCUT)
    with atomic.replaced(path) as part:
        made.save(part, "PNG", optimize=True)
    return path


def words(figure: Figure, result: Result) -> None:
    """Title, verdict and what was proved."""
    figure.text(0.035, 0.925, "Learned without labels", size=25, weight="bold", color=INK)
    count = f"{result.epochs} epochs on {result.trained_on:,} pictures"
    about = f"{result.title}: {count} without their labels, on {result.machine}"
    figure.text(0.035, 0.878, about, size=12.5, color=SOFT)
    proofs = [
        (result.resumed.equal, f"killed by SIGKILL at step {result.resumed.killed_at} and resumed: the same bits"),
        (passage.equal(result.stops), " → ".join(stop.framework for stop in result.stops) + ": the same bits"),
    ]
    for at, (holds, line) in enumerate(proofs):
        figure.text(0.595, 0.068 - 0.037 * at, "✓" if holds else "✗", size=13, weight="bold", color=GOOD, va="center")
        figure.text(0.615, 0.068 - 0.037 * at, line, size=11, color=INK, va="center")


def neighbours(figure: Figure, result: Result, shown: moved.Shown) -> None:
    """A row for each class: its query, its neighbours by pixels, and by the network."""
    change = moved.CHANGES[-1]
    figure.text(0.035, 0.822, f"The same picture, {change.title}", size=14, weight="bold", color=INK)
    for left, title, key in ((0.035, "near by pixels", "pixels"), (0.315, "near by the network", "trained")):
        right, total = result.fitting(shown.train.labels, key)
        figure.text(left, 0.785, f"{title}: {right} of {total} fit", size=12, color=SOFT)
        for row, query in enumerate(result.scores.queries[:ROWS]):
            places = getattr(query, key)
            labels = [int(shown.train.labels[place]) for place in places]
            pixels = shown.tests[change.name].pixels[query.place]
            images = [pixels, *(shown.train.pixels[place] for place in places)]
            where = (left, 0.725 - 0.0505 * row, 0.275, 0.048)
            image(figure, where, strip(images, [OWN, *judged(query.label, labels)]))


def reconstructions(figure: Figure, pictures: dict[str, np.ndarray]) -> None:
    """MAE: what it sees, what it makes of it, the original."""
    figure.text(0.035, 0.213, "MAE sees a quarter of the patches", size=14, weight="bold", color=INK)
    for at, (name, title) in enumerate((("masked", "seen"), ("pasted", "reconstructed"), ("original", "original"))):
        rows = pictures[name][:ROWS]
        image(figure, (0.14, 0.142 - 0.063 * at, 0.42, 0.058), strip(list(rows), [OWN] * len(rows)))
        figure.text(0.035, 0.171 - 0.063 * at, title, size=12, color=SOFT, va="center")


def image(figure: Figure, where: tuple[float, float, float, float], pixels: np.ndarray) -> None:
    """Pixels in a part of the figure, as large as they fit, at its left."""
    axes = figure.add_axes(where, anchor="W")
    axes.imshow(pixels, interpolation="nearest")
    axes.set_axis_off()


def bars(axes: Axes, result: Result) -> None:
    """kNN accuracies, pixels beside the network."""
    scores = list(result.scores.scores.values())
    for at, score in enumerate(scores):
        top = -at * 1.25
        axes.text(0, top, score.title, size=11.5, color=INK, va="bottom")
        rows = (("raw pixels", score.pixels, GREY, INK), ("the network", score.trained, GOOD, "white"))
        for row, (name, share, colour, ink) in enumerate(rows):
            place = top - 0.25 - 0.42 * row
            axes.barh(place, 100 * share, 0.36, color=colour)
            axes.text(1.5, place, name, size=10.5, color=ink, va="center")
            axes.text(100 * share + 1.5, place, f"{100 * share:.1f} %", size=11, weight="bold", color=INK, va="center")
    axes.set(xlim=(0, 100), ylim=(-1.25 * len(scores) + 0.25, 0.3))
    axes.set_axis_off()
    axes.set_title("kNN accuracy on held-out pictures", size=14, weight="bold", color=INK, loc="left", pad=11)


def curves(axes: Axes, result: Result) -> None:
    """The frameworks' losses over each other."""
    steps = sorted(set.intersection(*map(set, result.curves.values())))
    for at, (name, points) in enumerate(result.curves.items()):
        width, alpha = ((8.0, 0.35), (4.0, 0.8), (1.5, 1.0))[min(at, 2)]
        axes.plot(
            steps, [points[step] for step in steps], color=FRAMEWORK[name], linewidth=width, alpha=alpha, label=name
        )
    title = "One recipe, three frameworks" if len(result.curves) == 3 else f"One recipe on {result.named()}"
    axes.set_title(title, size=14, weight="bold", color=INK, loc="left")
    axes.set_xlabel("step", size=10.5, color=SOFT, labelpad=1)
    axes.set_ylabel("loss", size=10.5, color=SOFT)
    axes.tick_params(colors=SOFT, labelsize=9.5, length=0)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(GREY)
    axes.grid(axis="y", color="#e3e7ec", linewidth=0.8)
    axes.legend(frameon=False, fontsize=10.5)
