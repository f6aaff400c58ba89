"""`triport parity env`, `upgrade` and `batches`: environments side by side, one record in each, a recipe's batches."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import numpy as np
import pytest

from triport import environments
from triport.core.errors import UserError
from triport.core.spec import recipe as recipes
from triport.parity_tests.conftest import here
from triport.parity_tests.tool import __main__ as program
from triport.parity_tests.tool import trial
from triport.parity_tests.tool.foreign import env, upgrade

FACTS = {"python.version": "3.11.7", "framework.version": "2.12.0", "framework.threads": 1}


# ---------------------------------------------------------------- env
def test_what_changes_numbers_comes_first():
    other = {
        **FACTS,
        "framework.version": "2.13.0",
        "framework.threads": 4,
        "python.version": "3.12.1",
        "framework.tf32 matmul": True,
        "variable.MKL_CBWR": "COMPATIBLE",
        "system.kernel": "6",
    }
    found = {d.name: d.effect for d in env.differences(FACTS, other)}
    assert list(found.values()) == sorted(found.values(), key=(env.YES, env.BITS, env.NO).index)
    assert found["framework.version"] == found["framework.tf32 matmul"] == env.YES
    assert found["framework.threads"] == found["variable.MKL_CBWR"] == env.BITS
    assert found["python.version"] == found["system.kernel"] == env.NO
    assert env.differences(FACTS, FACTS) == []


def test_an_environment_is_compared_with_a_file_from_another_machine(tmp_path, request, capsys):
    here("torch", request.config)
    file = tmp_path / "there.json"
    assert program.main(["env", "torch", "-o", str(file)]) == 0
    facts = json.loads(file.read_text())
    for name in ("processor.model", "package.torch", "framework.threads", "framework.tf32 cudnn", "framework.mkl"):
        assert name in facts
    assert program.main(["env", "torch", str(file)]) == 0
    file.write_text(
        json.dumps({**facts, "framework.tf32 cudnn": not facts["framework.tf32 cudnn"], "system.libc": "x"})
    )
    capsys.readouterr()
    assert program.main(["env", "torch", str(file), "--json"]) == 1
    printed = json.loads(capsys.readouterr().out)["differences"]
    assert {d["name"]: d["effect"] for d in printed} == {"framework.tf32 cudnn": env.YES, "system.libc": env.NO}
    assert program.main(["env", "torch", str(file)]) == 1
    assert "TF32" in capsys.readouterr().out


def test_every_framework_tells_its_facts(backend):
    facts = env.gathered(backend)
    assert facts["framework.name"] == backend and "framework.error" not in facts
    assert any(name.startswith("library.") for name in facts)


def test_what_is_not_an_environment_is_refused(tmp_path, capsys):
    (tmp_path / "a.json").write_text("{}")
    for where, message in (("jax", "'jax' is not a framework"), (str(tmp_path / "a.json"), "does not hold facts"),
                        (str(tmp_path / "b.json"), "cannot read")):  # fmt: skip
        assert program.main(["env", where]) == 2
        assert message in capsys.readouterr().err


# ---------------------------------------------------------------- upgrade
def second_environment(folder: Path, python: Path, lines: str) -> Path:
    """An environment that has what another has, and runs some lines when its Python starts."""
    script = "import sysconfig; print(sysconfig.get_paths()['purelib'])"
    site = subprocess.run([str(python), "-c", script], capture_output=True, text=True, check=True).stdout.strip()
    subprocess.run([str(python), "-m", "venv", "--without-pip", str(folder)], check=True)
    own = next((folder / "lib").glob("python3*/site-packages"))
    (own / "other.pth").write_text(f"{site}\n")
    (own / "sitecustomize.py").write_text(lines)
    return folder


PLANTED = """
import os
if os.environ.get("TRIPORT_PARITY_THERE") == "1":
    import torch
    norm = torch.nn.functional.layer_norm
    def doubled(x, shape, weight=None, bias=None, eps=1e-5):
        return norm(x, shape, weight, bias, 2 * eps)
    torch.nn.functional.layer_norm = doubled
"""


@pytest.fixture
def inputs(tmp_path):
    """A batch for the ViT of the fixtures."""
    draw = np.random.Generator(np.random.Philox(1))
    np.savez(tmp_path / "a.npz", images=draw.standard_normal((3, 3, 16, 16)), labels=draw.integers(0, 5, 3))
    return tmp_path / "a.npz"


MODEL = ["--model", "triport.parity_tests.fixtures.port_torch:vit", "--optimizer", "sgd"]


def test_the_same_environment_twice_makes_no_difference(backend, tmp_path, capfd):
    words = ["upgrade", "--from", backend, "--to", backend, "--recipe", "tiny/test_mae_vit"]
    assert program.main([*words, "--steps", "1", "--batch", "4", "--out", str(tmp_path)]) == 0
    text = capfd.readouterr().out
    count = text.partition("they agree within bounds in all of ")[2].split()[0]
    assert f"comparisons, {count} of them without any difference" in text
    assert "of 0 that differ" in text


def test_a_change_in_the_other_environment_is_found_and_named(request, tmp_path, inputs, capfd):
    here("torch", request.config)
    other = second_environment(tmp_path / "other", environments.require("torch"), PLANTED)
    words = ["upgrade", "--from", "torch", "--to", str(other), *MODEL, "--inputs", str(inputs), "--out", str(tmp_path)]
    assert program.main([*words, "--to-env", "MKL_CBWR=COMPATIBLE"]) == 1
    text = " ".join(capfd.readouterr().out.split())
    assert "variable.MKL_CBWR: None -> COMPATIBLE (changes last bits" in text
    assert "first to depart: step 0, forward: blocks.0.norm1" in text
    assert "B misses the formula of its layer norm on its own input" in text
    assert (tmp_path / "upgrade.html").is_file() and (tmp_path / "upgrade.md").is_file()


def test_two_commits_are_compared(request, tmp_path, inputs, monkeypatch, capfd):
    here("torch", request.config)
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    text = "import torch\nfrom torch import nn\n\n\ndef build():\n    torch.manual_seed(0)\n    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, eps=1e-5))\n"  # noqa: E501
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run([*git, "init", "-q"], check=True)
    for eps in ("1e-5", "1e-3"):
        Path("mine.py").write_text(text.replace("1e-5", eps))
        subprocess.run([*git, "add", "mine.py"], check=True)
        subprocess.run([*git, "commit", "-qm", eps], check=True)
    words = ["upgrade", "--backend", "torch", "--model", "mine:build", "--inputs", str(inputs), "--out", str(tmp_path)]
    assert program.main([*words, "--from", "git:HEAD~1", "--to", "git:HEAD"]) == 1
    assert "1: eps is 1e-05 in A and 0.001 in B" in capfd.readouterr().out
    assert program.main([*words, "--from", "git:HEAD", "--to", "git:HEAD"]) == 0
    assert program.main([*words, "--from", "git:absent", "--to", "git:HEAD"]) == 2


def test_what_cannot_be_an_upgrade_is_refused(tmp_path):
    with pytest.raises(UserError, match="write NAME=VALUE"):
        options = upgrade.parser().parse_args(["--from", "torch", "--to", "torch"])
        upgrade.side(options, "to", "torch", ["OMP_NUM_THREADS"], tmp_path)
    with pytest.raises(UserError, match="exclude each other"):
        upgrade.main(["--from", "torch", "--to", "torch", "--model", "a:b", "--recipe", "c", "--out", str(tmp_path)])


# ---------------------------------------------------------------- batches
def test_the_very_batches_of_a_recipe_are_written(tmp_path, capsys):
    file = tmp_path / "a.npz"
    words = ["batches", "-", "--recipe", "tiny/test_moco_vit", "--steps", "2", "--batch", "4", "-o", str(file)]
    assert program.main(words) == 0
    assert "of each step indices, lr, momentum, view1, view2" in capsys.readouterr().out
    what = trial.assemble(recipes.load("tiny/test_moco_vit"), steps=2, batch=4, epoch=0.0)
    with np.load(file, allow_pickle=False) as found:
        for i in range(2):
            for name in ("view1", "view2", "indices"):
                np.testing.assert_array_equal(found[f"step{i}/{name}"], what.inputs(i)[name])
            assert found[f"step{i}/lr"] == what.values[i].lr
        assert json.loads(str(found["about"]))["recipe"] == "tiny/test_moco_vit"


def test_batches_of_other_data_and_other_names(tmp_path, capsys):
    assert program.main(["batches", str(tmp_path), "--recipe", "tiny/test_mae_vit", "-o", str(tmp_path / "a.npz")]) == 2
    assert str(tmp_path) in capsys.readouterr().err
    assert program.main(["batches", "-", "--recipe", "tiny/test_mae_vit", "-o", str(tmp_path / "a.pt")]) == 2
    assert "must end in .npz" in capsys.readouterr().err


def test_facts_need_nothing_but_a_python(tmp_path):
    python = Path(sysconfig.get_paths()["scripts"]) / "python"
    bare = os.environ | {"PYTHONPATH": ""}
    command = [str(python if python.exists() else sys.executable), "-I", str(env.FACTS)]
    done = subprocess.run(command, capture_output=True, text=True, env=bare, cwd=tmp_path, check=True)
    assert json.loads(done.stdout)["python.version"].startswith("3.")
