"""Whether pictures would be almost black or white, as 12 bits in 16 are, which is said and never done silently."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np

from triport.core.data.sample.decode import BrokenImage
from triport.core.data.sample.samples import Samples
from triport.core.errors import UserError

LOOKED_AT = 8  # images of a data set, evenly spaced; mostly the first one has both bright and dark pixels
DARK, WHITE = 64, 230  # of 255: nothing above, nothing below


def dim(samples: Samples) -> str:
    """Return a line where all images looked at are almost black or almost white, else ""."""
    low, high, looked = 255, 0, 0
    for number in _indices(samples):
        extremes = _extremes(samples, number)
        if extremes is not None:
            low, high, looked = min(low, extremes[0]), max(high, extremes[1]), looked + 1
            if low < WHITE and high > DARK:
                return ""
    if not looked:
        return ""
    given = samples.decoding.value_range
    if high <= DARK:
        told = f"the pictures of '{samples.name}' are almost black: of {looked} looked at none is above {high} of 255"
        if given is None and high and (bits := _bits(samples, high)):
            return f"{told}. Their values have {bits} bits at most: --value-range 0 {2**bits - 1} shows them in full"
    else:
        told = f"the pictures of '{samples.name}' are almost white: of {looked} looked at none is below {low} of 255"
    if given is not None:
        return f"{told}. Another --value-range than {given[0]:g} {given[1]:g} may be the right one"
    if not high:
        return f"{told}. Transparency is dropped: where the pictures are drawn in it, put them on a white ground"
    return f"{told}. Store truth values and other small numbers as 0 to 255" if high <= 16 else told


def _indices(samples: Samples) -> list[int]:
    found: list[int] = np.unique(np.linspace(0, len(samples) - 1, LOOKED_AT).astype(int)).tolist()
    return found if len(samples) else []


def _extremes(samples: Samples, number: int) -> tuple[int, int] | None:
    try:
        pixels = np.asarray(samples.image(number))
    except (BrokenImage, UserError):
        return None  # is told of where it is read for use
    return int(pixels.min()), int(pixels.max())


def _bits(samples: Samples, high: int) -> int:
    """Return how many bits the values have, 8 to 14; 0 where a value range does not change them: they are bytes."""
    scaled = copy.copy(samples)
    for bits in range(8, 15):
        scaled.decoding = replace(samples.decoding, value_range=(0, 2 ** (bits + 1) - 1))
        brightest = max(found[1] for number in _indices(samples) if (found := _extremes(scaled, number)))
        if brightest == high and bits == 8:
            return 0
        if brightest < 128:
            return bits
    return 0
