"""The one error a user sees: a line that names the thing and the remedy."""

from __future__ import annotations

import contextlib
import difflib
import errno
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class UserError(Exception):
    """Something the user can fix. Shown as one line, exit code 2, no traceback unless asked for."""


def closest(name: str, choices: Iterable[str]) -> str:
    """Return " Did you mean 'x'?" for the choice most like `name`, or "" where none is near."""
    near = difflib.get_close_matches(name, list(choices), n=1, cutoff=0.6)
    return f" Did you mean '{near[0]}'?" if near else ""


def no_room(error: BaseException) -> str:
    """What was wrong where only room to write was missing, else ""; safetensors' errors say so in their text."""
    if isinstance(error, OSError):
        number = error.errno or 0
    else:
        found = re.search(r"\(os error (\d+)\)", str(error)) if type(error).__name__ == "SafetensorError" else None
        number = int(found[1]) if found else 0
    return os.strerror(number) if number in FULL else ""


@contextlib.contextmanager
def room_for(path: str | Path) -> Iterator[None]:
    """UserError that names `path`, or what is written there, where room to write it is missing."""
    try:
        yield
    except Exception as error:
        if reason := no_room(error):
            raise UserError(f"cannot write {path}: {reason}. Make room, then give the command again.") from error
        raise
