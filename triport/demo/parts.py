"""The demo in its folder: what is trained and for how long, part after part, and what is finished of it."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from triport import environments
from triport.core import atomic
from triport.core.errors import UserError
from triport.core.record import comparison
from triport.core.spec import Recipe, recipe
from triport.demo import console, moved, page, passage, poster, resume, runs, scores
from triport.demo.result import AHEAD, Result
from triport.verbs.pictures import cores

STATE = "demo.json"  # what is finished of a demo, with what it found
STAGES = 6


@dataclass(frozen=True)
class Sizes:
    """What is trained and for how long."""

    pretrain: str = "tiny/moco_resnet10"
    mae: str = "tiny/mae_vit_tiny"
    changes: tuple[str, ...] = ()
    mae_changes: tuple[str, ...] = ("epochs=4", "warmup=0.5", *runs.UNWATCHED)
    steps: int = 30  # on the other frameworks
    must: float = AHEAD  # points that training must win over pixels


FULL = Sizes()
QUICK = Sizes("tiny/test_moco_vit", "tiny/test_mae_vit", mae_changes=runs.UNWATCHED, steps=8, must=-100.0)


def missing(frameworks: Sequence[str]) -> str:
    """The line about frameworks that are left out as they are not set up; "" where there is none."""
    absent = [name for name in environments.FRAMEWORKS if name not in frameworks and not environments.interpreter(name)]
    if not absent:
        return ""
    names = " and ".join(environments.TITLES[name] for name in absent)
    return f"WITHOUT {names.upper()}, not set up here (triport setup {' '.join(absent)})."


def read_state(folder: Path) -> dict[str, Any]:
    """Return what is known of a demo, {} where there is none."""
    try:
        found = json.loads((folder / STATE).read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


@dataclass
class Demo:
    """A demo in its folder: every part that is finished is taken from there."""

    out: Path
    settings: dict[str, Any]
    sizes: Sizes
    overrides: tuple[str, ...]
    state: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.first, *self.others = self.settings["frameworks"]
        self.main_run = self.out / self.first
        self.recipe = recipe.load(self.sizes.pretrain, self.overrides)
        self.changes = (*self.sizes.changes, *self.overrides)

    def run(self) -> Result:
        """Do what is not done yet, and write page and poster."""
        self.out.mkdir(parents=True, exist_ok=True)
        self.state = {"settings": self.settings, "seconds": {}, **read_state(self.out)}
        absent = missing(self.settings["frameworks"])
        if absent:
            print(f"*** {absent} ***", flush=True)
        shown = moved.load(self.recipe)
        with self.part(1, f"{self.recipe.title} ({environments.TITLES[self.first]})"):
            console.say(
                f"{self.recipe.schedule.epochs} epochs on {len(shown.train.labels):,} pictures, no labels; kNN on "
                f"{len(shown.tests['unmoved'].labels):,} held-out pictures as it goes. Epoch 0 is untrained."
            )
            self.trained(self.main_run, self.sizes.pretrain, self.changes, "scores")
        with self.part(2, "MAE, a masked autoencoder"):
            self.trained(self.out / "mae", self.sizes.mae, self.sizes.mae_changes, "scores", "stops")
        with self.part(3, "What was learned: pixels against network"):
            figures = self.scored(shown)
            print(console.bars(figures), flush=True)
        with self.part(4, "The same recipe on every framework"):
            curves = self.beside(absent)
        with self.part(5, "Killed, and resumed to the same bits"):
            resumed = self.resumed()
        with self.part(6, "PyTorch -> Paddle -> OneFlow -> PyTorch"):
            stops = self.carried()
        result = self.result(shown, figures, curves, resumed, stops, absent)
        page.write(result, shown, self.out / "index.html")
        poster.write(result, shown, self.out / "demo.png")
        self.state["complete"] = True  # what follows only shows it again
        self.save()
        return result

    def trained(self, run: Path, name: str, changes: Sequence[str], *following: str) -> None:
        """Pretrain where that is not done, and forget what followed from an earlier run."""
        if runs.pretrain(run, name, self.first, changes):
            for part in following:
                self.state.pop(part, None)

    @contextmanager
    def part(self, number: int, title: str) -> Iterator[None]:
        """Head a part, and add up the seconds that it takes."""
        console.stage(number, STAGES, title)
        begun = time.monotonic()
        try:
            yield
        finally:
            seconds = self.state["seconds"]
            if not self.state.get("complete"):
                seconds[str(number)] = seconds.get(str(number), 0.0) + time.monotonic() - begun
            self.save()

    def save(self) -> None:
        """Remember what is finished."""
        atomic.write_text(self.out / STATE, json.dumps(self.state) + "\n")

    # ------------------------------------------------------------ parts
    def scored(self, shown: moved.Shown) -> scores.Scores:
        """Ask the networks in their framework's interpreter, and score."""
        if "scores" in self.state and (self.out / scores.ANSWERS).exists():
            return scores.from_plain(self.state["scores"])
        (self.out / "pictures").mkdir(exist_ok=True)
        test = shown.tests["unmoved"]
        for at, number in enumerate(scores.first_of_each(test.labels)):
            Image.fromarray(test.pixels[number].squeeze()).save(self.out / "pictures" / f"{at:03d}.png")
        command = [str(environments.require(self.first)), "-m", "triport.demo.answers"]
        words = [str(self.out), self.first, self.main_run.name, "mae"]
        code = subprocess.run([*command, *words], **runs.surroundings()).returncode
        if code:
            raise UserError(f"the networks could not be asked (exit code {code}); the messages stand above.")
        with np.load(self.out / scores.ANSWERS) as found:
            figures = scores.measure(shown, found["trained"], found["untrained"], self.recipe.monitor)
        self.state["scores"] = figures.plain()
        return figures

    def beside(self, absent: str) -> dict[str, dict[int, float]]:
        """Run the first steps on every framework and return the losses; of one framework those of its run."""
        if not self.others:
            console.say(absent or "No other framework was asked for.")
            return {self.first: runs.losses(self.main_run)}
        folders = []
        for framework in (self.first, *self.others):
            print(f"The first {self.sizes.steps} steps on {environments.TITLES[framework]}:", flush=True)
            folders.append(self.out / "frameworks" / framework)
            changes = (*self.changes, *runs.UNWATCHED)
            runs.beside(folders[-1], self.sizes.pretrain, framework, changes, self.sizes.steps)
        curves = {folder.name: runs.losses(folder) for folder in folders}
        comparison.write(folders, self.out / "frameworks.html")
        print(console.losses(curves), flush=True)
        return curves

    def resumed(self) -> resume.Resumed:
        """Kill a run and resume it."""
        if "resumed" not in self.state:
            self.state["resumed"] = asdict(resume.prove(self.out / "killed", self.first))
        else:
            print("(done already)")
        return resume.Resumed(**self.state["resumed"])

    def carried(self) -> list[passage.Stop]:
        """Carry the encoder through the frameworks' files."""
        if "stops" not in self.state:
            found = passage.prove(self.out / "mae" / runs.ENCODER, self.out / "files")
            self.state["stops"] = [asdict(stop) for stop in found]
        else:
            print("(done already)")
        return [passage.Stop(**stop) for stop in self.state["stops"]]

    def result(
        self,
        shown: moved.Shown,
        figures: scores.Scores,
        curves: dict[str, dict[int, float]],
        resumed: resume.Resumed,
        stops: list[passage.Stop],
        absent: str,
    ) -> Result:
        """All of it."""
        chosen: Recipe = self.recipe
        count = cores()
        return Result(
            title=chosen.title,
            epochs=chosen.schedule.epochs,
            machine=f"{count} CPU core{'s' * (count != 1)}",
            minutes=sum(self.state["seconds"].values()) / 60,
            tested=len(shown.tests["unmoved"].labels),
            trained_on=len(shown.train.labels),
            neighbours=chosen.monitor.knn_neighbours,
            scores=figures,
            titles=[environments.TITLES[name] for name in curves],
            curves=curves,
            resumed=resumed,
            stops=stops,
            answers=scores.ANSWERS,
            missing=absent,
            must=self.sizes.must,
        )
