"""Which of a file's arrays to read where it holds more than one model, and the options of the command line for it."""

from __future__ import annotations

import argparse
from dataclasses import dataclass

from triport.core.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Which of a file's arrays to read, where it holds more than one model."""

    key: str = ""  # of the dict that holds them, with dots: "teacher", "state.model"
    prefix: str = ""  # in front of their names, which is taken off: "backbone."
    average: bool = False  # the moving average of the weights instead of the weights


EVERYTHING = Selection()
OPTIONS = ("key", "prefix", "ema")


def add_options(command: argparse.ArgumentParser, whose: str = "its", which: str = "") -> None:
    """Add --key, --prefix and --ema, with `which` in front of their names ("second-")."""
    command.add_argument(
        f"--{which}key", metavar="KEY", default="", help=f"{whose} dict of arrays: teacher, state.model"
    )
    command.add_argument(
        f"--{which}prefix", metavar="PREFIX", default="", help=f"read {whose} arrays under it alone: backbone."
    )
    command.add_argument(f"--{which}ema", action="store_true", help=f"{whose} moving average of the weights")


def selected(options: argparse.Namespace, which: str = "") -> Selection:
    """Return what these options of a parsed command line say."""
    key, prefix, average = (getattr(options, f"{which}{word}") for word in OPTIONS)
    return Selection(key=key, prefix=prefix, average=average)


def no_choice(selection: Selection, what: object) -> None:
    """Raise UserError where something is selected and `what` leaves no choice."""
    if selection != EVERYTHING:
        raise UserError(
            f"--key, --prefix and --ema choose among the arrays of a file of weights; {what} holds one model: "
            "leave them out."
        )
