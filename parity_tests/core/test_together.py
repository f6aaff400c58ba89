"""Several runs on one page: what is drawn, what is said of their distance, and what cannot be drawn."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from triport.command import main
from triport.core.errors import UserError
from triport.core.record import comparison


def run(folder: Path, losses: list[float], epoch: float = 0.1) -> Path:
    folder.mkdir(parents=True)
    steps = [{"kind": "step", "step": i, "epoch": i * epoch, "loss": loss} for i, loss in enumerate(losses, 1)]
    (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, steps)))
    return folder


def test_the_distance_is_a_share_of_the_first_runs_loss(tmp_path: Path) -> None:
    runs = [run(tmp_path / "a", [4.0, 2.0, 1.0]), run(tmp_path / "b", [4.0, 2.2])]
    first, other = (comparison.read(folder) for folder in runs)
    assert comparison.departures(first, other) == [(0.1, 0.0), (0.2, pytest.approx(0.1))]
    page = comparison.render(runs)
    assert (
        "a and b: their curves over each other" in page and "a: 3 steps; b: 2 steps" in page and "0.1 at most" in page
    )
    assert page.count("<svg") == 2  # of loss and distance; there is no kNN
    assert "difference from a" in page


def test_runs_of_the_same_name_are_told_apart_and_escaped(tmp_path: Path) -> None:
    runs = [run(tmp_path / where / "<run>", [1.0, 2.0]) for where in ("x", "y")]
    page = comparison.render(runs)
    assert "<run>" not in page and "x/&lt;run&gt;" in page and "y/&lt;run&gt;" in page


def test_a_run_with_values_that_are_not_finite_or_without_steps(tmp_path: Path) -> None:
    runs = [
        run(tmp_path / "a", [1.0, float("nan"), 3.0]),
        run(tmp_path / "b", [1.0, 2.0, 3.0]),
        run(tmp_path / "c", []),
    ]
    (tmp_path / "a" / "metrics.jsonl").write_text((tmp_path / "a" / "metrics.jsonl").read_text().replace("NaN", "null"))
    assert "c: 0 steps" in comparison.render(runs)
    assert "<svg" in comparison.render(runs[:2])


def test_the_command_and_its_errors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [run(tmp_path / name, [1.0, 2.0]) for name in "abcde"]
    page = tmp_path / "page.html"
    assert main(["report", *map(str, runs[:3]), "--together", str(page)]) == 0
    assert "a, b and c" in page.read_text() and str(page) in capsys.readouterr().out
    assert main(["report", str(runs[0]), "--together", str(page)]) == 2
    assert main(["report", *map(str, runs), "--together", str(page)]) == 2
    assert main(["report", str(runs[0]), str(tmp_path / "none"), "--together", str(page)]) == 2
    assert main(["report", *map(str, runs[:2]), "--together", str(tmp_path / "none" / "page.html")]) == 2
    assert capsys.readouterr().err.count("triport: error: ") == 4
    with pytest.raises(UserError, match="two to 4 runs, not 5"):
        comparison.render(runs)
