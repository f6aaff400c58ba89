"""A run as one page, report.html: did it learn, is it healthy, how long did it take, compared with what.

Written when a run ends, however it ends, and by `triport report RUN`, also while it goes on. The instability that the
MoCo v3 paper describes (arXiv 2104.02057, section 4) shows as spikes of the first layer's gradient and dips of the
kNN curve, so curves are thinned to the drawing's width without losing a peak.

A section appears where the run's folder has its file, as a run writes them (core/run/watching.py): views.png (input
views), reconstructions/epoch_N.png, projection.json (held-out features in the plane: {"points": [[x, y]], "labels":
[n], "classes": [name]}), and baselines.json (accuracies measured beside it: {"raw pixels": 0.81}).
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from triport.core.record import chart, health, page, recorded
from triport.core.record.chart import Curve, number
from triport.core.record.console import duration
from triport.core.record.health import ACCURACIES, percent
from triport.core.record.recorded import Line, Run
from triport.core.record.svg import FRAMEWORKS

ROWS = 40  # of the table of scores at most
PICTURES = 8  # reconstructions at most, of evenly chosen epochs


def write(folder: Path) -> Path:
    """Draw the run in `folder` and return the page's path; UserError where there is no run or no space for it."""
    return page.write(folder / "report.html", render(folder), f"Make space, then: triport report {folder}")


def render(folder: Path) -> str:
    """Return the page of the run in `folder` as HTML that needs no other file."""
    run = recorded.read(folder)
    kind, sentence = health.verdict(run)
    title = run.recipe.title if run.recipe else folder.name
    warnings = "".join(f"<li>{escape(warning)}</li>" for warning in health.warnings(run))
    if run.steps and not warnings:
        warnings = '<li class="fine">No spike, no collapse, no waiting for images: nothing stands out.</li>'
    body = [
        page.header(title, kind, sentence, [facts(run)]),
        numbers(run),
        f'<ul class="warnings">{warnings}</ul>' if warnings else "",
        page.charts(panels(run)),
        pictures(run),
        page.section("Scores", table(run.epochs)),
        page.section("Settings", settings(run)),
        page.section("Environment", environment(run.start)),
    ]
    return page.document(title, body)


# ---------------------------------------------------------------- in words and numbers
def facts(run: Run) -> str:
    """What was run and how far it got, in a line."""
    found = []
    if run.recipe:
        found.append(f"{run.recipe.name}, batch {run.recipe.batch}, {run.recipe.schedule.epochs} epochs")
    if run.start:
        count = run.start.get("processes", 1)
        found.append(f"{run.backend}, {count} process{'es' * (count != 1)}, begun {run.start.get('begun', '?')}")
    if run.steps:
        found.append(f"step {run.steps[-1]['step']}, epoch {number(run.steps[-1]['epoch'])}")
    return "; ".join(found)


def numbers(run: Run) -> str:
    """The key numbers, each with what it is compared with."""
    tiles: list[tuple[str, str]] = []
    if run.score:
        scores = run.values(run.score, "epoch")
        beside = [f"before training {percent(scores[0])}"] if run.epochs[0]["epoch"] == 0 else []
        beside += [f"{name} {percent(known)}" for name, known in run.baselines.items()]
        beside += [f"best {percent(max(scores))}"]
        tiles.append((percent(scores[-1]), f"{ACCURACIES[run.score]}; {', '.join(beside)}"))
    if run.score != "probe" and (probed := run.values("probe", "epoch")):
        beside = [f"best {percent(max(probed))}"]
        beside += [f"{name} {percent(run.baselines[name])}" for name in ("chance",) if name in run.baselines]
        tiles.append((percent(probed[-1]), f"{ACCURACIES['probe']}; {', '.join(beside)}"))
    if losses := run.values("loss"):
        first, last = health.ends(losses)
        tiles.append((number(last), f"loss at the end; at the start {number(first)}"))
    took, waited = run.seconds()
    if took:
        total = run.recipe.schedule.epochs if run.recipe else 0
        tiles.append((duration(took), f"in training steps; {number(run.last)} of {total} epochs"))
        rates = sorted(run.values("images_per_second"))
        share = f"; {100 * min(waited / took, 1):.0f} % of the time waited for images"
        tiles.append((number(round(rates[len(rates) // 2])), f"images a second, median{share}"))
    memory = run.values("memory_gb", "epoch")
    if memory and max(memory) > 0:
        tiles.append((f"{max(memory):.2f} GB", "memory at most"))
    inside = "".join(f"<div><b>{escape(value)}</b><span>{escape(text)}</span></div>" for value, text in tiles)
    return f'<div class="numbers">{inside}</div>' if inside else ""


def settings(run: Run) -> str:
    """What the recipe changes of the shipped one of its name, and of the paper's."""
    if run.recipe is None:
        return "<p>The folder has no recipe.toml that can be read.</p>"
    original = recorded.shipped(run.recipe)
    if original is None:
        own = f"<p>{escape(run.recipe.name)} is not a shipped recipe; recipe.toml has every field.</p>"
    elif changed := recorded.differences(original, run.recipe):
        own = f"<p>Different from the shipped recipe {escape(run.recipe.name)} ({escape(original.source)}):</p>"
        own += page.table(("field", "shipped", "this run"), [(name, *values) for name, values in changed])
    else:
        own = f"<p>Every field as in the shipped recipe {escape(run.recipe.name)} ({escape(original.source)}).</p>"
    nearest = recorded.nearest_paper(run.recipe)
    if nearest is None:
        return own
    paper, changed = nearest
    head = f"{len(changed)} fields differ from the paper's recipe {escape(paper.name)} ({escape(paper.source)})"
    table = page.table(("field", "the paper", "this run"), [(name, *values) for name, values in changed])
    return f"{own}<details><summary>{head}</summary>{table}</details>"


def environment(start: dict[str, Any]) -> str:
    """The machine and the program."""
    known = {"backend": "backend", "processes": "processes", "python": "Python", "platform": "system"}
    known |= {"cores": "cores", "begun": "begun"}
    rows = [(word, str(start[key])) for key, word in known.items() if key in start]
    for key, join in (("packages", " "), ("variables", "=")):
        if isinstance(start.get(key), dict) and start[key]:
            rows.append((key, ", ".join(f"{name}{join}{value}" for name, value in start[key].items())))
    if isinstance(start.get("command"), list):
        rows.append(("command", " ".join(map(str, start["command"]))))
    return page.table((), rows, "facts")


# ---------------------------------------------------------------- figures
def panels(run: Run) -> list[str]:
    """Return the figures for which there are numbers."""
    worst, line = health.highest(run.steps, "first_layer_gradient")
    spike = ""
    if line and worst > 2:
        where = f"epoch {number(line['epoch'])} (step {line['step']})"
        value = number(line["first_layer_gradient"])
        spike = f"first layer, highest spike: {value} at {where}, {worst:.1f} times the steps before"
    own, other = (run.backend if run.backend in FRAMEWORKS else "c0"), "c1"
    gradients = [
        Curve("all parameters", run.curve("gradient_norm"), own),
        Curve("first layer", run.curve("first_layer_gradient"), other),
    ]
    spreads = [
        Curve("queries, behind their batch norm", run.curve("spread"), own),
        Curve("held-out features", run.curve("spread", "epoch"), other),
    ]
    scores = {key: title for key, title in ACCURACIES.items() if run.values(key, "epoch")}
    return [
        figure(run, "loss", [Curve("each step", run.curve("loss"), own)], _loss_unit(run)),
        *(figure(run, title, accuracies(run, key, own), "%", percent=True) for key, title in scores.items()),
        figure(run, "gradient norm", gradients, "L2 norm", spike, log=True),
        figure(run, "feature spread", spreads, "spread", "1: in all directions alike, 0: collapsed to one"),
        figure(
            run, "effective rank", [Curve("held-out features", run.curve("effective_rank", "epoch"), own)], "dimensions"
        ),
        figure(run, "learning rate", [Curve("each step", run.curve("lr"), own)], "learning rate"),
        figure(run, "throughput", [Curve("recent mean", run.curve("images_per_second"), own)], "images/s"),
    ]


def accuracies(run: Run, key: str, colour: str) -> list[Curve]:
    """The curve of an accuracy; beside the score that the run is judged by its baselines as dashed lines."""
    curves = [Curve("held-out images", run.curve(key, "epoch"), colour)]
    if key == "probe":
        training = run.curve("probe_accuracy")
        curves.insert(0, Curve("training images, before each step", training, "c1", width=1.0, alpha=0.5))
    if key == run.score and run.last:
        for at, (name, value) in enumerate(run.baselines.items()):
            curves.append(Curve(name, [(0.0, value), (run.last, value)], f"c{(2, 4, 3, 5)[at % 4]}", "--", plain=True))
    return curves


def _loss_unit(run: Run) -> str:
    mae = run.recipe is not None and run.recipe.model.objective.kind == "mae"
    return "squared error" if mae else "nats" if run.recipe else "loss"


def figure(
    run: Run,
    title: str,
    curves: Sequence[Curve],
    unit: str,
    note: str = "",
    *,
    log: bool = False,
    percent: bool = False,
) -> str:
    """Return a figure of curves over the run's epochs; "" if they are empty."""
    label = "" if percent else f"{unit}, logarithmic" if log else unit
    drawing = chart.draw(curves, title, y_label=label, log=log, percent=percent, last=run.last)
    return page.figure(title, drawing, note, curves)


def pictures(run: Run) -> str:
    """Return the sections of the optional files; "" where the folder has none of them."""
    views, projection = run.folder / "views.png", run.folder / "projection.json"
    found = sorted(run.folder.glob("reconstructions/*.png"), key=_epoch)
    stride = math.ceil(len(found) / PICTURES) or 1
    chosen = [path for at, path in enumerate(reversed(found)) if at % stride == 0][::-1]
    images = "".join(page.image(path, path.stem.replace("_", " ")) for path in chosen)
    seen = f'<div class="images">{page.image(views, _views_caption(run))}</div>' if views.is_file() else ""
    rows = "<p>From top to bottom: what the encoder sees, the hidden patches as the decoder fills them, the originals."
    rows += " The pictures and their masks are the same after every epoch.</p>"
    return "\n".join(
        [
            page.section("What the network sees", seen),
            page.section("Reconstructions of held-out images", f'{rows}<div class="images">{images}</div>')
            if images
            else "",
            page.section("Held-out features in the plane", projected(projection)) if projection.is_file() else "",
        ]
    )


def _views_caption(run: Run) -> str:
    kind = run.recipe.model.objective.kind if run.recipe else ""
    if kind == "mae":
        return "training images as they are augmented, and below what the encoder sees of each"
    if kind == "moco":
        return "training images, each above its second view: the two that are contrasted"
    return "training images as they are augmented"


def _epoch(path: Path) -> tuple[int, str]:
    digits = "".join(letter for letter in path.stem if letter.isdigit())
    return int(digits or 0), path.stem


def projected(path: Path) -> str:
    """Return the features of projection.json as a cloud of dots, a colour for each class."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        points, labels = [(float(x), float(y)) for x, y in found["points"]], [int(n) for n in found["labels"]]
        classes = [str(name) for name in found["classes"]]
        groups = {name: [p for p, n in zip(points, labels, strict=True) if n == at] for at, name in enumerate(classes)}
    except (OSError, ValueError, LookupError, TypeError) as error:
        return f"<p>{escape(path.name)} cannot be read ({escape(str(error))}).</p>"
    drawing, curves = chart.cloud(groups, "held-out features in the plane")
    note = f"a dot for each of {len(points)} images: the first two principal components of features of length 1"
    if isinstance(found.get("share"), float):
        note += f", with {100 * found['share']:.0f} % of their variance, after epoch {found.get('epoch')}"
    if isinstance(found.get("of_classes"), int) and found["of_classes"] > len(classes):
        note += f"; {len(classes)} of {found['of_classes']} classes"
    return f'<div class="square">{page.figure("", drawing, note, curves)}</div>'


def table(epochs: Sequence[Line]) -> str:
    """Return the scores of the epochs as a table, of evenly chosen ones where there are many."""
    names = list(dict.fromkeys(name for line in epochs for name in line if name not in ("kind", "step", "epoch")))
    if not names:
        return ""
    stride = math.ceil(len(epochs) / ROWS)
    chosen = [line for at, line in enumerate(epochs) if at % stride == 0 or at == len(epochs) - 1]
    columns = ("epoch", *names)
    return page.table(
        [name.replace("_", " ") for name in columns],
        [[cell(line, name) for name in columns] for line in chosen],
        "numeric",
    )


def cell(line: Line, name: str) -> str:
    """Return one score as people read it."""
    value = line.get(name)
    if value is None:
        return "not finite" if name in line else ""
    return f"{100 * value:.2f} %" if name in ACCURACIES else number(value)
