"""Samples into batches, made ahead by all cores; any batch can be made again from (seed, epoch, step)."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from types import TracebackType

from triport.core.data.batches import Batch, BatchMaker, Broken, Job, order
from triport.core.data.datasets import Dataset
from triport.core.data.loader_checks import (
    check_batch,
    check_colours,
    check_maker,
    drop_path_depth,
    mask_patches,
    possible,
    view_shape,
)
from triport.core.data.processes import Made, Pool
from triport.core.data.sample.decode import quiet_pillow
from triport.core.data.worker import private_arrays
from triport.core.data.worker_count import local_processes, worthwhile_workers
from triport.core.errors import UserError
from triport.core.spec import AugmentSpec, MixSpec, ModelSpec

__all__ = ["Batch", "Loader", "images_per_second", "order"]


class Loader:
    """Batches of one split, for one rank.

    In training the global batch b of an epoch is order[b * batch : (b + 1) * batch]; rank r of `world` takes its r-th
    contiguous part, and micro-batch j the j-th contiguous part of that: two processes see the halves of what one would.
    The last incomplete global batch is dropped. In evaluation the samples come as 0, 1, 2 ...; nothing is dropped or
    doubled, each rank has its contiguous part, and `batch // world` is what a step takes of it.

    Number of workers, processes, micro-batches, resuming in mid-epoch: none of them changes a bit of any sample. With
    Mixup or CutMix the partner of a sample is its mirror in its own micro-batch, as in timm; the draw (lambda, box) is
    the global batch's, so more processes or micro-batches change the partners and nothing else.

    A broken image is named in a warning. In training another one of the epoch takes its place, so that shapes stay; in
    evaluation it is left out. More than `max_broken` of them (different ones, in this process) are a UserError.

    Arrays of a batch belong to the caller. Close the loader, or use it in a `with`, to end its processes; they end by
    themselves when this process does, however it does.
    """

    def __init__(
        self,
        dataset: Dataset,
        augment: AugmentSpec,
        *,
        batch: int,
        train: bool,
        rank: int = 0,
        world: int = 1,
        micro: int = 1,
        seed: int = 0,
        workers: int | None = None,
        epochs: int | None = None,
        repeats: int = 1,
        mix: MixSpec | None = None,
        classes: int | None = None,
        model: ModelSpec | None = None,
        max_broken: int = 10,
        raw: bool = False,
        local: int | None = None,
        warn: Callable[[str], None] | None = None,
    ) -> None:
        """Check the numbers; no process is started before the first `epoch`.

        batch: global, all ranks and micro-batches together. micro: micro-batches of a step on each rank.
        workers: processes that make batches; 0 makes them in line; None takes this process's share of the cores, or 0
            where the work is too small to be worth their start. local: ranks on this machine, which share its cores.
        epochs: how many the run has; then the next epoch's first batches are made while this one ends.
        repeats: repeated augmentation (DataSpec.repeats). mix, classes: for targets of Mixup, CutMix, label smoothing.
        model: so that batches carry what it needs: noise for masks (MAE), draws for drop path.
        raw: views stay bytes (n, height, width, channels), to be normalised by a look-up in `Batch.table`.
        warn: told of each broken image; the default is warnings.warn.
        """
        micro = micro if train else 1
        check_colours(augment, dataset.channels, dataset.name)
        check_batch(batch, world, micro)
        self._maker = BatchMaker(
            dataset=dataset,
            augment=possible(augment, dataset.channels),
            shapes=tuple(view_shape(dataset, augment, view) for view in range(len(augment.views))),
            train=train,
            seed=seed,
            batch=batch,
            rank=rank,
            world=world,
            micro=micro,
            repeats=repeats,
            mix=mix or MixSpec(),
            classes=len(dataset.classes) if classes is None else classes,
            patches=mask_patches(model) if train else 0,
            depth=drop_path_depth(model) if train else 0,
            raw=raw,
        )
        check_maker(self._maker)
        quiet_pillow()
        if workers and type(dataset).__module__ == "__main__":
            name = type(dataset).__name__
            raise UserError(f"loader processes cannot import {name} from the main script; move it to a module")
        self._workers, self._epochs, self._max_broken = workers, epochs, max_broken
        self._local = local_processes(world) if local is None else local
        self._warn = warn or _warn
        self._pool: Pool | None = None
        self._stream: Generator[list[Batch], None, None] | None = None
        self._next: Job | None = None
        self.steps_per_epoch = self._maker.steps
        self.broken: dict[int, str] = {}  # index -> why, of the images met so far
        self.large: dict[int, int] = {}  # index -> pixels, of those above --max-pixels
        self.waited = 0.0  # seconds that the caller of `epoch` has waited for data

    # ---------------------------------------------------------------- batches
    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[list[Batch]]:
        """Yield the steps of an epoch from `start_step` on, each a list of `micro` batches.

        One epoch at a time: a second call ends what the first has begun.
        """
        if self._stream is None or self._next != Job(epoch, start_step, 0):
            self._end_stream()
            self._stream = self._steps(epoch, start_step)
        stream = self._stream
        for step in range(start_step, self.steps_per_epoch):
            if stream is not self._stream:
                raise RuntimeError("a later call of epoch() ended this one")
            begun = time.perf_counter()
            try:
                batches = next(stream)
            except BaseException:
                self.close()  # workers may be in the middle of anything
                raise
            self.waited += time.perf_counter() - begun
            last = step + 1 == self.steps_per_epoch
            self._next = Job(epoch + 1, 0, 0) if last else Job(epoch, step + 1, 0)
            if last and not self._goes_on(epoch):
                self._end_stream()
                if not self._maker.train:
                    self.close()  # loaders evaluate in turn; none keeps processes while another works
            yield batches

    def _goes_on(self, epoch: int) -> bool:
        return self._maker.train and self._epochs is not None and epoch + 1 < self._epochs

    def _jobs(self, epoch: int, step: int) -> Iterator[Job]:
        while True:
            for number in range(step, self.steps_per_epoch):
                for micro in range(self._maker.micro):
                    yield Job(epoch, number, micro)
            if not self._goes_on(epoch):
                return
            epoch, step = epoch + 1, 0

    def _steps(self, epoch: int, step: int) -> Generator[list[Batch], None, None]:
        """Yield steps without end of epoch, so that work goes on across it."""
        if self._pool is None and self.workers:
            self._pool = Pool(self._maker, self.workers)
        jobs = self._jobs(epoch, step)
        with closing(self._pool.batches(jobs) if self._pool else self._in_line(jobs)) as made:
            batches: list[Batch] = []
            for job, arrays, broken in made:
                self._count(broken)
                batches.append(self._maker.finish(arrays, job))
                del arrays  # a slot is free for the next batch as soon as nobody holds its arrays
                if len(batches) == self._maker.micro:
                    yield batches
                    batches = []

    def _in_line(self, jobs: Iterator[Job]) -> Generator[Made, None, None]:
        maker = self._maker
        for job in jobs:
            arrays = private_arrays(maker, job)
            yield job, arrays, maker.fill(arrays, job, 0, maker.units(job))

    def _count(self, broken: list[Broken]) -> None:
        use = "another image takes its place" if self._maker.train else "it is left out"
        for index, why, pixels in sorted(set(broken)):
            if index in self.broken or index in self.large:
                continue
            if pixels:
                self.large[index] = pixels
                number, word = len(self.large), "large"
            else:
                self.broken[index] = why
                number, word = len(self.broken), "broken"
            if number > self._max_broken:
                raise self._too_many(number, why, pixels)
            self._warn(f"{word} image {number} of {self._max_broken} allowed: {why}; {use}")

    def _too_many(self, number: int, why: str, pixels: int) -> UserError:
        name = f"{number} images of '{self._maker.dataset.name}'"
        if pixels:
            most = max(self.large.values())
            return UserError(f"{name} have too many pixels, the last: {why}; let them in with --max-pixels {most}")
        return UserError(f"{name} cannot be read, the last: {why}; fix or remove them, or allow more with --max-broken")

    # ---------------------------------------------------------------- processes
    @property
    def workers(self) -> int:
        """How many processes make batches; decided at the first look where the caller left it open."""
        if self._workers is None:
            self._workers = worthwhile_workers(self._maker, self._epochs, self._local)
        return self._workers

    def _end_stream(self) -> None:
        stream, self._stream, self._next = self._stream, None, None
        if stream is not None:
            stream.close()

    def close(self) -> None:
        """End the processes at once. The loader may be used again: it starts new ones."""
        pool, self._pool = self._pool, None
        if pool is not None:
            pool.close()
        self._end_stream()

    def __enter__(self) -> Loader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _warn(text: str) -> None:
    warnings.warn(text, stacklevel=2)


def images_per_second(loader: Loader, seconds: float = 5.0, epoch: int = 0) -> float:
    """Return how many images a second this rank's loader gives to a caller who does nothing with them.

    An image counts once however many views it has. The time to start, until the first step is there, is left out;
    short epochs are gone through again and again.
    """
    images, begun = 0, 0.0
    while loader.steps_per_epoch:
        for batches in loader.epoch(epoch):
            now = time.perf_counter()
            if not begun:
                begun = now
                continue
            images += sum(len(batch.indices) for batch in batches)
            if now - begun > seconds:
                return images / (now - begun)
        epoch += 1
    return 0.0
