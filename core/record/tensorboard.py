"""Scalars as TensorBoard events, by tensorboardX's event writer, which needs no TensorBoard."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from triport.core.errors import UserError

_NUMBERS = count()


def _tensorboardx() -> tuple[Any, Any]:
    """Import tensorboardX's event writer and its messages.

    It imports torch where that is installed, for tensors that are never given to it: beside another framework that
    is seconds, and libraries of one name twice. So torch is hidden from it, unless this process has it already.
    """
    hidden = "torch" not in sys.modules
    try:
        if hidden:
            sys.modules["torch"] = None  # type: ignore[assignment]
        from tensorboardX import event_file_writer
        from tensorboardX.proto import event_pb2
    except ImportError:
        raise UserError("a run's TensorBoard events need tensorboardX: pip install tensorboardX") from None
    finally:
        if hidden:
            del sys.modules["torch"]
    return event_file_writer.EventsWriter, event_pb2


class Events:
    """An event file in a run folder. After a resume a new file begins and tells readers to drop later steps.

    Not tensorboardX's SummaryWriter: its thread swallows the error of a full disk, and the run then waits for it
    without end. The writer beneath it writes at once, and what it cannot write is an OSError here.
    """

    def __init__(self, folder: Path, step: int = 0) -> None:
        # Its names change once a second: a rollback within one would write over the file it begins from.
        writer, self._messages = _tensorboardx()
        self._writer = writer(str(folder / "events"), f".{os.getpid()}.{next(_NUMBERS)}")
        if step:
            # Whatever older files hold from this step on was undone.
            self._record(step + 1, session_log={"status": self._messages.SessionLog.START})
        self.flush()

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Write values at a step; each becomes a curve of its name."""
        with np.errstate(over="ignore"):  # what is too large for the format is infinite
            numbers = {tag: float(np.float32(value)) for tag, value in values.items()}
        self._record(step, summary={"value": [{"tag": t, "simple_value": number} for t, number in numbers.items()]})

    def _record(self, step: int, **what: Any) -> None:
        self._writer.write_event(self._messages.Event(wall_time=time.time(), step=step, **what))

    def flush(self) -> None:
        """Hand what was written to the system."""
        self._writer.flush()

    def close(self) -> None:
        """Write the rest and close the file."""
        self._writer.close()
