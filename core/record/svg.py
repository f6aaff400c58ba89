"""From a matplotlib figure to an <svg> in a page: the page's colours, light or dark, and its fonts; tips for dots.

Only matplotlib's objects are used, no pyplot: nothing global is changed, and no display is asked for. It is imported
when the first chart is drawn. A colour is a role of style.css ("torch", "soft"), which the page turns into a colour.
"""

from __future__ import annotations

import io
import logging
import re
from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING

from triport.core.errors import UserError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PALETTE = 8  # colours of curves that belong to no framework: c0, c1, ...
FRAMEWORKS = ("torch", "paddle", "oneflow")
ROLES = ("ink", "soft", "line", "paper", "good", "bad", *FRAMEWORKS)
# matplotlib is given a colour that nothing else has, and the page's variable takes its place in what it wrote.
COLOURS = {role: f"#fe{number:02x}fd" for number, role in enumerate((*ROLES, *(f"c{n}" for n in range(PALETTE))))}


def empty(size: tuple[int, int]) -> Figure:
    """Return a figure of this width and height in the drawing's units; UserError where matplotlib is missing."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise UserError("charts are drawn by matplotlib: pip install matplotlib") from None
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # of fonts that it looks for: the page has its own
    figure = Figure((size[0] / 72, size[1] / 72), dpi=72)
    figure.patch.set_visible(False)
    return figure


def text(figure: Figure, title: str, tips: Sequence[Sequence[str]] = ()) -> str:
    """Return the figure as an <svg> for a page.

    tips: what a pointer shows at each drawn dot of the line whose gid is `gid(n)`. Its names differ from
    those of every other figure of the page: they follow from title and size, and are the same each time.
    """
    from matplotlib import rc_context

    stream = io.StringIO()
    salt = f"{title} {figure.get_size_inches()}"
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": salt}):
        figure.savefig(stream, format="svg", metadata={"Date": None})
    width, height = (round(72 * size) for size in figure.get_size_inches())
    body = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", stream.getvalue(), flags=re.S)
    body = body[body.index(">", body.index("<svg")) + 1 :]
    for at, own in enumerate(tips):
        before, _, after = body.partition(f' id="{gid(at)}"')
        body = before + _with_tips(after, own)
    # Names that nothing refers to, clipping where nothing stands outside, and fonts other than the page's.
    body = re.sub(
        r' id="[\w.]+_\d+"| clip-path="[^"]*"|<clipPath.*?</clipPath>| font-family: [^;]*;', "", body, flags=re.S
    )
    body = body.replace("xlink:href", "href")
    for role, colour in COLOURS.items():
        body = body.replace(colour, f"var(--{role})")
    start = f'<svg role="img" aria-label="{escape(title, quote=True)}" viewBox="0 0 {width} {height}">'
    return start + re.sub(r"\s*\n\s*", "\n", body).strip()


def gid(number: int) -> str:
    """The mark of the line that has the tips of this number."""
    return f"tips{number}x"


def _with_tips(body: str, tips: Sequence[str]) -> str:
    """Give each of the first drawn dots its tip."""
    waiting = iter(tips)

    def tipped(use: re.Match[str]) -> str:
        return f"{use[1]}><title>{escape(next(waiting))}</title></use>"

    return re.sub(r"(<use [^>]*)/>", tipped, body, count=len(tips)) if tips else body
