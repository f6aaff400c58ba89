"""Several runs on one page and in a table: what is said of their distance, of their recipes, and what is refused."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from triport.command import main
from triport.core.record import comparison, recorded
from triport.core.spec import recipe as recipes
from triport.verbs.compare import aligned


def run(
    folder: Path, losses: list[float], *overrides: str, backend: str = "", recipe: str = "tiny/moco_vit_tiny"
) -> Path:
    folder.mkdir(parents=True)
    steps = [{"kind": "step", "step": i, "epoch": i / 10, "loss": loss} for i, loss in enumerate(losses, 1)]
    (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, steps)))
    (folder / "recipe.toml").write_text(recipes.to_toml(recipes.load(recipe, overrides)))
    if backend:
        start = {"backend": backend, "packages": {backend: "1.2.3"}}
        (folder / "environment.json").write_text(json.dumps({"starts": [start]}))
    return folder


def page_of(*runs: Path) -> str:
    return comparison.render(comparison.read(runs))


def test_the_distance_is_a_share_of_the_first_runs_loss(tmp_path: Path) -> None:
    runs = [run(tmp_path / "a", [4.0, 2.0, 1.0]), run(tmp_path / "b", [4.0, 2.2])]
    first, other = (recorded.read(folder) for folder in runs)
    assert comparison.departures(first, other) == [(1, 0.1, 0.0), (2, 0.2, pytest.approx(0.1))]
    text = page_of(*runs)
    assert "a and b" in text and "0.1 at most" in text and "difference from a" in text
    assert "One recipe: the losses differ by 1.0e-01" in text and "Roundings differ" in text
    assert text.count("<svg") == 2  # of loss and distance


def test_runs_of_different_recipes_are_compared_as_such(tmp_path: Path) -> None:
    runs = [run(tmp_path / "a", [4.0, 2.0]), run(tmp_path / "b", [4.0, 2.2], "lr=0.125", "batch=32")]
    text = page_of(*runs)
    assert "The recipes differ in 2 fields" in text and "<td>optimizer.lr</td>" in text and "<td>0.125</td>" in text
    assert "ounding" not in text and "difference from" not in text


def test_equal_runs_are_reported_to_be_equal(tmp_path: Path) -> None:
    text = page_of(run(tmp_path / "a", [4.0, 2.0]), run(tmp_path / "b", [4.0, 2.0]))
    assert "Equal to the bit at every common step" in text


def test_frameworks_have_their_colours_and_versions(tmp_path: Path) -> None:
    names = ("oneflow", "torch", "paddle")
    text = page_of(*(run(tmp_path / name, [4.0, 2.0 + 1e-6 * at], backend=name) for at, name in enumerate(names)))
    assert all(f"stroke: var(--{name})" in text and f"{name} 1.2.3" in text for name in names)
    twice = page_of(*(run(tmp_path / name, [4.0, 2.0], backend="torch") for name in ("x", "y")))
    assert len(set(re.findall(r"fill: none; (?:stroke-dasharray: [^;]*; .*?)?stroke: var\(--torch\)", twice))) == 2
    many = page_of(*(run(tmp_path / f"z{n}", [4.0, 2.0], backend="torch") for n in range(5)))
    assert "stroke: var(--torch)" not in many and "stroke: var(--c4)" in many


def test_any_number_of_runs(tmp_path: Path) -> None:
    runs = [run(tmp_path / f"run{n}", [4.0, 2.0 + n]) for n in range(20)]
    text = page_of(*runs)
    assert all(f"<td>run{n}</td>" in text for n in range(20))


def test_runs_of_the_same_name_are_distinguished_and_escaped(tmp_path: Path) -> None:
    text = page_of(*(run(tmp_path / where / "<run>", [1.0, 2.0]) for where in ("x", "y")))
    assert "<run>" not in text and "x/&lt;run&gt;" in text and "y/&lt;run&gt;" in text


def test_runs_without_steps_recipe_or_finite_values(tmp_path: Path) -> None:
    runs = [
        run(tmp_path / "a", [1.0, float("nan"), 3.0]),
        run(tmp_path / "b", [1.0, 2.0, 3.0]),
        run(tmp_path / "c", []),
    ]
    (tmp_path / "a" / "metrics.jsonl").write_text((tmp_path / "a" / "metrics.jsonl").read_text().replace("NaN", "null"))
    assert "<svg" in page_of(*runs)
    (tmp_path / "b" / "recipe.toml").write_text("{")
    assert "1 of 3 runs have no recipe that can be read" in page_of(*runs)
    assert "No step has been recorded yet" in page_of(runs[2], run(tmp_path / "d", []))


# ---------------------------------------------------------------- the command
def test_the_command_prints_a_table_and_writes_a_page(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    runs = [run(tmp_path / "a", [4.0, 2.0]), run(tmp_path / ("long" * 30), [4.0, 2.2], "lr=0.125", backend="torch")]
    assert main(["compare", *map(str, runs), "--page", str(tmp_path / "page.html")]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert all(len(line) <= 80 for line in printed if not line.startswith("/")) and printed[-1] == str(
        tmp_path / "page.html"
    )
    assert any(line.startswith("optimizer.lr") and "0.125" in line for line in printed)
    assert any(line.split()[:2] == ["a", "2"] for line in printed) and "<svg" in (tmp_path / "page.html").read_text()


def test_a_table_is_cut_to_its_width_from_the_widest_column():
    lines = aligned([["run", "x"], ["abcdefghij", "12"]], 9)
    assert lines == ["run     x", "abcd…  12"]


def test_what_cannot_be_compared_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [run(tmp_path / name, [1.0, 2.0]) for name in "ab"]
    page = tmp_path / "page.html"
    assert main(["report", *map(str, runs), "--together", str(page)]) == 0
    words = ["--page", str(page)]
    for wrong in ([runs[0]], [runs[0], runs[0]], [runs[0], tmp_path / "none"]):
        assert main(["compare", *map(str, wrong), *words]) == 2
    assert main(["compare", *map(str, runs), "--page", str(tmp_path / "none" / "page.html")]) == 2
    page.write_text("mine")
    assert main(["compare", *map(str, runs), *words]) == 2 and page.read_text() == "mine"
    assert capsys.readouterr().err.count("triport: error: ") == 5
