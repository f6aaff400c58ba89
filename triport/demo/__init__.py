"""`triport demo`: MoCo v3 learns from real pictures in minutes; a page and a picture show it and what is guaranteed."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from triport import environments
from triport.core.errors import UserError
from triport.core.options import Parser
from triport.demo import console
from triport.demo.parts import FULL, QUICK, Demo, read_state

FOLDER = Path("runs") / "demo"


def main(argv: Sequence[str]) -> int:
    """Run the demo; exit code 1 where something is not as it must be."""
    options = parser().parse_args(list(argv))
    frameworks = options.backend.split(",") if options.backend else here()
    for framework in frameworks:
        environments.require(framework)
    sizes = QUICK if options.quick else FULL
    settings = {"frameworks": frameworks, "quick": options.quick, "changes": options.overrides}
    out = place(options.out, settings)
    demo = Demo(out, settings, sizes, tuple(options.overrides))
    result = demo.run()
    console.conclude(result, out / "index.html", out / "demo.png", demo.main_run)
    return 0 if result.good else 1


def parser() -> Parser:
    """Return the command line's parser."""
    p = Parser(prog="triport demo", description="Pretrain a small network and show what it learned, on a page.")
    p.add_argument(
        "--backend",
        metavar="NAMES",
        help="where to run, as in torch,paddle (default: all that are set up); the first runs all of it and the others "
        "the first steps, to show that their numbers are the same",
    )
    p.add_argument("--out", type=Path, metavar="DIR", help=f"where everything goes ({FOLDER}, {FOLDER}-2, …)")
    p.add_argument("--quick", action="store_true", help="smaller networks for a minute: all parts, but little learned")
    p.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="changes of MoCo's recipe, for example epochs=2")
    return p


def here() -> list[str]:
    """The frameworks that are set up, of which there must be one."""
    return [name for name in environments.FRAMEWORKS if environments.interpreter(name)] or ["torch"]


def place(asked: Path | None, settings: dict[str, Any]) -> Path:
    """Return the demo's folder: the one asked for, or the first of its own that is free or has these settings.

    UserError where the one asked for holds a demo of other settings.
    """
    for number in itertools.count(1):
        folder = asked or (FOLDER if number == 1 else FOLDER.with_name(f"{FOLDER.name}-{number}"))
        known = read_state(folder).get("settings", settings)
        if known == settings:
            return folder
        if asked:
            raise UserError(f"{folder} holds a demo with other settings: name another --out, or remove it.")
    raise AssertionError
