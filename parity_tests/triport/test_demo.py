"""The demo: what it says of good and bad runs, that it goes on where it was, that frameworks are laid side by side."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from triport import demo, environments
from triport.core.errors import UserError
from triport.core.spec import recipe
from triport.parity_tests.tool import bounds

ROOT = Path(__file__).resolve().parents[2]
SMALL = [
    "epochs=1",
    "monitor.knn_every=1",
    "schedule.warmup_epochs=0",
    "model.encoder.width=32",
    "model.encoder.depth=1",
]


def test_it_says_what_was_won(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert demo.conclude({0: 0.5, 4: 0.55, 8: 0.601}, tmp_path, 90) == 0
    told = capsys.readouterr().out
    assert "won 10.1 points" in told and "as it must" in told and "1.5 minutes" in told
    assert "triport pretrain tiny/mae_vit_tiny" in told


def test_it_fails_where_too_little_was_won(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert demo.conclude({0: 0.5, 4: 0.7, 8: 0.599}, tmp_path, 90) == 1
    assert "less than the 10 that it must: something is wrong" in capsys.readouterr().out


def test_the_pixels_are_a_baseline_that_can_be_beaten() -> None:
    score = demo.knn_of_pixels(recipe.load(demo.PRETRAIN))
    assert 0.75 < score < 0.85


def test_every_command_it_proposes_is_one(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    from triport.command import COMMANDS

    demo.conclude({0: 0.0, 1: 1.0}, tmp_path, 1)
    words = capsys.readouterr().out.partition("Try next:")[2].split()
    after = [words[i + 1] for i, word in enumerate(words) if word == "triport"]
    assert len(after) >= 7 and set(after) <= set(COMMANDS)
    assert {word for word in words if word.count("/") == 1 and not word.startswith("/")} <= set(recipe.names())


def test_frameworks_side_by_side(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for name, last in (("torch", 3.0), ("paddle", 3.003)):
        (tmp_path / name).mkdir()
        steps = [{"kind": "step", "step": i, "epoch": i / 10, "loss": 4.0 if i < 20 else last} for i in range(1, 25)]
        scores = [
            {"kind": "epoch", "step": 0, "epoch": 0, "knn": 0.66},
            {"kind": "epoch", "step": 10, "epoch": 1, "knn": 0.7},
        ]
        lines = [json.dumps(record) for record in [*scores, *steps]]
        (tmp_path / name / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    assert demo.steps_to(tmp_path / "torch", 1) == 10
    demo.show_beside([tmp_path / "torch", tmp_path / "paddle"])
    told = capsys.readouterr().out
    assert "in the first 10 steps: 0.0e+00" in told and "in the first 24 steps: 1.0e-03" in told
    assert "  kNN after epoch 1        70.00 %     70.00 %" in told


def test_a_finished_demo_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "FOLDER", tmp_path / "demo")
    assert demo.place(None) == tmp_path / "demo" and demo.place(tmp_path / "own") == tmp_path / "own"
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / demo.DONE).touch()
    assert demo.place(None) == tmp_path / "demo-2"
    with pytest.raises(UserError, match="holds a finished demo"):
        demo.place(tmp_path / "demo")


def test_a_finished_run_of_other_settings_is_neither_taken_nor_removed(tmp_path: Path) -> None:
    (tmp_path / "encoder.safetensors").touch()
    (tmp_path / "recipe.toml").write_text(recipe.to_toml(recipe.load(demo.PRETRAIN, SMALL)))
    demo.pretrain(tmp_path, "torch", SMALL)  # taken as it is
    with pytest.raises(UserError, match="holds a run with other settings"):
        demo.pretrain(tmp_path, "torch", [])
    assert (tmp_path / "encoder.safetensors").exists()


@pytest.mark.framework("paddle")
@pytest.mark.framework("oneflow")
def test_three_frameworks_on_one_page(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "triport", "demo", "--backend", "torch,paddle,oneflow", "--out", str(tmp_path)]
    done = subprocess.run([*command, *SMALL], cwd=ROOT, capture_output=True, text=True, timeout=1800)
    assert done.returncode in (0, 1), done.stderr
    curves = [demo.losses(tmp_path / name) for name in environments.FRAMEWORKS]
    for other in curves[1:]:
        bounds.hold("curve", abs(other[1] - curves[0][1]) / curves[0][1], "first loss of the demo")
        assert all(abs(other[step] - curves[0][step]) < 0.02 * curves[0][step] for step in other)  # one line to the eye
    page = (tmp_path / "frameworks.html").read_text()
    assert page.count("<svg") == 5 and "torch, paddle and oneflow" in page


@pytest.mark.framework("torch")
def test_the_whole_of_it_small_and_going_on(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "triport", "demo", "--backend", "torch", "--out", str(tmp_path / "demo"), *SMALL]

    def run() -> subprocess.CompletedProcess[str]:
        return subprocess.run(command, cwd=ROOT, env=dict(os.environ), capture_output=True, text=True, timeout=900)

    first = run()
    assert first.returncode in (0, 1), first.stderr
    for words in ("raw pixels, kNN", "untrained, kNN", "epoch 1, kNN", "linear classifier", "points of kNN accuracy"):
        assert words in first.stdout, first.stdout
    curve = demo.read_curve(tmp_path / "demo" / "torch")
    assert set(curve) == {0, 1} and np.all(np.fromiter(curve.values(), float) > 0.3)
    third = run()
    assert third.returncode == 2 and "holds a finished demo" in third.stderr
    for gone in (demo.DONE, "torch/encoder.safetensors"):  # as if it had been interrupted
        (tmp_path / "demo" / gone).unlink()
    second = run()
    assert "going on with the run in" in second.stdout
    assert demo.read_curve(tmp_path / "demo" / "torch") == curve
    assert (tmp_path / "demo" / "torch" / "encoder.safetensors").exists()
