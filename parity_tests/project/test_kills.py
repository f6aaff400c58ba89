"""The campaign of kills: a short one in which nothing is lost, and what it would find."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.framework("torch")
def test_two_kills_lose_nothing():
    command = [sys.executable, "benchmarks/kills.py", "--kills", "2", "--seed", "3", "--backend", "torch"]
    made = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    assert made.returncode == 0, made.stdout + made.stderr
    assert made.stdout.splitlines()[4].startswith("2 kills in "), made.stdout
    assert "1 runs finished, all equal to the undisturbed one to the bit, nothing lost" in made.stdout
