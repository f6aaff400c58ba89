"""The scripts of benchmarks run and write what they promise, tried on models that take no time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
needs_torch = pytest.mark.skipif(find_spec("torch") is None, reason="needs PyTorch: run it in PyTorch's environment")


def run(script: str, *given: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(ROOT / "benchmarks" / script), *given]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@needs_torch
def test_steps_compares_writes_goes_on_and_draws(tmp_path: Path) -> None:
    given = ["--model", "tiny-mae", "--precision", "float32", "--rounds", "1", "--out", str(tmp_path)]
    run("steps.py", *given, "--batch", "4", "--place", "1", "2", "1 core")
    known = json.loads((tmp_path / "steps.json").read_text())
    assert set(known) == {f"tiny-mae float32 4 {place}" for place in ("1", "2", "1 core")}
    first = known["tiny-mae float32 4 1"]
    losses = [step["loss"] for step in first["first"].values()]
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-4)  # ours and both textbooks do the same step
    assert known["tiny-mae float32 4 2"]["first"]["ours"]["loss"] == pytest.approx(
        losses[0], rel=0.2
    )  # its masks differ
    assert set(first["profiles"]) == {"ours", "textbook"} and any(n for _, _, n in first["profiles"]["ours"].values())
    words = (tmp_path / "steps.md").read_text()
    assert "ours / textbook" in words and "two processes over one" in words
    (tmp_path / "steps.svg").stat()
    again = run("steps.py", *given, "--batch", "4", "8", "--place", "1", "--minutes", "1e-9")
    assert "not measured, the time is over: tiny-mae float32 8 1" in again
    assert json.loads((tmp_path / "steps.json").read_text()) == known


@needs_torch
def test_gpu_is_tried_on_a_processor(tmp_path: Path) -> None:
    given = ["--device", "cpu", "--precision", "float32", "--batch", "4", "--out", str(tmp_path)]
    shown = run("gpu.py", *given, "--model", "tiny-mae", "--way", "eager", "original", "textbook")
    found = json.loads((tmp_path / "gpu.json").read_text())
    eager, original, textbook = found["cases"]
    assert eager["rate"] > 0 and eager["batch"] == 4 and eager["loss"] < 10 and eager["mfu"] is None
    assert original["problem"] == "its code is not here" and textbook["rate"] > 0
    assert 0 <= found["data"]["starved"] <= 1 and found["data"]["rate"] > 0
    assert "tiny-mae original: its code is not here" in shown and "waiting for data" in shown


@needs_torch
def test_scaling_says_what_two_processes_gain_and_what_the_machine_allows(tmp_path: Path) -> None:
    given = ["--model", "tiny-mae", "--precision", "float32", "--batch", "4", "--rounds", "2"]
    shown = run("scaling.py", *given, "--out", str(tmp_path / "scaling.json"))
    (found,) = json.loads((tmp_path / "scaling.json").read_text())
    assert {name: len(steps) for name, steps in found["rounds"].items()} == {"one": 2, "two": 2, "apart": 2}
    assert all(step["seconds"] >= step["least"] > 0 for step in found["rounds"]["apart"])
    *_, row = shown.strip().splitlines()
    ratios = [float(word) for word in row.strip("|").split("|")[3:]]
    assert row.startswith("| tiny MAE | float32 | ours |") and len(ratios) == 4 and all(ratio > 0 for ratio in ratios)
