"""Places whose gradient depends on which of two equal values max pooling takes are found, and no others."""

from __future__ import annotations

import numpy as np

from triport.parity_tests.tool.pooled import tied


def test_equal_values_in_a_window_are_tied():
    maps = np.random.Generator(np.random.Philox(1)).random((1, 1, 8, 8)) + 1
    assert not tied(maps).any()
    maps[0, 0, 1, 1], maps[0, 0, 3, 2] = 3.0, 3.0 * (1 + 2e-16)  # two rows apart: within one window of 3 x 3
    assert np.argwhere(tied(maps)).tolist() == [[0, 0, 1, 1], [0, 0, 3, 2]]
    maps[0, 0, 3, 2] = 3.0 * (1 + 1e-9)
    assert not tied(maps).any()


def test_equal_values_far_apart_or_at_0_are_not_tied():
    maps = np.random.Generator(np.random.Philox(1)).random((1, 1, 8, 8)) + 1
    maps[0, 0, 0, 0] = maps[0, 0, 3, 0] = 3.0
    maps[0, 0, 6, 6] = maps[0, 0, 6, 7] = 0.0  # a ReLU passes no gradient there
    assert not tied(maps).any()
