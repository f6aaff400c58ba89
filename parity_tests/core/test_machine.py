"""What the machine does for a process: memory that a training step frees stays with it."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

PAGES = (8 << 20) // os.sysconf("SC_PAGESIZE")  # of one buffer; 40 are filled
PROGRAM = """
import ctypes
import resource
import numpy as np
ctypes.CDLL(None).prctl(41, 1, 0, 0, 0)  # no huge pages, which would make one fault of hundreds
from triport.core.machine import retain_freed_memory
print(retain_freed_memory())
def step():
    return sum(float(np.full(1 << 20, i, np.float64)[0]) for i in range(4))
step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def asked(**more: str) -> tuple[str, int]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    words = [sys.executable, "-c", PROGRAM]
    answer = subprocess.run(words, env={**environment, **more}, capture_output=True, text=True, check=True)
    retains, faults = answer.stdout.split()
    return retains, int(faults)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has these settings")
def test_what_a_step_frees_is_not_mapped_and_faulted_in_again() -> None:
    retains, faults = asked()
    assert retains == "True" and faults < PAGES
    retains, faults = asked(MALLOC_MMAP_THRESHOLD_="131072")  # the user's own choice stays
    assert retains == "False" and faults > 10 * PAGES
