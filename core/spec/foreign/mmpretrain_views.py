"""mmpretrain's pipelines of image transforms as augmentations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from triport.core.errors import UserError
from triport.core.spec.foreign.settings import Settings
from triport.core.spec.foreign.shared_views import held_out, interpolation, jitter
from triport.core.spec.spec import (
    AugmentSpec,
    CenterCrop,
    Encoder,
    GaussianBlur,
    Grayscale,
    HorizontalFlip,
    Objective,
    Operation,
    RandAugment,
    RandomErasing,
    RandomResizedCrop,
    Resize,
    Solarize,
)


def augmentation(s: Settings, encoder: Encoder, objective: Objective) -> tuple[AugmentSpec, AugmentSpec]:
    """The views of training and of scoring; where the file has no held-out images, those of the paper."""
    key, scoring = "train_dataloader.dataset.pipeline", "val_dataloader.dataset.pipeline"
    more: dict[str, Any] = {part: _pixels(s, part) for part in ("mean", "std")}
    several = [number for number in s.inside(key) if s.left.get(f"{key}.{number}.type") == "MultiView"]
    if several:
        views = _several(s, f"{key}.{several[0]}")
        rest = chain(s, key)
        if rest:
            raise UserError(f"{s.path}: {key}: nothing can stand beside MultiView here")
        train = AugmentSpec(views=views, **more)
    else:
        train = AugmentSpec(views=(chain(s, key),), **more)
    if s.has(scoring):
        return train, AugmentSpec(views=(chain(s, scoring),), **more)
    return train, AugmentSpec(views=(held_out(s, "val_dataloader", encoder, objective),), **more)


def _pixels(s: Settings, part: str) -> tuple[float, ...]:
    """Mean or deviation in shares of 255."""
    usual = {"mean": (123.675, 116.28, 103.53), "std": (58.395, 57.12, 57.375)}[part]
    return tuple(float(f"{value / 255:.6g}") for value in s.numbers(f"data_preprocessor.{part}", 3, usual))


def _several(s: Settings, key: str) -> tuple[tuple[Operation, ...], ...]:
    s.take(f"{key}.type")
    counts = s.take(f"{key}.num_views")
    counts = [counts] if isinstance(counts, int) else list(counts)
    chains = [chain(s, f"{key}.transforms.{number}") for number in s.inside(f"{key}.transforms")]
    if len(chains) != len(counts):
        raise UserError(f"{s.path}: {key}.num_views has {len(counts)} numbers for {len(chains)} chains")
    return tuple(view for view, count in zip(chains, counts) for _ in range(int(count)))


def chain(s: Settings, key: str) -> tuple[Operation, ...]:
    """The operations of a pipeline."""
    steps = list[Operation]()
    for number in s.inside(key):
        name = str(s.take(f"{key}.{number}.type"))
        if name == "RandomApply":
            steps += _applied(s, f"{key}.{number}")
        elif name in KNOWN:
            step = KNOWN[name](s, f"{key}.{number}")
            if getattr(step, "p", 1.0) > 0:
                steps.append(step)
            else:
                s.remarks.append(f"{key}.{number}: never happens, so it is left out: {step}")
        elif name not in ("LoadImageFromFile", "PackInputs"):
            raise UserError(f"{s.path}: the transform {name} is not known here; {', '.join(KNOWN)} are")
    return tuple(steps)


def _applied(s: Settings, key: str) -> list[Operation]:
    if s.inside(f"{key}.transforms") != ["0"] or s.take(f"{key}.transforms.0.type") != "ColorJitter":
        raise UserError(f"{s.path}: {key}: RandomApply can only be of one ColorJitter here")
    return [jitter(s, f"{key}.transforms.0", s.number(f"{key}.prob", 0.5))]


def _backend(s: Settings, key: str) -> None:
    how = s.take(f"{key}.backend", "cv2")
    if how != "pillow":
        s.remarks.append(f"{key}.backend = {how}: images are resized as Pillow does, not OpenCV")


def _crop(s: Settings, key: str) -> Operation:
    _backend(s, key)
    low, high = s.numbers(f"{key}.crop_ratio_range", 2, (0.08, 1.0))
    narrow, wide = s.numbers(f"{key}.aspect_ratio_range", 2, (3 / 4, 4 / 3))
    how = interpolation(s, f"{key}.interpolation")
    size = s.pair(f"{key}.scale")
    return RandomResizedCrop(min_area=low, max_area=high, ratio=(narrow, wide), interpolation=how, size=size)


def _jitter(s: Settings, key: str) -> Operation:
    return jitter(s, key, 1.0)


def _gray(s: Settings, key: str) -> Operation:
    s.forget(f"{key}.channel_weights", "the luma is Pillow's, 0.299, 0.587 and 0.114 of red, green and blue")
    s.only(f"{key}.keep_channels", True, False)
    return Grayscale(p=s.number(f"{key}.prob", 0.5))


def _blur(s: Settings, key: str) -> Operation:
    low, high = s.numbers(f"{key}.magnitude_range", 2)
    s.one_of(f"{key}.magnitude_std", ("inf",))
    return GaussianBlur(p=s.number(f"{key}.prob", 0.5), min_sigma=low, max_sigma=high)


def _solarize(s: Settings, key: str) -> Operation:
    return Solarize(p=s.number(f"{key}.prob", 0.5), threshold=s.whole(f"{key}.thr"))


def _flip(s: Settings, key: str) -> Operation:
    s.only(f"{key}.direction", "horizontal")
    return HorizontalFlip(p=s.number(f"{key}.prob", 0.5))


def _rand_augment(s: Settings, key: str) -> Operation:
    s.one_of(f"{key}.policies", ("timm_increasing",))
    s.only(f"{key}.total_level", 10)
    s.only(f"{key}.hparams.interpolation", "bicubic")
    s.forget(f"{key}.hparams.pad_val", "what an operation uncovers gets the mean that normalisation takes away")
    return RandAugment(
        operations=s.whole(f"{key}.num_policies"),
        magnitude=s.number(f"{key}.magnitude_level"),
        deviation=s.number(f"{key}.magnitude_std", 0.0),
    )


def _erase(s: Settings, key: str) -> Operation:
    s.one_of(f"{key}.mode", ("rand",), "const")
    for part in ("fill_color", "fill_std"):
        s.forget(f"{key}.{part}", "erased after normalisation, where these are 0 and 1")
    narrow, _ = s.numbers(f"{key}.aspect_range", 2, (0.3, 1 / 0.3))
    return RandomErasing(
        p=s.number(f"{key}.erase_prob", 0.5),
        min_area=s.number(f"{key}.min_area_ratio", 0.02),
        max_area=s.number(f"{key}.max_area_ratio", 0.4),
        ratio=narrow,
    )


def _resize(s: Settings, key: str) -> Operation:
    _backend(s, key)
    s.only(f"{key}.edge", "short")
    return Resize(size=s.whole(f"{key}.scale"), interpolation=interpolation(s, f"{key}.interpolation"))


def _centre(s: Settings, key: str) -> Operation:
    return CenterCrop(size=s.pair(f"{key}.crop_size"))


KNOWN: dict[str, Callable[[Settings, str], Operation]] = {
    "RandomResizedCrop": _crop,
    "ColorJitter": _jitter,
    "RandomGrayscale": _gray,
    "GaussianBlur": _blur,
    "Solarize": _solarize,
    "RandomFlip": _flip,
    "RandAugment": _rand_augment,
    "RandomErasing": _erase,
    "ResizeEdge": _resize,
    "CenterCrop": _centre,
}
