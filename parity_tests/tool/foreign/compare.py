"""`triport parity compare` of two records of models: the first module that departs, its formula, its neighbours."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from triport.core.errors import UserError
from triport.core.options import Parser
from triport.parity_tests.tool.foreign import comparing, files, record, shown
from triport.parity_tests.tool.foreign.files import Record
from triport.parity_tests.tool.foreign.matching import match
from triport.parity_tests.tool.foreign.names import Names
from triport.parity_tests.tool.foreign.weights import read_names

WIDE = 160  # columns where the output is not a terminal


def parser() -> Parser:
    """The options."""
    found = Parser(prog="triport parity compare", description="Name the first module in which two records of models "
                   "depart.", allow_abbrev=False)  # fmt: skip
    add = found.add_argument
    add("a", type=Path, metavar="A", help="a record that `triport parity record --model` or `recording` made")
    add("b", type=Path, metavar="B", help="another one")
    add("--names", type=Path, metavar="FILE", help='JSON: names of A to names of B, {"blocks.*.attn": "layers.*.attn"}')
    add("--copy-weights", action="store_true", help="record B again with the weights of A, then compare")
    add("--out", type=Path, metavar="STEM", help="also write STEM.md and STEM.html")
    add("--json", action="store_true", help="print everything as JSON")
    return found


def main(argv: Sequence[str]) -> int:
    """Compare: 0 they agree, 1 they depart, 2 they cannot be compared."""
    options = parser().parse_args(list(argv))
    names = read_names(options.names)
    a, b = files.read(options.a), files.read(options.b)
    if options.copy_weights:
        b = copied(options, a, b, names)
    result = comparing.compare(a, b, names)
    if not result.lines:
        raise UserError(f"{a.name} and {b.name} have nothing in common; --names FILE says which modules correspond.")
    if options.json:
        print(json.dumps(shown.plain(result)))
    else:
        shown.show(result, Console(width=None if sys.stdout.isatty() else WIDE))
    if options.out is not None:
        for path in shown.write(result, options.out):
            if not options.json:
                print(f"written: {path}")
    return 0 if result.first is None else 1


def copied(options: argparse.Namespace, a: Record, b: Record, names: Names) -> Record:
    """B recorded again, beside the first, with the weights of A under the names of the match. Raises UserError."""
    command = list(b.about.get("command") or [])
    if not command:
        raise UserError(
            f"{options.b} was recorded by `recording`, which cannot be repeated here: call "
            f"triport.parity.copy_weights(model, '{options.a}') before it."
        )
    target = options.b.with_name(f"{options.b.stem}-weights-of-{options.a.stem}.safetensors")
    table = match(a, b, names).names.table
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "names.json"
        place.write_text(json.dumps(dict(table)))
        words = without(command, "-o", "--out", "--weights", "--names")
        words += ["--weights", str(options.a.resolve()), "--names", str(place), "-o", str(target.resolve())]
        code = record.start(Path(b.about["interpreter"]), words, where=Path(b.about["folder"]))
    if code:
        raise UserError(f"{options.b} could not be recorded again (exit code {code}).")
    return files.read(target)


def without(words: Sequence[str], *options: str) -> list[str]:
    """Words of a command without some options and their values."""
    out: list[str] = []
    skip = False
    for word in words:
        if skip:
            skip = False
        elif word in options:
            skip = True
        elif not any(word.startswith(f"{option}=") for option in options):
            out.append(word)
    return out
