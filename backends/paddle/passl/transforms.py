"""PASSL's chains of image transforms as augmentations."""

from __future__ import annotations

import re
from typing import Any

from triport.backends.paddle.passl.settings import Settings
from triport.core.errors import UserError
from triport.core.spec import (
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
    dataset = s.take(f"{loader}.dataset.name")
    if dataset not in ("ImageFolder", "ImageNetDataset"):
        raise UserError(f"{s.path}: the dataset {dataset} is not known here; ImageFolder and ImageNetDataset are")
    chain = f"{loader}.dataset.transform{'' if dataset == 'ImageFolder' else '_ops'}"
    operations, scaling = list[Operation](), dict[str, Any]()
    for index in s.inside(chain):
        name, *more = s.inside(f"{chain}.{index}") or [str(s.take(f"{chain}.{index}"))]
        if more:
            raise UserError(f"{s.path}: {chain}.{index} has to be one transform, not {[name, *more]}")
        key = f"{chain}.{index}.{name}"
        if name == "NormalizeImage":
            if abs(s.number(f"{key}.scale", "1.0/255.0") - 1 / 255) > 1e-9:
                raise UserError(f"{s.path}: {key}.scale can only be 1.0/255.0 here")
            s.only(f"{key}.order", "")
            scaling = {part: s.numbers(f"{key}.{part}", 3, usual) for part, usual in PIXELS.items()}
        elif name == "DecodeImage":
            s.only(f"{key}.to_rgb", True)
            s.only(f"{key}.channel_first", False)
        elif name == "ToCHWImage":
            s.take(key, "")
        elif name in KNOWN:
            operations.append(KNOWN[name](s, key))
        elif name in OLD:
            if name in ("RandCropImage", "ResizeImage"):
                s.only(f"{key}.backend", "pil", "cv2")
            s.remarks.append(f"{key}: done as {OLD[name].__doc__}")
            operations.append(OLD[name](s, key))
        else:
            raise UserError(f"{s.path}: the transform {name} is not known here; {', '.join([*KNOWN, *OLD])} are")
    if not scaling:
        raise UserError(f"{s.path}: {chain} has no NormalizeImage")
    return AugmentSpec(views=(tuple(operations),), **scaling)


def _size(s: Settings, key: str) -> Pair:
    if isinstance(s.left.get(key), list):
        rows, columns = s.numbers(key, 2)
        return int(rows), int(columns)
    side = s.whole(key)
    return side, side


def _interpolation(s: Settings, key: str) -> Interpolation:
    how = s.take(f"{key}.interpolation", "bilinear")
    if how not in ("bilinear", "bicubic"):
        raise UserError(f"{s.path}: {key}.interpolation is '{how}': take bilinear or bicubic")
    return how


def _crop(s: Settings, key: str) -> Operation:
    """RandomResizedCrop, which draws area and shape otherwise"""
    low, high = s.numbers(f"{key}.scale", 2, (0.08, 1.0))
    narrow, wide = s.numbers(f"{key}.ratio", 2, (3 / 4, 4 / 3))
    return RandomResizedCrop(
        min_area=low,
        max_area=high,
        ratio=(narrow, wide),
        interpolation=_interpolation(s, key),
        size=_size(s, f"{key}.size"),
    )


def _flip(s: Settings, key: str) -> Operation:
    s.take(key, None)  # without settings of its own it stands as null
    return HorizontalFlip(p=s.number(f"{key}.p", 0.5))


def _old_flip(s: Settings, key: str) -> Operation:
    """RandomHorizontalFlip"""
    s.only(f"{key}.flip_code", 1)
    return HorizontalFlip(p=0.5)


def _rand_augment(s: Settings, key: str) -> Operation:
    text = str(s.take(f"{key}.config_str"))
    found = re.fullmatch(r"rand-m(\d+(?:\.\d+)?)(?:-n(\d+))?-mstd(\d+(?:\.\d+)?)-inc1", text)
    if not found:
        raise UserError(f"{s.path}: {key}.config_str is '{text}'; here it is of the form rand-m9-mstd0.5-inc1")
    s.only(f"{key}.interpolation", "bicubic")
    s.forget(f"{key}.img_size", "only translations by pixels would need it, and there are none")
    s.forget(f"{key}.mean", "what an operation uncovers gets the mean that normalisation takes away")
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
    return Resize(size=s.whole(f"{key}.size"), interpolation=_interpolation(s, key))


def _old_resize(s: Settings, key: str) -> Operation:
    """Resize, whose longer side is rounded down"""
    return Resize(size=s.whole(f"{key}.resize_short"), interpolation=_interpolation(s, key))


def _centre(s: Settings, key: str) -> Operation:
    """CenterCrop"""
    return CenterCrop(size=_size(s, f"{key}.size"))


KNOWN = {
    "RandomResizedCrop": _crop,
    "RandomHorizontalFlip": _flip,
    "TimmAutoAugment": _rand_augment,
    "RandomErasing": _erase,
    "Resize": _resize,
    "CenterCrop": _centre,
}
OLD = {"RandCropImage": _crop, "RandFlipImage": _old_flip, "ResizeImage": _old_resize, "CenterCropImage": _centre}
PIXELS = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


def mixing(s: Settings, classes: int) -> MixSpec:
    """Mixup and CutMix of a batch: one of the two is chosen for each batch."""
    chains = [f"DataLoader.Train.dataset.batch_transform{ending}" for ending in ("", "_ops")]
    chain = next((chain for chain in chains if s.inside(chain)), "")
    if not chain:
        return MixSpec()
    key = f"{chain}.0.TransformOpSampler"
    names = s.inside(key)
    if s.inside(chain) != ["0"] or not names or set(names) - {"Mixup", "Cutmix"}:
        raise UserError(f"{s.path}: {chain} can only be one TransformOpSampler of Mixup and Cutmix here")
    shares = {name: s.number(f"{key}.{name}.prob", 0.0) for name in names}
    alphas = {name: s.number(f"{key}.{name}.alpha", 1.0 if name == "Mixup" else 0.2) for name in names}
    smoothing = {s.number(f"{key}.{name}.epsilon", 0.0) for name in names}
    for name in names:
        s.only(f"{key}.{name}.class_num", classes)
    if len(smoothing) > 1:
        raise UserError(f"{s.path}: Mixup and Cutmix have different epsilon, which is one label smoothing here")
    whole = sum(shares.values())
    if whole > 1:
        raise UserError(f"{s.path}: the prob of Mixup and Cutmix add up to {whole}, more than 1")
    if whole < 1 and max(smoothing) > 0:
        s.remarks.append(f"{key}: labels of batches that are not mixed are smoothed as well")
    return MixSpec(
        mixup=alphas.get("Mixup", 0.0),
        cutmix=alphas.get("Cutmix", 0.0),
        probability=whole,
        switch=shares.get("Cutmix", 0.0) / whole if whole else 0.5,
        smoothing=smoothing.pop(),
    )
