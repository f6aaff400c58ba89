"""Runs under Paddle's own launcher: every form of its command, slow ranks, dead ranks, dead launchers."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest

from triport import environments, launch
from triport.core.errors import UserError
from triport.parity_tests.backends.test_runs import ROOT, alive, cmdline, descendants, losses, steps
from triport.parity_tests.fixtures import toy
from triport.parity_tests.tool.bounds import hold

pytestmark = pytest.mark.framework("paddle")
DATA = ("--data", toy.sixteens())
SMALL = ("batch=16", "schedule.warmup_epochs=0", "monitor.knn_every=0", "--workers", "0", *DATA)
ENDLESS = ("schedule.epochs=4000", "--save-steps", "1")


def python():
    return str(environments.require("paddle"))


def script(task):
    return str(ROOT / "backends" / "paddle" / f"{task}.py")


def started(command, folder, **more):
    """A process in a folder of its own, with nothing on the path but what the command brings."""
    settings = {name: value for name, value in os.environ.items() if not name.startswith(("PADDLE_", "PYTHONPATH"))}
    settings |= {"OMP_NUM_THREADS": "1", **more}
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=folder, env=settings, stdout=pipe, stderr=subprocess.STDOUT, text=True)


def launcher(folder, form, file, *words):
    """The command of Paddle's launcher in one of its forms."""
    logs = ("--log_level", "ERROR", "--log_dir", str(folder / "logs"))
    return [python(), "-m", "paddle.distributed.launch", *form, *logs, file, *map(str, words)]


def finished(process):
    printed, _ = process.communicate(timeout=900)
    assert process.returncode == 0, printed
    return printed


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def workers(process, count):
    """The training processes under a launcher, once they have saved for the first time."""
    found = [pid for pid in descendants(process.pid) if trainer(pid)]
    return found if len(found) >= count else []


def trainer(pid):
    """Whether a process trains: it runs pretrain.py, or the module of that name, whatever folder that is in."""
    words = [word for word in cmdline(pid).decode().split("\0")[1:] if word != "-u"]
    what = words[1] if words[:1] == ["-m"] else words[0] if words else ""
    return what.endswith((".paddle.pretrain", "/paddle/pretrain.py"))


def until(condition, seconds=600.0):
    """Wait for progress; the limit is for what hangs."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, "nothing has happened"
        time.sleep(0.1)
    return value


def saved(folder):
    return until((folder / "run" / "checkpoints" / "last" / "state.json").exists)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """Three steps of one process, started by its path as well."""
    folder = tmp_path_factory.mktemp("alone")
    words = ("tiny/test_moco_vit", *SMALL, "--out", "run", "--stop-after-steps", "3")
    printed = finished(started([python(), script("pretrain"), *map(str, words)], folder))
    assert "ccache" not in printed and "FLAGS" not in printed and "WARNING" not in printed, printed
    return folder / "run"


# ---------------------------------------------------------------- forms
FORMS = {
    "on CPUs": (("--nproc_per_node=2",), {}),
    "as PASSL": (
        ("--nnodes=1", "--master=127.0.0.1:{port}", "--devices=0,1"),
        {"PADDLE_NNODES": "1", "PADDLE_MASTER": "127.0.0.1:{port}", "CUDA_VISIBLE_DEVICES": "0,1"},
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_the_launcher_gives_the_numbers_of_one_process(tmp_path, alone, form):
    (words, settings), port = FORMS[form], free_port()
    form_words = [word.format(port=port) for word in words]
    variables = {name: value.format(port=port) for name, value in settings.items()}
    run = ("tiny/test_moco_vit", *SMALL, "--out", tmp_path / "run", "--stop-after-steps", "3")
    printed = finished(started(launcher(tmp_path, form_words, script("pretrain"), *run), tmp_path, **variables))
    assert "batch 16 = 2 processes x 1 micro-batches x 8 images" in printed
    same_losses(alone, tmp_path / "run", form)


def same_losses(one, two, what):
    for i, (a, b) in enumerate(zip(losses(one), losses(two), strict=True)):
        hold("training", abs(a - b) / abs(a), f"{what}, loss of step {i}")
    a, b = (steps(folder)[0]["gradient_norm"] for folder in (one, two))
    hold("training", abs(a - b) / a, f"{what}, first gradient")


@pytest.mark.parametrize("who", ["the launcher", "triport"])
def test_two_nodes_give_the_numbers_of_one_process(tmp_path, alone, who):
    master, nodes = f"127.0.0.1:{free_port()}", []
    for rank in (0, 1):
        form = ("--nnodes=2", f"--rank={rank}", f"--master={master}", "--nproc_per_node=1")
        run = ("tiny/test_moco_vit", *SMALL, "--out", tmp_path / "run", "--stop-after-steps", "3")
        (tmp_path / str(rank)).mkdir()
        command = launcher(tmp_path / str(rank), form, script("pretrain"), *run)
        if who == "triport":
            place = ("--backend", "paddle", "--nodes", "2", "--node-rank", str(rank), "--master", master)
            command = [python(), "-m", "triport", "pretrain", *map(str, run), *place]
        nodes.append(started(command, ROOT if who == "triport" else tmp_path))
    for node in nodes:
        finished(node)
    same_losses(alone, tmp_path / "run", "two nodes")


@pytest.mark.parametrize("task", ["linear", "finetune"])
def test_other_tasks_by_their_path(tmp_path, task):
    """Two processes train, save, evaluate together; then the file of evaluation reads what fine-tuning left."""
    recipe = (f"tiny/test_moco_{task}", "batch=1000", "schedule.epochs=1", "schedule.warmup_epochs=0")
    run = (*recipe, "--from-scratch", "--workers", "0", "--out", tmp_path / "run")
    finished(started(launcher(tmp_path, ("--nproc_per_node=2",), script(task), *run), tmp_path))
    in_run = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert in_run["top1"] > 0
    if task == "linear":
        return
    more = (tmp_path / "run", "--workers", "0", "--out", tmp_path / "scores.json")
    finished(started(launcher(tmp_path, ("--nproc_per_node=2",), script("evaluate"), *more), tmp_path))
    assert json.loads((tmp_path / "scores.json").read_text())["top1"] == in_run["top1"]


# ---------------------------------------------------------------- time
SLOW = """
import os, sys, time
sys.path.insert(0, {root!r})
from triport.backends.paddle.learner import Learner
from triport.backends.paddle.pretrain import main
from triport.core.record import checkpoint
where, name, rank = {point}
original, slept = getattr(where, name), []
def late(*given, **more):
    if os.environ["PADDLE_TRAINER_ID"] == rank and not slept:
        slept.append(time.sleep({seconds}))
    return original(*given, **more)
setattr(where, name, late)
sys.exit(main(sys.argv[1:]))
"""
POINTS = {"saving": "checkpoint, 'save', '0'", "scoring": "Learner, 'embed', '0'", "data": "Learner, 'step', '1'"}


def test_slow_ranks_do_not_end_the_run(tmp_path):
    """gloo gives up after 30 s; one rank takes longer to save, to score, to get its batch, and the other waits."""
    began, jobs = time.monotonic(), {}
    for what, point in POINTS.items():
        folder = tmp_path / what
        folder.mkdir()
        (folder / "slow.py").write_text(SLOW.format(root=str(ROOT), seconds=36, point=point))
        run = ("tiny/test_moco_vit", *SMALL, "--out", folder / "run", "--save-steps", "2", "--stop-after-steps", "4")
        jobs[what] = started(launcher(folder, ("--nproc_per_node=2",), str(folder / "slow.py"), *run), folder)
    for what, job in jobs.items():
        finished(job)
        assert time.monotonic() - began > 36 and len(losses(tmp_path / what / "run")) == 4, what


# ---------------------------------------------------------------- deaths
def test_a_killed_rank_ends_the_job(tmp_path):
    run = ("tiny/test_mae_vit", *SMALL, *ENDLESS, "--out", tmp_path / "run")
    process = started(launcher(tmp_path, ("--nproc_per_node=2",), script("pretrain"), *run), tmp_path)
    saved(tmp_path)
    ranks = until(lambda: workers(process, 2))
    os.kill(ranks[-1], signal.SIGKILL)
    printed, _ = process.communicate(timeout=600)
    assert process.returncode not in (0, None), printed
    assert not [pid for pid in ranks if alive(pid)]


@pytest.mark.parametrize("who", ["the launcher", "triport"])
def test_killed_from_above_no_worker_is_left(tmp_path, who):
    run = ("tiny/test_mae_vit", *SMALL, *ENDLESS, "--out", tmp_path / "run")
    command = [python(), "-m", "triport", "pretrain", *map(str, run), "--backend", "paddle", "--processes", "2"]
    if who == "the launcher":
        command = launcher(tmp_path, ("--nproc_per_node=2",), script("pretrain"), *run)
    settings = {"TMPDIR": str(tmp_path)}  # a job that is killed leaves its logs
    process = started(command, ROOT if who == "triport" else tmp_path, **settings)
    saved(tmp_path)
    ranks = until(lambda: workers(process, 2))
    process.send_signal(signal.SIGKILL)
    process.communicate()
    until(lambda: not [pid for pid in ranks if alive(pid)])


def test_a_killed_rank_ends_the_other_node_too(tmp_path):
    master, nodes = f"127.0.0.1:{free_port()}", []
    for rank in (0, 1):
        form = ("--nnodes=2", f"--rank={rank}", f"--master={master}", "--nproc_per_node=1")
        run = ("tiny/test_mae_vit", *SMALL, *ENDLESS, "--out", tmp_path / "run")
        (tmp_path / str(rank)).mkdir()
        nodes.append(started(launcher(tmp_path / str(rank), form, script("pretrain"), *run), tmp_path))
    saved(tmp_path)
    ranks = [until(lambda node=node: workers(node, 1)) for node in nodes]
    os.kill(ranks[1][-1], signal.SIGKILL)
    for node in nodes:
        printed, _ = node.communicate(timeout=600)
        assert node.returncode not in (0, None), printed
    assert not [pid for found in ranks for pid in found if alive(pid)]
    log = (tmp_path / "0" / "logs" / "workerlog.0").read_text()
    assert "rank 1 ended while rank 0 waited for it" in log or "gloo" in log


OTHER = """
import sys
sys.path.insert(0, {root!r})
import os
from triport.backends.paddle.pretrain import main
sys.exit(main([*sys.argv[1:], "--seed", os.environ["PADDLE_TRAINER_ID"]]))
"""


def test_processes_that_begin_with_different_weights_are_reported(tmp_path):
    (tmp_path / "other.py").write_text(OTHER.format(root=str(ROOT)))
    run = ("tiny/test_mae_vit", *SMALL, "--out", tmp_path / "run", "--stop-after-steps", "2")
    process = started(launcher(tmp_path, ("--nproc_per_node=2",), str(tmp_path / "other.py"), *run), tmp_path)
    printed, _ = process.communicate(timeout=600)
    assert process.returncode not in (0, None)
    assert "the processes begin with different weights" in printed, printed


@pytest.mark.parametrize(
    "words", [("finetune", "--passl-config", "x.yaml"), ("pretrain", "tiny/test_moco_vit", "--export=pd")]
)
def test_options_that_only_paddle_has_choose_it(capfd, monkeypatch, tmp_path, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.yaml").touch()
    assert launch.main([*words, "--show-command"]) == 0
    assert f"triport.backends.paddle.{words[0]}" in capfd.readouterr().out


def test_more_processes_than_gpus_are_refused(monkeypatch):
    monkeypatch.setattr(launch, "paddle_sees_gpus", lambda place, words: True)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5")
    three, two = (launch.Place("paddle", Path("python"), processes) for processes in (3, 2))
    assert launch.paddle_launcher(two, [], None)[3:5] == ["--devices", "4,5"]
    with pytest.raises(UserError, match="--processes 3 is more than the GPUs 4,5"):
        launch.paddle_launcher(three, [], None)
