"""From (seed, epoch, step) to a batch: which samples, which draws, which pixels. Nothing here remembers or waits.

Loader processes and the in-line loader run the same code, so who makes a batch changes nothing in it.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from triport.core.augment import augment, pixels
from triport.core.augment.mix import Mix
from triport.core.data.datasets import BrokenImage
from triport.core.errors import UserError
from triport.core.model import masking
from triport.core.rng import generator
from triport.core.spec import AugmentSpec, MixSpec

if TYPE_CHECKING:
    from triport.core.data.datasets import Dataset

TRIES = 100  # replacements tried for one broken image


@dataclass(frozen=True, eq=False)
class Batch:
    """A micro-batch: n samples on one rank, ready for a model."""

    # one per view: float32 (n, channels, height, width), normalised; or uint8 (n, height, width, channels) and `table`
    images: tuple[np.ndarray, ...]
    labels: np.ndarray  # int64 (n,), -1 where nobody knows it
    targets: np.ndarray | None  # float32 (n, classes), with Mixup, CutMix or label smoothing
    indices: np.ndarray  # int64 (n,), places in the dataset
    mask_noise: np.ndarray | None  # float32 (n, patches), for MAE
    drop_path: np.ndarray | None  # float32 (n, depth, 2), uniform in [0, 1): block, and attention or MLP branch
    table: np.ndarray | None = None  # float32 (channels, 256): what normalisation makes of each byte


class Job(NamedTuple):
    """Which micro-batch of this rank."""

    epoch: int
    step: int
    micro: int


class Broken(NamedTuple):
    """An image that cannot be used: which, why, and its pixels where they are merely too many."""

    image: int
    why: str
    pixels: int = 0


class Field(NamedTuple):
    """One array of a batch: what a row looks like."""

    name: str
    row: tuple[int, ...]
    kind: str  # numpy's name of the number type


@functools.lru_cache(maxsize=4)
def order(seed: int, epoch: int, length: int, repeats: int = 1) -> np.ndarray:
    """Return the samples of an epoch in order, int64: a permutation of 0..length - 1. Do not write into it.

    With repeated augmentation (DeiT samplers.py) each drawn sample stands `repeats` times in a row, a a a b b b ...,
    and the epoch is cut to floor(length / 256) * 256 samples as there (to `length` where that is below 256): it lasts
    as long as any, with a third of the images. DeiT deals the repeats of a sample to different ranks; here a batch is
    divided in order, so that two processes see the halves of what one would see.
    """
    drawn = generator(seed, "order", epoch).permutation(length).astype(np.int64)
    if repeats > 1:
        count = length // 256 * 256 or length
        drawn = np.repeat(drawn[: -(-count // repeats)], repeats)[:count]
    drawn.flags.writeable = False
    return drawn


@dataclass(frozen=True, kw_only=True)
class BatchMaker:
    """All that the making of any batch depends on; picklable, so that each loader process gets one.

    The draws of a sample depend on the seed, the epoch, the sample (and which of its repeats) and the view. A training
    image that is broken is replaced by another of the same epoch, chosen by those four as well; it takes over the
    draws of the place, and its own index and label. In evaluation a broken image is left out, as a replacement would
    count twice.
    """

    dataset: Dataset
    augment: AugmentSpec
    shapes: tuple[tuple[int, ...], ...]  # of each view: channels, height, width
    train: bool
    seed: int
    batch: int  # global; in evaluation what a step takes of each rank's own part, times `world`
    rank: int
    world: int
    micro: int
    repeats: int
    mix: MixSpec
    classes: int
    patches: int  # of the mask noise; 0 for none
    depth: int  # of the drop path draws; 0 for none
    raw: bool = False  # views stay bytes, and whoever takes them normalises them by `Batch.table`

    # ---------------------------------------------------------------- which samples
    @property
    def rows(self) -> int:
        """Samples in a micro-batch; the last one of an evaluation may have fewer."""
        return self.batch // (self.world * self.micro)

    @property
    def own(self) -> range:
        """In evaluation this rank's part of the dataset: contiguous, nothing twice, nothing left out."""
        length = len(self.dataset)
        return range(length * self.rank // self.world, length * (self.rank + 1) // self.world)

    @property
    def steps(self) -> int:
        """Steps of an epoch: whole global batches in training, all that is there in evaluation."""
        if self.train:
            return len(order(self.seed, 0, len(self.dataset), self.repeats)) // self.batch
        return -(-len(self.own) // self.rows)

    def samples(self, job: Job) -> tuple[np.ndarray, np.ndarray]:
        """Return (indices, draws), int64 (n,): a draw numbers a sample and its repeat, and keys the generator."""
        if not self.train:
            own = self.own[job.step * self.rows : (job.step + 1) * self.rows]
            return np.arange(own.start, own.stop), np.arange(own.start, own.stop)
        length = len(self.dataset)
        first = job.step * self.batch + (self.rank * self.micro + job.micro) * self.rows
        places = np.arange(first, first + self.rows)
        indices = order(self.seed, job.epoch, length, self.repeats)[places]
        return indices, indices + length * (places % self.repeats)

    # ---------------------------------------------------------------- what is in them
    @property
    def fields(self) -> tuple[Field, ...]:
        """The arrays that `fill` writes."""
        views = [Field(f"view{number}", shape, "float32") for number, shape in enumerate(self.shapes)]
        if self.raw:
            views = [Field(name, (*row[1:], row[0]), "uint8") for name, row, _ in views]
        more = [Field("indices", (), "int64")]
        if self.patches:
            more.append(Field("mask_noise", (self.patches,), "float32"))
        if self.depth:
            more.append(Field("drop_path", (self.depth, 2), "float32"))
        return (*views, *more)

    @property
    def blends(self) -> bool:
        """Whether images are blended with others of the micro-batch."""
        return self.train and (self.mix.mixup > 0 or self.mix.cutmix > 0)

    def units(self, job: Job) -> int:
        """Into how many parts a micro-batch can be cut: samples, or pairs of them where they are blended."""
        rows = len(self.samples(job)[0])
        return rows // 2 if self.blends else rows

    def fill(self, arrays: dict[str, np.ndarray], job: Job, start: int, stop: int) -> list[Broken]:
        """Write units start..stop - 1 of a micro-batch into its arrays; return the broken images met.

        Blending pairs sample i with n - 1 - i, so a unit is such a pair. An index -1 marks an image left out.
        """
        indices, draws = self.samples(job)
        rows = np.arange(start, stop)
        if self.blends:
            rows = np.concatenate([rows, len(indices) - 1 - rows[::-1]])
        broken: list[Broken] = []
        for row in rows:
            arrays["indices"][row] = self._place(
                arrays, int(row), int(indices[row]), int(draws[row]), job.epoch, broken
            )
        if self.blends:
            plan = self._mix_plan(job)
            for view in range(len(self.shapes)):
                array = arrays[f"view{view}"]
                array[rows] = pixels.mix(array[rows], plan)
        if self.patches:
            arrays["mask_noise"][rows] = masking.noise(self.seed, job.epoch, draws[rows].tolist(), self.patches)
        if self.depth:
            for row in rows:
                rng = generator(self.seed, "drop_path", job.epoch, int(draws[row]))
                arrays["drop_path"][row] = rng.random((self.depth, 2), dtype=np.float32)
        return broken

    def _place(
        self, arrays: dict[str, np.ndarray], row: int, index: int, draw: int, epoch: int, broken: list[Broken]
    ) -> int:
        """Write the views of a sample, or of its replacement, into a row; return the index of the image used."""
        spare: np.random.Generator | None = None
        for _ in range(TRIES):
            try:
                image = self.dataset.image(index)
            except BrokenImage as error:
                broken.append(Broken(index, str(error), error.pixels))
                if not self.train:
                    return -1
                spare = spare or generator(self.seed, "replacement", epoch, draw)
                places = order(self.seed, epoch, len(self.dataset), self.repeats)
                index = int(places[spare.integers(len(places))])
                continue
            for view in range(len(self.shapes)):
                self._write_view(image, index, view, epoch, draw, arrays[f"view{view}"][row])
            return index
        raise UserError(f"'{self.dataset.name}' has hardly an image that can be read; the last: {broken[-1].why}")

    def _write_view(self, image: pixels.Source, index: int, view: int, epoch: int, draw: int, out: np.ndarray) -> None:
        """Write a view of an image into `out`, float32 (channels, height, width), normalised; or as it is."""
        size, channels = pixels.shape(image)
        plan = augment.plan(self.augment, view, generator(self.seed, "augment", epoch, draw, view), size)
        made, wanted = (channels, *augment.output_size(plan, size)), self.shapes[view]
        if made != wanted:
            shapes = "x".join(map(str, (*made[1:], made[0]))), "x".join(map(str, (*wanted[1:], wanted[0])))
            raise UserError(f"image {index} of '{self.dataset.name}' becomes {shapes[0]}, not {shapes[1]}; add a crop")
        pixels.view(plan, image, out, None if self.raw else self.table)

    @functools.cached_property
    def table(self) -> np.ndarray:
        """float32 (channels, 256): what normalisation makes of each byte."""
        return pixels.table(self.augment.mean, self.augment.std, self.shapes[0][0])

    def _mix_plan(self, job: Job) -> Mix:
        """Draw Mixup or CutMix once for the global batch: all ranks and micro-batches share it."""
        _, height, width = self.shapes[0]
        return augment.mix_plan(self.mix, generator(self.seed, "mix", job.epoch, job.step), (height, width))

    def finish(self, arrays: dict[str, np.ndarray], job: Job) -> Batch:
        """Return the filled arrays as a Batch, with labels and targets."""
        present = arrays["indices"] >= 0
        if not present.all():
            arrays = {name: array[present] for name, array in arrays.items()}
        indices = arrays["indices"]
        labels = np.array([self.dataset.label(index) for index in indices.tolist()], np.int64)
        targets = None
        if self.train and (self.blends or self.mix.smoothing):
            targets = pixels.soft_targets(labels, self.classes, self._mix_plan(job), self.mix.smoothing)
        images = tuple(arrays[f"view{view}"] for view in range(len(self.shapes)))
        table = self.table if self.raw else None
        return Batch(images, labels, targets, indices, arrays.get("mask_noise"), arrays.get("drop_path"), table)
