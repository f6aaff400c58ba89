"""Whether a model of one channel would be shown colour pictures as grey, which is said and never done silently."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np

from triport.core.data.sample.decode import BrokenImage
from triport.core.data.sample.samples import Samples
from triport.core.errors import UserError

LOOKED_AT = 8  # images of a data set, evenly spaced
TINT = 8  # levels by which channels differ in a picture that has colours


def greyed(samples: Samples) -> str:
    """Return a line where images with colours become grey for a model of one channel, else ""."""
    if samples.channels != 1 or not len(samples):
        return ""
    coloured = copy.copy(samples)
    coloured.decoding, coloured.channels = replace(samples.decoding, channels=3), 3
    for index in np.unique(np.linspace(0, len(samples) - 1, LOOKED_AT).astype(int)).tolist():
        try:
            pixels = np.asarray(coloured.image(index)).astype(np.int16)
        except (BrokenImage, UserError):
            continue  # is told of where it is read for use
        if pixels.ndim == 3 and np.ptp(pixels, axis=2).max() > TINT:
            return (
                f"the recipe has one channel: the colour pictures of '{samples.name}' are read as grey. "
                "For their colours use a recipe of three channels (photos/…), or channels=3 mean=… std=…"
            )
    return ""
