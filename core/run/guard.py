"""Whatever happens in a run becomes one line and an exit code.

0 done, 1 a fault of the program, 2 a fault the user can mend; stopped by Ctrl-C 130, by SIGTERM 143, by the end of the
terminal 129.
"""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
from argparse import Namespace
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from triport.core.backend.learner import Learner, Processes
from triport.core.errors import UserError
from triport.core.options import Task, parse
from triport.core.record.journal import Journal
from triport.core.signals import Interrupted


@dataclass(frozen=True)
class Backend:
    """What a framework offers: its name, how its processes find each other, how a learner is made.

    start(device) -> Processes; make(recipe, arrays, *, processes, device, precision, compile) -> Learner;
    kept(folder), where there is one, is told of every checkpoint that a run keeps, on rank 0.
    """

    name: str
    start: Callable[[str], Processes]
    make: Callable[..., Learner]
    kept: Callable[[Path], None] | None = None


@dataclass
class Session:
    """What is known when something goes wrong: whose fault line to write, and where."""

    options: Namespace
    rank: int = 0
    world: int = 1
    folder: Path | None = None
    journal: Journal | None = None
    closing: list[Callable[[], None]] = field(default_factory=list)

    def warn(self, text: str) -> None:
        """Tell the user of something that does not stop the run, from any rank."""
        if self.journal is not None and self.rank == 0:
            self.journal.say(text)
        else:
            print(f"triport: {f'rank {self.rank}: ' if self.world > 1 else ''}{text}", file=sys.stderr, flush=True)


def guarded(task: Task, argv: Sequence[str] | None, backend: Backend, work: Callable[[Session, Backend], None]) -> int:
    """Do `work` and turn whatever happens into one line and an exit code; all processes of a failed job end."""
    session = Session(Namespace(traceback=False))
    code = 0
    try:
        session.options = parse(task, sys.argv[1:] if argv is None else argv)
        work(session, backend)
    except SystemExit as error:  # --help
        return int(error.code or 0)
    except Interrupted as error:
        code = error.code
        if session.rank == 0:
            _complain(session, str(error))
    except KeyboardInterrupt:
        code = 130
        _complain(session, "stopped at once; what was saved last is intact.")
    except UserError as error:
        code = 2
        if session.options.traceback:
            traceback.print_exc()
        _complain(session, f"error: {error}")
    except BaseException as error:
        code = 1
        _complain(session, f"error: {_first_line(error)}; {_keep_traceback(session)}.")
    finally:
        for close in reversed(session.closing):
            close()
    if code and session.world > 1:
        # Other ranks may wait for this one inside a collective; an orderly goodbye could wait for them in turn.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def _complain(session: Session, text: str) -> None:
    who = f"rank {session.rank}: " if session.world > 1 else ""
    if session.journal is not None:
        session.journal.console_off()
        with contextlib.suppress(UserError):  # the log may be on the full disk that is being reported
            session.journal.note(f"{who}{text}")
    print(f"triport: {who}{text}", file=sys.stderr, flush=True)


def _keep_traceback(session: Session) -> str:
    text = traceback.format_exc()
    if session.folder is not None and not session.options.traceback:
        path = session.folder / "train.log"
        try:
            with path.open("a", encoding="utf-8") as log:
                log.write(f"rank {session.rank}\n{text}")
        except OSError:
            pass
        else:
            return f"the traceback is at the end of {path}"
    if session.options.traceback:
        print(text, file=sys.stderr, end="")
        return "the traceback stands above"
    return "--traceback shows where"
