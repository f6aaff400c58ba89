"""Every page in a real browser: no error in its console, nothing wider than a phone, in light and in dark windows."""

from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
from html import escape
from pathlib import Path

import pytest

from triport.core.record import comparison, page, report
from triport.core.spec import recipe as recipes
from triport.parity_tests.tool import page as parity_page
from triport.parity_tests.tool.findings import Finding, Report

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


NAMES = {"torch": "PyTorch", "paddle": "PaddlePaddle"}


@pytest.fixture(scope="module")
def pages(tmp_path_factory) -> dict[str, str]:
    """Each kind of page as HTML."""
    folder = tmp_path_factory.mktemp("runs")
    runs = [run(folder / name, name, 1e-6 * at) for at, name in enumerate(("torch", "paddle", "oneflow"))]
    other = run(folder / "a-run-with-a-rather-long-name-of-its-own", "torch", 1e-3)
    (other / "recipe.toml").write_text(recipes.to_toml(recipes.load("tiny/mae_vit_tiny")))
    return {
        "report": report.render(runs[0]),
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
@pytest.mark.parametrize("name", ["report", "frameworks", "compare", "parity"])
def test_a_page_has_no_errors_and_fits_a_phone(pages, tmp_path, name, dark):
    console, width, drawings, is_dark = look(pages[name], tmp_path, dark)
    assert console == [] and width <= PHONE and drawings > 2 and is_dark == dark


def test_an_error_or_a_wide_page_would_be_seen(tmp_path):
    text = page.document("wide", ['<div style="width: 500px">x</div><script>throw new Error("seen")</script>'])
    console, width, drawings, _ = look(text, tmp_path)
    assert len(console) == 1 and "seen" in console[0] and width > PHONE and drawings == 0
