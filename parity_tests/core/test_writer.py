"""core.record.writer: one piece of work at a time, beside the caller, and no error is lost."""

from __future__ import annotations

import threading

import pytest

from triport.core.errors import UserError
from triport.core.record.writer import Writer


def test_work_goes_on_beside_the_caller_one_piece_at_a_time():
    writer, gate = Writer(), threading.Event()
    done: list[object] = []
    writer.begin(lambda: done.append(gate.wait(20)))
    assert done == []  # the caller was not held up
    gate.set()
    writer.begin(lambda: done.append("second"))
    writer.wait()
    assert done == [True, "second"]
    writer.wait()


def test_what_went_wrong_is_raised_once_at_the_next_call():
    def fail() -> None:
        raise UserError("the disk is full")

    writer = Writer()
    writer.begin(fail)
    with pytest.raises(UserError, match="the disk is full"):
        writer.begin(lambda: None)
    writer.wait()
