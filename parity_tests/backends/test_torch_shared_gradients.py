"""Gradients in shared memory: means of two processes' (threads here), whoever brings what, and nothing that stays.

That they are DistributedDataParallel's to the bit is tested with real processes in test_torch_peers.py.
"""

from __future__ import annotations

import gc
import sys
import weakref
from pathlib import Path

import pytest

from triport.parity_tests.core.test_local_peers import connected, everywhere, folders

torch = pytest.importorskip("torch", reason="these are tests of PyTorch's backend: run them in its environment")
if torch:
    from triport.backends.torch import shared_gradients

assert folders  # a fixture that every test here takes


@pytest.fixture
def peers():
    both = connected(2)
    yield both
    for one in both:
        one.close()


def parameters(dtype=torch.float32):
    first = torch.zeros(2, 3, 4, 4, dtype=dtype).contiguous(memory_format=torch.channels_last)
    return [first.requires_grad_(), torch.zeros(5, dtype=dtype, requires_grad=True)]


def shared(peers, given, in_place=False):
    return everywhere(2, lambda rank: shared_gradients.share(given[rank], peers[rank], in_place))


def learn(gradients, values, uses=(0, 1)):
    """A backward pass that gives each used parameter a gradient of `value` times its place + 1."""
    with gradients.averaged():
        sum(gradients.parameters[i].sum() * (values * (i + 1)) for i in uses).backward()


@pytest.mark.parametrize("in_place", [False, True])
def test_gradients_are_means_in_the_parameters_own_format(peers, in_place):
    given = [parameters() for _ in range(2)]
    made = shared(peers, given, in_place)
    everywhere(2, lambda rank: learn(made[rank], 1.0 + 2 * rank))
    for each in given:
        assert [float(p.grad.flatten()[0]) for p in each] == [2.0, 4.0] and (each[1].grad == 4.0).all()
        assert each[0].grad.stride() == each[0].stride()
    given[0][1].grad.mul_(10)
    assert float(given[1][1].grad[0]) == (4.0 if in_place else 40.0)  # which is why it must be asked for


def test_an_earlier_micro_batch_counts_where_the_last_one_brings_nothing(peers):
    given = [parameters() for _ in range(2)]
    made = shared(peers, given)
    everywhere(2, lambda rank: learn(made[rank], 1.0))  # what is written now must not be found again
    for each in given:
        for p in each:
            p.grad = None

    def step(rank):
        (given[rank][1].sum() * (10.0 + rank)).backward()
        learn(made[rank], 3.0, uses=[0])

    everywhere(2, step)
    assert all(float(each[0].grad.flatten()[0]) == 3.0 and float(each[1].grad[0]) == 10.5 for each in given)


def test_a_parameter_without_gradient_keeps_none_and_must_do_so_everywhere(peers):
    given = [parameters() for _ in range(2)]
    made = shared(peers, given)
    everywhere(2, lambda rank: learn(made[rank], 1.0, uses=[0]))
    assert all(each[1].grad is None and float(each[0].grad.flatten()[0]) == 1.0 for each in given)

    def differ(rank):
        with pytest.raises(RuntimeError, match="gradients of different parameters"):
            learn(made[rank], 1.0, uses=[0, 1][: 1 + rank])

    everywhere(2, differ)


def test_parameters_that_are_not_of_one_wide_type_are_left_to_gloo(peers):
    for given in (parameters(torch.bfloat16), [*parameters(), *parameters(torch.float64)], []):
        assert shared(peers, [given, given]) == [None, None]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc")
def test_nothing_stays_when_a_learner_has_gone(peers):
    gc.collect()  # of tests before
    before = len(list(Path("/proc/self/fd").iterdir()))
    given = [parameters() for _ in range(2)]
    made = shared(peers, given)
    everywhere(2, lambda rank: learn(made[rank], 1.0))
    watched = [weakref.ref(p) for each in given for p in each]
    made.clear()
    given.clear()
    gc.collect()
    assert [ref() for ref in watched] == [None] * 4
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    with open("/proc/self/maps") as file:
        assert "triport-means" not in file.read()
