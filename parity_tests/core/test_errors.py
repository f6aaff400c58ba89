"""Errors of the user: a full disk is told from other failures, also where it takes what a command prints."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from triport.core.errors import UserError, no_room, room_for

ROOT = Path(__file__).resolve().parents[2]
FULL = Path("/dev/full")
needs_full = pytest.mark.skipif(not FULL.exists(), reason="this system has no device that is always full")


def test_a_full_disk_is_told_from_other_failures() -> None:
    for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        assert no_room(OSError(number, "x")) == os.strerror(number)
    for other in (OSError(errno.EACCES, "x"), OSError("x"), ValueError("(os error 28)"), BrokenPipeError()):
        assert no_room(other) == ""
    with pytest.raises(PermissionError), room_for("a.npz"):
        raise PermissionError(errno.EACCES, "x")


@needs_full
def test_what_is_written_is_named() -> None:
    with pytest.raises(UserError, match=r"cannot write a\.txt: No space left on device\. Make room"), room_for("a.txt"):
        FULL.write_text("x")


def test_safetensors_errors_are_understood(tmp_path: Path) -> None:
    import resource  # of Unix alone, as the limit is

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(UserError, match=r"cannot write a\.safetensors: File too large"), room_for("a.safetensors"):
            save_file({"a": np.zeros(10_000)}, tmp_path / "a.safetensors")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@needs_full
@pytest.mark.parametrize("words", [["--version"], ["recipes"], ["models", "moco_v3_vit_small"], ["layouts"]])
def test_output_that_a_full_disk_takes_not_is_one_line(words: list[str]) -> None:
    with FULL.open("w") as full:
        answer = subprocess.run(
            [sys.executable, "-m", "triport", *words], cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert answer.returncode == 2 and answer.stderr.startswith("triport: error: ")
    assert "No space left on device" in answer.stderr and answer.stderr.count("\n") == 1
