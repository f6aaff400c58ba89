"""Arrays, TIFF bands, shards and parquet with four channels are trained alike by every framework, from any source."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import tifffile

from triport import environments
from triport.core.rng import generator
from triport.parity_tests.fixtures.sources import encoded, parquet, shard
from triport.parity_tests.tool.bounds import hold

ROOT = Path(__file__).resolve().parents[2]
COUNT = 24
NUMBERS = [f"{part}.{word}=[0.5,0.4,0.3,0.2]" for part in ("train", "evaluate") for word in ("mean", "std")]
SETTINGS = (
    *("tiny/test_moco_vit", "batch=8", "model.encoder.channels=4", "train.colour_operations=where_possible"),
    *(*NUMBERS, "schedule.warmup_epochs=0", "monitor.knn_every=0", "--stop-after-steps", "2", "--workers", "0"),
)


def images() -> np.ndarray:
    """Smooth pictures with four channels, uint8 (24, 18, 20, 4)."""
    coarse = generator("four channels").integers(0, 256, (COUNT, 6, 5, 4), np.uint8)
    return coarse.repeat(3, axis=1).repeat(4, axis=2)


def npy(root: Path) -> None:
    np.save(root / "train_images.npy", images())
    np.save(root / "train_labels.npy", np.arange(COUNT) % 3)


def deep_npz(root: Path) -> None:
    """16 bits, channels first."""
    np.savez(root / "train.npz", images=np.moveaxis(images().astype(np.uint16) * 257, 3, 1))


def floats(root: Path) -> None:
    np.savez(root / "train.npz", images=(images() / 255).astype(np.float32))


def folder_of_npy(root: Path) -> None:
    for number, image in enumerate(images()):
        np.save(root / f"{number:02d}.npy", image.astype(np.uint16) * 257)


def tiff(root: Path) -> None:
    """16 bits, bands as planes."""
    for number, image in enumerate(images()):
        planes = np.moveaxis(image.astype(np.uint16) * 257, 2, 0)
        tifffile.imwrite(root / f"{number:02d}.tif", planes, photometric="minisblack", planarconfig="separate")


def png(root: Path) -> None:
    for number, image in enumerate(images()):
        (root / f"{number:02d}.png").write_bytes(encoded(image))


def shards(root: Path) -> None:
    members = [(f"{number:02d}.png", encoded(image)) for number, image in enumerate(images())]
    shard(root / "0.tar", members[:9])
    shard(root / "1.tar", members[9:])


def table(root: Path) -> None:
    rows = [{"bytes": encoded(image), "path": ""} for image in images()]
    parquet(root / "train.parquet", list(range(COUNT)), image=rows)


SOURCES: dict[str, Callable[[Path], None]] = {
    made.__name__: made for made in (deep_npz, floats, folder_of_npy, tiff, png, shards, table)
}


def losses(python: Path | None, framework: str, make: Callable[[Path], None], place: Path) -> list[float]:
    """The losses of two steps of a framework on a source, by another interpreter or else by this."""
    (place / "data").mkdir(parents=True)
    make(place / "data")
    more = ["--value-range", "0", "1"] if make is floats else []
    module = f"triport.backends.{framework}.pretrain"
    words = [*SETTINGS, *more, "--data", str(place / "data"), "--out", str(place / "run"), "--quiet"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(place))  # where the contents of shards and tables are noted
        if python is None:
            assert import_module(module).main(words) == 0
        else:
            settings = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
            made = subprocess.run(
                [str(python), "-m", module, *words], cwd=ROOT, env=settings, capture_output=True, text=True
            )
            assert made.returncode == 0, made.stderr
    lines = map(json.loads, (place / "run" / "metrics.jsonl").read_text().splitlines())
    found = [line["loss"] for line in lines if line["kind"] == "step"]
    assert len(found) == 2
    return found


@pytest.fixture(scope="module")
def of_bytes(probe, tmp_path_factory) -> list[float]:
    """This framework's losses on mapped arrays of bytes."""
    return losses(None, probe.__name__.split(".")[2], npy, tmp_path_factory.mktemp("npy"))


@pytest.mark.parametrize("source", SOURCES)
def test_the_same_pictures_give_the_same_losses_from_any_source(probe, of_bytes, tmp_path, source):
    framework = probe.__name__.split(".")[2]
    assert losses(None, framework, SOURCES[source], tmp_path) == of_bytes


def test_they_are_those_of_pytorch(probe, of_bytes, tmp_path):
    if not environments.interpreter("torch"):
        pytest.skip("PyTorch is not set up: triport setup torch")
    expected = losses(environments.require("torch"), "torch", npy, tmp_path)
    for step, (own, its) in enumerate(zip(of_bytes, expected, strict=True)):
        hold("training", abs(own - its) / its, f"{probe.__name__.split('.')[2]} on four channels, loss of step {step}")
