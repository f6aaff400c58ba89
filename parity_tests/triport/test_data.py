"""`triport data`: what lies at a path in words and on a page, as a run would read it."""

from __future__ import annotations

import base64
import io
import re
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from triport import samples
from triport.command import main
from triport.core.data.datasets import open_dataset
from triport.core.data.loader import Loader
from triport.core.spec import DataSpec, recipe
from triport.parity_tests.fixtures.sources import encoded, parquet, put, shard, tree
from triport.parity_tests.fixtures.sources import samples as members


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


def printed(capsys, *words: object) -> str:
    assert main(["data", *map(str, words)]) == 0
    return capsys.readouterr().out


def failed(capsys, *words: object) -> str:
    assert main(["data", *map(str, words)]) == 2
    line = capsys.readouterr().err
    assert line.startswith("triport: error: ") and line.count("\n") == 1
    return line


def test_folders_in_words(tmp_path, capsys):
    tree(tmp_path, "train/cat/1.png", "train/dog/2.png", "train/dog/3.png", "val/cat/4.png", "val/dog/5.png", "x.png")
    (tmp_path / "train/cat/broken\n.png").write_bytes(b"")
    (tmp_path / "train/cat/gone.png").symlink_to("nowhere")
    text = printed(capsys, tmp_path)
    assert "folders of classes" in text and "train     4 images, 2 classes" in text and "val       2 images" in text
    assert "cat 2, dog 2" in text and "all 6 x 8; read with 3 channels" in text
    assert "1 broken of 4 looked at" in text and "broken\\n.png: the file is empty" in text
    assert "test      not there: the same images as val" in text
    assert "1 picture beside" in text and "1 link to nowhere" in text


def test_every_kind_is_named(tmp_path, capsys):
    np.save(tmp_path / "x.npy", np.zeros((3, 8, 9, 5), np.uint8))
    np.savez(tmp_path / "x.npz", images=np.zeros((3, 5, 8, 9), np.uint16), labels=np.arange(3))
    parquet(tmp_path / "x.parquet", [1, 2, 3], ["a", "b", "c"])
    shard(tmp_path / "x.tar", members(0, 3))
    tree(tmp_path / "flat", "1.png", "2.png")
    (tmp_path / "x.txt").write_text("flat/1.png 0\nflat/2.png 1\n")
    for name, words in [
        ("x.npy", (".npy arrays", "3 images, no labels", "5 channels")),
        ("x.npz", (".npz", "3 classes", "5 channels", "8 x 9")),
        ("x.parquet", ("parquet", "a 1, b 1, c 1")),
        ("x.tar", ("WebDataset", "3 classes")),
        ("flat", ("without classes", "2 images")),
        ("x.txt", ("a list", "2 classes")),
    ]:
        text = printed(capsys, tmp_path / name)
        assert all(word in text for word in words), text
    assert "10 classes" in printed(capsys, "fashion-mnist")


def test_images_that_are_too_large_are_distinguished(tmp_path, capsys):
    tree(tmp_path, "1.png", "2.png")
    text = printed(capsys, tmp_path, "--max-pixels", "47")
    assert "0 broken of 2" in text and "2 images have too many pixels, 48 at most: --max-pixels 48 lets them in" in text


def test_faults_of_labels_are_notes_and_wrong_words_are_errors(tmp_path, capsys):
    tree(tmp_path / "d", "a/1.png", "b/2.png")
    (tmp_path / "d/c").mkdir()
    assert "1 class folder without an image" in printed(capsys, tmp_path / "d")
    (tmp_path / "d/c").rmdir()
    (tmp_path / "x.txt").write_text("d/a/1.png 0\nd/b/2.png 3000000000\n")
    assert "without labels: list file" in printed(capsys, tmp_path / "x.txt")
    assert "no file or folder" in failed(capsys, tmp_path / "nowhere")
    assert "name it with --recipe" in failed(capsys, tmp_path / "d", "image=32")
    assert "first number must be below" in failed(capsys, tmp_path / "d", "--value-range", "1", "1")
    assert "5 channels, the model has 1" in failed(capsys, array(tmp_path), "--recipe", "tiny/mae_vit_tiny")


def array(folder: Path) -> Path:
    np.save(folder / "five.npy", np.zeros((3, 8, 9, 5), np.uint8))
    return folder / "five.npy"


def test_archives_are_unpacked_and_described(tmp_path, capsys):
    put(tmp_path / "src/a/1.png")
    put(tmp_path / "src/b/1.png")
    with tarfile.open(tmp_path / "x.tgz", "w:gz") as file:
        file.add(tmp_path / "src", ".")
    text = printed(capsys, tmp_path / "x.tgz", "--unpack", tmp_path / "out")
    assert "2 files unpacked" in text and "2 images, 2 classes" in text
    assert "exists already" in failed(capsys, tmp_path / "x.tgz", "--unpack", tmp_path / "out")


# ---------------------------------------------------------------- the page
def pictures(page: Path) -> list[np.ndarray]:
    found = re.findall(r"data:image/png;base64,([^\"]+)", page.read_text("utf-8"))
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(text)))) for text in found]


def test_the_page_shows_samples_and_views_with_names_escaped(tmp_path, capsys):
    rng = np.random.default_rng(0)
    for name in ("a<b>", "c&d"):
        for number in range(4):
            path = tmp_path / "data" / name / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encoded(rng.integers(0, 256, (30, 40, 3), np.uint8)))
    page = tmp_path / "page.html"
    printed(capsys, tmp_path / "data", "--recipe", "tiny/moco_vit_tiny", "--page", page)
    text = page.read_text("utf-8")
    assert "a&lt;b&gt;" in text and "<b>:" not in text and "http" not in text.replace("http-equiv", "")
    assert len(pictures(page)) == 8 + samples.VIEWED + samples.VIEWED  # samples, training views, evaluation
    printed(capsys, tmp_path / "data", "--page", page)  # our own page is written again
    assert len(pictures(page)) == 8
    page.write_text("mine")
    assert "not a page that triport wrote" in failed(capsys, tmp_path / "data", "--page", page)


def test_views_are_those_that_the_loader_gives():
    chosen = recipe.load("tiny/moco_vit_tiny")
    data = open_dataset(None, "train", DataSpec(name="fashion-mnist"), 1)
    with Loader(data, chosen.train, batch=8, train=True, seed=chosen.seed, workers=0) as loader:
        batch = next(loader.epoch(2))[0]
    for view in (0, 1):
        for row, index in enumerate(batch.indices.tolist()):
            shown = samples.view_of(data.image(index), index, chosen.train, view, chosen.seed, 2)
            given = (batch.images[view][row] * chosen.train.std[0] + chosen.train.mean[0]) * 255
            assert np.array_equal(shown[..., 0], np.clip(np.rint(given[0]), 0, 255).astype(np.uint8))


def test_colours_of_many_channels_are_refused_on_the_page_too(tmp_path, capsys):
    numbers = [f"{part}.{word}=[0.5,0.5,0.5,0.5,0.5]" for part in ("train", "evaluate") for word in ("mean", "std")]
    words = [array(tmp_path), "model.encoder.channels=5", *numbers]
    assert "color_jitter" in failed(capsys, *words, "--recipe", "tiny/moco_vit_tiny", "--page", tmp_path / "x.html")


def test_colours_of_many_channels_are_left_out_where_the_recipe_says_so(tmp_path, capsys):
    numbers = [f"{part}.{word}=[0.5,0.5,0.5,0.5,0.5]" for part in ("train", "evaluate") for word in ("mean", "std")]
    page, named = tmp_path / "x.html", ("--recipe", "tiny/moco_vit_tiny", "model.encoder.channels=5")
    printed(capsys, array(tmp_path), *named, *numbers, "train.colour_operations=where_possible", "--page", page)
    assert "Augmented views: tiny/moco_vit_tiny" in page.read_text("utf-8")


def test_the_page_says_which_images_are_too_large(tmp_path, capsys):
    tree(tmp_path / "d", "1.png", "2.png")
    Image.new("RGB", (9, 9)).save(tmp_path / "d" / "3.png")
    printed(capsys, tmp_path / "d", "--max-pixels", "80", "--page", tmp_path / "x.html")
    text = (tmp_path / "x.html").read_text("utf-8")
    assert "0, 1 too large" in text and "1 image has too many pixels, 81 at most: --max-pixels 81 lets it in" in text
