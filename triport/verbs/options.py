"""What the verbs' command lines share: the model, the backend and the device."""

from __future__ import annotations

from pathlib import Path

from triport.core import selection
from triport.core.errors import UserError
from triport.core.options import Parser, positive_number

MODEL = "a run folder, a checkpoint, encoder.safetensors, or any file of weights"


def parser(name: str, description: str, model: str = MODEL) -> Parser:
    """Return the parser of a verb with what all have."""
    p = Parser(prog=f"triport {name}", description=description, allow_abbrev=False)
    p.add_argument("model", metavar="RUN_OR_FILE", help=model)
    p.add_argument("--recipe", metavar="NAME", help="the recipe that a file of weights is of, where it does not say")
    selection.add_options(p, "of a file of weights: its")
    p.add_argument("--backend", metavar="NAME", help="torch, paddle or oneflow; default: the first that is set up")
    p.add_argument("--device", default="auto", help="auto, cpu, cuda, ... as the backend knows them")
    p.add_argument("--batch", type=positive_number, default=64, metavar="N", help="pictures at once (64)")
    p.add_argument("--traceback", action="store_true", help="show where an error was raised")
    return p


def ending(path: Path, endings: tuple[str, ...], word: str) -> Path:
    """Return the path; UserError unless it ends in one of these."""
    if path.suffix not in endings:
        raise UserError(f"{word} {path}: the file must end in {' or '.join(endings)}.")
    return path


def free(path: Path, overwrite: bool, word: str = "--out") -> Path:
    """Return the path; UserError where something is there that may not be replaced."""
    if path.exists() and not overwrite:
        raise UserError(f"{word} {path} exists already: name another file, or say --overwrite.")
    return path
