"""How images are prepared for a model: as its recipe evaluates, else as moco-v3 and MAE evaluate on ImageNet."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from triport.core.spec import IMAGENET_MEAN, IMAGENET_STD, AugmentSpec, CenterCrop, Pair, Resize

RESAMPLING = {"bilinear": 2, "bicubic": 3}  # Pillow's numbers, which transformers takes
RESIZED = 256 / 224  # the shorter side of ImageNet's pictures against what is cut out of it


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """The shorter side becomes `resize` pixels, the middle is cut out, values are scaled to [0, 1] and normalised."""

    resize: int
    crop: Pair
    interpolation: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    known: bool  # a recipe says so

    def describe(self) -> str:
        """One line for people."""
        size = f"{self.crop[0]} x {self.crop[1]}"
        line = f"shorter side {self.resize} pixels, {self.interpolation}, the middle {size}, mean {list(self.mean)}, "
        return f"{line}standard deviation {list(self.std)}" + ("" if self.known else " (assumed: no recipe says it)")

    def for_transformers(self) -> dict[str, Any]:
        """preprocessor_config.json: of ViT's image processors the one that cuts the middle out."""
        return {
            "image_processor_type": "BitImageProcessor",
            "do_convert_rgb": len(self.mean) == 3,
            "do_resize": True,
            "size": {"shortest_edge": self.resize},
            "resample": RESAMPLING[self.interpolation],
            "do_center_crop": True,
            "crop_size": {"height": self.crop[0], "width": self.crop[1]},
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": True,
            "image_mean": list(self.mean),
            "image_std": list(self.std),
        }

    def for_timm(self) -> dict[str, Any]:
        """What pretrained_cfg says of it."""
        return {
            "interpolation": self.interpolation,
            "crop_pct": min(self.crop) / self.resize,
            "crop_mode": "center",
            "mean": list(self.mean),
            "std": list(self.std),
        }


def preprocessing(recipe: AugmentSpec | None, image: Pair, channels: int) -> Preprocessing:
    """How a recipe evaluates, with the model's own image size; without a recipe 256 / 224 of it, bicubic."""
    mean, std = (IMAGENET_MEAN, IMAGENET_STD) if channels == 3 else ((0.0,) * channels, (1.0,) * channels)
    resize, interpolation = round(min(image) * RESIZED), "bicubic"
    if recipe is not None:
        mean, std = recipe.mean, recipe.std
        resize = min(image)
        for operation in recipe.views[0]:
            if isinstance(operation, Resize):
                resize, interpolation = operation.size, operation.interpolation
            elif isinstance(operation, CenterCrop) and operation.size != image:
                resize = round(resize * min(image) / min(operation.size))  # the model was resampled
    return Preprocessing(
        resize=resize, crop=image, interpolation=interpolation, mean=mean, std=std, known=recipe is not None
    )
