"""Strips of pictures for the demo's page and poster: a query beside its neighbours, each framed by whether it fits."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

RIGHT, WRONG, OWN = (34, 150, 84), (214, 48, 48), (120, 130, 145)  # of frames, readable on light and on dark
FRAME, GAP = 2, 3  # pixels


def strip(images: Sequence[np.ndarray], frames: Sequence[tuple[int, int, int]]) -> np.ndarray:
    """Return framed pictures side by side: uint8 (height, width, 4), transparent between them.

    images: uint8 (h, w, 1 or 3), all of one size; frames: a colour (red, green, blue) for each.
    """
    cells = [framed(image, colour) for image, colour in zip(images, frames, strict=True)]
    gap = np.zeros((cells[0].shape[0], GAP, 4), np.uint8)
    parts = [part for cell in cells for part in (cell, gap)][:-1]
    return np.concatenate(parts, axis=1)


def framed(image: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    """Return one picture in its frame, uint8 (h + 2 FRAME, w + 2 FRAME, 4)."""
    height, width = image.shape[:2]
    out = np.empty((height + 2 * FRAME, width + 2 * FRAME, 4), np.uint8)
    out[...] = (*colour, 255)
    out[FRAME:-FRAME, FRAME:-FRAME, :3] = image  # one channel goes into all three
    return out


def judged(query: int, labels: Sequence[int]) -> list[tuple[int, int, int]]:
    """The frames of neighbours: whether each has the query's class."""
    return [RIGHT if label == query else WRONG for label in labels]
