"""A run as one page, report.html: its curves, what stands out in them, its scores as a table. No plotting library.

Written when a run ends, however it ends, and by `triport report RUN`, also while it goes on. The instability that the
MoCo v3 paper describes (arXiv 2104.02057, section 4) shows as spikes of the first layer's gradient and dips of the
kNN curve, so curves are thinned to the drawing's width without losing a peak.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from triport.core.errors import UserError
from triport.core.record.chart import Curve, draw, number
from triport.core.spec import recipe as recipes

Line = dict[str, Any]
ROWS = 40  # of the table of scores at most
BEFORE = 50  # steps that a spike is measured against
ACCURACIES = {
    "knn": "kNN accuracy",
    "top1": "top-1 accuracy",
    "top5": "top-5 accuracy",
    "mean_per_class": "accuracy, mean of the classes",
}

STYLE = """
:root { color-scheme: light dark; --page: #f6f7f9; --card: #fff; --ink: #16191d; --soft: #5b6470; --line: #dfe3e8;
  --c0: #1f66c9; --c1: #c2500f; }
@media (prefers-color-scheme: dark) { :root { --page: #14171a; --card: #1c2024; --ink: #eceff2; --soft: #a3adb8;
  --line: #343a41; --c0: #74aef7; --c1: #f59a5f; } }
* { box-sizing: border-box; }
body { margin: 0; padding: 24px clamp(12px, 3vw, 40px) 48px; background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, sans-serif; }
main { max-width: 1240px; margin: auto; }
h1 { font-size: 22px; line-height: 1.3; margin: 0 0 4px; }
h2 { font-size: 15px; margin: 0; }
p { margin: 0 0 16px; color: var(--soft); overflow-wrap: anywhere; }
section { display: grid; gap: 16px; grid-template-columns: repeat(auto-fit, minmax(min(100%, 360px), 1fr)); }
figure, .table { margin: 0; padding: 14px 16px; background: var(--card); border: 1px solid var(--line);
  border-radius: 8px; min-width: 0; }
figure { display: flex; flex-direction: column; justify-content: space-between; gap: 10px; }
figcaption small, .key { color: var(--soft); font-size: 13px; }
.key { display: inline-block; margin-right: 14px; }
.key i { display: inline-block; width: 14px; height: 3px; border-radius: 2px; margin: 0 6px 4px 0; }
svg { display: block; width: 100%; height: auto; font: 15px system-ui, sans-serif; }
svg text { fill: var(--soft); }
svg path { fill: none; }
.grid, .axis, .tick { stroke: var(--line); }
.c0 path { stroke: var(--c0); } .c1 path { stroke: var(--c1); }
.c0 path, .c1 path { stroke-width: 1.6; stroke-linejoin: round; }
.c0 circle { fill: var(--c0); } .c1 circle { fill: var(--c1); }
.k0 { background: var(--c0); } .k1 { background: var(--c1); }
.table { margin-top: 16px; overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: 3px 18px 3px 0; text-align: right; white-space: nowrap; }
th { color: var(--soft); font-weight: 500; }
"""


def write(folder: Path) -> Path:
    """Draw the run in `folder` and return the page's path; UserError where there is no run or no room."""
    return write_page(folder / "report.html", render(folder), f"Make room, then: triport report {folder}")


def write_page(path: Path, page: str, remedy: str) -> Path:
    """Write a page whole or not at all and return its path; UserError with the remedy where the system refuses."""
    part = path.with_name(path.name + ".part")
    try:
        part.write_text(page, encoding="utf-8")
        part.replace(path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise UserError(f"cannot write {path}: {error.strerror}. {remedy}") from error
    return path


def render(folder: Path) -> str:
    """Return the page of the run in `folder` as HTML that needs no other file."""
    lines = read(folder)
    steps = [line for line in lines if line["kind"] == "step"]
    epochs = [line for line in lines if line["kind"] == "epoch"]
    title, facts = describe(folder, steps, epochs)
    return whole_page(title, facts, panels(steps, epochs), STYLE, table(epochs))


def whole_page(title: str, facts: str, figures: Sequence[str], style: str, below: str = "") -> str:
    """Return HTML of a title, a line of facts, figures side by side where there is room, and what stands below them."""
    shown = "\n".join(one for one in figures if one)
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title><style>{style}</style></head>
<body><main><h1>{escape(title)}</h1><p>{escape(facts)}</p>
<section>
{shown or "<p>No step and no score has been recorded yet.</p>"}
</section>
{below}
</main></body></html>
"""


def read(folder: Path) -> list[Line]:
    """Return the lines of a run's metrics.jsonl that are whole; a run that is being written may end in half a line."""
    try:
        text = (folder / "metrics.jsonl").read_text(encoding="utf-8")
    except OSError:
        raise UserError(f"{folder} holds no run: it has no metrics.jsonl. Name a run folder.") from None
    lines = []
    for line in text.splitlines():
        try:
            lines.append(json.loads(line))
        except ValueError:
            continue
    return lines


def describe(folder: Path, steps: Sequence[Line], epochs: Sequence[Line]) -> tuple[str, str]:
    """Return the page's title, and a line about what was run and how far it got."""
    facts = []
    try:
        recipe = recipes.load(str(folder / "recipe.toml"))
        title = recipe.title
        facts.append(f"{recipe.name}, batch {recipe.batch}, {recipe.schedule.epochs} epochs")
    except UserError:
        title = folder.name
    try:
        start = json.loads((folder / "environment.json").read_text(encoding="utf-8"))["starts"][-1]
        count = start["processes"]
        facts.append(f"{start['backend']}, {count} process{'es' * (count != 1)}, begun {start['begun']}")
    except (OSError, ValueError, LookupError, TypeError):
        pass
    if steps:
        facts.append(f"step {steps[-1]['step']}, epoch {number(steps[-1]['epoch'])}")
    for name in ("knn", "top1"):
        best = max((line[name] for line in epochs if line.get(name) is not None), default=None)
        if best is not None:
            facts.append(f"best {ACCURACIES[name]} {100 * best:.2f} %")
    return title, "; ".join(facts)


# ---------------------------------------------------------------- figures
def panels(steps: Sequence[Line], epochs: Sequence[Line]) -> list[str]:
    """Return the figures for which there are numbers."""
    last = max((line["epoch"] for line in (*steps, *epochs)), default=0.0)

    def curve(name: str, key: str, lines: Sequence[Line]) -> Curve:
        return Curve(name, [(line["epoch"], line[key]) for line in lines if key in line])

    gradients = [curve("all parameters", "gradient_norm", steps), curve("first layer", "first_layer_gradient", steps)]
    spreads = [curve("queries, behind their batch norm", "spread", steps), curve("held-out features", "spread", epochs)]
    found = [
        figure("loss", [curve("each step", "loss", steps)], last),
        figure("gradient norm", gradients, last, note=spike(steps, "first_layer_gradient"), log=True),
        *(figure(title, [curve(title, key, epochs)], last, percent=True) for key, title in ACCURACIES.items()),
        figure("feature spread", spreads, last, note="1: in all directions alike, 0: collapsed to one"),
        figure("effective rank", [curve("held-out features", "effective_rank", epochs)], last),
        figure("learning rate", [curve("each step", "lr", steps)], last),
    ]
    return [one for one in found if one]


def figure(
    title: str, curves: Sequence[Curve], last: float, note: str = "", *, log: bool = False, percent: bool = False
) -> str:
    """Return a figure with a title, what there is to say about it and, for several curves, a key; "" if it is empty."""
    drawing = draw(curves, title, log=log, percent=percent, last=last)
    if not drawing:
        return ""
    keys = [f'<span class="key"><i class="k{n}"></i>{escape(c.name)}</span>' for n, c in enumerate(curves) if c.points]
    below = "".join(keys) if len(curves) > 1 else ""
    said = f"<br><small>{escape(note)}</small>" if note else ""
    return f"<figure><figcaption><h2>{escape(title)}</h2>{below}{said}</figcaption>{drawing}</figure>"


def spike(steps: Sequence[Line], key: str) -> str:
    """Say where a value stands highest above the median of the steps before it, and how high."""
    known = [line for line in steps if line.get(key) is not None]
    worst, where = 0.0, None
    for at in range(BEFORE // 2, len(known)):
        usual = statistics.median(line[key] for line in known[max(0, at - BEFORE) : at])
        if usual > 0 and known[at][key] / usual > worst:
            worst, where = known[at][key] / usual, known[at]
    if where is None:
        return ""
    place = f"epoch {number(where['epoch'])} (step {where['step']})"
    return f"first layer, highest spike: {number(where[key])} at {place}, {worst:.1f} times the steps before"


def table(epochs: Sequence[Line]) -> str:
    """Return the scores of the epochs as a table, of evenly chosen ones where there are many."""
    names = list(dict.fromkeys(name for line in epochs for name in line if name not in ("kind", "step", "epoch")))
    if not names:
        return ""
    stride = math.ceil(len(epochs) / ROWS)
    chosen = [line for at, line in enumerate(epochs) if at % stride == 0 or at == len(epochs) - 1]
    columns = ("epoch", *names)
    head = "".join(f"<th>{escape(name.replace('_', ' '))}</th>" for name in columns)
    rows = "".join(f"<tr>{''.join(f'<td>{cell(line, name)}</td>' for name in columns)}</tr>" for line in chosen)
    return f'<div class="table"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'


def cell(line: Line, name: str) -> str:
    """Return one score as people read it."""
    value = line.get(name)
    if value is None:
        return "not finite" if name in line else ""
    return f"{100 * value:.2f} %" if name in ACCURACIES else number(value)
