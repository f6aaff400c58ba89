"""The original code's recorded numbers, reached by each framework here; and what a replay refuses."""

from __future__ import annotations

import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from triport import environments
from triport.core.errors import UserError
from triport.parity_tests.tool import __main__ as program
from triport.parity_tests.tool import cases, replay
from triport.parity_tests.tool.bounds import LIMITS, hold

FILES = sorted(cases.GOLDENS.glob("*.safetensors"))


@pytest.mark.parametrize("path", [p for p in FILES if p.stem != "augment"], ids=lambda p: p.stem)
def test_a_backend_reaches_the_goldens(probe, path):
    backend = probe.__name__.split(".")[2]
    findings = replay.replay(path, backend)
    assert len(findings) >= 1 and all(f.count for f in findings)
    for f in findings:
        hold(f.bound, f.error, f"{path.stem} {f.group} {f.worst}")


def test_augmentations_reach_the_goldens():
    finding = replay.augmentation(cases.GOLDENS / "augment.safetensors")
    assert finding.count == 16
    hold(finding.bound, finding.error, finding.worst)


def changed(tmp_path, name, edit):
    """A golden file with something changed in it."""
    source = cases.GOLDENS / f"{name}.safetensors"
    arrays, meta = load_file(source), dict(cases.read(source).meta)
    edit(arrays, meta)
    path = tmp_path / f"{name}.safetensors"
    save_file(arrays, path, {"meta": json.dumps(meta)})
    return path


def test_a_wrong_record_is_found_and_named(probe, tmp_path):
    backend = probe.__name__.split(".")[2]

    def edit(arrays, meta):
        arrays["eval/logits"] = arrays["eval/logits"] + 1e-4 * np.abs(arrays["eval/logits"]).max()

    (finding,) = replay.replay(changed(tmp_path, "lincls-vit_small", edit), backend)
    assert not finding.passed and finding.worst == "logits"
    assert 0.5e-4 < finding.error < 2e-4


def test_not_a_number_is_over_every_bound():
    finding = replay.worst("outputs", "golden-output", {"a": 0.0, "b": float("nan")})
    assert finding.worst == "b" and not finding.passed


@pytest.mark.parametrize("content", [b"", b"nothing that is a golden file", b"\x10" * 64])
def test_other_files_are_refused(tmp_path, content):
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(UserError, match="golden"):
        replay.kind(path)
    with pytest.raises(UserError, match="no golden file"):
        replay.kind(tmp_path / "absent.safetensors")


def test_the_command_replays_on_several_frameworks(capfd):
    """Each in its own interpreter, wherever the command is given."""
    here = [name for name in environments.FRAMEWORKS if environments.interpreter(name)]
    path = str(cases.GOLDENS / "augment.safetensors")
    assert program.main(["replay", path, "--json", "--backends", ",".join(here)]) == 0
    told = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    assert [line["backend"] for line in told] == here and all(line["findings"][0]["passed"] for line in told)


def test_the_commands_mistakes_are_told_at_once(tmp_path, capsys):
    (tmp_path / "x.safetensors").write_bytes(b"no golden")
    for words, said in (
        (["nothing.safetensors"], "no golden file at nothing.safetensors"),
        ([str(tmp_path / "x.safetensors")], "is no golden file"),
        (["--backend", "torhc"], "Did you mean 'torch'"),
    ):
        assert program.main(["replay", *words]) == 2
        assert said in capsys.readouterr().err


def test_every_finding_has_a_limit():
    names = {"golden-loss", "golden-later", "golden-output", "golden-normed", "golden-gradient", "golden-weight"}
    assert names | {"golden-gradient-head", "golden-weight-head", "golden-rule", "golden-pixel"} <= set(LIMITS)
