"""A comparison of two records for readers: on the console, as Markdown for a pull request, as a page, as JSON."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from html import escape
from pathlib import Path
from typing import Any

from rich import markup
from rich.console import Console
from rich.table import Table

from triport.core import atomic
from triport.core.errors import UserError
from triport.core.record import page
from triport.parity_tests.tool.findings import number
from triport.parity_tests.tool.foreign import words
from triport.parity_tests.tool.foreign.comparing import Comparison, Line
from triport.parity_tests.tool.foreign.matching import BY_ORDER

MARK = "<!-- triport parity compare -->"  # by which a table is known as ours
AROUND = 3  # neighbours shown on either side
SHOWN = 6  # modules matched by order that the console lists
HEAD = ("stage", "module of A", "of B", "kind", "largest", "mean", "cosine", "allowed", "")


def verdict(result: Comparison) -> str:
    """One sentence: they agree, or where they depart first."""
    if not result.lines:
        return "nothing could be compared: no module or array of A is in B"
    if result.first is None:
        equal = sum(line.error == 0 for line in result.lines)
        count = len(result.lines)
        return f"they agree within bounds in all of {count} comparisons, {equal} of them without any difference"
    line = result.lines[result.first]
    return f"first to depart: step {line.step}, {line.stage}: {both(line)}"


def both(line: Line) -> str:
    """The name in A, and in B where it is another."""
    return line.name if line.name == line.other else f"{line.name} ({line.other} in B)"


def matched(result: Comparison) -> str:
    """How the modules were matched, in words."""
    counts = Counter(result.match.how.values())
    text = ", ".join(f"{count} by {how}" for how, count in counts.items())
    found = f"{sum(counts.values())} modules matched: {text or 'none'}"
    for letter, names in zip("AB", result.match.alone):
        if names:
            found += f"; {len(names)} of {letter} alone: {', '.join(names[:4])}{' ...' if len(names) > 4 else ''}"
    return found


def neighbours(result: Comparison) -> list[tuple[int, Line]]:
    """The lines around the first that departs, of its stage and step, with their places."""
    assert result.first is not None
    line = result.lines[result.first]
    same = [i for i, other in enumerate(result.lines) if (other.stage, other.step) == (line.stage, line.step)]
    place = same.index(result.first)
    return [(i, result.lines[i]) for i in same[max(place - AROUND, 0) : place + AROUND + 1]]


def stages(result: Comparison) -> list[Line]:
    """Of each step and stage the first line that departs, else the one nearest to its bound."""
    worst: dict[tuple[int, str], Line] = {}
    for line in result.lines:
        key = (line.step, line.stage)
        if key not in worst or (worst[key].agrees and (not line.agrees or line.error > worst[key].error)):
            worst[key] = line
    return list(worst.values())


def facts(result: Comparison) -> list[str]:
    """What is compared, how it was matched, and what is allowed for."""
    out = []
    for letter, record in (("A", result.a), ("B", result.b)):
        about = record.about
        out.append(
            f"{letter}  {record.name}: {about['model']} on {record.title}, {record.steps} steps, {about['mode']}"
        )
    return [*out, matched(result), *(f"note: {note}" for note in result.notes)]


def cells(line: Line) -> list[str]:
    """A line as a row of HEAD."""
    cosine = "" if math.isnan(line.cosine) else f"{line.cosine:.9f}"
    return [
        line.stage, line.name, line.other if line.other != line.name else "", line.kind, number(line.error, 1),
        number(line.mean, 1), cosine, number(line.allowed, 0), "agrees" if line.agrees else "departs",
    ]  # fmt: skip


# ---------------------------------------------------------------- console
def show(result: Comparison, console: Console) -> None:
    """Print the match, the verdict, the neighbours and the stages."""
    for fact in facts(result):
        console.print(fact, highlight=False, markup=False)
    renamed = [name for name, how in result.match.how.items() if how == BY_ORDER]
    for name in renamed[:SHOWN]:
        console.print(
            f"   {name} is {', '.join(result.match.calls.get(name, ['?']))} in B", highlight=False, markup=False
        )
    if len(renamed) > SHOWN:
        console.print(f"   and {len(renamed) - SHOWN} more by order and shape; --out lists them", highlight=False)
    for text in result.settings:
        console.print(f"   other settings: {text}", highlight=False, markup=False)
    good = result.first is None and result.lines
    console.print(f"\n[{'green' if good else 'bold red'}]{markup.escape(verdict(result))}[/]", highlight=False)
    if result.first is not None:
        for sentence in words.explain(result):
            console.print(f"  {sentence}", highlight=False, markup=False)
        rows = [(">" if i == result.first else " ", line) for i, line in neighbours(result)]
        console.print(_table("around it, in order of computation", rows))
    console.print(_table("every stage, its array nearest to the bound", [(str(n.step), n) for n in stages(result)]))


def _table(title: str, rows: Sequence[tuple[str, Line]]) -> Table:
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("")
    for name in HEAD:
        right = name in ("largest", "mean", "cosine", "allowed")
        table.add_column(name, overflow="fold", justify="right" if right else "left")
    for mark, line in rows:
        *first, word = cells(line)
        colour = "green" if line.agrees else "red"
        table.add_row(mark, *first, f"[{colour}]{word}[/]")
    return table


# ---------------------------------------------------------------- files
def per_module(result: Comparison) -> Iterator[list[str]]:
    """Of each matched module: forward and backward, largest, mean and cosine."""
    for name, lines in result.modules().items():
        row = [name, next(iter(lines.values())).other, next(iter(lines.values())).kind]
        for stage in ("forward", "backward"):
            line = lines.get(stage)
            row += ["", "", ""] if line is None else cells(line)[4:7]
        agrees = all(line.agrees for line in lines.values())
        yield [*row, "agrees" if agrees else "**departs**"]


COLUMNS = (
    "module of A",
    "of B",
    "kind",
    "forward: largest",
    "mean",
    "cosine",
    "backward: largest",
    "mean",
    "cosine",
    "",
)


def markdown(result: Comparison) -> str:
    """The comparison as reviewers of ports ask for it: a table with max, mean and cosine of each module."""
    lines = [MARK, f"# {result.a.name} against {result.b.name}", "", f"**{verdict(result)}**", ""]
    if result.first is not None:
        lines += [f"- {sentence}" for sentence in words.explain(result)]
    lines += [f"- {text}" for text in (*facts(result), *(f"other settings: {s}" for s in result.settings))]
    lines += ["", "## Stages", "", *_rows(("step", *HEAD), [[str(n.step), *cells(n)] for n in stages(result)])]
    lines += ["", "## Modules", "", *_rows(COLUMNS, per_module(result)), ""]
    return "\n".join([*lines, "Differences are relative to the largest value of the array.", ""])


def _rows(head: Sequence[str], rows: Iterator[list[str]] | list[list[str]]) -> list[str]:
    def row(texts: Sequence[str]) -> str:
        return "| " + " | ".join(text.replace("|", "\\|") for text in texts) + " |"

    return [row(head), "|" + "---|" * len(head), *map(row, rows)]


def html(result: Comparison) -> str:
    """The comparison as a page that needs no other file."""
    good = result.first is None and bool(result.lines)
    message = [] if result.first is None else words.explain(result)
    around = [] if result.first is None else [cells(line) for _, line in neighbours(result)]
    title = f"{result.a.name} against {result.b.name}"
    body = [
        page.header(title, "good" if good else "bad", verdict(result), facts(result)),
        *(f"<p>{escape(sentence)}</p>" for sentence in (*message, *(f"other settings: {s}" for s in result.settings))),
        page.section("Around it, in order of computation", page.table(HEAD, around)),
        page.section("Stages", page.table(("step", *HEAD), [[str(n.step), *cells(n)] for n in stages(result)])),
        page.section("Modules", page.table(COLUMNS, [[c.strip("*") for c in row] for row in per_module(result)])),
    ]
    return page.document(title, body)


def plain(result: Comparison) -> dict[str, Any]:
    """Everything as JSON values."""
    first = None if result.first is None else result.lines[result.first]
    rows = [{**asdict(line), "agrees": line.agrees} for line in result.lines]
    for row in rows:
        row |= {key: None for key in ("error", "mean", "cosine") if not math.isfinite(row[key])}
    return {
        "a": {"name": result.a.name, **result.a.about},
        "b": {"name": result.b.name, **result.b.about},
        "agree": first is None and bool(rows),
        "first": None if first is None else {**rows[result.first or 0], "explanation": words.explain(result)},
        "match": {name: [result.match.how[name], *result.match.calls.get(name, [])] for name in result.match.how},
        "alone": list(result.match.alone),
        "settings": list(result.settings),
        "notes": list(result.notes),
        "lines": rows,
    }


def write(result: Comparison, stem: Path) -> list[Path]:
    """Write `<stem>.md` and `<stem>.html`; returns them."""
    text = stem.with_name(f"{stem.name}.md")
    text.parent.mkdir(parents=True, exist_ok=True)
    if text.exists() and MARK not in text.read_text(encoding="utf-8", errors="replace")[: len(MARK)]:
        raise UserError(f"{text} is not a comparison that triport wrote: move it aside first, it would be replaced.")
    atomic.write_text(text, markdown(result))
    return [text, page.write(stem.with_name(f"{stem.name}.html"), html(result), "Name another --out.")]
