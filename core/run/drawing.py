"""What a run draws for its report: input views, reconstructions of fixed pictures, features in the plane.

Nothing of it draws from a generator that training draws from, and the model is only asked, in evaluation mode: a run
with pictures and one without have the same bits.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from triport.core import atomic
from triport.core.augment import augment, pixels
from triport.core.backend.learner import Autoencoder
from triport.core.data.datasets import BrokenImage, Dataset
from triport.core.errors import UserError
from triport.core.evaluate.projection import plane
from triport.core.evaluate.reconstruction import greyed, pictured
from triport.core.model import masking
from triport.core.model.inventory import grid
from triport.core.record import pictures
from triport.core.rng import generator
from triport.core.spec import MAE, AugmentSpec, Recipe, ViT

SHOWN = 6  # pictures on a sheet
WIDE = 640  # pixels of a sheet
CELL = 96  # pixels of a picture on it, at most
VIEWS, PROJECTION, RECONSTRUCTIONS = "views.png", "projection.json", "reconstructions"


def view_of(
    image: Image.Image | np.ndarray, index: int, spec: AugmentSpec, view: int, seed: int, epoch: int
) -> np.ndarray:
    """Return a view of image `index` as a run of this seed draws it, uint8 (height, width, channels).

    It goes the whole way, normalised and erased, and is brought back to bytes.
    """
    size = (image.height, image.width) if isinstance(image, Image.Image) else (image.shape[0], image.shape[1])
    plan = augment.plan(spec, view, generator(seed, "augment", epoch, index, view), size)
    made = pixels.erase(pixels.normalise(pixels.apply(plan, image), spec.mean, spec.std), plan)
    return np.asarray(pixels.to_bytes(made[None], spec.mean, spec.std)[0])


@dataclass
class Drawing:
    """Draws into the folder of a run, on rank 0. What cannot be drawn or written is told once and left out."""

    folder: Path
    recipe: Recipe
    train: Dataset
    test: Dataset
    classes: list[str]
    autoencoder: Autoencoder | None  # the learner, where it reconstructs
    warn: Callable[[str], None]
    _fixed: np.ndarray | None = None  # the held-out images that are reconstructed, normalised

    def begin(self) -> None:
        """Draw the input views, before training."""
        self._safely(self._views)

    def __call__(self, epoch: int, features: np.ndarray, labels: np.ndarray) -> None:
        """Draw held-out features (n, width) with labels (n,) in the plane, and reconstructions, after an epoch."""
        self._safely(lambda: self._plane(epoch, features, labels))
        autoencoder = self.autoencoder
        if autoencoder is not None:
            self._safely(lambda: self._reconstructions(epoch, autoencoder))

    def _safely(self, draw: Callable[[], None]) -> None:
        try:
            draw()
        except (OSError, UserError, ValueError, np.linalg.LinAlgError) as error:
            self.warn(f"a picture of the report was left out: {error}")

    # ------------------------------------------------------------ what is drawn
    def _views(self) -> None:
        spec, seed = self.recipe.train, self.recipe.seed
        columns: list[list[np.ndarray]] = []
        for index in spaced(len(self.train), SHOWN):
            try:
                image = self.train.image(index)
            except BrokenImage:
                continue
            views = [view_of(image, index, spec, view, seed, 0) for view in range(len(spec.views))]
            if isinstance(self.recipe.model.objective, MAE):
                views += [self._masked(views[0], index)]
            columns.append([small(view) for view in views])
        if columns:
            rows = [list(row) for row in zip(*columns)]
            pictures.write(self.folder / VIEWS, pictures.sheet(rows, WIDE))

    def _masked(self, view: np.ndarray, index: int) -> np.ndarray:
        encoder, objective = self.recipe.model.encoder, self.recipe.model.objective
        assert isinstance(encoder, ViT) and isinstance(objective, MAE)
        noise = masking.noise(self.recipe.seed, 0, [index], grid(encoder)[0] * grid(encoder)[1])
        mask = masking.mask(noise, objective.mask_ratio).mask
        return np.asarray(greyed(self.recipe.model, view[None], mask)[0])

    def _plane(self, epoch: int, features: np.ndarray, labels: np.ndarray) -> None:
        if np.isfinite(features).all() and len(features) > 1:
            text = json.dumps(plane(features, labels, self.classes, epoch))
            atomic.write_text(self.folder / PROJECTION, text + "\n", durable=False)

    def _reconstructions(self, epoch: int, autoencoder: Autoencoder) -> None:
        images = self._held_out()
        if not len(images):
            return
        encoder = self.recipe.model.encoder
        assert isinstance(encoder, ViT)
        noise = masking.noise(self.recipe.seed, 0, range(len(images)), grid(encoder)[0] * grid(encoder)[1])
        answer = autoencoder.reconstruct(images, noise)
        found = pictured(self.recipe.model, self.recipe.evaluate, images, answer["prediction"], answer["mask"])
        rows = [[small(picture) for picture in row] for row in (found.masked, found.pasted, found.original)]
        pictures.write(self.folder / RECONSTRUCTIONS / f"epoch_{epoch}.png", pictures.sheet(rows, WIDE))

    def _held_out(self) -> np.ndarray:
        """The same few images each time, as the recipe evaluates them."""
        if self._fixed is None:
            spec, found = self.recipe.evaluate, []
            for index in spaced(len(self.test), SHOWN):
                try:
                    image = self.test.image(index)
                except BrokenImage:
                    continue
                plan = augment.plan(spec, 0, generator("evaluate"), pixels.as_array(image).shape[:2])
                found.append(pixels.normalise(pixels.apply(plan, image), spec.mean, spec.std))
            self._fixed = np.stack(found) if found else np.zeros((0, 1, 1, 1), np.float32)
        return self._fixed


def spaced(length: int, count: int) -> list[int]:
    """Return at most `count` places evenly spaced, as folders come sorted by class."""
    return [int(place) for place in np.unique(np.linspace(0, length - 1, min(length, count)).astype(int))]


def small(picture: np.ndarray) -> np.ndarray:
    """Return a picture uint8 at most CELL pixels high and wide, with three channels; small ones are enlarged."""
    shown = pictures.visible(picture)
    factor = CELL // max(shown.shape[:2])
    if factor >= 1:
        return shown.repeat(factor, axis=0).repeat(factor, axis=1)
    made = Image.fromarray(np.ascontiguousarray(shown))
    made.thumbnail((CELL, CELL), Image.Resampling.BOX)
    return np.asarray(made)
