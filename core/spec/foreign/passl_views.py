"""PASSL's chains of image transforms as augmentations."""

from __future__ import annotations

from typing import Any

from triport.core.errors import UserError
from triport.core.spec.foreign.settings import Settings
from triport.core.spec.foreign.shared_views import interpolation, jitter, rand_augment
from triport.core.spec.spec import (
    AugmentSpec,
    CenterCrop,
    GaussianBlur,
    Grayscale,
    HorizontalFlip,
    MixSpec,
    Operation,
    RandomErasing,
    RandomResizedCrop,
    Resize,
    Solarize,
)

Scaling = dict[str, Any]  # mean and std, a number for each channel


def augmentation(s: Settings, loader: str) -> AugmentSpec:
    """The views that DataLoader.Train or DataLoader.Eval describes: one, or the two of TwoViewsTransform."""
    dataset = s.take(f"{loader}.dataset.name")
    if dataset not in ("ImageFolder", "ImageNetDataset"):
        raise UserError(f"{s.path}: the dataset {dataset} is not known here; ImageFolder and ImageNetDataset are")
    key = f"{loader}.dataset.transform{'' if dataset == 'ImageFolder' else '_ops'}"
    if s.inside(f"{key}.0") != ["TwoViewsTransform"]:
        view, scaling = chain(s, key)
        return AugmentSpec(views=(view,), **scaling)
    if s.inside(key) != ["0"]:
        raise UserError(f"{s.path}: {key}: nothing can stand beside TwoViewsTransform here")
    chains = [chain(s, f"{key}.0.TwoViewsTransform.base_transform{number}") for number in (1, 2)]
    if chains[0][1] != chains[1][1]:
        raise UserError(f"{s.path}: {key}: the views are normalised differently")
    return AugmentSpec(views=(chains[0][0], chains[1][0]), **chains[0][1])


def chain(s: Settings, chain: str) -> tuple[tuple[Operation, ...], Scaling]:
    """The operations of a list of transforms, and what it subtracts and divides by."""
    operations, scaling = list[Operation](), Scaling()
    for index in s.inside(chain):
        name, *more = s.inside(f"{chain}.{index}") or [str(s.take(f"{chain}.{index}"))]
        if more:
            raise UserError(f"{s.path}: {chain}.{index} has to be one transform, not {[name, *more]}")
        key = f"{chain}.{index}.{name}"
        if name in ("NormalizeImage", "Normalize"):
            scaling = _scaling(s, key, name)
        elif name == "DecodeImage":
            s.only(f"{key}.to_rgb", True)
            s.only(f"{key}.channel_first", False)
        elif name in ("ToCHWImage", "ToTensor"):
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
    return tuple(operations), scaling


def _scaling(s: Settings, key: str, name: str) -> Scaling:
    if name == "NormalizeImage" and abs(s.number(f"{key}.scale", "1.0/255.0") - 1 / 255) > 1e-9:
        raise UserError(f"{s.path}: {key}.scale can only be 1.0/255.0 here")
    s.only(f"{key}.order", "")
    return {part: s.numbers(f"{key}.{part}", 3, usual) for part, usual in PIXELS.items()}


def _crop(s: Settings, key: str) -> Operation:
    """RandomResizedCrop, which draws area and shape otherwise"""
    low, high = s.numbers(f"{key}.scale", 2, (0.08, 1.0))
    narrow, wide = s.numbers(f"{key}.ratio", 2, (3 / 4, 4 / 3))
    return RandomResizedCrop(
        min_area=low,
        max_area=high,
        ratio=(narrow, wide),
        interpolation=interpolation(s, f"{key}.interpolation"),
        size=s.pair(f"{key}.size"),
    )


def _flip(s: Settings, key: str) -> Operation:
    s.take(key, None)  # without settings of its own it stands as null
    return HorizontalFlip(p=s.number(f"{key}.p", 0.5))


def _old_flip(s: Settings, key: str) -> Operation:
    """RandomHorizontalFlip"""
    s.only(f"{key}.flip_code", 1)
    return HorizontalFlip(p=0.5)


def _rand_augment(s: Settings, key: str) -> Operation:
    s.only(f"{key}.interpolation", "bicubic")
    s.forget(f"{key}.img_size", "only translations by pixels would need it, and there are none")
    s.forget(f"{key}.mean", "what an operation uncovers gets the mean that normalisation takes away")
    return rand_augment(s, f"{key}.config_str")


def _jitter(s: Settings, key: str) -> Operation:
    return jitter(s, key, s.number(f"{key}.p", 1.0))


def _gray(s: Settings, key: str) -> Operation:
    return Grayscale(p=s.number(f"{key}.p", 0.1))


def _blur(s: Settings, key: str) -> Operation:
    low, high = s.numbers(f"{key}.sigma", 2, (0.1, 2.0))
    return GaussianBlur(p=s.number(f"{key}.p", 1.0), min_sigma=low, max_sigma=high)


def _solarize(s: Settings, key: str) -> Operation:
    return Solarize(p=s.number(f"{key}.p", 1.0))


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
    return Resize(size=s.whole(f"{key}.size"), interpolation=interpolation(s, f"{key}.interpolation"))


def _old_resize(s: Settings, key: str) -> Operation:
    """Resize, whose longer side is rounded down"""
    return Resize(size=s.whole(f"{key}.resize_short"), interpolation=interpolation(s, f"{key}.interpolation"))


def _centre(s: Settings, key: str) -> Operation:
    """CenterCrop"""
    return CenterCrop(size=s.pair(f"{key}.size"))


KNOWN = {
    "RandomResizedCrop": _crop,
    "RandomHorizontalFlip": _flip,
    "TimmAutoAugment": _rand_augment,
    "ColorJitter": _jitter,
    "RandomGrayscale": _gray,
    "SimCLRGaussianBlur": _blur,
    "BYOLSolarize": _solarize,
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
