"""`triport parity run`: checks on a real framework, faults that it must not miss, and the three reports."""

from __future__ import annotations

import json
import math
import re

import numpy as np
import pytest
from rich.console import Console

from triport import environments
from triport.core.errors import UserError
from triport.core.record.chart import strip
from triport.core.spec import recipe as recipes
from triport.parity_tests.tool import __main__ as program
from triport.parity_tests.tool import checks, checks_exact, faults, levels, page, trace, trial
from triport.parity_tests.tool.ask import Crashed, near
from triport.parity_tests.tool.checks import ParityRun
from triport.parity_tests.tool.findings import Finding, Report
from triport.parity_tests.tool.report import markdown

MOCO, PROBE = "tiny/test_moco_vit", "tiny/test_mae_linear"
ALONE = ["files", "data", "forward", "gradients", "optimizer", "training"]  # those that one process can run


@pytest.fixture
def state(monkeypatch):
    """A run whose questions this interpreter answers."""
    for part in (checks, checks_exact):
        monkeypatch.setattr(part, "ask", near)
    monkeypatch.setattr(checks, "record", lambda what, name: trace.record(what, name, ask=near))
    return ParityRun(trial.assemble(recipes.load(MOCO), steps=3, batch=16, precision="float64"))


def answered(state, backend, names):
    return levels.run(state, levels.Options([backend], names), Console(quiet=True))


# ---------------------------------------------------------------- the parity levels
def test_every_level_holds_on_this_framework(probe, state, tmp_path):
    backend = probe.__name__.split(".")[2]
    report = answered(state, backend, ALONE)
    assert report.passed, [f for f in report.findings if not f.passed]
    assert {f.level for f in report.findings} == set(ALONE) - {"training"}  # which needs a second framework
    assert len(report.losses[backend]) == 3 and report.precision == "float64"
    assert [row[0] for row in report.layers[backend]][-1] == "momentum_encoder.head"
    levels.write(report, tmp_path)
    printed = json.loads((tmp_path / "parity.json").read_text())
    assert printed["passed"] and len(printed["findings"]) == len(report.findings)
    assert all(f["largest"] <= f["allowed"] for f in printed["findings"])
    assert "**passed**: all" in (tmp_path / "parity.md").read_text()
    text = (tmp_path / "parity.html").read_text()
    assert "comparisons hold" in text and text.count("<svg") >= 2 * (len(ALONE) + 2)


@pytest.mark.parametrize(
    ("fault", "level", "where"),
    [
        (("transposed", "base_encoder.blocks.0.attn.proj"), "forward", "base_encoder.blocks.0.attn.proj"),
        (("no_two_t",), "forward", "loss"),
        (("no_two_t",), "gradients", "direction"),
        (("biased_variance",), "forward", "running_var"),
        (("momentum_after_step",), "optimizer", "momentum_encoder"),
    ],
)
def test_a_fault_breaks_its_level(probe, state, fault, level, where):
    backend = probe.__name__.split(".")[2]
    with getattr(faults, fault[0])(backend, *fault[1:]):
        report = answered(state, backend, [level])
    bad = [f for f in report.findings if not f.passed]
    assert bad and not report.passed
    assert any(where in f.where for f in bad), bad


def test_a_framework_that_crashes_fails_its_levels_and_no_more(monkeypatch):
    def crashed(*given, **how):
        raise Crashed("paddle was ended by SIGSEGV and left no answer.\n  much more")

    monkeypatch.setattr(checks, "ask", crashed)
    monkeypatch.setattr(checks, "record", crashed)
    monkeypatch.setattr(environments, "require", lambda name: environments.python(name))
    parity_run = ParityRun(trial.assemble(recipes.load(PROBE), steps=1, batch=4))
    report = levels.run(parity_run, levels.Options(["paddle", "oneflow"], ["files", "forward"]), Console(quiet=True))
    assert [f.message for f in report.findings] == ["paddle was ended by SIGSEGV and left no answer."] * 4
    assert not report.passed and "4 of 4 comparisons do not hold" in report.verdict
    assert all(row["largest"] is None for row in report.plain()["findings"])
    assert "SIGSEGV" in page.html(report) and "SIGSEGV" in markdown(report)


# ---------------------------------------------------------------- what is asked for
def test_frameworks_that_are_named_must_be_there(monkeypatch):
    def only_torch(name):
        if name != "torch":
            raise UserError(f"{name} is not set up here. Remedy: triport setup {name}")
        return environments.python(name)

    monkeypatch.setattr(environments, "require", only_torch)
    asked = levels.choose(None, None)
    assert asked.backends == ["torch"] and "triport setup paddle" in asked.missing["paddle"]
    assert asked.levels == list(levels.LEVELS)
    assert levels.choose("torch", "data,forward").levels == ["data", "forward"]
    with pytest.raises(UserError, match="triport setup oneflow"):
        levels.choose("torch,oneflow", None)
    with pytest.raises(UserError, match="Did you mean 'forward'"):
        levels.choose(None, "forwards")
    with pytest.raises(UserError, match="Did you mean 'torch'"):
        levels.choose("torhc", None)
    monkeypatch.setattr(environments, "require", lambda name: only_torch("none"))
    with pytest.raises(UserError, match="no framework is set up"):
        levels.choose(None, None)


def test_the_command_and_its_exit_code(tmp_path, monkeypatch, capsys, probe):
    backend = probe.__name__.split(".")[2]
    words = ["run", "--recipe", PROBE, "--backends", backend, "--levels", "data", "--batch", "4", "--steps", "1"]
    monkeypatch.setattr(checks_exact, "ask", near)
    assert program.main([*words, "--out", str(tmp_path), "seed=3"]) == 0
    assert "all 3 comparisons hold" in capsys.readouterr().out
    assert json.loads((tmp_path / "parity.json").read_text())["about"].endswith("seed 3")
    broken = [{"arrays": {}, "inputs": {name: np.zeros(1) for name in ("images", "indices", "labels")}}]
    monkeypatch.setattr(checks_exact, "ask", lambda *given, **how: broken)
    assert program.main([*words, "--out", str(tmp_path)]) == 1
    assert "do not hold" in capsys.readouterr().out
    assert program.main(["run", "--recipe", "tiny/nothing"]) == 2
    assert program.main(["rum"]) == 2 and "Did you mean 'run'" in capsys.readouterr().err
    assert program.main([]) == 0 and "compare" in capsys.readouterr().out


# ---------------------------------------------------------------- the page
def sample():
    findings = [
        Finding("files", "weights", "torch", "the original", 0.0, 0.0, 0.0, "all of 3"),
        Finding("forward", "every layer", "torch", "reference", 1e-6, 1e-7, 1e-5, "blocks.0"),
        Finding("forward", "every <layer>", "torch", "paddle", 3e-3, 1e-4, 1e-5, "blocks.1"),
        Finding("training", "answer", "paddle", "", math.nan, math.nan, 0.0, "", "paddle crashed & burned"),
    ]
    return Report(
        recipe="tiny/x",
        title="X",
        about="4 images",
        backends={"torch": "PyTorch 2.13.0", "paddle": "Paddle 3.3.1"},
        missing={"oneflow": "OneFlow is not set up here. Remedy: triport setup oneflow"},
        levels=["files", "forward", "training"],
        findings=findings,
        layers={"torch": [("blocks.0", 1e-7, 1e-8, 5e-6), ("blocks.1", 0.0, 0.0, 5e-6)]},
        losses={"torch": [3.0, 2.5, 2.0], "paddle": [3.0, math.nan, 2.0]},
        precision="float32",
        seconds=5.0,
        environment={"python": "3.11", "packages": {"numpy": "2"}},
    )


def test_the_page_stands_alone_and_tells_what_departs():
    text = page.html(sample())
    assert "2 of 4 comparisons do not hold" in text and "triport setup oneflow" in text
    assert not re.search(r"<script|https?://|<link|<img|url\(", text)
    assert text.count('class="wide"') == text.count('class="narrow"') == 6
    assert "every &lt;layer&gt;" in text and "crashed &amp; burned" in text and "<layer>" not in text
    assert text.count("<details open>") == 2 and text.count("<details>") == 1  # what departs is open
    assert "nan" not in re.sub(r"<td>nan</td>", "", text)
    for number in re.findall(r'(?:cx|cy|x1|x2|y1|y2)="([^"]+)"', text):
        assert -1 <= float(number) <= page.WIDE


def test_names_of_parts_do_not_touch_and_long_parts_come_first():
    names = [*["base_encoder.x"] * 40, *["predictor.0"] * 2, *["momentum_encoder.x"] * 40]
    assert page.layer_ticks(names, page.WIDE) == [(0, "base_encoder"), (42, "momentum_encoder")]
    assert page.layer_ticks([*names, *["predictor.0"] * 40], 8 * page.WIDE)[1] == (40, "predictor")
    assert page.layer_ticks(names, 150) == [(0, "base_encoder")]


def test_the_table_has_largest_and_mean_by_stage():
    text = markdown(sample())
    assert "| every layer | PyTorch | float64 | 1.0e-06 | 1.0e-07 | 1e-05 | passed | `blocks.0` |" in text
    assert "**FAILED**: 2 of 4" in text and "| 1 | 2.50000000 | nan |" in text


def test_reports_of_nothing_pass_nothing():
    empty = Report("r", "t", "a", {}, {}, ["files"], [], {}, {}, "float32", 0.0, {})
    assert not empty.passed and empty.verdict == "nothing was compared" and "not run" in page.html(empty)


def test_a_nan_breaks_a_loss_curve_and_the_page_says_how_far_losses_are_apart():
    ours, theirs = [2.0, 1.9, math.nan, 1.7], [2.0, 1.9 * (1 + 1e-4), 1.8, 1.7]
    curves = [page.curve("A < B", "torch", ours), page.curve("C", "paddle", theirs)]
    text = page.loss_plots(curves, [1e-7] * 4, [1e-5] * 4)
    drawings = re.findall(r"<svg.*?</svg>", text, re.S)
    assert len(drawings) == 4 and "A &lt; B" in text and "A < B" not in text
    assert drawings[0].count("A &lt; B, step") == 3  # one of the four is not a number
    assert [len(re.findall(r"C from A &lt; B, step \d: [\d.e-]+<", drawing)) for drawing in drawings[2:]] == [3, 3]
    assert "C from A &lt; B, step 1: 0.0001<" in text and "step 0: 1e-08<" in text  # equal stands at 1e-8


def test_a_level_of_both_frameworks_has_a_dot_in_both_colours():
    found = Finding("forward", "loss", "paddle", "torch", 2e-6, 1e-6, 1e-6, "")
    drawing = strip(
        [page._dot(found, Report("r", "t", "a", {}, {}, [], [], {}, {}, "float32", 0.0, {}))], "forward", 300
    )
    assert "fill: var(--paddle); stroke: var(--torch)" in drawing
