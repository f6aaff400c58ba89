"""core.cluster: what Slurm says becomes what torchrun says; signals of a scheduler are no failure."""

from __future__ import annotations

import signal

import pytest

from triport.core import cluster
from triport.core.signals import Interrupted

STEP = {
    "SLURM_JOB_ID": "4711", "SLURM_STEP_NUM_TASKS": "12", "SLURM_PROCID": "9", "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1", "SLURM_STEP_NODELIST": "gpu[07-09,12]", "SLURM_STEP_TASKS_PER_NODE": "8,4",
}  # fmt: skip


def test_a_task_of_srun_is_a_rank():
    assert cluster.slurm_ranks(STEP) == {
        "RANK": "9", "WORLD_SIZE": "12", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4", "MASTER_ADDR": "gpu07",
        "MASTER_PORT": "24711",
    }  # fmt: skip
    assert cluster.slurm_ranks({**STEP, "MASTER_ADDR": "ib0"})["MASTER_ADDR"] == "ib0"
    assert cluster.slurm_ranks({**STEP, "SLURM_STEP_TASKS_PER_NODE": "6(x2)"})["LOCAL_WORLD_SIZE"] == "6"


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {**STEP, "RANK": "0"},  # torchrun under srun
        {**STEP, "SLURM_STEP_NUM_TASKS": "1"},
        {"SLURM_JOB_ID": "1", "SLURM_NTASKS": "8", "SLURM_PROCID": "0"},  # a batch script without srun
    ],
)
def test_anything_else_is_left_alone(environment):
    assert cluster.slurm_ranks(environment) == {}


@pytest.mark.parametrize(
    ("nodes", "first"),
    [("gpu7", "gpu7"), ("gpu[07-09,12],cpu1", "gpu07"), ("a[3,5]-ib", "a3-ib"), ("x,y[1-2]", "x"), ("", "")],
)
def test_the_first_node_of_a_list(nodes, first):
    assert cluster.first_node(nodes) == first


def test_signals_of_a_scheduler_are_no_failure(monkeypatch):
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    assert Interrupted(signal.SIGUSR1).code == 0 and Interrupted(signal.SIGTERM).code == 143 and not cluster.requeue()
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    assert Interrupted(signal.SIGTERM).code == 0 and Interrupted(signal.SIGINT).code == 130
    assert cluster.requeue() == "; in Slurm: scontrol requeue 12"


def test_what_an_import_of_oneflow_leaves_is_no_rank():
    left = {
        "RANK": "-1",
        "WORLD_SIZE": "1",
        "LOCAL_RANK": "0",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "1",
        "X": "y",
    }
    cluster.drop_no_rank(left)
    assert left == {"X": "y"}
    told = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_PORT": "1"}
    cluster.drop_no_rank(told)
    assert told == {"RANK": "0", "WORLD_SIZE": "2", "MASTER_PORT": "1"}
