"""Own photos: the six commands of docs/photos.md, run as they stand there on a few dozen small pictures."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from triport.core.model.inventory import inventory
from triport.core.spec import MoCo, recipe

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs" / "photos.md").read_text()
COMMANDS = [line.split() for line in re.findall(r"```sh\n(.*?)```", TEXT, re.S)[0].splitlines()]
NAMES = [name for name in recipe.names() if name.startswith("photos/")]
SMALL = {
    "pretrain": ["image=32", "batch=8", "epochs=2", "warmup=0", "model.objective.hidden=32", "model.objective.dim=16"],
    "linear": ["image=32", "batch=8", "epochs=3", "lr=0.5"],
}


def photos(folder: Path) -> None:
    """Twenty-eight pictures of two classes that differ in colour, of several sizes, as JPEG and PNG."""
    draw = np.random.default_rng(0)
    for split, count in (("train", 10), ("val", 4)):
        for at, name in enumerate(("beach", "forest")):
            where = folder / split / name
            where.mkdir(parents=True)
            for number in range(count):
                pixels = draw.integers(0, 60, (40 + 3 * number, 56 - 2 * number, 3), np.uint8)
                pixels[..., at] += 150
                Image.fromarray(pixels).save(where / f"{number}.{'png' if number % 3 else 'jpg'}")


def typed(words: list[str], cwd: Path) -> str:
    """Run a command in a folder and return what it printed."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", *words]
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, f"{' '.join(words)}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.mark.framework("torch")
def test_six_commands_from_a_folder_to_predictions(tmp_path: Path) -> None:
    photos(tmp_path / "my_photos")
    assert len(COMMANDS) == 6
    message = {words[1]: typed([*words, *SMALL.get(words[1], [])], tmp_path) for words in COMMANDS}
    assert "2 classes" in message["data"] and (tmp_path / "views.html").exists()
    assert "no kNN" not in message["pretrain"]
    assert (tmp_path / "runs" / "photos" / "encoder.safetensors").exists()
    assert (tmp_path / "near.html").read_text().count('class="query"') == 8
    measured = json.loads((tmp_path / "runs" / "photos" / "measure.json").read_text())
    assert measured
    rows = [line for line in message["predict"].splitlines() if re.search(r"\.(jpg|png)", line)]
    assert len(rows) == 8 and all("beach" in row or "forest" in row for row in rows)
    # Going on from weights, as the page says.
    more = ["--weights", "runs/photos", "--data", "my_photos/", "--out", "runs/more", *SMALL["pretrain"]]
    typed(["triport", "pretrain", "photos/moco_resnet18", *more, "epochs=1"], tmp_path)
    assert (tmp_path / "runs" / "more" / "encoder.safetensors").exists()


@pytest.mark.parametrize("name", NAMES)
def test_recipes_keep_what_is_asked_of_them(name: str) -> None:
    one = recipe.load(name)
    assert 64 <= one.batch <= 512 and 96 <= one.model.encoder.image[0] <= 224 and one.model.encoder.channels == 3
    for image in (96, 128, 224):
        assert recipe.load(name, [f"image={image}"]).model.encoder.image == (image, image)
    assert recipe.load(name, ["channels=1"]).train.mean == (0.449,)


def test_a_probe_has_the_encoder_of_its_pretraining() -> None:
    for name in NAMES:
        if not name.endswith("_linear"):
            own, probe = recipe.load(name), recipe.load(f"{name}_linear")
            same = ("kind", "depth", "width", "heads", "patch", "image", "position")
            for key in same:
                assert getattr(own.model.encoder, key, 0) == getattr(probe.model.encoder, key, 0), (name, key)
            assert own.evaluate == probe.evaluate


def test_the_vit_takes_the_weights_of_moco_v3s_vit_small() -> None:
    papers, own = (
        recipe.load("moco_v3/vit_small_300ep").model,
        recipe.load("photos/moco_vit_small", ["image=224"]).model,
    )
    assert papers.encoder == own.encoder and isinstance(own.objective, MoCo)
    shapes = [{p.name: p.shape for p in inventory(spec) if ".blocks." in p.name} for spec in (papers, own)]
    assert shapes[0] == shapes[1]


def test_the_page_names_every_recipe() -> None:
    for name in NAMES:
        assert name in TEXT or name.removesuffix("_linear") in TEXT
