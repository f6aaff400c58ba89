"""Images a second and core of a recipe's views, beside torchvision's and albumentations'; then the loader by workers.

python benchmarks/loader.py [--images N] [--rounds N] [--recipe NAME] [--workers N ...] [--stages]

Makes N natural-like 500 x 375 JPEGs in a temporary folder. All pipelines decode each image once and make its views, in
turn, in one process with one thread that keeps freed memory, as a loader's process does. Medians over the rounds and of
the rounds' ratios are printed, by processor time, which other programs on the machine disturb less, and by the clock.
The other libraries are optional. `--stages` says where our processor time goes.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

import loader_peers as peers
import numpy as np
from loader_peers import Sample
from PIL import Image

from triport.core.augment import augment, native, pixels
from triport.core.augment.steps import Plan
from triport.core.data.datasets import Dataset, open_dataset
from triport.core.data.loader import Loader, images_per_second
from triport.core.data.sample.decode import simplejpeg
from triport.core.machine import retain_freed_memory
from triport.core.rng import generator
from triport.core.spec import AugmentSpec, DataSpec
from triport.core.spec.recipe import load

SIZE = (375, 500)


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


def make_folder(folder: Path, count: int) -> list[Path]:
    """Write `count` JPEGs of quality 90 as an image folder; return their paths."""
    place = folder / "train" / "images"
    place.mkdir(parents=True)
    for index in range(count):
        Image.fromarray(natural(index)).save(place / f"{index:05}.jpg", quality=90)
    return sorted(place.iterdir())


# ---------------------------------------------------------------- our pipeline
def ours(dataset: Dataset, spec: AugmentSpec) -> Sample:
    """The pipeline as a loader's process runs it on one image, into the same memory each time."""
    values = pixels.table(spec.mean, spec.std, 3)
    out: dict[int, np.ndarray] = {}

    def sample(index: int) -> dict[int, np.ndarray]:
        image = dataset.image(index)
        size, channels = pixels.shape(image)
        for view in range(len(spec.views)):
            plan = augment.plan(spec, view, generator(0, "augment", 0, index, view), size)
            if view not in out:
                out[view] = np.empty((channels, *augment.output_size(plan, size)), np.float32)
            pixels.view(plan, image, out[view], values)
        return out

    return sample


def stages(dataset: Dataset, spec: AugmentSpec, count: int, rounds: int) -> None:
    """Print microseconds of processor time per image: of decoding, drawing, the crop to floats, and what others add."""
    values = pixels.table(spec.mean, spec.std, 3)
    numbers, indices = range(len(spec.views)), range(count)
    images = [dataset.image(index) for index in indices]

    def plans(index: int) -> list[Plan]:
        return [augment.plan(spec, view, generator(0, "augment", 0, index, view), SIZE) for view in numbers]

    drawn = [plans(index) for index in indices]
    out = [np.empty((3, *augment.output_size(drawn[0][view], SIZE)), np.float32) for view in numbers]

    def views(kinds: set[str]) -> Sample:
        chosen = [[tuple(s for s in plan if type(s).__name__ in kinds) for plan in plans] for plans in drawn]
        return lambda index: [pixels.view(chosen[index][v], images[index], out[v], values) for v in numbers]

    def spent(sample: Sample) -> float:
        return statistics.median(1e6 / measure(sample, count)[0] for _ in range(rounds))

    crop = spent(views({"Crop"}))
    table = {"decode": spent(dataset.image), "draw": spent(plans), "crop, to floats": crop}
    for kind in sorted({type(step).__name__ for plans in drawn for plan in plans for step in plan} - {"Crop"}):
        table[kind] = spent(views({"Crop", kind})) - crop
    print("processor time of a stage, microseconds an image, all views together:")
    print("   ".join(f"{name} {microseconds:.0f}" for name, microseconds in table.items()), flush=True)


# ---------------------------------------------------------------- measuring
def measure(sample: Sample, count: int) -> tuple[float, float]:
    """Images a second by processor time and by the clock."""
    clock, processor = time.perf_counter(), time.process_time()
    for index in range(count):
        sample(index)
    return count / (time.process_time() - processor), count / (time.perf_counter() - clock)


def compare(samples: dict[str, Sample], count: int, rounds: int) -> None:
    """Time all in turn and print medians; the first is the one that ratios are of."""
    for sample in samples.values():
        measure(sample, min(count, 8))  # libraries are loaded
    measured: dict[str, list[tuple[float, float]]] = {name: [] for name in samples}
    for _ in range(rounds):
        for name, sample in samples.items():
            measured[name].append(measure(sample, count))
    first = next(iter(samples))
    for kind, clock in enumerate(("processor time", "clock")):
        for name, rates in measured.items():
            rate = statistics.median(pair[kind] for pair in rates)
            ratios = [mine[kind] / theirs[kind] for mine, theirs in zip(measured[first], rates, strict=True)]
            ratio = f"   ratio {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
            print(f"{clock:15} {name:15} {rate:7.1f} images/s{ratio if name != first else ''}", flush=True)


def processes_time() -> float:
    """Seconds of processor time that the running children of this process have used."""
    ticks = 0
    for number in Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split():
        fields = Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def by_workers(dataset: Dataset, spec: AugmentSpec, workers: list[int], seconds: float, rounds: int) -> None:
    """Print what the whole loader gives to a caller who does nothing with it, in turn for each number of processes.

    Linear is the clock's rate over that of the first number, times its processes; the processor's rate is of the
    loader's processes alone, and says what more of them cost each other.
    """
    measured: dict[int, list[tuple[float, float]]] = {number: [] for number in workers}
    for _ in range(rounds):
        for number in workers:
            with Loader(dataset, spec, batch=16, train=True, workers=number, epochs=1 << 30) as loader:
                images_per_second(loader, 0.5)  # processes are up
                begun, processor, images, epoch = time.perf_counter(), processes_time(), 0, 0
                while time.perf_counter() - begun < seconds:
                    images += sum(len(batch.indices) for batches in loader.epoch(epoch) for batch in batches)
                    epoch += 1
                clock = time.perf_counter() - begun
                measured[number].append((images / (processes_time() - processor), images / clock))
    for number, rates in measured.items():
        ratios = [
            [mine[kind] / one[kind] for mine, one in zip(rates, measured[workers[0]], strict=True)] for kind in (0, 1)
        ]
        print(
            f"loader, {number} processes   {statistics.median(rate[1] for rate in rates):7.1f} images/s by the clock"
            f" ({statistics.median(ratios[1]):.2f} of the first)"
            f"   {statistics.median(rate[0] for rate in rates):7.1f} by their processor time"
            f" ({statistics.median(ratios[0]):.2f})",
            flush=True,
        )


def main() -> None:
    """Read the command line, make the images, measure."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--recipe", default="moco_v3/vit_small_300ep", help="whose training views are made")
    parser.add_argument("--workers", type=int, nargs="*", default=[1, 2])
    parser.add_argument("--seconds", type=float, default=4.0, help="of each burst with workers")
    parser.add_argument("--stages", action="store_true", help="say where the time goes")
    options = parser.parse_args()
    spec = load(options.recipe).train
    retain_freed_memory()
    with tempfile.TemporaryDirectory() as name:
        paths = make_folder(Path(name), options.images)
        size = statistics.mean(path.stat().st_size for path in paths) / 1000
        decoder = peers.versions("simplejpeg" if simplejpeg() else "pillow", "numpy")
        print(f"{options.images} JPEGs of {SIZE[1]} x {SIZE[0]}, {size:.0f} kB; {options.recipe}")
        print(f"ours: kernels {native.state()}, {decoder}; load of the machine {os.getloadavg()[0]:.1f}")
        dataset = open_dataset(name, "train", DataSpec(name="benchmark"), 3)
        samples: dict[str, Sample] = {"triport": ours(dataset, spec)}
        for peer, (pipeline, libraries) in peers.PEERS.items():
            try:
                samples[peer] = pipeline(paths, spec)
                print(f"{peer}: {peers.versions(*libraries)}")
            except ImportError as error:
                print(f"{peer} is left out: {error}")
        compare(samples, options.images, options.rounds)
        if options.stages:
            stages(dataset, spec, options.images, options.rounds)
        if options.workers:
            by_workers(dataset, spec, options.workers, options.seconds, options.rounds)


if __name__ == "__main__":
    main()
