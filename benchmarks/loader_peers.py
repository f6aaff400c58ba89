"""The views of a recipe by other libraries, for benchmarks/loader.py: torchvision on Pillow, albumentations on OpenCV.

Both are optional; where one is missing it is left out, with the reason.
"""

from __future__ import annotations

import importlib.metadata
import os
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

from triport.core.spec import (
    AugmentSpec,
    ColorJitter,
    GaussianBlur,
    Grayscale,
    HorizontalFlip,
    Operation,
    RandomResizedCrop,
    Solarize,
)

Sample = Callable[[int], object]  # index -> the views of that image


def unknown(library: str, operation: Operation) -> SystemExit:
    """What to raise where a library lacks an operation."""
    return SystemExit(f"{library} has no {operation.kind} of the same meaning; compare another recipe")


def versions(*names: str) -> str:
    """Return names and versions of installed distributions."""
    return ", ".join(f"{name} {importlib.metadata.version(name)}" for name in names)


# ---------------------------------------------------------------- torchvision
class Blur:
    """MoCo v3's blur: Pillow's, with a radius drawn by Python."""

    def __init__(self, operation: GaussianBlur) -> None:
        self.sigmas = operation.min_sigma, operation.max_sigma

    def __call__(self, image: Image.Image) -> Image.Image:
        """Blurred."""
        return image.filter(ImageFilter.GaussianBlur(random.uniform(*self.sigmas)))


def torchvision(paths: list[Path], spec: AugmentSpec) -> Sample:
    """The views by torchvision's transforms on Pillow images, decoded by Pillow; ImportError where it is missing."""
    import torch

    for name in ("nms", "qnms"):  # a torchvision built for CUDA looks for them when it is imported beside a CPU build
        if not hasattr(torch.ops.torchvision, name):
            torch.library.define(f"torchvision::{name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    import torchvision.transforms as tv

    torch.set_num_threads(1)

    def transform(operation: Operation) -> object:
        match operation:
            case RandomResizedCrop(size=size, interpolation=kind):
                areas = operation.min_area, operation.max_area
                return tv.RandomResizedCrop(size, areas, operation.ratio, tv.InterpolationMode(kind))
            case ColorJitter(brightness=brightness, contrast=contrast, saturation=saturation, hue=hue):
                return tv.RandomApply([tv.ColorJitter(brightness, contrast, saturation, hue)], operation.p)
            case Grayscale(p=p):
                return tv.RandomGrayscale(p)
            case GaussianBlur(p=p):
                return tv.RandomApply([Blur(operation)], p)
            case Solarize(p=p, threshold=threshold):
                return tv.RandomSolarize(threshold, p)
            case HorizontalFlip(p=p):
                return tv.RandomHorizontalFlip(p)
        raise unknown("torchvision", operation)

    last = [tv.ToTensor(), tv.Normalize(spec.mean, spec.std)]
    views = [tv.Compose([*map(transform, view), *last]) for view in spec.views]

    def sample(index: int) -> list[object]:
        with open(paths[index], "rb") as file:
            image = Image.open(file).convert("RGB")
        return [view(image) for view in views]

    return sample


# ---------------------------------------------------------------- albumentations
def albumentations(paths: list[Path], spec: AugmentSpec) -> Sample:
    """The views by albumentations, decoded by OpenCV; ImportError where one is missing.

    Its pictures differ: a crop is resized without antialiasing, and its blur is a Gaussian.
    """
    os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"  # it would ask the network for a newer version
    import albumentations as al
    import cv2

    cv2.setNumThreads(1)
    kinds = {"bilinear": cv2.INTER_LINEAR, "bicubic": cv2.INTER_CUBIC}

    def around_one(strength: float) -> tuple[float, float]:
        return max(0.0, 1 - strength), 1 + strength

    def transform(operation: Operation) -> object:
        match operation:
            case RandomResizedCrop(size=size, interpolation=kind):
                areas = operation.min_area, operation.max_area
                return al.RandomResizedCrop(size, areas, operation.ratio, kinds[kind])
            case ColorJitter(brightness=brightness, contrast=contrast, saturation=saturation, hue=hue):
                strengths = map(around_one, (brightness, contrast, saturation))
                return al.ColorJitter(*strengths, (-hue, hue), p=operation.p)
            case Grayscale(p=p):
                return al.ToGray(p=p)
            case GaussianBlur(p=p):
                return al.GaussianBlur(0, (operation.min_sigma, operation.max_sigma), p=p)
            case Solarize(p=p, threshold=threshold):
                return al.Solarize((threshold / 255, threshold / 255), p=p)
            case HorizontalFlip(p=p):
                return al.HorizontalFlip(p=p)
        raise unknown("albumentations", operation)

    last = al.Normalize(spec.mean, spec.std)
    views = [al.Compose([*map(transform, view), last]) for view in spec.views]

    def sample(index: int) -> list[np.ndarray]:
        data = np.fromfile(paths[index], np.uint8)
        image = cv2.cvtColor(cv2.imdecode(data, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
        return [np.ascontiguousarray(view(image=image)["image"].transpose(2, 0, 1)) for view in views]

    return sample


PEERS: dict[str, tuple[Callable[[list[Path], AugmentSpec], Sample], tuple[str, ...]]] = {
    "torchvision": (torchvision, ("torchvision", "torch", "pillow")),
    "albumentations": (albumentations, ("albumentations", "opencv-python-headless")),
}
