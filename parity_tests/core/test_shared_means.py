"""core.backend.shared_means: means of all processes in memory of all; none where there is no such memory."""

from __future__ import annotations

import gc
import sys
from pathlib import Path

import numpy as np
import pytest

from triport.core.backend import shared_means
from triport.parity_tests.core.test_local_peers import connected, everywhere, folders

assert folders  # a fixture that every test here takes


@pytest.fixture
def group(request):
    peers = connected(request.param)
    yield peers
    for one in peers:
        one.close()


def descriptors():
    gc.collect()  # those of tests before
    return len(list(Path("/proc/self/fd").iterdir()))


def shared(peers, size, dtype="float32"):
    return everywhere(len(peers), lambda rank: shared_means.share(peers[rank], size, np.dtype(dtype)))


@pytest.mark.parametrize("group", [2, 3, 5], indirect=True)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("size", [1, 4, 1000, 3 * shared_means.BLOCK + 7])
def test_all_get_the_mean_in_rank_order(group, size, dtype):
    world, draw = len(group), np.random.default_rng(0)
    memories = shared(group, size, dtype)
    for _ in range(3):
        given = [draw.standard_normal(size).astype(dtype) for _ in range(world)]
        expected = given[0] + given[1]
        for more in given[2:]:
            expected = expected + more
        expected = expected / np.dtype(dtype).type(world)

        def fill(rank, given=given):
            memories[rank].own[:] = given[rank]
            memories[rank].average()
            return memories[rank].mean.copy(), memories[rank].own.copy()

        for rank, (mean, own) in enumerate(everywhere(world, fill)):
            assert mean.dtype == dtype and np.array_equal(mean, expected) and np.array_equal(own, given[rank])


@pytest.mark.parametrize("group", [2], indirect=True)
def test_means_stay_while_the_next_numbers_are_written(group):
    memories = shared(group, 100)

    def fill(rank, number):
        memories[rank].own[:] = number
        memories[rank].average()

    everywhere(2, lambda rank: fill(rank, rank))
    memories[0].own[:] = 7.0  # one is ahead: it computes the next gradients while the other one still reads
    assert (memories[1].mean == 0.5).all() and (memories[0].mean == 0.5).all()


@pytest.mark.parametrize("group", [3], indirect=True)
@pytest.mark.parametrize("place", ["made", "mapped"])
def test_without_memory_all_of_them_have_none(group, place, monkeypatch):
    real = getattr(shared_means, f"_{place}")
    calls = []

    def refused(*given):
        calls.append(given)
        return None if place == "made" or len(calls) == 2 else real(*given)

    monkeypatch.setattr(shared_means, f"_{place}", refused)
    assert shared(group, 10) == [None] * 3
    assert everywhere(3, lambda rank: bytes(group[rank].gather(bytes([rank])))) == [b"\0\1\2"] * 3  # sockets go on


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("group", [2], indirect=True)
def test_numbers_that_are_not_finite_are_nobodys_warning(group):
    memories, large = shared(group, 3), np.finfo(np.float32).max

    def fill(rank):
        memories[rank].own[:] = (np.inf * (1 - 2 * rank), large, np.nan)
        memories[rank].average()
        return memories[rank].mean.copy()

    for mean in everywhere(2, fill):
        assert np.isnan(mean[[0, 2]]).all() and np.isinf(mean[1])


@pytest.mark.parametrize("group", [2], indirect=True)
def test_processes_that_come_with_different_things_are_an_error(group):
    memories = shared(group, 3)

    def come(rank):
        with pytest.raises(RuntimeError, match="gradients of different parameters"):
            memories[rank].average(bytes([rank]))

    everywhere(2, come)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc")
@pytest.mark.parametrize("group", [2], indirect=True)
def test_memory_that_is_refused_leaves_no_descriptor(group, monkeypatch):
    def refused(*_):
        raise OSError("no space")

    before = descriptors()
    monkeypatch.setattr("os.ftruncate", refused)
    assert shared(group, 10) == [None, None]
    assert descriptors() == before


@pytest.mark.parametrize("group", [2], indirect=True)
def test_another_process_that_has_ended_is_named(group):
    memories = shared(group, 10)
    group[1].close()
    with pytest.raises(RuntimeError, match="has ended"):
        memories[0].average()
    with pytest.raises(RuntimeError, match="has ended"):
        shared_means.share(group[0], 10, np.dtype("float32"))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc")
@pytest.mark.parametrize("group", [2], indirect=True)
def test_memory_has_no_name_and_goes_with_its_last_user(group):
    before = descriptors()
    memories = shared(group, 1 << 20)
    with open("/proc/self/maps") as file:
        assert "triport-means" in file.read()
    memories.clear()
    gc.collect()
    assert descriptors() == before
    with open("/proc/self/maps") as file:
        assert "triport-means" not in file.read()
