"""The numbers of the shipped recipes against tables written here a second time, from the papers' code."""

from __future__ import annotations

from typing import Any

import pytest

from triport.core.spec import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    MAE,
    CenterCrop,
    Classifier,
    ColorJitter,
    GaussianBlur,
    Grayscale,
    HorizontalFlip,
    MixSpec,
    MoCo,
    Operation,
    RandAugment,
    RandomErasing,
    RandomResizedCrop,
    Recipe,
    Resize,
    ResNet,
    Solarize,
    ViT,
    recipe,
)

FLIP = HorizontalFlip(p=0.5)
OFFICIAL = [name for name in recipe.names() if not name.startswith(("tiny/", "photos/"))]


def peak(one: Recipe) -> float:
    return one.optimizer.lr * one.batch / one.optimizer.lr_batch


def held_out(interpolation: str, resize: int = 256, size: int = 224) -> tuple[tuple[Operation, ...], ...]:
    return ((Resize(size=resize, interpolation=interpolation), CenterCrop(size=(size, size))),)  # type: ignore[arg-type]


def crop(area: float, interpolation: str, size: int = 224, **more: Any) -> RandomResizedCrop:
    return RandomResizedCrop(min_area=area, interpolation=interpolation, size=(size, size), **more)  # type: ignore[arg-type]


# ---------------------------------------------------------------- encoders
SIZES = {  # width, depth, heads, patch
    "vit_small": (384, 12, 12, 16),
    "vit_conv_small": (384, 11, 12, 16),
    "vit_base": (768, 12, 12, 16),
    "deit_base": (768, 12, 12, 16),
    "vit_conv_base": (768, 11, 12, 16),
    "vit_large": (1024, 24, 16, 16),
    "vit_huge": (1280, 32, 16, 14),
}


@pytest.mark.parametrize("name", OFFICIAL)
def test_encoders(name: str) -> None:
    one = recipe.load(name)
    encoder, mae = one.model.encoder, "mae" in name
    assert one.train.mean == one.evaluate.mean == IMAGENET_MEAN == (0.485, 0.456, 0.406)
    assert one.train.std == one.evaluate.std == IMAGENET_STD == (0.229, 0.224, 0.225)
    assert encoder.image == ((448, 448) if name.endswith("448") else (224, 224)) and encoder.channels == 3
    if isinstance(encoder, ResNet):
        assert encoder.depth == 50 and encoder.zero_init_residual == (one.task == "pretrain") and "resnet50" in name
        return
    (size,) = [size for size in SIZES if size in name]
    assert (encoder.width, encoder.depth, encoder.heads, *encoder.patch) == (*SIZES[size], SIZES[size][3])
    assert encoder.stem == ("conv" if "conv" in size else "patch")
    assert encoder.position == ("mae" if mae else "moco")
    assert encoder.initial_values == ("timm" if one.task == "finetune" else "mae" if mae else "moco")
    assert encoder.norm_eps == 1e-6 and encoder.mlp_ratio == 4
    assert encoder.frozen_patch == (one.task == "pretrain" and not mae and "conv" not in size)
    assert encoder.trainable_position == (one.task == "finetune")


# ---------------------------------------------------------------- MoCo v3
R50, VIT = ("lars", 1.0, 0.2, 10), ("adamw", 0.2, 0.08, 40)  # optimiser, temperature, smallest crop, warm-up
MOCO = {  # batch, epochs, peak learning rate, weight decay, momentum, then the family's
    "resnet50_100ep": (4096, 100, 9.6, 1e-6, 0.99, R50),
    "resnet50_300ep": (4096, 300, 4.8, 1e-6, 0.99, R50),
    "resnet50_800ep": (4096, 800, 4.8, 1.5e-6, 0.996, R50),
    "resnet50_1000ep": (4096, 1000, 4.8, 1.5e-6, 0.996, R50),
    "vit_small_300ep": (4096, 300, 2.4e-3, 0.1, 0.99, VIT),
    "vit_base_300ep": (4096, 300, 2.4e-3, 0.1, 0.99, VIT),
    "vit_small_300ep_1node": (1024, 300, 6e-4, 0.1, 0.99, VIT),
    "vit_conv_small_300ep": (4096, 300, 2.4e-3, 0.1, 0.99, VIT),
    "vit_conv_base_300ep": (4096, 300, 2.4e-3, 0.1, 0.99, VIT),
    "vit_large_300ep": (4096, 300, 2.4e-3, 0.1, 0.99, VIT),
}


@pytest.mark.parametrize("name", MOCO)
def test_moco_pretraining(name: str) -> None:
    one, (batch, epochs, rate, decay, momentum, family) = recipe.load(f"moco_v3/{name}"), MOCO[name]
    kind, temperature, smallest, warmup = family
    assert one.task == "pretrain" and one.batch == batch and one.optimizer.kind == kind
    assert peak(one) == pytest.approx(rate, rel=1e-12) and one.optimizer.weight_decay == decay
    assert one.optimizer.decays == "all" and one.optimizer.layer_decay is None and one.optimizer.average is None
    assert one.optimizer.betas == (0.9, 0.999) and one.optimizer.eps == 1e-8
    assert one.optimizer.momentum == 0.9 and one.optimizer.trust == 0.001
    assert one.optimizer.clip_norm == (5.0 if "large" in name else None)
    assert one.model.objective == MoCo(temperature=temperature, momentum=momentum, hidden=4096, dim=256)
    assert isinstance(one.model.objective, MoCo) and one.model.objective.momentum_cosine
    schedule = one.schedule
    assert (schedule.epochs, schedule.warmup_epochs, schedule.min_lr) == (epochs, warmup, 0)
    assert schedule.warmup_lr == pytest.approx(2.4e-7 if "large" in name else 0)
    assert (schedule.per, schedule.cosine, schedule.lag) == ("step", "after_warmup", 0)
    jitter, gray = ColorJitter(p=0.8, brightness=0.4, contrast=0.4, saturation=0.2, hue=0.1), Grayscale(p=0.2)
    always, seldom = (GaussianBlur(p=p, min_sigma=0.1, max_sigma=2.0) for p in (1.0, 0.1))
    first = crop(smallest, "bilinear", max_area=1.0, ratio=(3 / 4, 4 / 3), style="retry")
    assert one.train.views == (
        (first, jitter, gray, always, FLIP),
        (first, jitter, gray, seldom, Solarize(p=0.2, threshold=128), FLIP),
    )
    assert one.evaluate.views == held_out("bilinear")


# ---------------------------------------------------------------- MAE
@pytest.mark.parametrize("size", ["base", "large", "huge"])
@pytest.mark.parametrize("epochs", [800, 1600])
def test_mae_pretraining(size: str, epochs: int) -> None:
    one = recipe.load(f"mae/vit_{size}_{epochs}ep")
    assert one.task == "pretrain" and one.batch == 4096 and peak(one) == pytest.approx(2.4e-3, rel=1e-12)
    optimizer, schedule = one.optimizer, one.schedule
    assert (optimizer.kind, optimizer.betas, optimizer.eps) == ("adamw", (0.9, 0.95), 1e-8)
    assert (optimizer.weight_decay, optimizer.decays, optimizer.clip_norm) == (0.05, "matrices", None)
    assert (schedule.epochs, schedule.warmup_epochs, schedule.min_lr, schedule.warmup_lr) == (epochs, 40, 0, 0)
    assert (schedule.per, schedule.cosine, schedule.lag) == ("step", "after_warmup", 0)
    decoder = {"decoder_width": 512, "decoder_depth": 8, "decoder_heads": 16}
    assert one.model.objective == MAE(normalised_pixels=True, mask_ratio=0.75, **decoder)  # type: ignore[arg-type]
    assert one.train.views == ((crop(0.2, "bicubic"), FLIP),) and one.evaluate.views == held_out("bicubic")


# ---------------------------------------------------------------- linear probes
@pytest.mark.parametrize(
    ("model", "rate"), [("resnet50", 0.4), *((f"vit_{s}", 12.0) for s in ("small", "base", "large"))]
)
def test_moco_linear(model: str, rate: float) -> None:
    one = recipe.load(f"transfer/moco_{model}_linear")
    assert one.task == "linear" and one.batch == 1024 and peak(one) == pytest.approx(rate, rel=1e-12)
    assert (one.optimizer.kind, one.optimizer.momentum, one.optimizer.weight_decay) == ("sgd", 0.9, 0)
    assert (one.schedule.epochs, one.schedule.warmup_epochs, one.schedule.per, one.schedule.min_lr) == (
        90,
        0,
        "epoch",
        0,
    )
    pooling = "mean" if model == "resnet50" else "token"
    frozen = {"frozen_encoder": True, "frozen_mode": "eval", "head_norm": False}
    assert one.model.objective == Classifier(classes=1000, pooling=pooling, head_std=0.01, **frozen)  # type: ignore[arg-type]
    assert one.train.views == ((crop(0.08, "bilinear"), FLIP),) and one.evaluate.views == held_out("bilinear")
    assert one.mix == MixSpec()


@pytest.mark.parametrize(("size", "epochs"), [("base", 90), ("large", 50), ("huge", 50)])
def test_mae_linear(size: str, epochs: int) -> None:
    one = recipe.load(f"transfer/mae_vit_{size}_linear")
    assert one.task == "linear" and one.batch == 16384 and peak(one) == pytest.approx(6.4, rel=1e-12)
    assert (one.optimizer.kind, one.optimizer.momentum, one.optimizer.weight_decay) == ("lars", 0.9, 0)
    assert (one.schedule.epochs, one.schedule.warmup_epochs, one.schedule.per, one.schedule.min_lr) == (
        epochs,
        10,
        "step",
        0,
    )
    frozen = {"frozen_encoder": True, "frozen_mode": "train", "head_norm": True}
    assert one.model.objective == Classifier(classes=1000, pooling="token", head_std=0.01, **frozen)  # type: ignore[arg-type]
    assert one.train.views == ((crop(0.08, "bicubic", style="once"), FLIP),)
    assert one.evaluate.views == held_out("bicubic") and one.mix == MixSpec()


# ---------------------------------------------------------------- fine-tuning
def strong(size: int = 224) -> tuple[tuple[Operation, ...], ...]:
    rand = RandAugment(magnitude=9.0, deviation=0.5, operations=2, p=0.5)
    erase = RandomErasing(p=0.25, min_area=0.02, max_area=1 / 3, ratio=0.3)
    return ((crop(0.08, "bicubic", size), FLIP, rand, erase),)


FULL_MIX = MixSpec(mixup=0.8, cutmix=1.0, probability=1.0, switch=0.5, smoothing=0.1)
MAE_TUNED = {  # batch, epochs, peak learning rate, layer decay, drop path, resize, crop
    "base_finetune": (1024, 100, 2e-3, 0.65, 0.1, 256, 224),
    "large_finetune": (1024, 50, 4e-3, 0.75, 0.2, 256, 224),
    "huge_finetune": (1024, 50, 4e-3, 0.75, 0.3, 256, 224),
    "huge_finetune_448": (256, 50, 1e-3, 0.75, 0.3, 512, 448),
}


@pytest.mark.parametrize("name", MAE_TUNED)
def test_mae_finetune(name: str) -> None:
    one = recipe.load(f"transfer/mae_vit_{name}")
    batch, epochs, rate, decay, drop, resize, size = MAE_TUNED[name]
    assert one.task == "finetune" and one.batch == batch and peak(one) == pytest.approx(rate, rel=1e-12)
    optimizer, schedule = one.optimizer, one.schedule
    assert (optimizer.kind, optimizer.betas, optimizer.eps) == ("adamw", (0.9, 0.999), 1e-8)
    assert (optimizer.weight_decay, optimizer.decays) == (0.05, "matrices_but_tokens")
    assert (optimizer.layer_decay, optimizer.clip_norm, optimizer.average) == (decay, None, None)
    assert (schedule.epochs, schedule.warmup_epochs, schedule.min_lr, schedule.warmup_lr) == (epochs, 5, 1e-6, 0)
    assert (schedule.per, schedule.cosine, schedule.lag) == ("step", "after_warmup", 0)
    assert one.model.objective == Classifier(classes=1000, pooling="mean", head_std=2e-5)
    assert isinstance(one.model.encoder, ViT) and one.model.encoder.drop_path == drop
    assert one.train.views == strong(size) and one.mix == FULL_MIX and one.data.repeats == 1
    assert one.evaluate.views == held_out("bicubic", resize, size)


PLAIN = ((crop(0.05, "bilinear"), FLIP),)
DEIT = {  # classes, epochs, peak, decay, warm-up, drop path, mixup, cutmix, lag, head, seed, repeats, reported
    "moco_vit_small_finetune": (1000, 150, 1e-3, 0.05, 5, 0.1, 0.8, 1.0, 1, 0.02, 0, 3, {"finetune": 81.4}),
    "moco_vit_base_finetune": (1000, 150, 1e-3, 0.05, 5, 0.1, 0.8, 1.0, 1, 0.02, 0, 3, {"finetune": 83.2}),
    "passl_deit_base_finetune": (1000, 150, 1e-3, 0.05, 5, 0.1, 0.8, 1.0, 0, 0.002, 2022, 3, {"finetune": 82.88}),
    "moco_vit_base_cifar10": (10, 100, 6e-4, 0.1, 3, 0.1, 0.8, 1.0, 1, 0.02, 0, 1, {"cifar10": 98.9}),
    "moco_vit_base_cifar100": (100, 100, 6e-4, 0.1, 3, 0.1, 0.5, 1.0, 1, 0.02, 0, 1, {"cifar100": 90.5}),
    "moco_vit_base_flowers": (102, 100, 6e-4, 0.3, 3, 0.1, 0.0, 0.0, 1, 0.02, 0, 1, {"flowers": 97.7}),
    "moco_vit_base_pets": (37, 100, 6e-4, 0.1, 3, 0.0, 0.8, 0.0, 1, 0.02, 0, 1, {"pets": 93.2}),
}


@pytest.mark.parametrize("name", DEIT)
def test_deit_finetune(name: str) -> None:
    one = recipe.load(f"transfer/{name}")
    classes, epochs, rate, decay, warmup, drop, mixup, cutmix, lag, head, seed, repeats, reported = DEIT[name]
    assert one.task == "finetune" and one.batch == 1024 and peak(one) == pytest.approx(rate, rel=1e-12)
    optimizer, schedule = one.optimizer, one.schedule
    assert (optimizer.kind, optimizer.betas, optimizer.eps) == ("adamw", (0.9, 0.999), 1e-8)
    assert (optimizer.weight_decay, optimizer.decays) == (decay, "matrices_but_tokens")
    assert (optimizer.layer_decay, optimizer.clip_norm) == (None, None)
    assert (schedule.epochs, schedule.warmup_epochs, schedule.min_lr, schedule.warmup_lr) == (
        epochs,
        warmup,
        1e-5,
        1e-6,
    )
    assert (schedule.per, schedule.cosine, schedule.lag) == ("epoch", "whole", lag)
    assert one.model.objective == Classifier(classes=classes, pooling="token", head_std=head)
    assert isinstance(one.model.encoder, ViT) and one.model.encoder.drop_path == drop
    imagenet = name.endswith("finetune")
    assert one.train.views == (strong() if imagenet else PLAIN)
    assert one.evaluate.views == held_out("bicubic" if imagenet else "bilinear")
    assert one.mix == MixSpec(mixup=mixup, cutmix=cutmix, probability=1.0, switch=0.5, smoothing=0.1)
    assert (one.seed, one.data.repeats, one.reported) == (seed, repeats, reported)
    assert one.data.name == ("imagenet" if imagenet else name.rpartition("_")[2])


@pytest.mark.parametrize(("name", "epochs", "drop"), [("moco_vit_large", 100, 0.5), ("mmpretrain_vit_base", 150, 0.1)])
def test_finetuning_as_mmpretrain_does_it(name: str, epochs: int, drop: float) -> None:
    one = recipe.load(f"transfer/{name}_finetune")
    optimizer, schedule = one.optimizer, one.schedule
    assert one.batch == 512 and peak(one) == pytest.approx(5e-4, rel=1e-12)
    assert (optimizer.kind, optimizer.betas, optimizer.eps, optimizer.weight_decay) == (
        "adamw",
        (0.9, 0.999),
        1e-8,
        0.05,
    )
    assert (optimizer.decays, optimizer.clip_norm) == ("matrices_but_tokens", 5.0)
    assert optimizer.average == pytest.approx(1 - 4e-5)
    assert (schedule.epochs, schedule.warmup_epochs, schedule.min_lr, schedule.warmup_lr) == (epochs, 5, 1e-5, 5e-7)
    assert (schedule.per, schedule.cosine, schedule.lag) == ("step", "after_warmup", 0)
    assert one.model.objective == Classifier(classes=1000, pooling="token", head_std=0.02)
    assert isinstance(one.model.encoder, ViT) and one.model.encoder.drop_path == drop
    assert one.train.views == strong() and one.mix == FULL_MIX and one.evaluate.views == held_out("bicubic")


# ---------------------------------------------------------------- accuracies
REPORTED: dict[str, dict[str, float]] = {
    "moco_v3/resnet50_100ep": {"linear": 68.9},
    "moco_v3/resnet50_300ep": {"linear": 72.8},
    "moco_v3/resnet50_800ep": {"linear": 74.4},
    "moco_v3/resnet50_1000ep": {"linear": 74.6},
    "moco_v3/vit_small_300ep": {"linear": 73.2, "finetune": 81.4},
    "moco_v3/vit_base_300ep": {"linear": 76.7, "finetune": 83.2},
    "moco_v3/vit_large_300ep": {"finetune": 83.7},
    "mae/vit_base_800ep": {"finetune": 83.3, "linear": 65.1},
    "mae/vit_base_1600ep": {"finetune": 83.6, "linear": 67.8},
    "mae/vit_large_800ep": {"finetune": 85.5, "linear": 73.7},
    "mae/vit_large_1600ep": {"finetune": 85.9, "linear": 76.0},
    "mae/vit_huge_1600ep": {"finetune": 86.9, "linear": 77.2},
    "transfer/moco_resnet50_linear": {"linear": 74.6},
    "transfer/moco_vit_small_linear": {"linear": 73.2},
    "transfer/moco_vit_base_linear": {"linear": 76.7},
    "transfer/moco_vit_large_linear": {"linear": 77.6},
    "transfer/moco_vit_large_finetune": {"finetune": 83.7},
    "transfer/mmpretrain_vit_base_finetune": {"finetune": 83.0},
    "transfer/mae_vit_base_linear": {"linear": 67.8},
    "transfer/mae_vit_large_linear": {"linear": 76.0},
    "transfer/mae_vit_huge_linear": {"linear": 77.2},
    "transfer/mae_vit_base_finetune": {"finetune": 83.6},
    "transfer/mae_vit_large_finetune": {"finetune": 85.9},
    "transfer/mae_vit_huge_finetune": {"finetune": 86.9},
    "transfer/mae_vit_huge_finetune_448": {"finetune": 87.3},
}


@pytest.mark.parametrize("name", [name for name in OFFICIAL if name.rpartition("/")[2] not in DEIT])
def test_reported(name: str) -> None:
    assert recipe.load(name).reported == REPORTED.get(name, {})
