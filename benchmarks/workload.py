"""What a step is measured on, and against: recipes, random batches, model FLOPs, the matrix-product peak."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import torch

from triport.core.data.loader import Batch
from triport.core.model import masking
from triport.core.model.flops import encoder_flops
from triport.core.model.inventory import grid
from triport.core.spec import MAE, MoCo, Recipe, ViT

RECIPES = {
    "moco-s": "moco_v3/vit_small_300ep",
    "moco-b": "moco_v3/vit_base_300ep",
    "mae-b": "mae/vit_base_800ep",
    "mae-l": "mae/vit_large_800ep",
    "r50": "moco_v3/resnet50_100ep",
    "tiny-moco": "tiny/test_moco_vit",  # these two to try the scripts out
    "tiny-mae": "tiny/test_mae_vit",
}
TITLES = {
    "moco-s": "MoCo ViT-S", "moco-b": "MoCo ViT-B", "mae-b": "MAE ViT-B", "mae-l": "MAE ViT-L", "r50": "MoCo ResNet-50",
    "tiny-moco": "tiny MoCo", "tiny-mae": "tiny MAE",
}  # fmt: skip
SHAPES = ((2048, 2048, 2048), (3152, 768, 3072), (3152, 384, 1536))  # of the products whose best rate is the peak


def random_batch(recipe: Recipe, n: int, seed: int = 0) -> Batch:
    """White-noise images and what the objective needs beside them."""
    rng, encoder = np.random.default_rng(seed), recipe.model.encoder
    count = 2 if isinstance(recipe.model.objective, MoCo) else 1
    shape = (n, encoder.channels, *encoder.image)
    views = tuple(rng.standard_normal(shape, dtype=np.float32) for _ in range(count))
    noise = None
    if isinstance(encoder, ViT) and count == 1:
        noise = masking.noise(seed, 0, range(n), int(np.prod(grid(encoder))))
    labels = np.zeros(n, np.int64)
    return Batch(images=views, labels=labels, targets=None, indices=labels, mask_noise=noise, drop_path=None)


def part(batch: Batch, rank: int, world: int) -> Batch:
    """The rows of one process."""
    n = len(batch.indices) // world
    rows = slice(rank * n, (rank + 1) * n)
    return Batch(
        images=tuple(view[rows] for view in batch.images),
        labels=batch.labels[rows],
        targets=None,
        indices=batch.indices[rows],
        mask_noise=None if batch.mask_noise is None else batch.mask_noise[rows],
        drop_path=None,
    )


def step_flops(recipe: Recipe) -> float:
    """Floating-point operations that a step's model needs per image: 2 per multiply-add, backward twice forward.

    Every token is counted through the last block, and MoCo's projector and predictor are left out.
    """
    encoder, objective = recipe.model.encoder, recipe.model.objective
    whole = encoder_flops(encoder)
    if isinstance(objective, MoCo):  # two views: forward and backward of one encoder, forward of the other
        return 2 * whole * 2 * 4
    assert isinstance(encoder, ViT) and isinstance(objective, MAE)
    patches = int(np.prod(grid(encoder)))

    def blocks(tokens: int, width: int, depth: int) -> float:
        return depth * (12 * tokens * width**2 + 2 * tokens**2 * width)

    seen = masking.visible_patches(patches, objective.mask_ratio)
    pixels, width = encoder.channels * encoder.patch[0] * encoder.patch[1], objective.decoder_width
    total = blocks(seen + 1, encoder.width, encoder.depth) + blocks(patches + 1, width, objective.decoder_depth)
    total += seen * pixels * encoder.width + (seen + 1) * encoder.width * width + patches * width * pixels
    return total * 2 * 3


def peak(precision: str, rounds: int = 3) -> float:
    """The best measured matrix-product rate of this process's threads, floating-point operations per second."""
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    best = 0.0
    for rows, inner, columns in SHAPES:
        a, b = torch.randn(rows, inner, dtype=dtype), torch.randn(inner, columns, dtype=dtype)
        for _ in range(rounds):
            best = max(best, 2 * rows * inner * columns / timed(lambda a=a, b=b: a @ b))  # type: ignore[misc]
    return best


def timed(function: Callable[[], object]) -> float:
    """Seconds of one call."""
    begin = time.perf_counter()
    function()
    return time.perf_counter() - begin
