"""PASSL's chains of image transforms as augmentations."""

from __future__ import annotations

import re
from typing import Any

from backends.paddle.passl_settings import Settings
from core.errors import UserError
from core.spec import (
    AugmentSpec,
    CenterCrop,
    HorizontalFlip,
    Interpolation,
    MixSpec,
    Operation,
    Pair,
    RandAugment,
    RandomErasing,
    RandomResizedCrop,
    Resize,
)


def augmentation(s: Settings, loader: str) -> AugmentSpec:
    """The one view that DataLoader.Train or DataLoader.Eval describes."""
    s.only(f"{loader}.dataset.name", "ImageFolder")
    chain, operations, scaling = f"{loader}.dataset.transform", list[Operation](), dict[str, Any]()
    for index in s.inside(chain):
        (name,) = s.inside(f"{chain}.{index}")
        key = f"{chain}.{index}.{name}"
        if name == "NormalizeImage":
            if abs(s.number(f"{key}.scale", "1.0/255.0") - 1 / 255) > 1e-9:
                raise UserError(f"{s.path}: {key}.scale can only be 1.0/255.0 here")
            s.only(f"{key}.order", "")
            scaling = {part: tuple(float(x) for x in s.take(f"{key}.{part}")) for part in ("mean", "std")}
        elif name == "ToCHWImage":
            s.take(key, "")
        elif name in KNOWN:
            operations.append(KNOWN[name](s, key))
        else:
            raise UserError(f"{s.path}: the transform {name} is not known here; {', '.join(KNOWN)} are")
    if not scaling:
        raise UserError(f"{s.path}: {chain} has no NormalizeImage")
    return AugmentSpec(views=(tuple(operations),), **scaling)


def _size(s: Settings, key: str) -> Pair:
    size = s.take(key, 224)
    return (int(size[0]), int(size[1])) if isinstance(size, (list, tuple)) else (int(size), int(size))


def _interpolation(s: Settings, key: str) -> Interpolation:
    how = s.take(f"{key}.interpolation", "bilinear")
    if how not in ("bilinear", "bicubic"):
        raise UserError(f"{s.path}: {key}.interpolation is '{how}': take bilinear or bicubic")
    return how


def _crop(s: Settings, key: str) -> Operation:
    low, high = s.take(f"{key}.scale", (0.08, 1.0))
    narrow, wide = s.take(f"{key}.ratio", (3 / 4, 4 / 3))
    return RandomResizedCrop(
        min_area=float(low),
        max_area=float(high),
        ratio=(float(narrow), float(wide)),
        interpolation=_interpolation(s, key),
        size=_size(s, f"{key}.size"),
    )


def _flip(s: Settings, key: str) -> Operation:
    s.take(key, None)  # without settings of its own it stands as null
    return HorizontalFlip(p=s.number(f"{key}.prob", 0.5))


def _rand_augment(s: Settings, key: str) -> Operation:
    text = str(s.take(f"{key}.config_str"))
    found = re.fullmatch(r"rand-m(\d+(?:\.\d+)?)(?:-n(\d+))?-mstd(\d+(?:\.\d+)?)-inc1", text)
    if not found:
        raise UserError(f"{s.path}: {key}.config_str is '{text}'; here it is of the form rand-m9-mstd0.5-inc1")
    s.only(f"{key}.interpolation", "bicubic")
    s.take(f"{key}.img_size", None)  # of translations by pixels, which none of its operations makes
    s.take(f"{key}.mean", None)  # what is uncovered becomes the mean that normalisation takes away
    return RandAugment(magnitude=float(found[1]), operations=int(found[2] or 2), deviation=float(found[3]))


def _erase(s: Settings, key: str) -> Operation:
    s.only(f"{key}.mode", "pixel", "const")
    s.only(f"{key}.use_log_aspect", True, False)
    s.only(f"{key}.attempt", 10, 100)
    return RandomErasing(
        p=s.number(f"{key}.EPSILON", 0.5),
        min_area=s.number(f"{key}.sl", 0.02),
        max_area=s.number(f"{key}.sh", 0.4),
        ratio=s.number(f"{key}.r1", 0.3),
    )


def _resize(s: Settings, key: str) -> Operation:
    s.only(f"{key}.backend", "pil")
    return Resize(size=int(s.number(f"{key}.size")), interpolation=_interpolation(s, key))


def _centre(s: Settings, key: str) -> Operation:
    return CenterCrop(size=_size(s, f"{key}.size"))


KNOWN = {
    "RandomResizedCrop": _crop,
    "RandomHorizontalFlip": _flip,
    "TimmAutoAugment": _rand_augment,
    "RandomErasing": _erase,
    "Resize": _resize,
    "CenterCrop": _centre,
}


def mixing(s: Settings) -> MixSpec:
    """Mixup and CutMix of a batch: one of the two is chosen for each batch."""
    chain = "DataLoader.Train.dataset.batch_transform"
    if not s.inside(chain):
        return MixSpec()
    key = f"{chain}.0.TransformOpSampler"
    names = s.inside(key)
    if s.inside(chain) != ["0"] or not names or set(names) - {"Mixup", "Cutmix"}:
        raise UserError(f"{s.path}: {chain} can only be one TransformOpSampler of Mixup and Cutmix here")
    shares = {name: s.number(f"{key}.{name}.prob", 1.0) for name in names}
    alphas = {name: s.number(f"{key}.{name}.alpha", 1.0) for name in names}
    smoothing = {s.number(f"{key}.{name}.epsilon", 0.0) for name in names}
    for name in names:
        s.take(f"{key}.{name}.class_num", None)  # the model says it
    if len(smoothing) > 1:
        raise UserError(f"{s.path}: Mixup and Cutmix have different epsilon, which is one label smoothing here")
    whole = sum(shares.values())
    return MixSpec(
        mixup=alphas.get("Mixup", 0.0),
        cutmix=alphas.get("Cutmix", 0.0),
        probability=whole,
        switch=shares.get("Cutmix", 0.0) / whole if whole else 0.5,
        smoothing=smoothing.pop(),
    )
