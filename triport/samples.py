"""Pictures of a dataset for a page: samples as they are read, and the views of them that a network is given."""

from __future__ import annotations

import base64
import io
from html import escape

import numpy as np
from PIL import Image

from triport.core.augment import pixels
from triport.core.data.loader_checks import check_colours
from triport.core.data.sample.decode import BrokenImage
from triport.core.data.sample.samples import Samples
from triport.core.errors import UserError
from triport.core.record import page
from triport.core.record.pictures import fitted, sheet, visible
from triport.core.run.drawing import view_of
from triport.core.spec import Recipe

SAMPLES, VIEWED, DRAWS = 24, 6, 3  # samples of a split; images whose views are drawn, and how often
SIDE = 112  # pixels of the longer side in a sheet of samples


def sample_figures(dataset: Samples) -> list[str]:
    """Return figures of images spread evenly over the dataset, as they are read, with their classes."""
    figures = []
    for index in np.unique(np.linspace(0, len(dataset) - 1, min(SAMPLES, len(dataset))).astype(int)).tolist():
        try:
            image = pixels.as_array(dataset.image(index))
        except BrokenImage as error:
            figures.append(page.figure(name_of(dataset, index), "<p>cannot be read</p>", str(error)))
            continue
        size = f"{image.shape[0]} x {image.shape[1]}, {image.shape[2]} channels"
        picture = fitted(Image.fromarray(visible(image)), SIDE)
        figures.append(page.figure(name_of(dataset, index), inline(picture, name_of(dataset, index)), size))
    return figures


def view_figures(dataset: Samples, recipe: Recipe, train: bool = True) -> list[str]:
    """Return a figure for each of a few images: in each row one view, drawn again in each column.

    What is shown went the whole way, normalised and erased, and was brought back to bytes. In evaluation there is one.
    """
    spec = recipe.train if train else recipe.evaluate
    check_colours(spec, dataset.channels, dataset.name)
    for word, numbers in (("mean", spec.mean), ("std", spec.std)):
        if len(numbers) not in (1, dataset.channels):
            raise UserError(f"the recipe's {word} has {len(numbers)} numbers, the images {dataset.channels} channels")
    figures = []
    for index in np.unique(np.linspace(0, len(dataset) - 1, min(VIEWED, len(dataset))).astype(int)).tolist():
        try:
            image = dataset.image(index)
            rows = [
                [view_of(image, index, spec, view, recipe.seed, epoch) for epoch in range(DRAWS if train else 1)]
                for view in range(len(spec.views))
            ]
        except BrokenImage:
            continue
        note = f"view 1 to {len(rows)} from top to bottom, epochs from left to right" if train else "as it is scored"
        figures.append(page.figure(name_of(dataset, index), inline(sheet(rows, 4 * SIDE), "augmented views"), note))
    return figures


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
