"""Whole runs in a framework's interpreter, several in one process: asked by the tests of resuming."""

from __future__ import annotations

import io
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from importlib import import_module


def run(backend: str, task: str, words: Sequence[str]) -> str:
    """Make a run as `python -m backends.<backend>.<task>` does, and return what it said; raises where it fails."""
    said = io.StringIO()
    with redirect_stdout(said), redirect_stderr(said):
        code = import_module(f"backends.{backend}.{task}").main(list(words))
    if code != 0:
        raise RuntimeError(f"the run ended with exit code {code}: {said.getvalue()}")
    return said.getvalue()
