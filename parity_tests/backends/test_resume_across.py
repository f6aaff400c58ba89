"""A run that is begun on any framework goes on in any other as if nothing had happened: all nine pairs, in float64."""

from __future__ import annotations

import itertools
import shutil
from functools import cache

import numpy as np
import pytest

from triport import environments
from triport.core.record import checkpoint
from triport.parity_tests.backends.test_runs import losses
from triport.parity_tests.conftest import here
from triport.parity_tests.fixtures import toy
from triport.parity_tests.tool.ask import Question, ask
from triport.parity_tests.tool.bounds import hold
from triport.parity_tests.tool.comparison import errors, neighbour

SMALL = ("batch=16", "schedule.warmup_epochs=0", "monitor.knn_every=0", "--workers", "0")
WIDE = ("--precision", "float64")
HALF, END = 4, 8  # steps
KEYS = np.array([False, True, False])  # of a bias: its gradient is 0 in truth, and Adam makes steps of what is left
PAIRS = list(itertools.product(environments.FRAMEWORKS, repeat=2))
RUNS = {
    "moco": ("pretrain", "tiny/test_moco_vit"),
    "mae": ("pretrain", "tiny/test_mae_vit"),
    "finetune": ("finetune", "tiny/test_moco_finetune", "--from-scratch", "optimizer.average=0.9"),
    "lars": ("linear", "tiny/test_mae_linear", "--from-scratch"),
    "sgd": ("linear", "tiny/test_moco_linear", "--from-scratch"),
}


def to_step(backend, kind, folder, until, *more):
    """The question that trains a run to a step."""
    task, *words = RUNS[kind]
    given = [
        *words,
        *SMALL,
        *WIDE,
        "--data",
        str(toy.sixteens()),
        "--out",
        str(folder),
        "--stop-after-steps",
        str(until),
        *more,
    ]
    return Question("run", {"backend": backend, "task": task, "arguments": given})


def trained(backend, questions):
    """What the runs said, all made by one process in the framework's own interpreter."""
    return ask(backend, questions, probe="triport.parity_tests.fixtures.run_probe")


@pytest.fixture(scope="session")
def begun(tmp_path_factory):
    """Of a framework: a folder with its runs of each kind, half and whole."""

    @cache
    def begin(backend):
        root = tmp_path_factory.mktemp(backend)
        trained(backend, [to_step(backend, k, root / f"{k}-{n}", n) for k in RUNS for n in (HALF, END)])
        return root

    return begin


@pytest.fixture(scope="session")
def resumed(begun, tmp_path_factory):
    """Of a pair: a folder with the first's half runs of each kind, gone on with by the second, and what it said."""

    @cache
    def resume(first, second):
        root = tmp_path_factory.mktemp(f"{first}-{second}")
        for kind in RUNS:
            shutil.copytree(begun(first) / f"{kind}-{HALF}", root / kind)
        printed = trained(second, [to_step(second, kind, root / kind, END, "--resume") for kind in RUNS])
        return root, dict(zip(RUNS, printed))

    return resume


@pytest.fixture(params=PAIRS, ids=lambda pair: "-".join(pair))
def pair(request):
    """Two frameworks that are here, or one twice."""
    return tuple(here(name, request.config) for name in request.param)


@pytest.mark.parametrize("kind", RUNS)
def test_a_run_goes_on_in_another_framework(pair, kind, begun, resumed):
    first, second = pair
    folder, printed = resumed(first, second)
    one, two = begun(first) / f"{kind}-{END}", folder / kind
    assert (f"with backend {first} -> {second}" in printed[kind]) == (first != second)
    assert len(losses(one)) == END
    for i, (a, b) in enumerate(zip(losses(one), losses(two), strict=True)):
        if first == second:
            assert a == b
        hold("resumed", abs(a - b) / abs(a), f"{kind} from {first} to {second}, loss of step {i}")
    groups, others = (checkpoint.load(checkpoint.latest(path))[0] for path in (one, two))
    assert set(groups) == set(others) >= {"model", "optimizer"}
    for part, arrays in groups.items():
        assert set(arrays) == set(others[part])
        for name, array in arrays.items():
            other = others[part][name]
            assert array.dtype == other.dtype and np.isfinite(other).all(), name
            if first == second:
                assert np.array_equal(array, other), (part, name)
            elif array.ndim:
                assert array.dtype == np.float64
                size = max(neighbour(arrays, name), np.abs(array).max())
                keys = part == "model" and name.endswith("qkv.bias")
                for bound, where in (("resumed", ~KEYS), ("float64-weight", KEYS)) if keys else (("resumed", ...),):
                    error = errors(rows(array, where), rows(other, where), size)[0]
                    hold(bound, error, f"{kind} from {first} to {second}, {part} {name}")
            else:
                assert array == other, (part, name)


def rows(array, where):
    """The part of a bias of queries, keys and values that a mask of the three names; the whole array without one."""
    return array if where is ... else array.reshape(3, -1)[where]
