"""What a masked autoencoder's prediction looks like: the picture seen, made, pasted and whole, and its error."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from triport.core.augment import pixels
from triport.core.model.inventory import grid
from triport.core.model.patches import patchify, statistics, unpatchify
from triport.core.spec import MAE, AugmentSpec, ModelSpec, ViT

GREY = 128  # of hidden patches


@dataclass(frozen=True)
class Pictured:
    """Of n pictures uint8 (n, height, width, channels): what is seen, what the decoder makes of all patches, the same
    with the visible patches pasted in, and the original; `pixels` (n, patches, values) is the prediction in normalised
    pixels of the pictures, `losses` (n,) the mean squared error over the hidden patches as the model is trained."""

    masked: np.ndarray
    reconstruction: np.ndarray
    pasted: np.ndarray
    original: np.ndarray
    pixels: np.ndarray
    losses: np.ndarray


def pictured(
    spec: ModelSpec, evaluate: AugmentSpec, images: np.ndarray, prediction: np.ndarray, mask: np.ndarray
) -> Pictured:
    """Turn predictions (n, patches, values) of normalised images (n, C, H, W) under masks (n, patches) into pictures.

    Where targets are normalised patch by patch, each patch's own mean and deviation are taken from the original.
    """
    encoder, objective = spec.encoder, spec.objective
    assert isinstance(encoder, ViT) and isinstance(objective, MAE)
    own = patchify(images.astype(np.float64), encoder.patch)
    mean, deviation = statistics(own)
    target = (own - mean) / deviation if objective.normalised_pixels else own
    made = prediction.astype(np.float64)
    losses = (((made - target) ** 2).mean(axis=2) * mask).sum(axis=1) / mask.sum(axis=1)
    made = made * deviation + mean if objective.normalised_pixels else made
    hidden = mask[..., None] > 0

    def shown(rows: np.ndarray) -> np.ndarray:
        whole = unpatchify(rows, encoder.patch, grid(encoder), encoder.channels)
        return pixels.to_bytes(whole, evaluate.mean, evaluate.std)

    original = shown(own)
    return Pictured(
        masked=greyed(spec, original, mask),
        reconstruction=shown(made),
        pasted=shown(np.where(hidden, made, own)),
        original=original,
        pixels=made,
        losses=losses,
    )


def greyed(spec: ModelSpec, pictures: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Return pictures uint8 (n, height, width, channels) with the hidden patches of masks (n, patches) in grey."""
    encoder = spec.encoder
    assert isinstance(encoder, ViT)
    rows = mask.reshape(len(mask), *grid(encoder)).repeat(encoder.patch[0], axis=1).repeat(encoder.patch[1], axis=2)
    return np.where(rows[..., None] > 0, np.uint8(GREY), pictures)
