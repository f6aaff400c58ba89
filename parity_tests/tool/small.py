"""Small models that exercise every branch of the vocabulary, with arrays and inputs that do not hide mistakes.

Initial values of a training run would: biases at 0 hide a lost bias, norms at 1 a lost scale. Here everything is random
and of a size that keeps activations near 1. Images are not square and heads are not what the width suggests.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from triport.core.model.inventory import grid, inventory
from triport.core.spec import MAE, Classifier, MoCo, ModelSpec, ResNet, ViT

VIT = ViT(
    width=32, depth=3, heads=8, position="moco", initial_values="moco", patch=(8, 4), image=(16, 12), frozen_patch=True
)
MAE_VIT = replace(VIT, position="mae", initial_values="mae", frozen_patch=False)
CONV = replace(VIT, stem="conv", patch=(16, 16), image=(32, 48), frozen_patch=False)
TUNED = replace(MAE_VIT, initial_values="timm", trainable_position=True, drop_path=0.4)
RESNET18, RESNET50 = (ResNet(depth=d, zero_init_residual=d == 50, image=(64, 64)) for d in (18, 50))

MOCO = MoCo(temperature=0.2, momentum=0.9, hidden=48, dim=16)
PIXELS = MAE(normalised_pixels=True, decoder_width=48, decoder_depth=2, decoder_heads=4, mask_ratio=0.6)
HEAD = Classifier(classes=7, pooling="token", head_std=0.01)
PROBE = replace(HEAD, frozen_encoder=True)

# A ResNet of another depth and width than torchvision's.
NARROW = ModelSpec(
    encoder=ResNet(depth=10, width=16, zero_init_residual=False, image=(64, 64)),
    objective=replace(MOCO, temperature=1.0),
)

MODELS = {
    "moco-vit": ModelSpec(encoder=VIT, objective=MOCO),
    "moco-conv": ModelSpec(encoder=CONV, objective=MOCO),
    "moco-resnet18": ModelSpec(encoder=RESNET18, objective=replace(MOCO, temperature=1.0)),
    "moco-resnet50": ModelSpec(encoder=RESNET50, objective=replace(MOCO, temperature=1.0)),
    "mae": ModelSpec(encoder=MAE_VIT, objective=PIXELS),
    "mae-raw-pixels": ModelSpec(encoder=MAE_VIT, objective=replace(PIXELS, normalised_pixels=False)),
    "probe-vit": ModelSpec(encoder=VIT, objective=PROBE),
    "probe-mae": ModelSpec(encoder=MAE_VIT, objective=replace(PROBE, head_norm=True, frozen_mode="train")),
    "probe-resnet18": ModelSpec(encoder=RESNET18, objective=replace(PROBE, pooling="mean")),
    "finetune-token": ModelSpec(encoder=TUNED, objective=HEAD),
    "finetune-mean": ModelSpec(encoder=TUNED, objective=replace(HEAD, pooling="mean")),
    "finetune-resnet50": ModelSpec(encoder=RESNET50, objective=replace(HEAD, pooling="mean")),
}


def arrays(spec: ModelSpec, seed: int = 0) -> dict[str, NDArray]:
    """Random arrays for every parameter and buffer of a model: float32, counters int64."""
    out: dict[str, NDArray] = {}
    for i, p in enumerate(inventory(spec)):
        draw = np.random.Generator(np.random.Philox(key=[seed, i])).standard_normal(p.shape, dtype=np.float32)
        if p.role in ("linear", "conv"):
            out[p.name] = draw / np.float32(math.sqrt(math.prod(p.shape[1:])))
        elif p.role == "norm" or p.name.endswith("running_var"):
            out[p.name] = 1 + np.float32(0.2) * np.tanh(draw)
        elif p.role == "counter":
            out[p.name] = np.array(3, np.int64)
        else:
            out[p.name] = np.float32(0.5) * draw
    return out


def inputs(spec: ModelSpec, n: int = 6, seed: int = 0) -> dict[str, NDArray]:
    """Everything a model of this kind can be fed, by name, for evaluation and for training."""
    draw = np.random.Generator(np.random.Philox(key=[seed, 1 << 32]))
    encoder, objective = spec.encoder, spec.objective
    shape: tuple[Any, ...] = (n, encoder.channels, *encoder.image)
    first, second = draw.standard_normal((2, *shape), dtype=np.float32)
    out = {"images": first}
    if isinstance(objective, MoCo):
        out |= {"view1": first, "view2": second}
    elif isinstance(objective, MAE):
        assert isinstance(encoder, ViT)
        out["mask_noise"] = draw.random((n, math.prod(grid(encoder))), dtype=np.float32)
    else:
        out["labels"] = draw.integers(0, objective.classes, n)
        if isinstance(encoder, ViT) and encoder.drop_path:
            out["drop_path"] = draw.random((n, encoder.depth, 2), dtype=np.float32)
    return out
