"""Pictures of a dataset for a page: samples as they are read, and the views of them that a network is given."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from html import escape

import numpy as np
from PIL import Image

from triport.core.augment import augment, pixels
from triport.core.data.loader_checks import check_colours, possible
from triport.core.data.sample.decode import BrokenImage
from triport.core.data.sample.samples import Samples
from triport.core.errors import UserError
from triport.core.record import page
from triport.core.rng import generator
from triport.core.spec import AugmentSpec, Recipe

SAMPLES, VIEWED, DRAWS = 24, 6, 3  # samples of a split; images whose views are drawn, and how often
SIDE = 112  # pixels of the longer side in a sheet of samples
GAP = 4  # pixels between pictures


def sample_figures(dataset: Samples) -> list[str]:
    """Return figures of images spread evenly over the dataset, as they are read, with their classes."""
    figures = []
    for index in np.unique(np.linspace(0, len(dataset) - 1, min(SAMPLES, len(dataset))).astype(int)).tolist():
        try:
            image = pixels.as_array(dataset.image(index))
        except BrokenImage as error:
            figures.append(page.figure(name_of(dataset, index), "<p>cannot be read</p>", str(error)))
            continue
        count = image.shape[2]
        size = f"{image.shape[0]} x {image.shape[1]}, {count} channel{'s' * (count > 1)}"
        picture = fitted(Image.fromarray(visible(image)), SIDE)
        figures.append(page.figure(name_of(dataset, index), inline(picture, name_of(dataset, index)), size))
    return figures


def view_figures(dataset: Samples, recipe: Recipe, train: bool = True) -> list[str]:
    """Return a figure for each of a few images: in each row one view, drawn again in each column.

    What is shown went the whole way, normalised and erased, and was brought back to bytes. In evaluation there is one.
    """
    spec = recipe.train if train else recipe.evaluate
    check_colours(spec, dataset.channels, dataset.name)
    spec = possible(spec, dataset.channels)
    for word, numbers in (("mean", spec.mean), ("std", spec.std)):
        if len(numbers) not in (1, dataset.channels):
            raise UserError(f"the recipe's {word} has {len(numbers)} numbers, the images {dataset.channels} channels")
    figures = []
    for index in np.unique(np.linspace(0, len(dataset) - 1, min(VIEWED, len(dataset))).astype(int)).tolist():
        try:
            rows = [
                [view_of(dataset, index, spec, view, recipe.seed, epoch) for epoch in range(DRAWS if train else 1)]
                for view in range(len(spec.views))
            ]
        except BrokenImage:
            continue
        note = f"view 1 to {len(rows)} from top to bottom, epochs from left to right" if train else "as it is scored"
        figures.append(page.figure(name_of(dataset, index), inline(sheet(rows), "augmented views"), note))
    return figures


def view_of(dataset: Samples, index: int, spec: AugmentSpec, view: int, seed: int, epoch: int) -> np.ndarray:
    """Return a view of an image as a run of this seed draws it, uint8 (height, width, 1 or 3)."""
    image = dataset.image(index)
    size = (image.height, image.width) if isinstance(image, Image.Image) else (image.shape[0], image.shape[1])
    plan = augment.plan(spec, view, generator(seed, "augment", epoch, index, view), size)
    made = pixels.erase(pixels.normalise(pixels.apply(plan, image), spec.mean, spec.std), plan)
    mean, std = (np.array(numbers, np.float32)[:, None, None] for numbers in (spec.mean, spec.std))
    back = np.clip(np.rint((made * std + mean) * 255), 0, 255).astype(np.uint8)
    return visible(back.transpose(1, 2, 0))


def visible(image: np.ndarray) -> np.ndarray:
    """Return uint8 (height, width, 3): grey repeated, of other channel counts the first three, or the first."""
    return image[..., :3] if image.shape[2] >= 3 else np.repeat(image[..., :1], 3, axis=2)


def sheet(rows: Sequence[Sequence[np.ndarray]]) -> Image.Image:
    """Return pictures of one size per row on one white sheet."""
    height = sum(max(picture.shape[0] for picture in row) + GAP for row in rows) - GAP
    width = max(sum(picture.shape[1] + GAP for picture in row) for row in rows) - GAP
    whole = np.full((height, width, 3), 255, np.uint8)
    top = 0
    for row in rows:
        left = 0
        for picture in row:
            whole[top : top + picture.shape[0], left : left + picture.shape[1]] = picture
            left += picture.shape[1] + GAP
        top += max(picture.shape[0] for picture in row) + GAP
    return fitted(Image.fromarray(whole), 4 * SIDE)


def fitted(picture: Image.Image, side: int) -> Image.Image:
    """Return a picture whose longer side is at most `side`; small ones are enlarged by a whole factor."""
    factor = side // max(picture.size)
    if factor > 1:
        return picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)
    picture.thumbnail((side, side))
    return picture


def name_of(dataset: Samples, index: int) -> str:
    """Return the class of an image and where it lies."""
    label = dataset.label(index)
    place = dataset.where(index)
    return f"{dataset.classes[label]}: {place}" if label >= 0 else place


def inline(picture: Image.Image, title: str) -> str:
    """Return a picture as an <img> with a PNG in it."""
    file = io.BytesIO()
    picture.save(file, "PNG")
    text = base64.b64encode(file.getvalue()).decode()
    return f'<img alt="{escape(title, quote=True)}" src="data:image/png;base64,{text}">'
