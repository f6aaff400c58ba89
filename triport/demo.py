"""`triport demo`: MoCo v3 learns from real images in minutes, beside raw pixels and the untrained network."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from triport import environments
from triport.core.backend.learner import Alone
from triport.core.data.datasets import Dataset, open_dataset
from triport.core.errors import UserError
from triport.core.evaluate import evaluation
from triport.core.options import Parser
from triport.core.record import comparison
from triport.core.spec import Recipe, recipe

PRETRAIN, LINEAR = "tiny/moco_vit_tiny", "tiny/moco_linear"
FOLDER = Path("runs") / "demo"
DONE = ".finished"  # in the folder of a demo that came to its end
GAIN = 10.0  # points of kNN accuracy that training must win
BAR = 40  # characters of a full bar

NEXT = """\
Try next:
  triport pretrain tiny/mae_vit_tiny                         MAE on the same images
  triport pretrain {pretrain} --processes 2        the same from two processes
  triport pretrain moco_v3/vit_small_300ep --data IMAGENET   the paper's recipe on your images
  triport embed {folder}/encoder.safetensors --out features.npz
  triport convert {folder}/encoder.safetensors encoder.pth --to timm
  triport recipes    triport models    triport doctor"""


def main(argv: Sequence[str]) -> int:
    """Run the demo; exit code 1 where training won less than it must."""
    p = Parser(prog="triport demo", description="Pretrain a small network and show what it learned.")
    p.add_argument(
        "--backend",
        metavar="NAMES",
        help="where to run, as in torch,paddle (default: all that are set up); the first runs all of it and the others "
        "the first epochs, to show that their numbers are the same",
    )
    p.add_argument("--out", type=Path, metavar="DIR", help=f"where the runs go ({FOLDER}, {FOLDER}-2, …)")
    p.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="changes of the recipe, for example epochs=2")
    options = p.parse_args(list(argv))
    frameworks = options.backend.split(",") if options.backend else here()
    for framework in frameworks:
        environments.require(framework)
    first, *others = frameworks
    out = place(options.out)
    began = time.monotonic()
    chosen = recipe.load(PRETRAIN, options.overrides)
    print(f"{chosen.title}; {chosen.schedule.epochs} epochs on {environments.TITLES[first]}\n", flush=True)
    pixels = knn_of_pixels(chosen)
    print(f"kNN accuracy of raw pixels: {100 * pixels:.1f} %. Now the network, untrained at epoch 0:", flush=True)
    run = out / first
    pretrain(run, first, options.overrides)
    curve = read_curve(run)
    probe = linear(run, first, options.overrides)
    took = time.monotonic() - began
    for framework in others:
        beside(out / framework, framework, options.overrides, steps_to(run, chosen.monitor.knn_every))
    show(pixels, curve, probe)
    if others:
        runs = [out / framework for framework in (first, *others)]
        show_beside(runs)
        print(f"\n  their curves over each other: {comparison.write(runs, out / 'frameworks.html')}")
    (out / DONE).write_text("")
    return conclude(curve, run, took)


def here() -> list[str]:
    """The frameworks that are set up, of which there must be one."""
    return [name for name in environments.FRAMEWORKS if environments.interpreter(name)] or ["torch"]


def place(asked: Path | None) -> Path:
    """Return the demo's folder: the one asked for, or the first of its own that holds no finished demo."""
    for number in itertools.count(1):
        folder = asked or (FOLDER if number == 1 else FOLDER.with_name(f"{FOLDER.name}-{number}"))
        if not (folder / DONE).exists():
            return folder
        if asked:
            raise UserError(f"{folder} holds a finished demo: name another --out, or remove it.")
    raise AssertionError


def knn_of_pixels(chosen: Recipe) -> float:
    """Return the kNN accuracy of the images themselves, with the recipe's neighbours and temperature."""
    channels = chosen.model.encoder.channels
    train, test = (flat(open_dataset(None, split, chosen.data, channels)) for split in ("train", "test"))
    classes = int(train[1].max()) + 1
    return evaluation.knn(train, test, Alone(), chosen.monitor, classes)


def flat(dataset: Dataset) -> tuple[np.ndarray, np.ndarray]:
    """Return the pixels (n, height * width * channels) in [-0.5, 0.5] and the labels (n,) of a data set."""
    numbers = range(len(dataset))
    rows = np.stack([np.asarray(dataset.image(i), np.float32).ravel() for i in numbers])
    return rows / 255 - 0.5, np.array([dataset.label(i) for i in numbers])


# ---------------------------------------------------------------- runs
def pretrain(run: Path, backend: str, overrides: Sequence[str]) -> None:
    """Pretrain into the folder; an interrupted demo goes on where it was."""
    if (run / "encoder.safetensors").exists():  # finished, but not the demo around it
        if recipe.load(str(run / "recipe.toml")) != recipe.load(PRETRAIN, overrides):
            raise UserError(f"{run} holds a run with other settings: name another --out, or remove it.")
        return
    words = ["pretrain", PRETRAIN, *overrides, "--backend", backend]
    if (run / "checkpoints").is_dir():
        print(f"(going on with the run in {run})", flush=True)
        if triport([*words, "--resume", str(run)]) == 0:
            return
        print("(it cannot go on: beginning again)", flush=True)
    _clear(run)
    code = triport([*words, "--out", str(run)])
    if code:
        raise UserError(f"the pretraining ended with exit code {code}; its messages stand above.")


def linear(run: Path, backend: str, overrides: Sequence[str]) -> float:
    """Train a linear classifier on the frozen encoder; return its accuracy on held-out images."""
    folder = run.with_name(f"{run.name}-linear")
    _clear(folder)
    print("\nA linear classifier on the frozen encoder:", flush=True)
    same = [word for word in overrides if word.startswith("model.encoder.")]
    weights = ["--weights", str(run / "encoder.safetensors"), "--out", str(folder)]
    if code := triport(["linear", LINEAR, *same, "--backend", backend, *weights]):
        raise UserError(f"the linear probe ended with exit code {code}; its messages stand above.")
    return [record["top1"] for record in records(folder) if "top1" in record][-1]


def beside(run: Path, backend: str, overrides: Sequence[str], steps: int) -> None:
    """Run the first steps of the same pretraining on another framework."""
    _clear(run)
    print(f"\nThe first {steps} steps of the same on {environments.TITLES[backend]}:", flush=True)
    # One step more, since what is scored after an epoch is written with the next.
    words = ["--out", str(run), "--stop-after-steps", str(steps + 1)]
    if code := triport(["pretrain", PRETRAIN, *overrides, "--backend", backend, *words]):
        raise UserError(f"the run on {backend} ended with exit code {code}; its messages stand above.")


def _clear(run: Path) -> None:
    """Remove what an interrupted demo left of a run."""
    if (run / "recipe.toml").exists():
        shutil.rmtree(run)


def triport(words: list[str]) -> int:
    """Run `triport …` as a user would and return its exit code."""
    command = [sys.executable, "-m", "triport", *words]
    return subprocess.run(command, env=environments.with_project(os.environ)).returncode


def records(run: Path) -> list[dict[str, Any]]:
    """Return the lines of a run's metrics.jsonl."""
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def read_curve(run: Path) -> dict[float, float]:
    """Return epoch -> kNN accuracy."""
    return {record["epoch"]: record["knn"] for record in records(run) if "knn" in record}


def losses(run: Path) -> dict[int, float]:
    """Return step -> loss."""
    return {int(record["step"]): record["loss"] for record in records(run) if record["kind"] == "step"}


def steps_to(run: Path, epoch: float) -> int:
    """Return the step at which an epoch ended."""
    return int(max(record["step"] for record in records(run) if record["epoch"] <= epoch))


# ---------------------------------------------------------------- what it shows
def show(pixels: float, curve: dict[float, float], probe: float) -> None:
    """Print what was reached as bars."""
    print("\nAccuracy on 2,000 images that the network has not seen, 10 classes:\n")
    rows = [("raw pixels, kNN", pixels)]
    rows += [(f"epoch {epoch:g}, kNN" if epoch else "untrained, kNN", score) for epoch, score in curve.items()]
    rows += [("linear classifier", probe)]
    for name, score in rows:
        print(f"  {name:<20}{100 * score:5.1f} %  {'#' * round(BAR * score)}")


def show_beside(runs: Sequence[Path]) -> None:
    """Print the losses of several frameworks at a few steps, their kNN accuracy, and the largest difference."""
    curves = [losses(run) for run in runs]
    common = sorted(set.intersection(*map(set, curves)))
    print("\nThe same recipe on each framework:\n")
    print(f"  {'step':<20}" + "".join(f"{run.name:>12}" for run in runs))
    for step in [common[0], *common[len(common) // 6 - 1 :: max(len(common) // 6, 1)]]:
        print(f"  {step:<20}" + "".join(f"{curve[step]:>12.6f}" for curve in curves))
    scored = [read_curve(run) for run in runs]
    for epoch in sorted(set.intersection(*map(set, scored))):
        print(f"  {f'kNN after epoch {epoch:g}':<20}" + "".join(f"{100 * scores[epoch]:>10.2f} %" for scores in scored))
    for upto in (10, common[-1]):
        spans = [[curve[step] for curve in curves] for step in common if step <= upto]
        largest = max((max(span) - min(span)) / min(span) for span in spans)
        print(f"\n  largest difference of the loss in the first {upto} steps: {largest:.1e} of it", end="")
    print("\n  (roundings differ between frameworks, and training lets them grow with every step)")


def conclude(curve: dict[float, float], run: Path, seconds: float) -> int:
    """Say whether training won what it must, and what to try next."""
    untrained, trained = curve[min(curve)], curve[max(curve)]
    gain = 100 * (trained - untrained)
    verdict = "as it must" if gain >= GAIN else f"less than the {GAIN:g} that it must: something is wrong"
    print(f"\nPretraining without labels won {gain:.1f} points of kNN accuracy over the untrained network, {verdict}.")
    print(f"That took {seconds / 60:.1f} minutes; the run is in {run}.\n")
    print(NEXT.format(folder=run, pretrain=PRETRAIN))
    return 0 if gain >= GAIN else 1
