"""Every page in a real browser: no error in its console, nothing wider than a phone, in light and in dark windows."""

from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from triport.command import main as commands
from triport.core.evaluate import reconstruction
from triport.core.evaluate.projection import plane
from triport.core.model import masking
from triport.core.record import comparison, page, pictures, report
from triport.core.rng import generator
from triport.core.run import loop
from triport.core.run.subject import Subject
from triport.core.spec import recipe as recipes
from triport.parity_tests.tool import page as parity_page
from triport.parity_tests.tool.findings import Finding, Report
from triport.verbs import attention, embed, measure_page, neighbours, reconstruct
from triport.verbs.model import Autoencoder

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
SWITCHES = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --enable-logging=stderr --virtual-time-budget=5000 --dump-dom"
)
PHONE = 390  # pixels

pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium here: install chromium, as `apt install chromium`")


def run(folder: Path, backend: str, bend: float = 0.0) -> Path:
    """A run of 300 steps with a spike, a gap and scores; names and values as long as real ones."""
    folder.mkdir()
    recipe = recipes.load("tiny/moco_vit_tiny", ["batch=64"])
    lines: list[dict] = []
    for n in range(1, 301):
        loss = None if n == 150 else 5 * math.exp(-n / 200) * (1 + bend * n) + n % 7 / 50
        rest = {"gradient_norm": 2.0, "first_layer_gradient": 90.0 if n == 200 else 0.5, "lr": 1e-3, "spread": 0.9}
        speed = {"images_per_second": 300.0 + n % 11, "data_seconds": 0.1}
        lines.append({"kind": "step", "step": n, "epoch": n / 100, "loss": loss, **rest, **speed})
    for n in range(4):
        scores = {
            "knn": 0.3 + n / 10,
            "spread": 0.5,
            "effective_rank": 20.123456,
            "memory_gb": 0.5,
            "mean_per_class": 0.3,
        }
        lines.append({"kind": "epoch", "step": 100 * n, "epoch": n, **scores})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "recipe.toml").write_text(recipes.to_toml(recipe))
    start = {
        "backend": backend,
        "processes": 2,
        "begun": "2026-01-01",
        "packages": {backend: "1.2.3", "numpy": "2.1.0"},
    }
    start["command"] = ["triport", "pretrain", "--out", "a/folder/with/a/very/long/name/" * 5]
    (folder / "environment.json").write_text(json.dumps({"starts": [start]}))
    return folder


def pictured(folder: Path) -> Path:
    """The same with what a run draws beside its numbers."""
    sheet = Image.fromarray(generator(0, "sheet").integers(0, 256, (196, 596, 3)).astype(np.uint8))
    for name in ("views.png", *(f"reconstructions/epoch_{n}.png" for n in range(0, 40, 2))):
        pictures.write(folder / name, sheet)
    points = generator(0, "plane").normal(size=(300, 20)).astype(np.float32)
    names = [f"a class with a long name, number {n}" for n in range(12)]
    (folder / "projection.json").write_text(json.dumps(plane(points, np.arange(300) % 12, names, 3)))
    (folder / "baselines.json").write_text(json.dumps({"chance": 0.1, "raw pixels": 0.8, "about": "kNN accuracy"}))
    return folder


def long(folder: Path) -> Path:
    """A run of 500,000 steps, of which every fifth is recorded as the loop does."""
    run(folder, "paddle")
    usual = {"gradient_norm": 2.0, "first_layer_gradient": 0.5, "lr": 1e-3, "images_per_second": 300.0}
    lines = [
        {"kind": "step", "step": n, "epoch": n / 1666, "loss": 5 / (1 + n / 1e5) + n % 7 / 50, **usual}
        for n in range(5, 500_001, 500_000 // loop.LINES)
    ]
    lines += [{"kind": "epoch", "step": 1666 * n, "epoch": n, "knn": n / 600, "probe": n / 500} for n in range(301)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def of_verbs(folder: Path) -> dict[str, str]:
    """The pages of neighbours, reconstruct, attention and measure, of drawn numbers."""
    recipe, rng = recipes.load("tiny/mae_vit_tiny"), generator(0, "verbs")
    subject = Subject(recipe, {}, False, "runs/with/a/rather/long/name/of/its/own/checkpoints/last")
    images = rng.integers(0, 256, (3, 28, 28, 1)).astype(np.uint8)
    files = [folder / f"picture-{n}-with-a-long-name.png" for n in range(3)]
    for file, image in zip(files, images):
        Image.fromarray(image[..., 0]).save(file)
    among = embed.Features(rng.normal(size=(3, 4)), list(map(str, files)), np.array([0, 1, -1]), ["all"] * 3,
                           ["ankle boot", "a class with a long name"], "0" * 64, "x")  # fmt: skip
    found = neighbours.Neighbours(list(map(str, files)), among, np.array([[1, 2], [0, 2], [0, 1]]), rng.random((3, 2)))
    mask = masking.mask(masking.noise(0, 0, range(3), 49), 0.75).mask
    given, prediction = rng.normal(size=(3, 1, 28, 28)), rng.normal(size=(3, 49, 16))
    made = reconstruction.pictured(recipe.model, recipe.evaluate, given, prediction, mask)
    reconstructions = reconstruct.Reconstructions(files=files, mask=mask, prediction=prediction, **vars(made))
    seen = attention.Attention(files, images, rng.random((3, 12, 50)), rng.random((3, 50)), rng.random((3, 49, 4)),
                               rng.random((3, 7, 7, 3)), (7, 7))  # fmt: skip
    classes = [f"class {n} with a name" for n in range(30)]
    few = {"0.01": {"mean": 0.3, "deviation": 0.05}, "5 per class": {"mean": 0.4, "deviation": 0.02}}
    score: dict[str, Any] = {"knn": {"10": 0.5}, "few_shot": few, "effective_rank": 9.0, "width": 64}
    score |= {key: {"accuracy": 0.7} for key in ("linear_probe", "logistic_regression")}
    score["lidar"] = {"rank": 9.0, "images": 5, "views": 10}
    message = {"model": "runs/moco", "data": "a/data/set", "split": "val", "images": {"train": 9, "test": 9},
            "chance": {"uniform": 0.1, "largest class": 0.2}, "temperature": 0.07,
            "scores": dict.fromkeys(("trained", "raw_pixels", "untrained"), score),
            "per_class": dict.fromkeys(classes, 0.5)}  # fmt: skip
    return {
        "neighbours": neighbours.render(subject, found, folder),
        "reconstruct": reconstruct.render(Autoencoder(recipe, {}, "runs/mae"), reconstructions),
        "attention": attention.render(subject, seen),
        "measure": measure_page.render(message, rng.integers(0, 9, (30, 30)), classes),
    }


def of_data(folder: Path) -> str:
    """The page of a data set, with views."""
    commands(["data", str(folder), "--recipe", "tiny/moco_vit_tiny", "--page", str(folder / "data.html")])
    return (folder / "data.html").read_text()


def parity() -> str:
    """A page of a parity run that two frameworks took, one comparison departing."""
    findings = [
        Finding(
            level, f"what {n}", "torch", against, 10.0**-n, 1e-9, 1e-5, "momentum_encoder.blocks.11.attn.qkv.weight"
        )
        for level in parity_page.LEVELS
        for n, against in enumerate(("reference", "paddle", "reference", "paddle", "paddle", "reference", "paddle"))
    ]
    layers = {name: [(f"base_encoder.blocks.{n}.mlp", 1e-7 * (n + 1), 1e-8, 1e-5) for n in range(12)] for name in NAMES}
    losses = {name: [5 - n / 10 + at * 1e-7 for n in range(20)] for at, name in enumerate(NAMES)}
    environment = {"python": "3.11", "packages": {"numpy": "2.1.0"}}
    return parity_page.html(
        Report("tiny/test_moco_vit", "pretrain", "20 steps of 16 images", NAMES, {}, list(parity_page.LEVELS), findings,
               layers, losses, "float64", 3.0, environment)
    )  # fmt: skip


DRAWN = ("report", "frameworks", "compare", "parity", "long")  # pages of curves
PICTURED = ("neighbours", "reconstruct", "attention", "measure", "data")
NAMES = {"torch": "PyTorch", "paddle": "PaddlePaddle"}


@pytest.fixture(scope="module")
def pages(tmp_path_factory) -> dict[str, str]:
    """Each kind of page as HTML."""
    folder = tmp_path_factory.mktemp("runs")
    runs = [run(folder / name, name, 1e-6 * at) for at, name in enumerate(("torch", "paddle", "oneflow"))]
    other = run(folder / "a-run-with-a-rather-long-name-of-its-own", "torch", 1e-3)
    (other / "recipe.toml").write_text(recipes.to_toml(recipes.load("tiny/mae_vit_tiny")))
    (folder / "pictures").mkdir()
    return {
        **of_verbs(folder / "pictures"),
        "data": of_data(folder / "pictures"),
        "long": report.render(long(folder / "long")),
        "report": report.render(pictured(runs[0])),
        "frameworks": comparison.render(comparison.read(runs)),
        "compare": comparison.render(comparison.read([*runs, other])),
        "parity": parity(),
    }


# Run in the browser once the page is there: what the test below reads from the window's title.
MEASURE = """
frame.onload = () => {
  const page = frame.contentDocument
  const colour = frame.contentWindow.getComputedStyle(page.body).backgroundColor
  document.title = [page.documentElement.scrollWidth, page.querySelectorAll("svg").length, colour].join(";")
}
"""


def look(text: str, folder: Path, dark: bool = False) -> tuple[list[str], int, int, bool]:
    """Open a page on a phone; return the console's lines, its width in pixels, its drawings, whether it is dark."""
    frame = f'<iframe id="frame" width="{PHONE}" height="900" style="border: 0" srcdoc="{escape(text, quote=True)}">'
    (folder / "phone.html").write_text(f"<!doctype html>{frame}</iframe><script>{MEASURE}</script>")
    scheme = f"--blink-settings=preferredColorScheme={0 if dark else 1}"
    words = [str(BROWSER), *SWITCHES.split(), scheme, f"--user-data-dir={folder / 'profile'}"]
    done = subprocess.run([*words, (folder / "phone.html").as_uri()], capture_output=True, text=True, timeout=300)
    title = re.search(r"<title>(\d+);(\d+);rgb\((\d+), ", done.stdout)
    assert title, done.stderr[-2000:]
    width, drawings, red = map(int, title.groups())
    return [line for line in done.stderr.splitlines() if "CONSOLE" in line], width, drawings, red < 128


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("name", [*DRAWN, *PICTURED])
def test_a_page_has_no_errors_and_fits_a_phone(pages, tmp_path, name, dark):
    console, width, drawings, is_dark = look(pages[name], tmp_path, dark)
    assert console == [] and width <= PHONE and is_dark == dark
    assert drawings > 2 if name in DRAWN else pages[name].count("<img") > 2 or "<svg" in pages[name]


def test_a_run_of_500_000_steps_stays_readable(pages):
    assert len(pages["long"]) < 1_500_000 and "step 500000" in pages["long"]
    assert pages["long"].count("<tr>") < 200


def test_a_report_shows_what_the_run_has_drawn(pages):
    text = pages["report"]
    assert "What the network sees" in text and "raw pixels 80.0 %" in text and "chance 10.0 %" in text
    assert text.count("data:image/png") == 1 + 7 <= 1 + report.PICTURES  # of 20 reconstructions every third
    assert "10 of 12 classes" in text
    assert "of their variance, after epoch 3" in text and "fields differ from the paper's recipe moco_v3/" in text
    assert len(text) < 5_000_000


def test_an_error_or_a_wide_page_would_be_seen(tmp_path):
    text = page.document("wide", ['<div style="width: 500px">x</div><script>throw new Error("seen")</script>'])
    console, width, drawings, _ = look(text, tmp_path)
    assert len(console) == 1 and "seen" in console[0] and width > PHONE and drawings == 0
