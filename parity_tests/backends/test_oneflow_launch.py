"""Runs under OneFlow's own launcher: the numbers of one process, raising ranks, dead ranks, dead launchers, quiet."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

import triport
from triport import environments, launch
from triport.core.errors import UserError
from triport.parity_tests.backends.test_runs import ROOT, alive, cmdline, descendants, losses, steps
from triport.parity_tests.fixtures import toy
from triport.parity_tests.tool.bounds import hold

pytestmark = pytest.mark.framework("oneflow")
DATA = ("--data", toy.sixteens())
SMALL = ("batch=16", "schedule.warmup_epochs=0", "monitor.knn_every=0", "--workers", "0", *DATA)
ENDLESS = ("schedule.epochs=4000", "--save-steps", "1")
RAISING = """
import os
from triport.backends.oneflow import learner, pretrain
from triport.backends.oneflow.runtime import leave
step = learner.Learner.step

def raising(self, batches, values):
    if self.processes.rank == 1 and self.optimizer.steps == 2:
        raise RuntimeError("the third step fails")
    return step(self, batches, values)

learner.Learner.step = raising
leave(pretrain.main())
"""


def python():
    return str(environments.require("oneflow"))


def started(command, folder, **more):
    """A process in a folder and a process group of its own, with nothing on the path but what the command brings."""
    settings = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "OPENBLAS_CORETYPE")}
    settings |= {"OMP_NUM_THREADS": "1", **more}
    pipe = subprocess.PIPE
    return subprocess.Popen(
        command, cwd=folder, env=settings, start_new_session=True, stdout=pipe, stderr=pipe, text=True
    )


def launcher(*words):
    command = [
        python(),
        "-m",
        "oneflow.distributed.launch",
        "--nproc_per_node",
        "2",
        "--master_port",
        launch.free_port(),
    ]
    return [*command, *map(str, words)]


def lone(folder, port, rank, **more):
    """One process of two, without a launcher."""
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2", "RANK": str(rank), "LOCAL_RANK": "0"}
    return started([python(), "-m", "triport.backends.oneflow.pretrain", "tiny/test_mae_vit"], folder, **place, **more)


def finished(process):
    printed, errors = process.communicate(timeout=900)
    assert process.returncode == 0, errors
    return printed, errors


def workers(process):
    """The training processes under a launcher."""
    commands = {pid: cmdline(pid).decode().split("\0") for pid in descendants(process.pid)}
    return [
        pid
        for pid, words in commands.items()
        if "oneflow.distributed.launch" not in words and any(word.startswith("tiny/") for word in words)
    ]


def until(condition, seconds=600.0):
    """Wait for progress; the limit is for what hangs."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, "nothing has happened"
        time.sleep(0.05)
    return value


def gone(processes):
    until(lambda: not any(alive(pid) for pid in processes))


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """Three steps of one process."""
    folder = tmp_path_factory.mktemp("alone")
    words = ("tiny/test_moco_vit", *SMALL, "--out", "run", "--stop-after-steps", "3")
    printed, errors = finished(started([python(), "-m", "triport.backends.oneflow.pretrain", *map(str, words)], folder))
    assert errors == "", "the import is not quiet"
    assert not (folder / "log").exists() and "batch 16 = 1 processes" in printed
    return folder / "run"


def test_the_launcher_gives_the_numbers_of_one_process(tmp_path, alone):
    run = ("tiny/test_moco_vit", *SMALL, "--out", tmp_path / "run", "--stop-after-steps", "3")
    printed, _ = finished(started(launcher("-m", "triport.backends.oneflow.pretrain", *run), tmp_path))
    assert "batch 16 = 2 processes x 1 micro-batches x 8 images" in printed
    for i, (a, b) in enumerate(zip(losses(alone), losses(tmp_path / "run"), strict=True)):
        hold("training", abs(a - b) / abs(a), f"loss of step {i}")
    a, b = (steps(folder)[0]["gradient_norm"] for folder in (alone, tmp_path / "run"))
    hold("training", abs(a - b) / a, "first gradient")


def test_a_wrong_recipe_is_reported_by_every_rank_and_ends_the_job(tmp_path):
    process = started(launcher("-m", "triport.backends.oneflow.pretrain", "tiny/test_moco_vitt"), tmp_path)
    _, errors = process.communicate(timeout=600)
    assert process.returncode != 0
    assert "Did you mean 'tiny/test_moco_vit'" in errors


def test_a_raising_rank_ends_the_job_with_its_message(tmp_path):
    (tmp_path / "raising.py").write_text(RAISING)
    run = ("tiny/test_mae_vit", *SMALL, *ENDLESS, "--out", tmp_path / "run")
    process = started(launcher(tmp_path / "raising.py", *run), ROOT)
    ranks = until(lambda: found if len(found := workers(process)) == 2 else None)
    _, errors = process.communicate(timeout=600)
    assert process.returncode != 0
    assert "rank 1: error: RuntimeError: the third step fails" in errors
    gone(ranks)


@pytest.mark.parametrize("victim", ["rank", "launcher"])
def test_a_kill_leaves_no_process_behind(tmp_path, victim):
    run = ("tiny/test_mae_vit", *SMALL, *ENDLESS, "--out", tmp_path / "run")
    process = started(launcher("-m", "triport.backends.oneflow.pretrain", *run), tmp_path)
    until((tmp_path / "run" / "checkpoints" / "last" / "state.json").exists)
    ranks = workers(process)
    assert len(ranks) == 2
    os.kill(ranks[1] if victim == "rank" else process.pid, signal.SIGKILL)
    process.communicate(timeout=600)
    assert process.returncode != 0
    gone(ranks)


@pytest.mark.parametrize("task", ["linear", "finetune"])
def test_two_processes_train_save_and_evaluate(tmp_path, task):
    run = (f"tiny/test_moco_{task}", "batch=1000", "schedule.epochs=1", "schedule.warmup_epochs=0", "--from-scratch")
    words = (*run, "--workers", "0", "--out", tmp_path / "run")
    finished(started(launcher("-m", f"triport.backends.oneflow.{task}", *words), tmp_path))
    more = (tmp_path / "run", "--workers", "0", "--out", tmp_path / "scores.json")
    finished(started(launcher("-m", "triport.backends.oneflow.evaluate", *more), tmp_path))
    scores = json.loads((tmp_path / "scores.json").read_text())
    last = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    in_run = [line["top1"] for line in last if line["kind"] == "epoch"][-1]
    assert scores["top1"] == pytest.approx(in_run, abs=1e-9)


@pytest.mark.parametrize(
    ("rank", "printed"), [(0, "not all 2 processes are there"), (1, "nobody listens at 127.0.0.1:")]
)
def test_a_process_whose_peers_do_not_come_says_so_and_ends(tmp_path, rank, printed):
    _, errors = lone(tmp_path, launch.free_port(), rank, TRIPORT_WAIT="2").communicate(timeout=600)
    assert errors.count("\n") == 1 and f"triport: rank {rank}: {printed}" in errors


def test_two_nodes_of_one_machine_are_refused_by_both(tmp_path):
    port = launch.free_port()
    for process in [lone(tmp_path, port, rank, LOCAL_WORLD_SIZE="1") for rank in (0, 1)]:
        _, errors = process.communicate(timeout=600)
        assert process.returncode == 2 and "cannot make two nodes of one machine" in errors


def test_degrees_tell_the_backend_and_the_number_of_processes(capsys):
    degrees = ["--tensor-parallel", "2", "--data-parallel=2"]
    assert launch.main(["finetune", "tiny/test_moco_vit", *degrees, "--show-command"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4 and all(
        "WORLD_SIZE=4" in line and "triport.backends.oneflow.finetune tiny/test_moco_vit" in line for line in lines
    )
    with pytest.raises(UserError, match="--tensor-parallel is of the OneFlow backend"):
        launch.main(["finetune", "tiny/test_moco_vit", "--tensor-parallel", "2", "--backend", "torch"])


def test_degrees_of_a_pretraining_are_refused_with_the_remedy(tmp_path):
    command = [python(), "-m", "triport.backends.oneflow.pretrain", "tiny/test_mae_vit", "--tensor-parallel", "2"]
    process = started(command, tmp_path)
    _, errors = process.communicate(timeout=600)
    assert process.returncode == 2 and errors.count("\n") == 1 and "--processes N" in errors


def test_oneflow_imported_before_us_is_no_launcher(tmp_path):
    """It sets RANK=-1 where no launcher says one; labels and samples are counted from it."""
    code = (
        "import oneflow, os; assert os.environ['RANK'] == '-1'; from triport.backends.oneflow import distributed; "
        "here = distributed.start('cpu'); print(here.rank, here.world, *sorted({'RANK', 'WORLD_SIZE'} & {*os.environ}))"
    )
    ours = str(Path(triport.__file__).parents[1])
    printed, _ = finished(started([python(), "-c", code], tmp_path, PYTHONPATH=ours))
    assert printed.split() == ["0", "1"]
