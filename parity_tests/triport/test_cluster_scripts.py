"""The scripts of docs/cluster.md, run with a stand-in for Slurm: two processes on CPUs, preempted and requeued."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from triport import environments
from triport.core.record import checkpoint
from triport.parity_tests.fixtures import toy

ROOT = Path(__file__).resolve().parents[2]
BLOCKS = re.findall(r"^```bash\n(#!/bin/bash\n.*?)^```$", (ROOT / "docs/cluster.md").read_text(), re.M | re.S)
RUN = "tiny/test_mae_vit batch=8 schedule.epochs=1 image=8 monitor.knn_every=0 --workers 0 --device cpu"

# starts two tasks of a step; sends them $STOP after their first checkpoint if it is set
SRUN = """import os, signal, subprocess, sys, time
tasks = int(os.environ["TASKS"])
step = {"SLURM_STEP_NUM_TASKS": str(tasks), "SLURM_STEP_NODELIST": "localhost"}
running = [
    subprocess.Popen(sys.argv[1:], env={**os.environ, **step, "SLURM_PROCID": str(i), "SLURM_LOCALID": str(i)})
    for i in range(tasks)
]
stop = os.environ.get("STOP")
if stop:
    while not os.path.exists(os.environ["WATCH"]) and running[0].poll() is None:
        time.sleep(0.05)
    for process in running:
        process.send_signal(getattr(signal, stop))
sys.exit(max(process.wait() for process in running))
"""


@pytest.fixture
def place(tmp_path: Path) -> dict[str, str]:
    """An environment with `srun`, `scontrol`, `triport` and `torchrun`, in a folder of its own."""
    python = environments.require("torch")
    programs = {
        # a shell starts Python: a "#!" line holds no long path and none with a blank
        "srun": f'#!/bin/sh\nexec "{sys.executable}" "$0.py" "$@"\n',
        "srun.py": SRUN,
        "scontrol": '#!/bin/sh\n[ "$1" = show ] && echo localhost || echo "$@" >> requeued\n',
        "triport": f'#!/bin/sh\nexec "{sys.executable}" -m triport "$@"\n',
        "torchrun": f'#!/bin/sh\nexec "{python}" -m torch.distributed.run "$@"\n',
    }
    for name, text in programs.items():
        path = tmp_path / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)
    slurm = {"SLURM_JOB_ID": str(os.getpid()), "SLURM_JOB_NODELIST": "localhost", "SLURM_NNODES": "1"}
    more = {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "GLOO_SOCKET_IFNAME": "lo", "PYTHONPATH": str(ROOT)}
    return {**os.environ, **slurm, **more, "OMP_NUM_THREADS": "1", "HERE": str(tmp_path)}


def script(number: int, tasks: int, place: dict[str, str], **more: str) -> subprocess.CompletedProcess[str]:
    """Run a script of the page, on a recipe that takes seconds: 200 steps."""
    run = f"{RUN} --data {toy.make_data(Path(place['HERE']) / 'data', train=1600)}"
    text, changes = re.subn(r"(moco_v3|mae)/\S+ --data /data/imagenet", lambda _: run, BLOCKS[number])
    text, others = re.subn(r"--nproc_per_node 8", "--nproc_per_node 2", text)
    assert changes == 1 and others == number
    text = text.replace("29500", str(20_000 + os.getpid() % 20_000))
    environment = {**place, "TASKS": str(tasks), **more}
    return subprocess.run(
        ["bash", "-c", text],
        cwd=place["HERE"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


def states(place: dict[str, str]) -> dict[str, object]:
    folder = Path(place["HERE"]) / "runs" / place["SLURM_JOB_ID"]
    return checkpoint.read_state(checkpoint.latest(folder))


@pytest.mark.skipif(not shutil.which("bash"), reason="the scripts are bash's")
def test_a_job_of_srun_is_preempted_saves_is_requeued_and_ends(place: dict[str, str]) -> None:
    watch = Path(place["HERE"]) / "runs" / place["SLURM_JOB_ID"] / "checkpoints" / "last" / "state.json"
    done = script(0, 2, place, STOP="SIGUSR1", WATCH=str(watch))
    words = done.stdout + done.stderr
    assert done.returncode == 0, words
    assert "preempted: to resume: the same command with --resume" in words and "scontrol requeue" in words
    assert (Path(place["HERE"]) / "requeued").read_text().split() == ["requeue", place["SLURM_JOB_ID"]]
    stopped = states(place)
    assert stopped["processes"] == 2
    done = script(0, 2, place)
    assert done.returncode == 0, done.stdout + done.stderr
    ended = states(place)
    assert ended["closed"] == 1 and ended["step"] > stopped["step"]  # type: ignore[operator]
    assert (Path(place["HERE"]) / "requeued").read_text().count("requeue") == 1


@pytest.mark.skipif(not shutil.which("bash"), reason="the scripts are bash's")
def test_torchrun_under_srun_keeps_its_own_ranks(place: dict[str, str]) -> None:
    done = script(1, 1, place)
    assert done.returncode == 0, done.stdout + done.stderr
    assert states(place)["processes"] == 2 and states(place)["closed"] == 1
