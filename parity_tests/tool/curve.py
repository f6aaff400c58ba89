"""`triport parity curve`: the same real run on every framework, and the step at which the losses part.

Each run is the one that `triport pretrain` (or linear, finetune) makes, in the framework's own interpreter: first
values and batches come from `core` and are the same to the bit. One more run of the first framework with
the last bits of every weight and pixel changed shows what rounding alone grows to.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

from triport import environments, launch
from triport.core.data.datasets import SHIPPED
from triport.core.errors import UserError
from triport.core.options import positive_number
from triport.core.record import page as pages
from triport.core.spec import Recipe
from triport.core.spec import recipe as recipes
from triport.parity_tests.tool import levels, page, trial
from triport.parity_tests.tool.bounds import LIMITS
from triport.parity_tests.tool.trace import version
from triport.place import Place, variables

TAIL = 6  # lines of a failed run's log that the message shows


@dataclass(frozen=True)
class Parting:
    """How the losses of two frameworks compare over a run."""

    a: str
    b: str
    largest: float  # relative
    first: int | None  # step, from 0, at which they are further apart than the bound
    departed: int | None  # the same, where rounding cannot explain it


def main(argv: Sequence[str]) -> int:
    """Run `triport parity curve`: 0 the losses agree as far as rounding lets them, 1 they do not, 2 a mistake."""
    parser = trial.parser("curve", "Make the same run on every framework and find where the losses part.")
    parser.add_argument("recipe", metavar="RECIPE", help="a recipe")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="overrides of the recipe's fields")
    parser.add_argument("--steps", type=positive_number, default=100, metavar="N", help="optimiser steps (100)")
    parser.add_argument("--backends", metavar="NAMES", help="frameworks, separated by commas (all that are set up)")
    parser.add_argument("--data", metavar="PATH", help=f"images; default: the recipe's own, else {SHIPPED}")
    parser.add_argument("--weights", metavar="FILE", help="begin with this encoder")
    parser.add_argument("--device", default="cpu", help="where the runs take place (cpu)")
    parser.add_argument("--precision", choices=("float32", "bfloat16", "float64"), default="float32")
    parser.add_argument("--threads", type=positive_number, default=1, metavar="N", help="threads of each run (1)")
    parser.add_argument("--out", metavar="DIR", help="where the report goes (runs/curve-RECIPE)")
    options = parser.parse_intermixed_args(list(argv))
    recipe = recipes.load(options.recipe, options.overrides)
    asked = levels.choose(options.backends, None)
    folder = Path(options.out or f"runs/curve-{recipe.name.replace('/', '_')}")
    trial.check_out(folder / "curve.json")
    curves = {name: run(name, recipe, options) for name in asked.backends}
    shaken = run(asked.backends[0], recipe, options, shake=True)
    curve = curves[asked.backends[0]]
    noise = [abs(b - a) / max(abs(a), 1e-12) for a, b in zip(curve, shaken)]
    partings = [parting(a, b, curves[a], curves[b], noise) for a, b in combinations(curves, 2)]
    write(folder, recipe, curves, noise, partings)
    for line in sentences(partings, len(curve)):
        print(line)
    print(f"the report is {folder / 'curve.html'}")
    return 1 if any(p.departed is not None for p in partings) else 0


# ---------------------------------------------------------------- runs
def run(backend: str, recipe: Recipe, options: argparse.Namespace, shake: bool = False) -> list[float]:
    """Make a run of some steps and return its losses. Raises UserError where it fails."""
    folder = Path(tempfile.mkdtemp(prefix=f"triport-curve-{backend}-"))
    python = environments.require(backend)
    module = (
        ["triport.parity_tests.tool.shaken", backend, recipe.task]
        if shake
        else [f"triport.backends.{backend}.{recipe.task}"]
    )
    words = [str(python), "-m", *module, *command(recipe, options, folder / "run")]
    environment = launch.without_ranks(variables(Place(backend, python)))
    environment |= {f"{name}_NUM_THREADS": str(options.threads) for name in ("OMP", "OPENBLAS", "MKL")}
    what = f"{environments.TITLES[backend]}{', last bits changed' if shake else ''}"
    print(f"{what}: {options.steps} steps of {recipe.name} ...", flush=True)
    log = folder / "log.txt"
    with log.open("wb") as file:
        code = subprocess.run(
            words, stdout=file, stderr=subprocess.STDOUT, env=environments.with_project({**os.environ, **environment})
        ).returncode
    if code:
        tail = "\n  ".join(log.read_text(errors="replace").strip().splitlines()[-TAIL:])
        raise UserError(f"the run on {environments.TITLES[backend]} ended with exit code {code}; see {log}\n  {tail}")
    lines = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    losses = [math.nan if line["loss"] is None else float(line["loss"]) for line in lines if line["kind"] == "step"]
    shutil.rmtree(folder)
    return losses


def command(recipe: Recipe, options: argparse.Namespace, folder: Path) -> list[str]:
    """The words of a run that is not scored, and stops after some steps."""
    words = [options.recipe, *options.overrides, "monitor.knn_every=0", "monitor.evaluate_every=1000000"]
    words += ["--out", str(folder), "--stop-after-steps", str(options.steps), "--log-steps", "1", "--save-minutes", "0"]
    words += ["--device", options.device, "--precision", options.precision, "--workers", "0", "--quiet"]
    data = options.data or (SHIPPED if recipe.data.name != SHIPPED else None)
    words += ["--data", data] if data else []
    if recipe.task != "pretrain":
        words += ["--weights", options.weights] if options.weights else ["--from-scratch"]
    return words


# ---------------------------------------------------------------- what was found
def allowed_loss(noise: Sequence[float]) -> list[float]:
    """Of each step's loss: the bound, or a multiple of what last bits have done up to it, whichever is more."""
    return [max(LIMITS["training"], LIMITS["curve-noise"] * max(noise[: i + 1])) for i in range(len(noise))]


def parting(a: str, b: str, ours: Sequence[float], theirs: Sequence[float], noise: Sequence[float]) -> Parting:
    """Where the losses of two frameworks part."""
    apart = [abs(w - v) / max(abs(v), 1e-12) for v, w in zip(ours, theirs)]
    first = next((i for i, d in enumerate(apart) if not d <= LIMITS["training"]), None)
    departed = next((i for i, (d, limit) in enumerate(zip(apart, allowed_loss(list(noise)))) if not d <= limit), None)
    return Parting(a, b, max(apart, key=lambda d: math.inf if math.isnan(d) else d), first, departed)


def sentences(partings: Sequence[Parting], steps: int) -> list[str]:
    """Each pair in words."""
    printed = [] if partings else ["one framework alone: nothing to hold it against but itself with last bits changed"]
    for p in partings:
        names = f"{environments.TITLES[p.a]} and {environments.TITLES[p.b]}"
        if p.first is None:
            how = f"agree within {LIMITS['training']:.0e} over all of {steps} steps"
        elif p.departed is None:
            how = f"part by more than {LIMITS['training']:.0e} at step {p.first}, as rounding alone does by then"
        else:
            how = f"DEPART at step {p.departed}, by more than rounding does"
        printed.append(f"{names} {how} (largest {p.largest:.1e})")
    return printed


def write(
    folder: Path, recipe: Recipe, curves: Mapping[str, list[float]], noise: Sequence[float], partings: Sequence[Parting]
) -> None:
    """Write curve.json and curve.html."""
    steps = len(next(iter(curves.values())))
    printed = sentences(partings, steps)
    versions = {name: version(name) for name in curves}
    facts = {"recipe": recipes.to_toml(recipe), "versions": versions, "losses": dict(curves), "noise": list(noise)}
    facts |= {"partings": [vars(p) for p in partings], "verdict": printed}
    (folder / "curve.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    good = all(p.departed is None for p in partings)
    verdict = (
        "no framework departs by more than rounding does" if good else "a framework departs by more than rounding does"
    )
    series = [page.curve(environments.TITLES[name], name, losses) for name, losses in curves.items()]
    title, about = f"Curves of {recipe.name}", f"{steps} steps of {recipe.batch} images"
    body = [
        pages.header(title, "good" if good else "bad", verdict, [*printed, about]),
        page.loss_plots(series, noise, allowed_loss(list(noise))),
        pages.section("Made with", pages.table(("framework", "version"), versions.items())),
    ]
    (folder / "curve.html").write_text(pages.document(title, body), encoding="utf-8")
