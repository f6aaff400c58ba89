"""Images a second and core of the MoCo v3 pipeline (two views), beside torchvision's on Pillow; then by workers.

python benchmarks/loader.py [--images N] [--rounds N] [--recipe NAME] [--workers N ...]

Makes N natural-like 500 x 375 JPEGs in a temporary folder. Both pipelines decode each image once and make both views,
in turn, on one core; medians over the rounds and of the rounds' ratios are printed, by the clock and by processor time,
which other programs on the machine disturb less. Torchvision is optional: where it is missing only ours is timed.
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

from triport.core.augment import augment, native, pixels
from triport.core.data.datasets import Dataset, open_dataset
from triport.core.rng import generator
from triport.core.spec import (
    AugmentSpec,
    ColorJitter,
    DataSpec,
    GaussianBlur,
    Grayscale,
    HorizontalFlip,
    Operation,
    RandomResizedCrop,
    Solarize,
)
from triport.core.spec.recipe import load

SIZE = (375, 500)
Sample = Callable[[int], object]  # index -> the views of that image


# ---------------------------------------------------------------- images
def natural(index: int) -> np.ndarray:
    """An image with the spectrum of photographs (amplitude ~ 1 / frequency) and correlated colours, uint8 (H, W, 3)."""
    height, width = SIZE
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    frequency[0, 0] = 1 / width
    rng = generator(0, "natural", index)

    def field() -> np.ndarray:
        spectrum = rng.standard_normal(frequency.shape) + 1j * rng.standard_normal(frequency.shape)
        values = np.fft.irfft2(spectrum / frequency**1.1, s=SIZE)
        return values / values.std()

    light, warm, green = field(), field(), field()
    colours = np.stack([light + 0.3 * warm, light, light + 0.3 * green], -1)
    return np.clip(118 + 60 * colours, 0, 255).astype(np.uint8)


def make_folder(folder: Path, count: int) -> float:
    """Write `count` JPEGs of quality 90 as an image folder; return their mean size in bytes."""
    place = folder / "train" / "images"
    place.mkdir(parents=True)
    for index in range(count):
        Image.fromarray(natural(index)).save(place / f"{index:05}.jpg", quality=90)
    return statistics.mean(path.stat().st_size for path in place.iterdir())


# ---------------------------------------------------------------- the two pipelines
def ours(dataset: Dataset, spec: AugmentSpec) -> Sample:
    """The pipeline as `triport.core.data.loader` runs it on one image."""

    def sample(index: int) -> list[np.ndarray]:
        image = dataset.image(index)
        height, width = (image.height, image.width) if isinstance(image, Image.Image) else image.shape[:2]
        views = []
        for view in range(len(spec.views)):
            plan = augment.plan(spec, view, generator(0, index, view), (height, width))
            views.append(pixels.normalise(pixels.apply(plan, image), spec.mean, spec.std))
        return views

    return sample


class Blur:
    """MoCo v3's blur: Pillow's, with a radius drawn by Python."""

    def __init__(self, operation: GaussianBlur) -> None:
        self.sigmas = operation.min_sigma, operation.max_sigma

    def __call__(self, image: Image.Image) -> Image.Image:
        """Blurred."""
        return image.filter(ImageFilter.GaussianBlur(random.uniform(*self.sigmas)))


def torchvision(folder: Path, spec: AugmentSpec) -> Sample | None:
    """The same views by torchvision's transforms on Pillow images; None where it is not installed."""
    try:
        import torch
        import torchvision.transforms as tv
    except ImportError:
        return None
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
        raise SystemExit(f"torchvision has no {operation.kind} of the same meaning; compare another recipe")

    last = [tv.ToTensor(), tv.Normalize(spec.mean, spec.std)]
    views = [tv.Compose([*map(transform, view), *last]) for view in spec.views]
    paths = sorted((folder / "train" / "images").iterdir())

    def sample(index: int) -> list[object]:
        with open(paths[index], "rb") as file:
            image = Image.open(file).convert("RGB")
        return [view(image) for view in views]

    return sample


# ---------------------------------------------------------------- measuring
def measure(sample: Sample, count: int) -> tuple[float, float]:
    """Images a second by the clock and by processor time."""
    clock, processor = time.perf_counter(), time.process_time()
    for index in range(count):
        sample(index)
    return count / (time.perf_counter() - clock), count / (time.process_time() - processor)


def compare(mine: Sample, theirs: Sample | None, count: int, rounds: int) -> None:
    """Time both in turn and print medians."""
    for sample in (mine, theirs):
        if sample:
            measure(sample, min(count, 8))  # libraries are loaded, kernels compiled
    pairs = [(measure(mine, count), measure(theirs, count) if theirs else (0.0, 0.0)) for _ in range(rounds)]
    for kind, name in enumerate(("by the clock", "by processor time")):
        fast = statistics.median(pair[0][kind] for pair in pairs)
        line = f"{name:18}  ours {fast:6.1f} images/s"
        if theirs:
            slow = statistics.median(pair[1][kind] for pair in pairs)
            ratio = statistics.median(pair[0][kind] / pair[1][kind] for pair in pairs)
            line += f"   torchvision {slow:6.1f} images/s   ratio {ratio:.2f}"
        print(line, flush=True)
    if not theirs:
        print("torchvision is not installed here: pip install torchvision to compare", flush=True)


def by_workers(dataset: Dataset, spec: AugmentSpec, workers: list[int], seconds: float) -> None:
    """Print what the whole loader gives to a caller who does nothing with it, and the gain over the first number."""
    from triport.core.data.loader import Loader, images_per_second

    first = 0.0
    for number in workers:
        with Loader(dataset, spec, batch=16, train=True, workers=number) as loader:
            rate = images_per_second(loader, seconds)
        first = first or rate
        print(f"loader, {number} workers   {rate:6.1f} images/s   {rate / first:.2f} of the first", flush=True)


def main() -> None:
    """Read the command line, make the images, measure."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--recipe", default="moco_v3/vit_small_300ep", help="whose training views are made")
    parser.add_argument("--workers", type=int, nargs="*", default=[1, 2])
    parser.add_argument("--seconds", type=float, default=8.0, help="of each measurement with workers")
    options = parser.parse_args()
    spec = load(options.recipe).train
    with tempfile.TemporaryDirectory() as name:
        size = make_folder(Path(name), options.images)
        print(
            f"{options.images} JPEGs of {SIZE[1]} x {SIZE[0]}, {size / 1000:.0f} kB; {options.recipe}; {native.state()}"
        )
        dataset = open_dataset(name, "train", DataSpec(name="benchmark"), 3)
        compare(ours(dataset, spec), torchvision(Path(name), spec), options.images, options.rounds)
        by_workers(dataset, spec, options.workers, options.seconds)


if __name__ == "__main__":
    main()
