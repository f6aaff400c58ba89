"""(Fashion-)MNIST's idx files, gzipped or not, and the images that come with the project."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from triport.core.data.readers.arrays import ArrayDataset
from triport.core.data.readers.sizes import check_unpacked, unzipped
from triport.core.data.sample.decode import Decoding
from triport.core.data.sample.labels import numbered
from triport.core.errors import UserError

FASHION = ["T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle-boot"]
IDX_IMAGES = re.compile(r"images[-.]idx3-ubyte(\.gz)?$")


def read_idx(path: Path, split: str, decoding: Decoding, classes: Sequence[str] = ()) -> ArrayDataset:
    """Read MNIST-like idx files, gzipped or not: one file of images, or a folder with train-* and t10k-* (or test-*).

    A file that is given alone is used whole; its labels lie beside it. Without them the images have none.
    """
    remarks: list[str] = []
    if path.is_dir():
        names = ("train-",) if split == "train" else ("t10k-", "test-")
        found = [item for item in sorted(path.iterdir()) if IDX_IMAGES.search(item.name)]
        chosen = [item for item in found if any(name in item.name for name in names)]
        if not chosen:
            raise UserError(f"'{path}' has no {names[0]}images-idx3-ubyte(.gz) file; put it there")
        path = chosen[0]
        if len(chosen) > 1:
            others = ", ".join(item.name for item in chosen[1:4])
            remarks.append(
                f"several sets in '{path.parent}': '{path.name}' is read, not {others}; give one file to choose"
            )
    images = _idx(path, 3)
    name = f"{path.parent.name} {split}"
    beside = path.name.replace("images", "labels").replace("idx3", "idx1")
    options = (path.with_name(beside), path.with_name(beside.removesuffix(".gz")), path.with_name(beside + ".gz"))
    partner = next((item for item in options if item.is_file()), None)
    if partner is None:
        dataset = ArrayDataset(name, images, None, decoding=decoding, remarks=remarks)
        dataset.fault = f"'{path}' has no labels beside it; put '{beside}' there"
        return dataset
    labels = numbered(name, _idx(partner, 1), len(images), classes)
    return ArrayDataset(name, images, labels, decoding=decoding, remarks=remarks)


def _idx(path: Path, dimensions: int) -> np.ndarray:
    head = 4 + 4 * dimensions
    try:
        start = unzipped(path, head)[:head]
        if start[:4] != bytes((0, 0, 8, dimensions)) or len(start) < head:
            raise UserError(f"'{path}' is not an idx file of bytes with {dimensions} dimensions")
        shape = tuple(int(size) for size in np.frombuffer(start, ">u4", dimensions, 4))
        size = head + math.prod(shape)
        check_unpacked(f"'{path}'", size, path.stat().st_size)
        data = unzipped(path, size)
    except OSError as error:
        raise UserError(f"'{path}' cannot be read: {error.strerror or error}") from None
    if len(data) != size:
        raise UserError(f"'{path}' is cut short, or longer than its header says; fetch it again")
    return np.frombuffer(data, np.uint8, offset=head).reshape(shape)


def read_shipped(split: str, decoding: Decoding) -> ArrayDataset:
    """Return the images that come with the project: 8,000 of Fashion-MNIST to train, 2,000 to test.

    They are the test half of Fashion-MNIST (t10k), in its order: classes are mixed evenly all through it. A model
    pretrained on them must therefore never be scored on the official test half.
    """
    folder = Path(__file__).parents[1] / "fashion_mnist"
    whole = read_idx(folder / "t10k-images-idx3-ubyte.gz", split, decoding, FASHION)
    assert isinstance(whole.images, np.ndarray)
    part = slice(0, 8000) if split == "train" else slice(8000, None)
    return ArrayDataset(f"fashion-mnist {split}", whole.images[part], whole.labels[part], FASHION, decoding=decoding)
