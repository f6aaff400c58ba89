"""core.data.loader: a batch depends on (seed, epoch, step) alone; workers stop cleanly, however anything ends."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from triport.core.augment import augment, pixels
from triport.core.data.batches import Batch
from triport.core.data.datasets import ArrayDataset, BrokenImage, open_dataset
from triport.core.data.loader import Loader, images_per_second, order
from triport.core.data.loader_checks import left_out
from triport.core.data.worker_count import local_processes, usable_cores
from triport.core.errors import UserError
from triport.core.model import masking
from triport.core.rng import generator
from triport.core.spec import (
    MAE,
    AugmentSpec,
    CenterCrop,
    Classifier,
    ColorJitter,
    DataSpec,
    GaussianBlur,
    Grayscale,
    HorizontalFlip,
    MixSpec,
    MoCo,
    ModelSpec,
    RandAugment,
    RandomErasing,
    RandomResizedCrop,
    Resize,
    Solarize,
    ViT,
)
from triport.parity_tests.fixtures.sources import colour, encoded, parquet, shard, tree

ROOT = Path(__file__).resolve().parents[2]
CROP = RandomResizedCrop(min_area=0.2, interpolation="bilinear", size=(12, 12))
JITTER = ColorJitter(p=0.8, brightness=0.4, contrast=0.4, saturation=0.2, hue=0.1)
TWO_VIEWS = AugmentSpec(
    views=((CROP, JITTER, GaussianBlur(p=1.0), HorizontalFlip()), (CROP, HorizontalFlip())),
    mean=(0.5, 0.4, 0.3),
    std=(0.2, 0.2, 0.2),
)
ONE_VIEW = AugmentSpec(views=((CROP, HorizontalFlip(), RandomErasing(p=0.5)),))
PLAIN = AugmentSpec(views=((Resize(size=10, interpolation="bilinear"), CenterCrop(size=(8, 8))),))
VIT = ViT(width=8, depth=3, heads=2, position="mae", initial_values="mae", patch=(4, 4), image=(12, 12), drop_path=0.1)
MIX = MixSpec(mixup=0.8, cutmix=1.0, smoothing=0.1)


def some_images(n: int = 40) -> ArrayDataset:
    values = generator("test images").integers(0, 256, (n, 16, 20, 3), np.uint8)
    return ArrayDataset("some", values, np.arange(n) % 5)


def loader(dataset=None, spec=TWO_VIEWS, **more) -> Loader:
    return Loader(
        some_images() if dataset is None else dataset, spec, **{"batch": 8, "train": True, "workers": 0, **more}
    )


def equal(one: Batch, other: Batch) -> bool:
    """Bit for bit."""
    for name in ("labels", "targets", "indices", "mask_noise", "drop_path"):
        a, b = getattr(one, name), getattr(other, name)
        if (a is None) != (b is None) or (a is not None and (a.dtype != b.dtype or not np.array_equal(a, b))):
            return False
    pairs = zip(one.images, other.images, strict=True)
    return all(a.dtype == b.dtype == np.float32 and np.array_equal(a, b) for a, b in pairs)


def joined(batches: list[Batch]) -> Batch:
    def column(name: str):
        parts = [getattr(batch, name) for batch in batches]
        return None if parts[0] is None else np.concatenate(parts)

    views = tuple(np.concatenate(parts) for parts in zip(*(batch.images for batch in batches), strict=True))
    names = ("labels", "targets", "indices", "mask_noise", "drop_path")
    return Batch(views, **{name: column(name) for name in names})


def same_steps(one: list[list[Any]], other: list[list[Any]]) -> bool:
    return len(one) == len(other) and all(equal(joined(a), joined(b)) for a, b in zip(one, other, strict=True))


def epoch(number: int = 1, start: int = 0, **more) -> list[list[Any]]:
    with loader(**more) as made:
        return list(made.epoch(number, start))


MAE_MODEL = ModelSpec(encoder=VIT, objective=MAE(normalised_pixels=True))
KINDS: dict[str, dict[str, Any]] = {
    "two views": {},
    "mae": {"spec": ONE_VIEW, "model": MAE_MODEL},
    "repeated": {"spec": ONE_VIEW, "repeats": 3, "model": MAE_MODEL},
    "mixed": {"spec": ONE_VIEW, "mix": MIX},
}


# ---------------------------------------------------------------- who makes it changes nothing
@pytest.mark.parametrize("kind", KINDS)
def test_workers_change_nothing(kind):
    in_line = epoch(**KINDS[kind])
    assert len(in_line) == 5
    for workers in (1, 2):
        assert same_steps(in_line, epoch(workers=workers, **KINDS[kind]))


@pytest.mark.parametrize("kind", ["two views", "mae", "repeated"])
@pytest.mark.parametrize("workers", [0, 2])
def test_two_processes_make_the_halves_of_one_batch(kind, workers):
    whole = epoch(**KINDS[kind])
    halves = [epoch(rank=rank, world=2, workers=workers, **KINDS[kind]) for rank in (0, 1)]
    assert same_steps(whole, [a + b for a, b in zip(*halves, strict=True)])
    assert len(halves[0][0][0].indices) == 4


@pytest.mark.parametrize("workers", [0, 2])
def test_micro_batches_are_the_parts_in_order(workers):
    whole = epoch(**KINDS["mae"])
    parts = epoch(micro=4, workers=workers, **KINDS["mae"])
    assert [len(step) for step in parts] == [4] * 5
    assert same_steps(whole, parts)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_goes_on_from_its_middle(kind, workers):
    whole = epoch(**KINDS[kind])
    assert same_steps(whole[3:], epoch(start=3, workers=workers, **KINDS[kind]))


def test_epochs_in_any_order_from_one_loader():
    first, second = epoch(0), epoch(1)
    assert not same_steps(first, second)
    with loader(workers=2, epochs=3) as made:
        assert same_steps(first, list(made.epoch(0)))
        assert same_steps(second, list(made.epoch(1)))  # its first batches were made before it was asked for
        assert same_steps(second[2:], list(made.epoch(1, 2)))
        for _ in made.epoch(0):
            break
        assert same_steps(first, list(made.epoch(0)))
        assert same_steps(epoch(7), list(made.epoch(7)))


def test_the_seed_changes_everything():
    one, other = epoch(seed=0)[0][0], epoch(seed=1)[0][0]
    assert not np.array_equal(one.indices, other.indices)
    assert not np.array_equal(one.images[0], other.images[0])


def test_a_second_epoch_ends_the_first():
    with loader() as made:
        old = made.epoch(0)
        next(old)
        next(made.epoch(1))
        with pytest.raises(RuntimeError, match="ended this one"):
            next(old)


# ---------------------------------------------------------------- what is in a batch
def test_a_batch_is_what_plan_and_pixels_give():
    data = some_images()
    batch = epoch(number=4, seed=9)[2][0]
    assert batch.indices.tolist() == order(9, 4, 40)[16:24].tolist()
    assert batch.labels.tolist() == [data.label(index) for index in batch.indices.tolist()]
    assert batch.targets is None and batch.mask_noise is None and batch.drop_path is None
    for view in (0, 1):
        for row, index in enumerate(batch.indices.tolist()):
            plan = augment.plan(TWO_VIEWS, view, generator(9, "augment", 4, index, view), (16, 20))
            made = pixels.apply(plan, data.image(index))
            assert np.array_equal(batch.images[view][row], pixels.normalise(made, TWO_VIEWS.mean, TWO_VIEWS.std))


def test_erasing_happens():
    assert not same_steps(
        epoch(spec=ONE_VIEW), epoch(spec=AugmentSpec(views=((CROP, HorizontalFlip(), RandomErasing(p=0.0)),)))
    )


def test_draws_for_the_model():
    batch = epoch(number=2, spec=ONE_VIEW, model=MAE_MODEL)[0][0]
    assert np.array_equal(batch.mask_noise, masking.noise(0, 2, batch.indices.tolist(), 9))
    assert batch.drop_path.shape == (8, 3, 2) and batch.drop_path.dtype == np.float32
    other_epoch = epoch(number=3, spec=ONE_VIEW, model=MAE_MODEL)[0][0]
    assert not np.isin(batch.drop_path, other_epoch.drop_path).any()
    assert batch.drop_path.min() >= 0 and batch.drop_path.max() < 1 and len(np.unique(batch.drop_path)) > 40
    other = ModelSpec(encoder=VIT, objective=Classifier(classes=5, pooling="mean", head_std=0.01))
    batch = epoch(spec=ONE_VIEW, model=other)[0][0]
    assert batch.mask_noise is None and batch.drop_path is not None
    without = ViT(**{**VIT.__dict__, "drop_path": 0.0})
    batch = epoch(model=ModelSpec(encoder=without, objective=MoCo(temperature=0.2, momentum=0.99)))[0][0]
    assert batch.mask_noise is None and batch.drop_path is None
    assert epoch(spec=ONE_VIEW, model=MAE_MODEL, train=False)[0][0].mask_noise is None


def test_each_epoch_is_a_permutation():
    for number in range(3):
        assert sorted(order(0, number, 1000).tolist()) == list(range(1000))
    assert not np.array_equal(order(0, 0, 1000), order(0, 1, 1000))
    assert not np.array_equal(order(0, 0, 1000), order(1, 0, 1000))
    assert order(0, 0, 1000).dtype == np.int64


@given(length=st.integers(1, 2000), repeats=st.integers(2, 5), number=st.integers(0, 3))
@settings(max_examples=60, deadline=None)
def test_repeated_augmentation_keeps_the_length_of_an_epoch(length, repeats, number):
    drawn = order(3, number, length, repeats)
    assert len(drawn) == (length // 256 * 256 if length >= 256 else length)
    firsts = drawn[::repeats]
    assert len(set(firsts.tolist())) == len(firsts)
    assert np.array_equal(drawn, np.repeat(firsts, repeats)[: len(drawn)])
    assert np.array_equal(firsts, order(3, number, length)[: len(firsts)])


def test_repeats_have_their_own_draws():
    batch = epoch(batch=6, spec=ONE_VIEW, repeats=3, model=MAE_MODEL)[0][0]
    assert batch.indices[0] == batch.indices[1] == batch.indices[2] != batch.indices[3]
    for array in (batch.images[0], batch.mask_noise, batch.drop_path):
        assert not np.array_equal(array[0], array[1]) and not np.array_equal(array[1], array[2])
    single = epoch(batch=6, spec=ONE_VIEW, model=MAE_MODEL)
    place = order(0, 1, 40).tolist().index(int(batch.indices[0]))
    assert np.array_equal(batch.images[0][0], single[place // 6][0].images[0][place % 6])  # the first is the usual one


# ---------------------------------------------------------------- Mixup and CutMix
def test_mixing_follows_the_global_draw_and_the_reversed_micro_batch():
    uses = set()
    for step, ((mixed,), (plain,)) in enumerate(zip(epoch(spec=ONE_VIEW, mix=MIX), epoch(spec=ONE_VIEW), strict=True)):
        plan = augment.mix_plan(MIX, generator(0, "mix", 1, step), (12, 12))
        uses.add(plan.use)
        assert np.array_equal(mixed.images[0], pixels.mix(plain.images[0], plan))
        assert np.array_equal(mixed.targets, pixels.soft_targets(plain.labels, 5, plan, 0.1))
        assert np.array_equal(mixed.labels, plain.labels)
        assert np.allclose(mixed.targets.sum(axis=1), 1)
    assert uses == {"mixup", "cutmix"}


def test_mixing_on_two_ranks_shares_the_draw_and_keeps_partners_in_the_rank():
    plain = epoch(spec=ONE_VIEW)
    for rank in (0, 1):
        for step, (batch,) in enumerate(epoch(spec=ONE_VIEW, mix=MIX, rank=rank, world=2, workers=2)):
            plan = augment.mix_plan(MIX, generator(0, "mix", 1, step), (12, 12))
            own = plain[step][0].images[0][4 * rank : 4 * rank + 4]
            assert np.array_equal(batch.images[0], pixels.mix(own, plan))


def test_label_smoothing_alone():
    batch = epoch(mix=MixSpec(smoothing=0.1), classes=5)[0][0]
    assert np.array_equal(batch.targets, pixels.soft_targets(batch.labels, 5, None, 0.1))
    assert epoch(mix=MixSpec(), classes=5)[0][0].targets is None
    assert epoch(mix=MIX, spec=PLAIN, train=False)[0][0].targets is None


# ---------------------------------------------------------------- evaluation
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("world", [1, 2, 3])
def test_evaluation_sees_every_image_once_in_order(workers, world):
    seen = []
    for rank in range(world):
        with loader(spec=PLAIN, batch=6 * world, train=False, rank=rank, world=world, workers=workers) as made:
            steps = list(made.epoch(0))
            assert len(steps) == made.steps_per_epoch
        assert all(len(step) == 1 and len(step[0].indices) <= 6 for step in steps)
        seen += [index for step in steps for index in step[0].indices.tolist()]
    assert seen == list(range(40))


def test_evaluation_with_more_ranks_than_images():
    seen = []
    for rank in range(4):
        with loader(some_images(3), PLAIN, batch=8, train=False, rank=rank, world=4) as made:
            seen += [index for step in made.epoch(0) for index in step[0].indices.tolist()]
    assert seen == [0, 1, 2]


def test_evaluation_does_not_depend_on_the_epoch():
    assert same_steps(epoch(0, spec=PLAIN, train=False), epoch(5, spec=PLAIN, train=False))


def test_views_without_a_crop_have_the_size_of_the_first_image():
    flip, shrink = HorizontalFlip(), Resize(size=8, interpolation="bicubic")
    assert epoch(spec=AugmentSpec(views=((flip,),)))[0][0].images[0].shape == (8, 3, 16, 20)
    assert epoch(spec=AugmentSpec(views=((shrink, flip),)))[0][0].images[0].shape == (8, 3, 8, 10)


# ---------------------------------------------------------------- broken images
@pytest.fixture
def damaged(tmp_path):
    """24 images of which 5 and 17 are broken; the red value tells which is which."""
    for number in range(24):
        path = tmp_path / "ab"[number % 2] / f"{number:02d}.png"
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (16, 16), (10 * number, 0, 0)).save(path)
    (tmp_path / "b/05.png").write_bytes(b"")
    (tmp_path / "b/17.png").write_bytes((tmp_path / "b/17.png").read_bytes()[:40])
    return open_dataset(str(tmp_path), "train", DataSpec(name="x"), 3)


FLAT = AugmentSpec(views=((CROP,),), mean=(0.0,), std=(1.0,))


def test_a_broken_training_image_is_replaced_by_another_of_the_epoch(damaged):
    broken = {index for index in range(24) if damaged.path(index).endswith(("05.png", "17.png"))}
    message: list[str] = []
    with loader(damaged, FLAT, warn=message.append) as made:
        steps = [*made.epoch(0), *made.epoch(1)]
        assert set(made.broken) == broken
    assert len(message) == 2 and all("broken image" in line and "\n" not in line for line in message)
    assert any("05.png" in line and "empty" in line for line in message)
    for number, (batch,) in enumerate(steps):
        wanted = order(0, number // 3, 24)[number % 3 * 8 :][:8]
        assert batch.images[0].shape == (8, 3, 12, 12)
        for row, index in enumerate(batch.indices.tolist()):
            assert index not in broken
            assert index == wanted[row] or wanted[row] in broken
            red = np.asarray(damaged.image(index))[0, 0, 0] / 255
            assert np.allclose(batch.images[0][row][0], red)  # the replacement's own pixels
            assert batch.labels[row] == damaged.label(index)


def test_the_replacement_does_not_depend_on_who_makes_it(damaged):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        whole = epoch(dataset=damaged, spec=FLAT)
        assert same_steps(whole, epoch(dataset=damaged, spec=FLAT, workers=2))
        halves = [epoch(dataset=damaged, spec=FLAT, rank=rank, world=2) for rank in (0, 1)]
        assert same_steps(whole, [a + b for a, b in zip(*halves, strict=True)])
        assert same_steps(whole[1:], epoch(dataset=damaged, spec=FLAT, start=1))


@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation_leaves_broken_images_out(damaged, workers):
    with loader(damaged, PLAIN, train=False, workers=workers) as made:
        with pytest.warns(UserWarning, match="left out"):
            seen = [index for step in made.epoch(0) for index in step[0].indices.tolist()]
        assert seen == [index for index in range(24) if index not in made.broken]
        assert len(made.broken) == 2


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("train", [True, False])
def test_too_many_broken_images_are_an_error(damaged, workers, train):
    made = loader(damaged, FLAT, train=train, workers=workers, max_broken=1, warn=lambda line: None)
    with made, pytest.raises(UserError, match=r"2 images of .* --max-broken"):
        list(made.epoch(0))


class AllBroken:
    """Looks like a dataset, and no image of it can be read."""

    name, classes, channels = "all broken", ["a", "b"], 3

    def __len__(self):
        return 8

    def image(self, index):
        raise BrokenImage(f"{index}.png: not an image")

    def label(self, index):
        return 0


def test_nothing_but_broken_images():
    with loader(AllBroken(), FLAT) as made, pytest.raises(UserError, match="hardly an image"):
        next(made.epoch(0))
    with pytest.raises(UserError, match="no image of 'all broken' can be read"):
        loader(AllBroken(), AugmentSpec(views=((HorizontalFlip(),),)))


# ---------------------------------------------------------------- wrong numbers
@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"batch": 64}, "has 40 images, fewer than one batch of 64"),
        ({"batch": 9, "world": 2}, "a batch of 9 cannot be divided evenly among 2 processes with 1 micro.*; use 8"),
        ({"batch": 2, "world": 2, "micro": 2}, "a batch of 2 cannot be divided.*; use 4"),
        ({"batch": 0}, "must all be 1 or more"),
        ({"batch": 10, "world": 2, "mix": MIX}, "5 are odd; use a batch that is a multiple of 4"),
        ({"mix": MIX, "classes": 3}, "has 5 classes, the targets are for 3"),
        (
            {"spec": AugmentSpec(views=TWO_VIEWS.views, mean=(0.5, 0.5))},
            "mean has 2 numbers, images of 'some' 3 channels",
        ),
    ],
)
def test_numbers_that_cannot_be(more, words):
    with pytest.raises(UserError, match=words):
        loader(**more)


@pytest.mark.parametrize("workers", [0, 1])
def test_images_of_many_sizes_need_a_crop(tmp_path, workers):
    for number in range(8):
        Image.new("RGB", (10 + number, 12)).save(tmp_path / f"{number}.png")
    data = open_dataset(str(tmp_path), "train", DataSpec(name="x"), 3)
    flip = AugmentSpec(views=((HorizontalFlip(),),))
    with loader(data, flip, workers=workers) as made, pytest.raises(UserError, match="add a crop"):
        next(made.epoch(0))


# ---------------------------------------------------------------- memory
def test_batches_belong_to_the_caller():
    expected = epoch(workers=0)
    with loader(workers=1) as made:
        saved = [step[0] for step in made.epoch(1)]  # more than the loader has slots for
    for batch in saved:
        assert batch.images[0].flags.writeable
    gc.collect()
    assert same_steps(expected, [[batch] for batch in saved])


def test_memory_is_used_again_and_nothing_is_copied_in_a_plain_loop():
    with loader(workers=1, epochs=9) as made:
        places = [
            int(batch.images[0].__array_interface__["data"][0])
            for number in range(4)
            for (batch,) in made.epoch(number)
        ]
    assert len(places) == 20 and len(set(places)) <= 4


# ---------------------------------------------------------------- choice of workers
def test_small_work_is_done_in_line_and_large_work_is_not(monkeypatch):
    for name in ("LOCAL_WORLD_SIZE", "PADDLE_LOCAL_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert loader(workers=None).workers == 0
    assert loader(Slow(), FLAT, workers=None).workers == usable_cores()
    assert loader(Slow(), FLAT, workers=None, local=usable_cores()).workers == 1
    assert loader(Slow(), FLAT, workers=None, world=2, local=1).workers == usable_cores()
    assert local_processes(4) == 4
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert local_processes(4) == 2


class Slow(AllBroken):
    """Every image takes its time."""

    name = "slow"

    def __len__(self):
        return 64

    def image(self, index):
        time.sleep(0.02)
        return np.zeros((16, 16, 3), np.uint8)


def test_speed_is_measured():
    with loader(Slow(), FLAT) as made:
        assert 0 < images_per_second(made, 0.3) <= 50  # each image sleeps 20 ms
        assert made.waited > 0.3


# ---------------------------------------------------------------- nothing is left behind
def workers_of(parent: int) -> list[int]:
    """Process numbers of the loader processes of `parent`."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                line = (folder / "cmdline").read_bytes()
                stat = (folder / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if (
                b"triport.core.data.worker" in line
                and stat[0] != "Z"
                and (int(stat[1]) == parent or _for(line) == parent)
            ):
                found.append(int(folder.name))
    return found


def _for(line: bytes) -> int:
    last = line.rstrip(b"\0").split(b"\0")[-1]
    return int(last) if last.isdigit() else -1


def wait_for(condition, seconds: float = 600.0) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.05)
    return bool(condition())


def test_close_ends_processes_and_descriptors():
    loader(workers=1).close()
    before = {file.name for file in Path("/proc/self/fd").iterdir()}
    made = loader(workers=2)
    next(made.epoch(0))
    assert len(workers_of(os.getpid())) == 2
    made.close()
    made.close()
    assert workers_of(os.getpid()) == []
    gc.collect()
    assert {file.name for file in Path("/proc/self/fd").iterdir()} <= before
    assert same_steps(epoch(1), list(made.epoch(1)))  # it may be used again
    made.close()


def test_a_forgotten_loader_ends_its_processes():
    made = loader(workers=1)
    next(made.epoch(0))
    del made
    gc.collect()
    assert workers_of(os.getpid()) == []


def test_an_interrupt_while_waiting_leaves_nothing_and_the_loader_goes_on():
    def interrupt(number, frame):
        raise KeyboardInterrupt

    with loader(Slow(), FLAT, batch=32, workers=2) as made:
        expected = [step[0].indices.tolist() for step in made.epoch(0)]
        before = signal.signal(signal.SIGALRM, interrupt)
        try:
            for delay in (0.01, 0.05, 0.1, 0.15):
                signal.setitimer(signal.ITIMER_REAL, delay)
                with pytest.raises(KeyboardInterrupt):
                    for number in range(1, 100):
                        for _ in made.epoch(number):
                            pass
                signal.setitimer(signal.ITIMER_REAL, 0)
        finally:
            signal.signal(signal.SIGALRM, before)
        assert [step[0].indices.tolist() for step in made.epoch(0)] == expected
    assert workers_of(os.getpid()) == []


def test_evaluation_ends_its_processes_with_the_pass():
    with loader(spec=PLAIN, train=False, workers=1) as made:
        list(made.epoch(0))
        assert workers_of(os.getpid()) == []
        assert len(list(made.epoch(0))) == 5


class Faulty(AllBroken):
    """Fails as a programme does, or is killed."""

    def __init__(self, way: str) -> None:
        self.way = way

    def image(self, index):
        if index == 3 and self.way == "error":
            raise ZeroDivisionError("a fault in the dataset")
        if index == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return np.zeros((16, 16, 3), np.uint8)


@pytest.mark.parametrize("workers", [1, 2])
def test_an_error_in_a_worker_reaches_the_caller(workers):
    with loader(Faulty("error"), FLAT, workers=workers) as made:
        with pytest.raises(RuntimeError, match="ZeroDivisionError: a fault in the dataset") as error:
            list(made.epoch(0))
        assert "in image" in str(error.value.__cause__)  # the worker's traceback
        assert workers_of(os.getpid()) == []


@pytest.mark.parametrize("workers", [1, 2])
def test_a_worker_that_is_killed_is_noticed(workers):
    with loader(Faulty("kill"), FLAT, workers=workers) as made:
        with pytest.raises(UserError, match=r"SIGKILL.*memory"):
            list(made.epoch(0))
        assert workers_of(os.getpid()) == []


class Lookout(AllBroken):
    """Tells whether the process that reads it has a framework or the main script loaded."""

    def image(self, index):
        strange = [name for name in ("torch", "paddle", "oneflow", "pytest_main_mark") if name in sys.modules]
        assert not strange and "_pytest.config" not in getattr(sys.modules["__main__"], "__file__", "")
        assert os.getsid(0) == os.getpid()  # Ctrl-C in the terminal does not reach it
        return np.zeros((16, 16, 3), np.uint8)


def test_workers_load_no_framework_and_no_main_script(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", sys.modules["math"])
    with loader(Lookout(), FLAT, workers=1) as made:
        assert len(list(made.epoch(0))) == 1


SCRIPT = """
import signal, sys, time
sys.path.insert(0, {root!r})
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs inherit a SIGINT that is ignored
from triport.core.data.loader import Loader
from triport.core.spec import AugmentSpec, RandomResizedCrop
from triport.parity_tests.core.test_loader import Slow, FLAT
def main():
    with Loader(Slow(), FLAT, batch=64, train=True, workers=2) as made:
        for number in range(100):
            for _ in made.epoch(number):
                print("batch", flush=True)
main()
"""


@pytest.mark.parametrize("way", ["SIGKILL", "SIGTERM", "SIGINT"])
def test_workers_end_with_their_parent_however_it_ends(way):
    script = SCRIPT.format(root=str(ROOT))
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    try:
        assert parent.stdout.readline() == "batch\n"
        assert len(workers_of(parent.pid)) == 2
        parent.send_signal(getattr(signal, way))
        _, words = parent.communicate(timeout=600)
    finally:
        parent.kill()
    assert parent.returncode != 0
    assert wait_for(lambda: not workers_of(parent.pid))
    if way == "SIGINT":
        assert words.count("KeyboardInterrupt") == 1 and words.count("Traceback") == 1  # the parent's own, no worker's


def test_a_dataset_of_the_main_script_is_refused_or_read_in_line(monkeypatch):
    monkeypatch.setattr(Slow, "__module__", "__main__")
    with pytest.raises(UserError, match="cannot import Slow from the main script"):
        loader(Slow(), FLAT, workers=1)
    assert loader(Slow(), FLAT, workers=None).workers == 0


def test_a_script_that_forgets_to_close_ends():
    script = SCRIPT.format(root=str(ROOT)).replace("    with Loader", "    made = Loader").replace(" as made:", "")
    script = script.replace("    for number", "for number").replace("        for _", "    for _")
    script = script.replace('print("batch", flush=True)', "return")
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0 and done.stderr == ""


# ---------------------------------------------------------------- too large, colours
@pytest.mark.parametrize("workers", [0, 1])
def test_images_of_too_many_pixels_are_counted_apart_from_broken_ones(tmp_path, workers):
    for number in range(24):
        size = (40, 40) if number in (3, 4) else (16, 16)
        Image.new("RGB", size).save(tmp_path / f"{number:02d}.png")
    (tmp_path / "09.png").write_bytes(b"")
    data = open_dataset(str(tmp_path), "train", DataSpec(name="x"), 3, max_pixels=1599)
    message: list[str] = []
    with loader(data, FLAT, workers=workers, max_broken=2, warn=message.append) as made:
        list(made.epoch(0))
        assert set(made.broken) == {9} and made.large == {3: 1600, 4: 1600}
    assert sum(line.startswith("large image") for line in message) == 2
    with (
        loader(data, FLAT, workers=workers, max_broken=1, warn=message.append) as made,
        pytest.raises(UserError, match=r"2 images of .* too many pixels.*--max-pixels 1600$"),
    ):
        list(made.epoch(0))


@pytest.mark.parametrize(
    ("operation", "word"),
    [
        (JITTER, "color_jitter"),
        (Grayscale(p=0.2), "grayscale"),
        (Solarize(p=0.2), "solarize"),
        (RandAugment(), "rand_augment"),
    ],
)
def test_operations_on_colours_are_refused_at_the_start_for_other_channel_counts(operation, word):
    data = ArrayDataset("some", np.zeros((40, 16, 20, 5), np.uint8))
    spec = AugmentSpec(views=((CROP,), (CROP, operation)), mean=(0.5,), std=(0.2,))
    with pytest.raises(
        UserError, match=rf"{word} in view 2 works on images with 1 or 3 channels.*have 5; train.colour_operations="
    ):
        loader(data, spec)
    plain = AugmentSpec(views=((CROP, HorizontalFlip(), GaussianBlur(p=1.0)),), mean=(0.5,), std=(0.2,))
    assert epoch(dataset=data, spec=plain)[0][0].images[0].shape == (8, 5, 12, 12)
    loader(ArrayDataset("some", np.zeros((40, 16, 20, 1), np.uint8)), spec)


@pytest.mark.parametrize("operation", [JITTER, Grayscale(p=0.2), Solarize(p=1.0), RandAugment()])
def test_operations_on_colours_are_left_out_where_the_recipe_says_so(operation):
    rng = np.random.default_rng(0)
    five, three = (ArrayDataset("some", rng.integers(0, 256, (40, 16, 20, c), np.uint8)) for c in (5, 3))
    numbers: dict[str, Any] = {"mean": (0.5,), "std": (0.2,)}
    views = ((CROP, operation, HorizontalFlip()), (CROP, operation))
    spec = AugmentSpec(views=views, colour_operations="where_possible", **numbers)
    plain = AugmentSpec(views=((CROP, HorizontalFlip()), (CROP,)), **numbers)
    assert same_steps(epoch(dataset=five, spec=spec), epoch(dataset=five, spec=plain))
    assert same_steps(epoch(dataset=three, spec=spec), epoch(dataset=three, spec=AugmentSpec(views=views, **numbers)))
    assert left_out(spec, 5) == f"left out of the views, as the images have 5 channels: {operation.kind}"
    assert left_out(spec, 3) == left_out(plain, 5) == ""


# ---------------------------------------------------------------- any source, any order
@pytest.fixture(scope="module")
def sources(tmp_path_factory) -> dict[str, Any]:
    """The same 24 images as a folder, a list, arrays, shards and parquet."""
    root = tmp_path_factory.mktemp("sources")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(root / "cache"))
        tree(root / "folder", *(f"{number // 8}/{number:02d}.png" for number in range(24)))
        (root / "x.txt").write_text("".join(f"folder/{n // 8}/{n:02d}.png {n // 8}\n" for n in range(24)))
        members = [(f"{n:02d}.png", encoded(colour(n + 1))) for n in range(24)]
        for part in range(3):
            labelled = [
                pair
                for name, image in members[part * 8 : part * 8 + 8]
                for pair in ((name, image), (f"{name[:2]}.cls", b"%d" % part))
            ]
            shard(root / f"shards/{part}.tar", labelled)
        parquet(root / "x.parquet", list(range(1, 25)), group=5, label=[n // 8 for n in range(24)])
        np.save(root / "x.npy", np.stack([colour(n + 1) for n in range(24)]))
        np.save(root / "x_labels.npy", np.arange(24) // 8)
        pictures = np.stack([colour(n + 1) for n in range(24)])
        deep = pictures.astype(np.uint16) * 257
        np.savez_compressed(root / "x.npz", images=np.moveaxis(deep, 3, 1), labels=np.arange(24) // 8)
        tifffile.imwrite(root / "x.tif", pictures, photometric="rgb")
        for n in range(24):
            (root / f"arrays/{n // 8}").mkdir(parents=True, exist_ok=True)
            np.save(root / f"arrays/{n // 8}/{n:02d}.npy", deep[n])
            (root / f"bands/{n // 8}").mkdir(parents=True, exist_ok=True)
            tifffile.imwrite(root / f"bands/{n // 8}/{n:02d}.tif", deep[n], photometric="rgb")
        where = {"folder": "folder", "list": "x.txt", "shards": "shards", "parquet": "x.parquet", "npy": "x.npy"}
        where |= {"npz": "x.npz", "pages": "x.tif", "arrays": "arrays", "bands": "bands"}
        opened = {kind: open_dataset(str(root / name), "train", DataSpec(name="x"), 3) for kind, name in where.items()}
        opened["pages"].labels = opened["folder"].labels  # a TIFF has none
        return opened


def test_every_source_gives_the_same_batches(sources):
    expected = epoch(dataset=sources["folder"])
    for data in sources.values():
        assert same_steps(expected, epoch(dataset=data))


@pytest.mark.parametrize("kind", ["list", "shards", "parquet", "npy", "npz", "pages", "arrays", "bands"])
@settings(max_examples=6, deadline=None)
@given(st.data())
def test_any_order_of_workers_processes_and_resumes_gives_the_same_batch(sources, kind, data):
    """Two epochs asked for in pieces, by any number of workers and ranks, equal one pass in line over the folder."""
    number, world = data.draw(st.integers(0, 3)), data.draw(st.sampled_from([1, 2, 4]))
    start, workers = data.draw(st.integers(0, 2)), data.draw(st.sampled_from([0, 0, 1, 2]))
    micro = data.draw(st.sampled_from([1, 2]))
    whole = epoch(number=number, dataset=sources["folder"])
    parts = [
        epoch(number=number, start=start, dataset=sources[kind], rank=rank, world=world, micro=micro, workers=workers)
        for rank in range(world)
    ]
    assert same_steps(
        whole[start:], [[batch for step in steps for batch in step] for steps in zip(*parts, strict=True)]
    )


@pytest.mark.parametrize("kind", ["shards", "parquet"])
def test_a_loader_that_goes_back_and_forth_gives_the_same_batches(sources, kind):
    first, second = (epoch(number=number, dataset=sources["folder"]) for number in (0, 1))
    with loader(sources[kind], workers=2, epochs=3) as made:
        assert same_steps(second[1:], list(made.epoch(1, 1)))
        assert same_steps(first, list(made.epoch(0)))
        for _ in made.epoch(0):
            break
        assert same_steps(second, list(made.epoch(1)))


# ---------------------------------------------------------------- bytes
@pytest.mark.parametrize("workers", [0, 2])
def test_bytes_become_the_batch_by_a_look_up(workers):
    plain = loader(workers=0)
    with loader(workers=workers, raw=True) as raw:
        for (one,), (other,) in zip(plain.epoch(0), raw.epoch(0), strict=True):
            assert one.table is None and other.table is not None and other.table.shape == (3, 256)
            for floats, view in zip(one.images, other.images, strict=True):
                assert view.dtype == np.uint8 and view.shape == (len(floats), 12, 12, 3)
                looked_up = np.stack([other.table[channel][view[..., channel]] for channel in range(3)], axis=1)
                assert np.array_equal(looked_up, floats)
            assert np.array_equal(one.indices, other.indices) and np.array_equal(one.labels, other.labels)


def test_views_that_change_after_they_were_normalised_are_no_bytes():
    with pytest.raises(UserError, match="leave out raw=True"):
        loader(spec=ONE_VIEW, workers=0, raw=True)
    with pytest.raises(UserError, match="leave out raw=True"):
        loader(workers=0, raw=True, mix=MixSpec(mixup=0.8))
