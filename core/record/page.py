"""Pages: HTML that needs no other file, with one stylesheet, written whole and never over somebody else's file."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Sequence
from functools import cache
from html import escape
from pathlib import Path

import numpy as np

from triport.core import atomic
from triport.core.errors import UserError
from triport.core.record.chart import Curve

MARK = '<meta name="generator" content="triport">'  # by which a page is known as ours
HEAD = 1000  # characters of a page that hold the mark


@cache
def style() -> str:
    """The stylesheet."""
    return Path(__file__).with_name("style.css").read_text(encoding="utf-8")


def document(title: str, body: Iterable[str]) -> str:
    """Return a whole page around some content."""
    inside = "\n".join(part for part in body if part)
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8">{MARK}<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title><style>{style()}</style></head>
<body><main>
{inside}
</main></body></html>
"""


def write(path: Path, page: str, remedy: str) -> Path:
    """Write a page whole or not at all and return its path.

    UserError where the system refuses, with the remedy, and where a file is there that is not a page of triport.
    """
    try:
        if path.exists() and MARK not in path.read_text(encoding="utf-8", errors="replace")[:HEAD]:
            raise UserError(f"{path} is not a page that triport wrote: move it aside first, it would be replaced.")
        # A path whose name is not UTF-8 may stand in the page: its bytes are shown escaped.
        atomic.write_text(path, page.encode("utf-8", "backslashreplace").decode("utf-8"))
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}. {remedy}") from error
    return path


def header(title: str, kind: str, verdict: str, facts: Sequence[str] = ()) -> str:
    """Return the top of a page. kind: "good", "note" or "bad"."""
    sign = {"good": "✓", "note": "!", "bad": "✗"}[kind]
    lines = "".join(f"<p>{escape(fact)}</p>" for fact in facts if fact)
    line = f'<p class="verdict"><b>{sign}</b> {escape(verdict)}</p>'
    return f'<header class="{kind}"><h1>{escape(title)}</h1>{line}{lines}</header>'


def figure(title: str, drawing: str, note: str = "", curves: Sequence[Curve] = ()) -> str:
    """Return a drawing with its title, a note and, for several curves, a key; "" where there is no drawing."""
    if not drawing:
        return ""
    shown = [curve for curve in curves if curve.points]
    below = keys(shown) if len(shown) > 1 else ""
    small = f"<small>{escape(note)}</small>" if note else ""
    return f"<figure><figcaption><h3>{escape(title)}</h3>{small}{below}</figcaption>{drawing}</figure>"


def keys(curves: Iterable[Curve]) -> str:
    """Return what each colour stands for."""
    return "".join(
        f'<span class="key"><i style="background: var(--{curve.colour})"></i>{escape(curve.name)}</span>'
        if curve.style == "-"
        else f'<span class="key"><i class="dashed" style="color: var(--{curve.colour})"></i>{escape(curve.name)}</span>'
        for curve in curves
    )


def charts(figures: Iterable[str], kind: str = "") -> str:
    """Return figures side by side where the window is wide enough. kind: "small" ones take less of it."""
    inside = "\n".join(shown for shown in figures if shown)
    return f'<div class="{f"charts {kind}".strip()}">\n{inside}\n</div>' if inside else ""


def section(title: str, *parts: str) -> str:
    """Return a section, or "" where it has no content."""
    inside = "\n".join(part for part in parts if part)
    return f"<section><h2>{escape(title)}</h2>\n{inside}\n</section>" if inside else ""


def table(head: Sequence[str], rows: Iterable[Sequence[str]], kind: str = "") -> str:
    """Return a table of texts that scrolls in itself where it is wide; "" without rows."""
    body = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
    top = f"<thead><tr>{''.join(f'<th>{escape(word)}</th>' for word in head)}</tr></thead>" if head else ""
    inside = f'<table class="{kind}">{top}<tbody>{body}</tbody></table>'
    return f'<div class="scroll">{inside}</div>' if body else ""


def image(path: Path, caption: str) -> str:
    """Return a PNG as a figure, within the page."""
    text = base64.b64encode(path.read_bytes()).decode()
    shown = escape(caption, quote=True)
    return f'<figure><img alt="{shown}" src="data:image/png;base64,{text}"><figcaption>{shown}</figcaption></figure>'


def picture(pixels: np.ndarray, words: str, kind: str = "") -> str:
    """Return a picture uint8 (height, width, 1, 3 or 4) as a small figure with a caption, within the page."""
    from PIL import Image

    file = io.BytesIO()
    flat = pixels[..., 0] if pixels.shape[2] == 1 else pixels[..., :3]
    Image.fromarray(np.ascontiguousarray(flat)).save(file, "PNG")
    text = base64.b64encode(file.getvalue()).decode()
    shown = escape(words, quote=True)
    own = f' class="{kind}"' if kind else ""
    return (
        f'<figure{own}><img alt="{shown}" src="data:image/png;base64,{text}"><figcaption>{shown}</figcaption></figure>'
    )


def caption(text: str) -> str:
    """Return a line above pictures."""
    return f'<h3 class="over">{escape(text)}</h3>'
