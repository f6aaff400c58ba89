"""Where max pooling finds the same largest value twice: each framework sends the gradient to one of them."""

from __future__ import annotations

from itertools import product

import numpy as np
from numpy.typing import NDArray

from triport.core.spec import ResNet
from triport.parity_tests.tool.align import Pair
from triport.parity_tests.tool.trace import Trace

REACH = 2  # of two values in one window of 3 x 3
ALIKE = 1e-12  # rounding decides between values nearer than this, relative to the largest


def without_ties(trace: Trace, name: str, pair: Pair) -> Pair:
    """Gradients of a ResNet's first maps without the places that have an equal in their window; others as they are.

    On images of one colour many windows hold the same pixels, so the same values up to rounding. Gradients of the
    parameters do not depend on which of them is taken.
    """
    prefix, _, layer = name.rpartition(".")
    norm = f"{prefix}.bn1" if prefix else "bn1"
    maps = trace.arrays.get(f"layers/{norm}")
    if not isinstance(trace.recipe.model.encoder, ResNet) or layer not in ("conv1", "bn1") or "layer" in prefix:
        return pair
    if trace.precision != "float64" or maps is None or maps.shape != pair[0].shape:
        return pair
    saved = ~tied(np.maximum(maps, 0.0))
    return pair[0][saved], pair[1][saved]


def tied(maps: NDArray) -> NDArray:
    """Of maps (n, c, h, w) the places of positive values that have an equal within two rows and columns."""
    near = ALIKE * float(np.abs(maps).max(initial=0.0))
    height, width = maps.shape[2:]
    around = np.pad(maps, ((0, 0), (0, 0), (REACH, REACH), (REACH, REACH)), constant_values=-np.inf)
    found = np.zeros(maps.shape, bool)
    for down, right in product(range(2 * REACH + 1), repeat=2):
        if (down, right) != (REACH, REACH):
            found |= np.abs(maps - around[:, :, down : down + height, right : right + width]) <= near
    return found & (maps > 0)
