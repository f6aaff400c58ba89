"""How images are read stays with a run: its state, its files, its resumption, and what is measured with it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

from triport.core.errors import UserError
from triport.core.record import checkpoint
from triport.core.run.reading import reading_of
from triport.core.run.subject import find_subject
from triport.parity_tests.fixtures import toy
from triport.parity_tests.fixtures.toy import assert_same_run, failed, go, last
from triport.verbs import model, pictures

RANGE = ("--value-range", "-1", "1")


@pytest.fixture(scope="module")
def floats(tmp_path_factory) -> Path:
    """The toy data as floats from -1 to 1."""
    folder = tmp_path_factory.mktemp("floats")
    for split in ("train", "test"):
        found = np.load(toy.shared_data() / f"{split}.npz")
        images = (found["images"] / 127.5 - 1).astype(np.float32)
        np.savez(folder / f"{split}.npz", images=images, labels=found["labels"])
    return folder


@pytest.fixture
def begun(tmp_path, floats, capsys) -> Path:
    """A run on them that was stopped after 8 of its 18 steps."""
    assert go("mae", tmp_path / "run", *RANGE, "--stop-after-steps", "8", data=floats) == 0
    capsys.readouterr()
    return tmp_path / "run"


def test_a_run_goes_on_with_its_own_values(begun, floats, tmp_path):
    assert last(begun)[1]["reading"] == {"value_range": [-1.0, 1.0]}
    assert go("mae", begun, "--resume", data=floats) == 0
    assert go("mae", tmp_path / "whole", *RANGE, data=floats) == 0
    assert_same_run(tmp_path / "whole", begun)
    starts = json.loads((begun / "environment.json").read_text())["starts"]
    assert [start["reading"]["value_range"] for start in starts] == [[-1.0, 1.0]] * 2
    assert starts[0]["reading"]["exif"] is False


@pytest.mark.parametrize(
    ("asked", "line"),
    [
        (("--value-range", "0", "1"), "--value-range 0 1 (before: --value-range -1 1)"),
        (("--exif",), "--exif (before: --no-exif)"),
        (("--max-pixels", "500"), "--max-pixels 500 (before: --max-pixels 89478485)"),
    ],
)
def test_other_values_are_refused_unless_the_change_is_named(begun, floats, capsys, asked, line):
    before = last(begun)
    assert line in failed(capsys, go("mae", begun, "--resume", *asked, data=floats))
    assert last(begun) == before
    assert go("mae", begun, "--resume", *asked, "--data-changed", data=floats) == 0
    assert f"images are read with {line}, as --data-changed says" in capsys.readouterr().out
    assert last(begun)[1]["step"] == toy.TOTAL


def test_the_same_values_may_be_given_again(begun, floats):
    assert go("mae", begun, "--resume", *RANGE, "--no-exif", "--max-pixels", "89478485", data=floats) == 0


@pytest.mark.parametrize(
    "wrong", [7, [], {"exif": 1}, {"gamma": 2}, {"value_range": [1]}, {"value_range": ["0", "1"]}, {"max_pixels": True}]
)
def test_a_forged_reading_is_one_clear_line(begun, floats, capsys, wrong):
    groups, state = checkpoint.load(begun / "checkpoints" / "last")
    own = {name: item for name, item in state.items() if name not in ("checksums", "seal", "format")}
    checkpoint.save(begun / "checkpoints" / "last", groups, {**own, "reading": wrong})
    assert "state.json has a wrong 'reading'" in failed(capsys, go("mae", begun, "--resume", data=floats))


def test_a_run_of_an_earlier_version_takes_what_the_command_line_says(begun, floats):
    groups, state = checkpoint.load(begun / "checkpoints" / "last")
    own = {name: item for name, item in state.items() if name not in ("checksums", "seal", "format", "reading")}
    checkpoint.save(begun / "checkpoints" / "last", groups, own)
    assert go("mae", begun, "--resume", *RANGE, data=floats) == 0
    assert last(begun)[1]["reading"] == {"value_range": [-1.0, 1.0]}


@pytest.fixture(scope="module")
def finished(tmp_path_factory, floats) -> Path:
    """A finished pretraining on the floats."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    assert go("mae", folder, *RANGE, data=floats) == 0
    return folder


def test_every_file_of_a_run_says_how_its_images_were_read(finished):
    for file in (finished / "encoder.safetensors", finished / "checkpoints" / "last" / "model.safetensors"):
        with safe_open(file, framework="np") as opened:
            assert json.loads(opened.metadata()["reading"]) == {"value_range": [-1.0, 1.0]}
        assert reading_of(file) == {"value_range": (-1.0, 1.0)}
    with safe_open(toy.whole("mae") / "encoder.safetensors", framework="np") as plain:
        assert "reading" not in plain.metadata()


def measured(*words: object) -> int:
    return toy.TASKS["evaluate"]([*map(str, words), "--workers", "0"], backend=toy.BACKEND)


@pytest.mark.parametrize("what", [".", "encoder.safetensors", "checkpoints/last"])
def test_what_is_measured_is_read_as_the_run_read_it(finished, floats, tmp_path, capsys, what):
    assert measured(finished / what, "--data", floats, "--embed", tmp_path / "floats.npz") == 0
    assert "images are read with --value-range -1 1, as the model's were" in capsys.readouterr().err
    assert measured(finished / what, "--data", toy.shared_data(), "--embed", tmp_path / "bytes.npz") == 0
    one, two = np.load(tmp_path / "floats.npz"), np.load(tmp_path / "bytes.npz")
    assert np.array_equal(one["features"], two["features"])  # the same pictures, in other numbers
    capsys.readouterr()
    other = ("--value-range", "-2", "2")
    assert measured(finished / what, "--data", floats, *other, "--embed", tmp_path / "other.npz") == 0
    assert "read otherwise: --value-range -2 2 (before: --value-range -1 1)" in capsys.readouterr().err
    assert not np.array_equal(np.load(tmp_path / "other.npz")["features"], one["features"])


def test_a_probe_reads_images_as_its_encoder_did(finished, floats, tmp_path, capsys):
    words = [*toy.RECIPES["linear"][1:], "--data", str(floats), "--workers", "0", "--out", str(tmp_path / "probe")]
    encoder = str(finished / "encoder.safetensors")
    assert toy.TASKS["linear"]([*words, "--weights", encoder], backend=toy.BACKEND) == 0
    assert "images are read with --value-range -1 1, as the encoder's were" in capsys.readouterr().out
    assert last(tmp_path / "probe")[1]["reading"] == {"value_range": [-1.0, 1.0]}
    assert measured(tmp_path / "probe", "--data", floats) == 0


def test_pictures_of_a_verb_are_read_as_the_run_read_them(finished, tmp_path):
    grey = (np.arange(64, dtype=np.float32).reshape(8, 8) - 31.5) / 31.5
    np.save(tmp_path / "grey.npy", grey)
    found = model.subject(finished)
    assert found.reading == find_subject(str(finished)).reading == {"value_range": (-1.0, 1.0)}
    _, rows = pictures.read_files(found.recipe, [tmp_path / "grey.npy"], found.reading)
    assert np.array_equal(rows[0, ..., 0], np.rint((grey + 1.0) * 127.5))
    with pytest.raises(UserError, match="none of 1 pictures can be read"):
        pictures.read_files(found.recipe, [tmp_path / "grey.npy"])
    assert model.autoencoder(finished).reading == found.reading
