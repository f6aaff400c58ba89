"""Oxford-IIIT Pets and Oxford Flowers-102, unpacked, as their makers name the files."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from triport.core.data.readers import mat_file
from triport.core.data.readers.image_files import FileDataset
from triport.core.data.readers.lists import all_there
from triport.core.data.readers.tree import Paths
from triport.core.data.sample.decode import Decoding
from triport.core.data.sample.labels import numbered
from triport.core.errors import UserError


def read_pets(root: Path, split: str, decoding: Decoding) -> FileDataset:
    """Read Oxford-IIIT Pets: annotations/{trainval,test}.txt, lines "name class species breed"; images/<name>.jpg."""
    path = root / "annotations" / ("trainval.txt" if split == "train" else "test.txt")
    if not path.is_file():
        raise UserError(f"Oxford Pets needs '{path}'; unpack annotations.tar.gz there")
    try:
        lines = path.read_text("utf-8").splitlines()
    except UnicodeDecodeError:
        raise UserError(f"'{path}' is not an Oxford Pets list: it is not UTF-8 text") from None
    rows = [line.split() for line in lines if line.strip() and not line.startswith("#")]
    if not rows or not all(len(row) == 4 and row[1].isascii() and row[1].isdigit() and row[1] != "0" for row in rows):
        raise UserError(f"'{path}' is not an Oxford Pets list: its lines are 'name class species breed'")
    if any(len(row[1]) > 6 or int(row[1]) > len(rows) + 37 for row in rows):
        raise UserError(f"'{path}' is not an Oxford Pets list: it has 37 breeds, numbered from 1")
    labels = np.array([int(row[1]) - 1 for row in rows])
    names = {int(label): row[0].rpartition("_")[0] for label, row in zip(labels, rows, strict=True)}
    paths = [f"images/{row[0]}.jpg" for row in rows]
    all_there(path, root, paths)
    classes = [names.get(number, str(number)) for number in range(max(names) + 1)]
    return FileDataset("oxford-pets", root, Paths(paths), numbered(str(path), labels, len(rows), classes), decoding)


def read_flowers(root: Path, split: str, decoding: Decoding) -> FileDataset:
    """Read Flowers-102: jpg/image_%05d.jpg, imagelabels.mat and setid.mat, whose labels and numbers count from 1.

    Training is `trnid` then `valid`, 2,040 images; test is `tstid`, 6,149 (MoCo v3's transfer set).
    """
    for name in ("imagelabels.mat", "setid.mat"):
        if not (root / name).is_file():
            raise UserError(f"Flowers-102 needs '{root / name}'; fetch it from the data set's page")
    labels, sets = mat_file.load(root / "imagelabels.mat"), mat_file.load(root / "setid.mat")
    wanted = ("trnid", "valid") if split == "train" else ("tstid",)
    if "labels" not in labels or any(name not in sets for name in wanted):
        raise UserError(f"'{root}' holds .mat files without labels, {', '.join(wanted)}; fetch the originals again")
    numbers = np.concatenate([sets[name].ravel() for name in wanted]).astype(np.int64)
    every = labels["labels"].ravel().astype(np.int64) - 1
    if not len(numbers) or numbers.min() < 1 or numbers.max() > len(every) or every.min() < 0:
        raise UserError(f"'{root / 'setid.mat'}' and imagelabels.mat do not match; fetch the originals again")
    paths = [f"jpg/image_{number:05d}.jpg" for number in numbers]
    all_there(root / "setid.mat", root, paths)
    known = numbered(
        str(root / "imagelabels.mat"), every[numbers - 1], len(numbers), least=min(int(every.max()) + 1, 1 << 20)
    )
    return FileDataset("flowers-102", root, Paths(paths), known, decoding)
