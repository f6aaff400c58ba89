"""The campaign of kills: a short one in which nothing is lost, and what it would find."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from triport.core.record import checkpoint
from triport.parity_tests.fixtures import toy

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


@pytest.fixture(scope="module")
def kills() -> ModuleType:
    spec = importlib.util.spec_from_file_location("kills", ROOT / "benchmarks/kills.py")
    assert spec is not None and spec.loader is not None
    module = sys.modules["kills"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_whatever_differs_from_the_undisturbed_run_is_named(kills, tmp_path):
    whole, run = toy.whole("mae"), tmp_path / "run"
    shutil.copytree(whole, run)
    assert kills.differences(whole, run) == []
    (run / "checkpoints" / "last.part").mkdir()
    assert kills.differences(whole, run) == ["last.part was left"]
    (run / "checkpoints" / "last.part").rmdir()
    groups, state = checkpoint.load(run / "checkpoints" / "last")
    groups["model"]["norm.weight"] = groups["model"]["norm.weight"].copy()
    groups["model"]["norm.weight"].reshape(-1).view("u4")[0] ^= 1
    own = {name: item for name, item in state.items() if name not in ("checksums", "seal", "format")}
    checkpoint.save(run / "checkpoints" / "last", groups, own)
    steps = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run / "metrics.jsonl").write_text("".join(line for line in steps if json.loads(line).get("step") != 5))
    (run / "encoder.safetensors").write_bytes(b"")
    assert kills.differences(whole, run) == [
        "model/norm.weight differs",
        "the step lines of metrics.jsonl differ",
        "encoder.safetensors differs",
    ]


def test_steps_that_are_gone_and_damaged_checkpoints_count_as_lost(kills, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(toy.whole("mae"), run)
    campaign = object.__new__(kills.Campaign)
    campaign.tally = kills.Tally()
    campaign.look(run)
    assert not campaign.tally.lost
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"kind": "step", "step": toy.TOTAL + 2}) + "\n")
    campaign.look(run)
    assert campaign.tally.lost == ["run: 2 steps lost, though every step is saved"] and campaign.tally.again == 2
    (run / "checkpoints" / "last" / "model.safetensors").write_bytes(b"")
    campaign.look(run)
    assert "model.safetensors is damaged" in campaign.tally.lost[-1]
