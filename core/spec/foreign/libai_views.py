"""LiBai's chains of flowvision transforms, and its Mixup, as augmentations."""

from __future__ import annotations

from collections.abc import Callable
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


def two_views(s: Settings, key: str) -> AugmentSpec:
    """The views of a transform that makes two of each image, or the same chain twice for one that does not say so."""
    s.one_of(f"{key}._target_", ("TwoCropsTransform",))
    chains = [chain(s, f"{key}.base_transform{number}") for number in (1, 2)]
    if chains[0][1] != chains[1][1]:
        raise UserError(f"{s.path}: {key}: the views are normalised differently")
    return AugmentSpec(views=tuple(view for view, _ in chains), **chains[0][1])


def one_view(s: Settings, key: str) -> AugmentSpec:
    """The one view of a Compose."""
    view, scaling = chain(s, key)
    return AugmentSpec(views=(view,), **scaling)


def chain(s: Settings, key: str) -> tuple[tuple[Operation, ...], Scaling]:
    """The operations of a Compose, and what it subtracts and divides by."""
    s.one_of(f"{key}._target_", ("Compose",))
    steps, scaling = list[Operation](), Scaling()
    for number in s.inside(f"{key}.transforms"):
        step = f"{key}.transforms.{number}"
        name = str(s.take(f"{step}._target_"))
        if name == "Normalize":
            scaling = {part: s.numbers(f"{step}.{part}", 3) for part in ("mean", "std")}
        elif name == "RandomApply":
            steps += applied(s, step)
        elif name in KNOWN:
            steps.append(KNOWN[name](s, step, None))
        elif name != "ToTensor":
            raise UserError(f"{s.path}: the transform {name} is not known here; {', '.join(KNOWN)} are")
    if not scaling:
        raise UserError(f"{s.path}: {key} has no Normalize")
    return tuple(steps), scaling


def applied(s: Settings, step: str) -> list[Operation]:
    """The one operation that RandomApply applies with its probability."""
    inside = s.inside(f"{step}.transforms")
    if inside != ["0"]:
        raise UserError(f"{s.path}: {step} applies {len(inside)} transforms at once; here it can be one")
    name, p = str(s.take(f"{step}.transforms.0._target_")), s.number(f"{step}.p", 0.5)
    if name not in ("ColorJitter", "GaussianBlur", "Solarize", "RandomGrayscale"):
        raise UserError(f"{s.path}: {step}: RandomApply of {name} is not known here")
    return [KNOWN[name](s, f"{step}.transforms.0", p)]


def _crop(s: Settings, key: str, p: float | None) -> Operation:
    low, high = s.numbers(f"{key}.scale", 2, (0.08, 1.0))
    narrow, wide = s.numbers(f"{key}.ratio", 2, (3 / 4, 4 / 3))
    how = interpolation(s, f"{key}.interpolation")
    size = s.pair(f"{key}.size")
    return RandomResizedCrop(min_area=low, max_area=high, ratio=(narrow, wide), interpolation=how, size=size)


def _flip(s: Settings, key: str, p: float | None) -> Operation:
    return HorizontalFlip(p=s.number(f"{key}.p", 0.5))


def _jitter(s: Settings, key: str, p: float | None) -> Operation:
    return jitter(s, key, 1.0 if p is None else p)


def _gray(s: Settings, key: str, p: float | None) -> Operation:
    return Grayscale(p=s.number(f"{key}.p", 0.1) if p is None else p)


def _blur(s: Settings, key: str, p: float | None) -> Operation:
    low, high = s.numbers(f"{key}.sigma", 2, (0.1, 2.0))
    return GaussianBlur(p=1.0 if p is None else p, min_sigma=low, max_sigma=high)


def _solarize(s: Settings, key: str, p: float | None) -> Operation:
    return Solarize(p=1.0 if p is None else p, threshold=s.whole(f"{key}.threshold", 128))


def _rand_augment(s: Settings, key: str, p: float | None) -> Operation:
    s.forget(f"{key}.hparams.translate_const", "only translations by pixels would need it, and there are none")
    s.forget(f"{key}.hparams.img_mean", "what an operation uncovers gets the mean that normalisation takes away")
    for name in s.inside(f"{key}.hparams.interpolation"):  # str_to_interp_mode("bicubic")
        s.one_of(f"{key}.hparams.interpolation.{name}", ("bicubic", "str_to_interp_mode"))
    s.one_of(f"{key}.hparams.interpolation", ("bicubic", "BICUBIC"), "bicubic")
    return rand_augment(s, f"{key}.config_str")


def _erase(s: Settings, key: str, p: float | None) -> Operation:
    s.one_of(f"{key}.mode", ("pixel",), "const")
    s.only(f"{key}.max_count", 1)
    s.only(f"{key}.num_splits", 0)
    s.forget(f"{key}.device", "images are erased where they are prepared")
    return RandomErasing(
        p=s.number(f"{key}.probability", 0.5),
        min_area=s.number(f"{key}.min_area", 0.02),
        max_area=s.number(f"{key}.max_area", 1 / 3),
        ratio=s.number(f"{key}.min_aspect", 0.3),
    )


def _resize(s: Settings, key: str, p: float | None) -> Operation:
    return Resize(size=s.whole(f"{key}.size"), interpolation=interpolation(s, f"{key}.interpolation"))


def _centre(s: Settings, key: str, p: float | None) -> Operation:
    return CenterCrop(size=s.pair(f"{key}.size"))


KNOWN: dict[str, Callable[[Settings, str, float | None], Operation]] = {
    "RandomResizedCrop": _crop,
    "RandomHorizontalFlip": _flip,
    "ColorJitter": _jitter,
    "RandomGrayscale": _gray,
    "GaussianBlur": _blur,
    "Solarize": _solarize,
    "rand_augment_transform": _rand_augment,
    "RandomErasing": _erase,
    "Resize": _resize,
    "CenterCrop": _centre,
}


def mixing(s: Settings, key: str, classes: int) -> MixSpec:
    """flowvision's Mixup, which is timm's."""
    if not s.has(key):
        return MixSpec()
    s.only(f"{key}._target_", "Mixup")
    s.only(f"{key}.mode", "batch")
    s.only(f"{key}.num_classes", classes, 1000)
    s.only(f"{key}.correct_lam", True)
    if s.has(f"{key}.cutmix_minmax"):
        raise UserError(f"{s.path}: {key}.cutmix_minmax is not known here")
    numbers: dict[str, Any] = {
        "mixup": s.number(f"{key}.mixup_alpha", 1.0),
        "cutmix": s.number(f"{key}.cutmix_alpha", 0.0),
        "probability": s.number(f"{key}.prob", 1.0),
        "switch": s.number(f"{key}.switch_prob", 0.5),
        "smoothing": s.number(f"{key}.label_smoothing", 0.1),
    }
    return MixSpec(**numbers)
