"""core.data.readers.arrays and idx: one picture is no set of rows, labels beside are found, the set read is named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from triport.core.data.datasets import open_dataset
from triport.core.errors import UserError
from triport.core.spec import DataSpec

SPEC = DataSpec(name="own")
IMAGES = np.random.default_rng(0).integers(0, 256, (6, 8, 9, 3), np.uint8)
LABELS = np.array([0, 1, 0, 1, 1, 0])


@pytest.mark.parametrize("bands", [3, 4])
@pytest.mark.parametrize("kind", ["npy", "npz"])
def test_one_picture_is_not_read_as_a_set_of_its_rows(tmp_path: Path, kind: str, bands: int):
    picture = np.zeros((40, 56, bands), np.uint8)
    if kind == "npy":
        np.save(tmp_path / "x.npy", picture)
    else:
        np.savez(tmp_path / "x.npz", images=picture)
    with pytest.raises(UserError, match=rf"40x56x{bands} is one picture; give many as"):
        open_dataset(str(tmp_path / f"x.{kind}"), "train", SPEC, 3)


def test_images_along_the_last_axis_are_refused_with_the_remedy(tmp_path: Path):
    np.savez(tmp_path / "x.npz", images=np.moveaxis(IMAGES, 0, 3))
    with pytest.raises(UserError, match=r"8x9x3x6 has the images along the last axis; store np\.moveaxis"):
        open_dataset(str(tmp_path / "x.npz"), "train", SPEC, 3)


@pytest.mark.parametrize(
    ("images", "labels"),
    [
        ("own", "own_labels"),
        ("images", "labels"),
        ("my_images", "my_labels"),
        ("X", "y"),
        ("x", "y"),
        ("x_own", "y_own"),
        ("X_own", "y_own"),
    ],
)
def test_labels_beside_an_array_are_found_by_its_name(tmp_path: Path, images: str, labels: str):
    np.save(tmp_path / f"{images}.npy", IMAGES)
    assert not open_dataset(str(tmp_path / f"{images}.npy"), "train", SPEC, 3).classes
    np.save(tmp_path / f"{labels}.npy", LABELS)
    assert open_dataset(str(tmp_path / f"{images}.npy"), "train", SPEC, 3).labels.tolist() == LABELS.tolist()


def idx(path: Path, array: np.ndarray) -> None:
    path.write_bytes(bytes((0, 0, 8, array.ndim)) + np.array(array.shape, ">u4").tobytes() + array.tobytes())


def test_of_several_idx_sets_in_a_folder_the_one_that_is_read_is_named(tmp_path: Path):
    for name in ("balanced", "letters"):
        idx(tmp_path / f"emnist-{name}-train-images-idx3-ubyte", IMAGES[..., 0])
    (remark,) = open_dataset(str(tmp_path), "train", SPEC, 1).remarks
    assert "emnist-balanced-train-images-idx3-ubyte' is read, not emnist-letters" in remark
    (tmp_path / "emnist-letters-train-images-idx3-ubyte").unlink()
    assert not open_dataset(str(tmp_path), "train", SPEC, 1).remarks
