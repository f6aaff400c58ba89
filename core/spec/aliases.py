"""Names that other projects give to what the recipes train: mmpretrain's names, with the accuracies it reports."""

from __future__ import annotations

import functools
from dataclasses import dataclass


@dataclass(frozen=True)
class Alias:
    """Another project's name for a recipe, with what that name changes of it."""

    name: str
    recipe: str
    changes: tuple[str, ...] = ()  # overrides
    top1: float | None = None  # % that the other project reports
    project: str = "mmpretrain"


def _moco() -> list[Alias]:
    found = [
        Alias(f"mocov3_resnet50_8xb512-amp-coslr-{epochs}e_in1k", f"moco_v3/resnet50_{epochs}ep")
        for epochs in (100, 300, 800)
    ]
    for size, devices in (("small", "16xb256"), ("base", "16xb256"), ("large", "64xb64")):
        found.append(Alias(f"mocov3_vit-{size}-p16_{devices}-amp-coslr-300e_in1k", f"moco_v3/vit_{size}_300ep"))
    for epochs, top1 in ((100, 69.6), (300, 72.8), (800, 74.4)):
        name = f"resnet50_mocov3-{epochs}e-pre_8xb128-linear-coslr-90e_in1k"
        found.append(Alias(name, "transfer/moco_resnet50_linear", top1=top1))
    for size, top1 in (("small", 73.6), ("base", 76.9)):
        name = f"vit-{size}-p16_mocov3-pre_8xb128-linear-coslr-90e_in1k"
        found.append(Alias(name, f"transfer/moco_vit_{size}_linear", top1=top1))
    tuned = "vit-base-p16_mocov3-pre_8xb64-coslr-150e_in1k"
    found.append(Alias(tuned, "transfer/mmpretrain_vit_base_finetune", top1=83.0))
    large = "vit-large-p16_mocov3-pre_8xb64-coslr-100e_in1k"
    return [*found, Alias(large, "transfer/moco_vit_large_finetune", top1=83.7)]


# size -> epochs of pretraining -> top-1 % fine-tuned, by linear probe
MAE: dict[str, dict[int, tuple[float | None, float | None]]] = {
    "base": {300: (83.1, 60.8), 400: (83.3, 62.5), 800: (83.3, 65.1), 1600: (83.5, 67.1)},
    "large": {300: (None, None), 400: (85.2, 70.7), 800: (85.4, 73.7), 1600: (85.7, 75.5)},
    "huge": {1600: (86.9, None)},
}


def _mae() -> list[Alias]:
    found = []
    for size, runs in MAE.items():
        patch, tuned = ("p14" if size == "huge" else "p16"), (100 if size == "base" else 50)
        for epochs, (finetune, linear) in runs.items():
            base = f"mae/vit_{size}_{1600 if epochs == 1600 else 800}ep"
            reported = f"finetune = {finetune}, linear = {linear}" if finetune and linear else ""
            other = (f"schedule.epochs={epochs}", f"reported={{{reported}}}")
            changes: tuple[str, ...] = () if epochs in (800, 1600) else other
            # mmpretrain's list says p16 of the huge one, the file's name p14
            for size_patch in dict.fromkeys((patch, "p16")):
                found.append(Alias(f"mae_vit-{size}-{size_patch}_8xb512-amp-coslr-{epochs}e_in1k", base, changes))
            if finetune is not None:
                name = f"vit-{size}-{patch}_mae-{epochs}e-pre_8xb128-coslr-{tuned}e_in1k"
                found.append(Alias(name, f"transfer/mae_vit_{size}_finetune", top1=finetune))
            if linear is not None:
                name = f"vit-{size}-{patch}_mae-{epochs}e-pre_8xb2048-linear-coslr-90e_in1k"
                found.append(Alias(name, f"transfer/mae_vit_{size}_linear", top1=linear))
    name = "vit-huge-p14_mae-1600e-pre_32xb8-coslr-50e_in1k-448px"
    return [*found, Alias(name, "transfer/mae_vit_huge_finetune_448", top1=87.3)]


@functools.cache
def aliases() -> dict[str, Alias]:
    """Return every alias by its name."""
    return {alias.name: alias for alias in (*_moco(), *_mae())}


def of_recipe(name: str) -> list[Alias]:
    """Return the aliases of a recipe."""
    return [alias for alias in aliases().values() if alias.recipe == name]
