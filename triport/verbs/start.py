"""Starts a verb in the interpreter of a framework; `--help` and what only converts weights need none."""

from __future__ import annotations

import importlib
import os
from collections.abc import Sequence

from triport import environments, launch
from triport.core.errors import UserError
from triport.place import Place, variables

NAMES = ("predict", "embed", "neighbours", "reconstruct", "attention", "measure", "export")
BACKGROUND = ("-h", "--help")


def main(argv: Sequence[str]) -> int:
    """Become `python -m triport.verbs NAME …` of the framework that is asked for, or of the first that is set up."""
    name, words = argv[0], list(argv[1:])
    if any(word in BACKGROUND for word in words) or (
        name == "export" and "onnx" not in words and "--to=onnx" not in words
    ):
        command = [str(environments.base_python()), "-m", "triport.verbs", *argv]
        return launch.become(command, environments.with_project(os.environ))
    framework = environments.known(backend) if (backend := chosen(words)) else default(name)
    place = Place(framework, environments.require(framework))
    return launch.become([str(place.python), "-m", "triport.verbs", name, *words], variables(place))


def default(name: str) -> str:
    """Return the framework where none is named: ONNX files come from PyTorch unless Paddle is asked for."""
    return "torch" if name == "export" else launch.default_backend()


def chosen(words: Sequence[str]) -> str | None:
    """Return what follows --backend; None where it is not there."""
    for at, word in enumerate(words):
        if word == "--backend":
            if at + 1 == len(words):
                raise UserError("--backend needs a name: torch, paddle or oneflow.")
            return words[at + 1]
        if word.startswith("--backend="):
            return word.partition("=")[2]
    return None


def run(argv: Sequence[str]) -> int:
    """Run a verb in this interpreter."""
    return int(importlib.import_module(f"triport.verbs.{argv[0]}").main(list(argv[1:])) or 0)
