"""Going on with a run: damaged notes, leftovers, forged states, and another process in the same folder."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from triport.core.errors import UserError
from triport.core.options import parse
from triport.core.record import checkpoint, journal
from triport.core.run import resume
from triport.parity_tests.fixtures import toy
from triport.parity_tests.fixtures.toy import assert_same_run, evaluate, failed, go, last, whole


@pytest.fixture
def begun(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    """A run that was stopped after 8 of its 18 steps."""
    assert go("mae", tmp_path / "run", "--stop-after-steps", "8") == 0
    capsys.readouterr()
    return tmp_path / "run"


# ---------------------------------------------------------------- damaged notes
@pytest.mark.parametrize(
    "line", ["{", "[]", "7", '{"kind": "step"}', '{"kind": "step", "step": "x"}', "\xff\x00", "[" * 5000]
)
def test_damaged_metrics_do_not_stop_a_run(begun, capsys, line):
    path = begun / "metrics.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:3], line.encode("latin1") + b"\n", *lines[3:]]))
    assert go("mae", begun, "--resume") == 0
    assert "1 damaged lines of metrics.jsonl were left out" in capsys.readouterr().out
    assert_same_run(whole("mae"), begun)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"starts": 3}', '{"starts": [', "\xff", "[" * 5000])
def test_a_damaged_environment_does_not_stop_a_run(begun, capsys, text):
    (begun / "environment.json").write_bytes(text.encode("latin1"))
    assert go("mae", begun, "--resume") == 0
    assert "environment.json was damaged" in capsys.readouterr().out
    assert len(json.loads((begun / "environment.json").read_text())["starts"]) == 1


# ---------------------------------------------------------------- leftovers
def test_what_a_kill_left_is_removed(begun):
    checkpoints = begun / "checkpoints"
    shutil.copytree(checkpoints / "last", checkpoints / "last.old")
    shutil.copytree(checkpoints / "last", checkpoints / "epoch_1.part")
    shutil.copytree(checkpoints / "best", checkpoints / "best.new")
    (begun / ".metrics.jsonl.0123abcd.part").write_text("half")
    assert go("mae", begun, "--resume") == 0
    assert not [path for path in checkpoints.iterdir() if path.suffix in (".old", ".new", ".part")]
    assert not list(begun.glob(".*"))
    assert_same_run(whole("mae"), begun)


def test_a_run_goes_on_from_what_replacing_its_checkpoint_left(begun):
    (begun / "checkpoints" / "last").rename(begun / "checkpoints" / "last.new")
    assert go("mae", begun, "--resume") == 0
    assert_same_run(whole("mae"), begun)


# ---------------------------------------------------------------- forged and foreign states
def forge(folder: Path, **changed: Any) -> None:
    """Change a state and seal it again; None removes a field."""
    path = folder / "checkpoints" / "last" / "state.json"
    state = json.loads(path.read_text())
    state.update(changed)
    state = {name: value for name, value in state.items() if value is not None or name == "best"}
    state.pop("seal", None)
    path.write_text(json.dumps({**state, "seal": checkpoint._seal(state)}))


FORGED: dict[str, tuple[dict[str, Any], str]] = {
    "step beyond the end": ({"step": 10**9}, "says step 1000000000 after 1 epochs, which a run of 18 steps"),
    "negative step": ({"step": -1}, "says step -1"),
    "epochs that were not": ({"closed": 2}, "says step 8 after 2 epochs"),
    "step as text": ({"step": "8"}, "has a wrong 'step'"),
    "step as truth": ({"step": True}, "has a wrong 'step'"),
    "no step": ({"step": None}, "lacks 'step'"),
    "no recipe": ({"recipe": None}, "lacks 'recipe'"),
    "no processes": ({"processes": None}, "lacks 'processes'"),
    "metrics as a list": ({"metrics": [1]}, "has a wrong 'metrics'"),
    "classes as text": ({"classes": "abc"}, "wrong 'classes'"),
    "a later format": ({"format": 2}, "has format 2, this version reads 1"),
    "a file elsewhere": ({"checksums": {"../../../x.safetensors": "0"}}, "names files that are not a checkpoint's"),
    "no files": ({"checksums": {}}, "lacks model.safetensors"),
}


@pytest.mark.parametrize("case", FORGED)
def test_a_forged_state_is_one_clear_line(begun, capsys, case):
    changed, words = FORGED[case]
    forge(begun, **changed)
    before = sorted((path, path.stat().st_size) for path in (begun / "checkpoints").rglob("*"))
    assert re.search(words, failed(capsys, go("mae", begun, "--resume", str(begun / "checkpoints" / "last"))))
    assert sorted((path, path.stat().st_size) for path in (begun / "checkpoints").rglob("*")) == before


def test_arrays_of_another_model_are_refused(begun, capsys):
    groups, state = checkpoint.load(begun / "checkpoints" / "last")
    del groups["model"]["norm.weight"]
    saved = {name: value for name, value in state.items() if name not in ("checksums", "seal", "format")}
    checkpoint.save(begun / "checkpoints" / "last", groups, saved)
    assert "norm.weight differs" in failed(capsys, go("mae", begun, "--resume"))


# ---------------------------------------------------------------- two processes, one folder
def test_a_run_that_was_moved_aside_meanwhile_does_not_go_on(begun):
    options = parse("pretrain", ["--resume", str(begun)])
    found = resume.find(options)
    assert found is not None
    log, aside = journal.claim(begun, overwrite=True)
    log.close()
    assert aside is not None
    with pytest.raises(UserError, match="was changed by another process just now"):
        resume.lock(found)
    assert last(aside)[1]["step"] == 8 and not list((begun / "checkpoints").iterdir())


def test_a_log_that_moves_while_it_is_locked_is_not_taken(begun, monkeypatch):
    lock = journal.lock

    def slow(file: Any) -> bool:
        begun.rename(begun.with_name("aside"))
        return lock(file)

    monkeypatch.setattr(journal, "lock", slow)
    with pytest.raises(UserError, match="another process is writing"):
        journal.locked_log(begun)


def test_a_checkpoint_that_another_process_replaced_is_not_gone_on_from(begun):
    found = resume.find(parse("pretrain", ["--resume", str(begun)]))
    assert found is not None
    checkpoint.restate(found.checkpoint, {**{n: v for n, v in found.state.items() if n != "seal"}, "rollbacks": 1})
    with pytest.raises(UserError, match="was changed by another process"):
        resume.lock(found)


RACER = """
import sys, time
from pathlib import Path
from triport.core.run import run
from triport.parity_tests.fixtures.numpy_learner import BACKEND
gate, delay, *words = sys.argv[1:]
Path(gate, str(len(words))).touch()
while not Path(gate, "go").exists():
    time.sleep(0.001)
time.sleep(float(delay))
sys.exit(run.pretrain(words, backend=BACKEND))
"""


@pytest.mark.parametrize(("of_resume", "of_overwrite"), [(0, 0), (0.05, 0), (0, 0.05), (0.3, 0), (0, 0.3)])
def test_of_a_resumption_and_a_new_run_in_one_folder_one_loses_cleanly(begun, tmp_path, of_resume, of_overwrite):
    racers = []
    for delay, words in ((of_resume, ["--resume"]), (of_overwrite, ["--overwrite", "--quiet"])):
        command = [sys.executable, "-c", RACER, str(tmp_path), str(delay), *toy.command("mae", begun, *words)[1:]]
        racers.append(subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True))
    while len([path for path in tmp_path.iterdir() if path.name.isdigit()]) < 2:
        assert all(racer.poll() is None for racer in racers)
        time.sleep(0.01)
    (tmp_path / "go").touch()
    printed = [racer.communicate()[1] for racer in racers]
    codes = [racer.returncode for racer in racers]
    assert 0 in codes and set(codes) <= {0, 2}, printed
    assert_same_run(whole("mae"), begun)  # whoever has won
    for code, text in zip(codes, printed, strict=True):
        if code:
            assert re.fullmatch(r"triport: error: .*(another process|holds no checkpoint yet).*\n", text), text
    for aside in (path for path in tmp_path.glob("run*") if path != begun):
        assert last(aside)[1]["step"] in (8, toy.TOTAL)  # as it was, or finished before


# ---------------------------------------------------------------- what cannot be written, or means nothing
def test_a_disk_that_is_full_at_the_first_checkpoint_names_a_remedy_that_works(tmp_path, capsys, monkeypatch):
    def full(*ignored: Any) -> None:
        raise OSError(28, "No space left on device")

    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save_file", full)
        line = failed(capsys, go("mae", folder))
    assert "No space left on device. Free space or make the folder writable, then begin again with --overwrite" in line
    assert go("mae", folder, "--overwrite") == 0


def test_a_folder_that_cannot_be_written_is_named(tmp_path, capsys, monkeypatch):
    folder = tmp_path / "run"
    opened = Path.open

    def refused(self: Path, *words: Any, **more: Any) -> Any:
        if self.name == "train.log":
            raise PermissionError(13, "Permission denied")
        return opened(self, *words, **more)

    monkeypatch.setattr(Path, "open", refused)
    line = failed(capsys, go("mae", folder))
    assert f"cannot write to {folder}: Permission denied. Make the folder writable, or name another --out." in line


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("words", [[], ["--embed", "features.npz"]], ids=["knn", "embed"])
def test_weights_that_are_not_finite_are_not_measured(tmp_path, capsys, monkeypatch, value, words):
    monkeypatch.chdir(tmp_path)
    groups, state = checkpoint.load(whole("mae") / "checkpoints" / "last")
    groups["model"]["norm.weight"] = np.full_like(groups["model"]["norm.weight"], value)
    saved = {name: item for name, item in state.items() if name not in ("checksums", "seal", "format")}
    checkpoint.save(tmp_path / "run" / "checkpoints" / "last", groups, saved)
    assert "norm.weight is not finite" in failed(capsys, evaluate(str(tmp_path / "run"), *words))
    assert not (tmp_path / "features.npz").exists()


@pytest.mark.parametrize("more", [["--micro-batch", "1"], ["--accumulate", "16"]])
def test_moco_with_one_image_at_a_time_is_refused_at_the_start(tmp_path, capsys, more):
    line = failed(capsys, go("moco", tmp_path / "run", *more))
    assert "one image in a micro-batch" in line and "Set batch=32" in line
    assert not (tmp_path / "run").exists()
    assert go("mae", tmp_path / "run", *more, "--stop-after-steps", "1") == 0
    assert toy.last(tmp_path / "run")[1]["step"] == 1
