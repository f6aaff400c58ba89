"""`triport parity curve`: real runs, the step at which losses part, and what rounding explains."""

from __future__ import annotations

import json
import tempfile

import numpy as np
import pytest

from triport import environments
from triport.core.model.init import initial_values
from triport.core.spec import ModelSpec
from triport.parity_tests.fixtures import toy
from triport.parity_tests.tool import __main__ as program
from triport.parity_tests.tool import curve, small
from triport.parity_tests.tool.curve import parting, sentences

MAE = "tiny/test_mae_vit"


def test_losses_part_where_they_differ_by_more_than_the_bound():
    ours = [2.0, 1.9, 1.8, 1.7]
    near = parting("torch", "paddle", ours, [2.0, 1.9 * (1 + 1e-7), 1.8, 1.7], [0.0] * 4)
    assert near.first is None and near.departed is None and near.largest == pytest.approx(1e-7, rel=1e-3)
    far = parting("torch", "paddle", ours, [2.0, 1.9, 1.8 * 1.001, 1.7], [0.0] * 4)
    assert far.first == 2 and far.departed == 2
    grown = parting("torch", "paddle", ours, [2.0, 1.9, 1.8 * 1.001, 1.7 * 1.001], [0.0, 2e-3, 0.0, 0.0])
    assert grown.first == 2 and grown.departed is None  # rounding had grown to this by then
    broken = parting("torch", "paddle", ours, [2.0, float("nan"), 1.8, 1.7], [0.0] * 4)
    assert broken.first == broken.departed == 1 and np.isnan(broken.largest)
    printed = sentences([near, far, grown], 4)
    assert "agree within 1e-05 over all of 4 steps" in printed[0]
    assert "DEPART at step 2" in printed[1] and "at step 2, as rounding alone does" in printed[2]


@pytest.mark.parametrize(("change", "code"), [(0.0, 0), (1e-2, 1)])
def test_the_command_tells_and_draws(tmp_path, monkeypatch, capsys, change, code):
    def run(backend, recipe, options, shake=False):
        bend = change if backend == "paddle" else 0.0
        return [2.0 - 0.1 * i * (1 + bend) for i in range(options.steps)]

    monkeypatch.setattr(curve, "run", run)
    monkeypatch.setattr(curve, "version", lambda backend: "1")
    monkeypatch.setattr(environments, "require", lambda name: environments.python(name))
    words = ["curve", MAE, "--steps", "5", "--backends", "torch,paddle", "--out", str(tmp_path)]
    assert program.main(words) == code
    printed = json.loads((tmp_path / "curve.json").read_text())
    assert printed["partings"][0]["departed"] == (None if code == 0 else 1)
    text = (tmp_path / "curve.html").read_text()
    assert "Curves of tiny/test_mae_vit" in text and text.count("<svg") == 4
    assert ("DEPART at step 1" in capsys.readouterr().out) == bool(code)


def test_real_runs_give_the_same_losses_again(probe, tmp_path, capsys):
    backend = probe.__name__.split(".")[2]
    words = [MAE, "--backends", backend, "--steps", "2", "--data", str(toy.sixteens()), "model.encoder.depth=1"]
    assert program.main(["curve", *words, "--out", str(tmp_path)]) == 0
    assert "one framework alone" in capsys.readouterr().out
    printed = json.loads((tmp_path / "curve.json").read_text())
    losses = printed["losses"][backend]
    assert len(losses) == 2 and all(np.isfinite(losses)) and losses[0] != losses[1]
    assert 0 < max(printed["noise"]) < 1e-3  # the shaken run was shaken, and is the same run


def test_a_run_that_fails_is_reported_with_its_log(tmp_path, capsys, probe, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))  # where the log stays for whoever wants to read it
    backend = probe.__name__.split(".")[2]
    words = ["curve", MAE, "--backends", backend, "--steps", "1", "--data", str(tmp_path / "nothing")]
    assert program.main(words) == 2
    error = capsys.readouterr().err
    assert "ended with exit code 2" in error and "no file or folder" in error
    (log,) = tmp_path.glob("triport-curve-*/log.txt")
    assert f"see {log}" in error


def test_shaken_values_are_those_of_core_but_for_last_bits():
    from triport.parity_tests.tool.trial import COARSE, shake

    spec: ModelSpec = small.MODELS["mae"]
    for name, array in initial_values(spec, 0).items():
        moved = shake(array, np.random.Generator(np.random.Philox(1)), COARSE)
        assert moved.dtype == array.dtype and (np.abs(moved - array) <= 1e-5 * np.abs(array)).all(), name
