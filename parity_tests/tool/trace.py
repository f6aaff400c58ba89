"""Records a trace: everything that a backend computes in the first steps of a recipe, in one file.

A trace holds, in order of computation and under canonical names: `inputs/<i>/<name>`; `first/<array>` as the model
holds them; of step 0 `layers/<module>`, `layers/<module>/input` where that is not the output of another module, and
`backward/<module>`, the loss's gradient of that output; of each step `step<i>/loss` and the objective's other outputs,
`step<i>/grad/<parameter>` (as the optimiser sees them), `step<i>/<array>` and `step<i>/state/<slot>/<name>` after the
update. A module called twice (once a view) has the rows of both calls. The metadata holds recipe and schedule.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from triport import environments
from triport.core import atomic
from triport.core.errors import UserError, room_for
from triport.core.spec import Recipe
from triport.core.spec import recipe as recipes
from triport.parity_tests.reference.trace import reference_answer
from triport.parity_tests.tool import trial
from triport.parity_tests.tool.ask import Question, ask
from triport.parity_tests.tool.questions import training
from triport.parity_tests.tool.trial import Trial

FORMAT = 2
WHOLE = ("gradients", "weights", "states", "layers")
REFERENCE = "reference"  # the numpy float64 one, in the place of a backend
PACKAGES = {"torch": "torch", "paddle": "paddlepaddle", "oneflow": "oneflow"}


@dataclass(frozen=True, eq=False)
class Trace:
    """What one backend computed."""

    name: str
    about: Mapping[str, Any]  # backend, version, recipe, batch, steps, values, precision, images, calls
    arrays: Mapping[str, NDArray]  # in order of computation

    @cached_property
    def recipe(self) -> Recipe:
        """The recipe that was recorded, overrides included."""
        return recipes.parse(self.about["recipe"], Path(self.about["name"]))

    @property
    def precision(self) -> str:
        """In which it was computed."""
        return str(self.about["precision"])

    @property
    def steps(self) -> int:
        """How many optimiser steps were recorded."""
        return int(self.about["steps"])

    def part(self, prefix: str) -> dict[str, NDArray]:
        """The arrays under a prefix, without it."""
        return {name.removeprefix(prefix): a for name, a in self.arrays.items() if name.startswith(prefix)}


def main(argv: Sequence[str]) -> int:
    """Run `triport parity record` and return its exit code."""
    parser = trial.parser("record", "Record what a backend computes in the first steps of a recipe.")
    parser.add_argument("recipe", metavar="RECIPE", help="a recipe")
    trial.add_options(parser, steps=3)
    parser.add_argument("--backend", required=True, help=f"torch, paddle, oneflow, or {REFERENCE} (numpy, one step)")
    parser.add_argument("-o", "--out", required=True, type=Path, metavar="FILE", help="the trace, .safetensors")
    options = parser.parse_intermixed_args(list(argv))
    trial.check_out(options.out, is_trace, "a trace")
    what = trial.make(options.recipe, options)
    trace = record(what, options.backend)
    write(options.out, trace)
    size = options.out.stat().st_size / 1e6
    modules = sum(name.startswith("layers/") for name in trace.arrays)
    print(
        f"{options.out}: {size:.1f} MB, {what.recipe.name} on {title(trace)}, {trace.steps} x {what.batch} "
        f"images ({what.images}), {modules} tensors of layers"
    )
    return 0


def record(what: Trial, backend: str, *, ask: Callable[[str, Sequence[Question]], list[Any]] = ask) -> Trace:
    """Ask a backend, or the reference, for a trial and return its trace. Raises ask.Failure."""
    answer = reference_answer(what) if backend == REFERENCE else ask(backend, [question(what)])[0]
    return assemble(what, backend, answer)


def assemble(what: Trial, backend: str, answer: Mapping[str, NDArray]) -> Trace:
    """The trace that the answer to `question` is."""
    about: dict[str, Any] = {
        "format": FORMAT,
        "name": what.recipe.name,
        "recipe": recipes.to_toml(what.recipe),
        "backend": backend,
        "version": version(backend),
        "precision": "float64" if backend == REFERENCE else what.precision,
        "steps": 1 if backend == REFERENCE else what.steps,
        "batch": what.batch,
        "images": what.images,
        "values": [list(now) for now in what.values],
    }
    inputs = {f"inputs/{i}/{name}": a for i in range(about["steps"]) for name, a in what.inputs(i).items()}
    return Trace(backend, about, {**inputs, **dict(merged(answer))})


def question(what: Trial, record: Sequence[str] = WHOLE) -> Question:
    """What a backend is asked for a trial."""
    recipe = what.recipe
    return training(recipe.model, what.arrays, recipe.optimizer, what.batches, what.values, record, what.precision)


def merged(answer: Mapping[str, NDArray]) -> Iterator[tuple[str, NDArray]]:
    """The arrays of an answer, the calls of a module one after another as rows of one array, at its first call."""
    calls: dict[str, list[NDArray]] = {}
    for name, array in answer.items():
        calls.setdefault(name.partition("@")[0], []).append(array)
    for name, arrays in calls.items():
        yield name, np.concatenate(arrays) if len(arrays) > 1 else np.asarray(arrays[0])


def version(backend: str) -> str:
    """The version of a framework in its own environment; numpy's for the reference."""
    if backend == REFERENCE:
        return np.__version__
    python = environments.require(environments.known(backend))
    sites = [str(path) for path in (python.parent.parent / "lib").glob("python3*/site-packages")]
    found = metadata.distributions(name=PACKAGES[backend], path=sites)
    if environments.is_here(backend):
        found = metadata.distributions(name=PACKAGES[backend])
    return next((distribution.version for distribution in found), "?")


def title(trace: Trace) -> str:
    """The framework and its version as a reader knows them."""
    if trace.about["backend"] == REFERENCE:
        return f"the reference (numpy {trace.about['version']}, float64)"
    return f"{environments.TITLES[trace.about['backend']]} {trace.about['version']}, {trace.precision}"


# ---------------------------------------------------------------- files
def write(path: Path, trace: Trace) -> None:
    """Write a trace whole or not at all."""
    texts = {"about": json.dumps(dict(trace.about)), "order": json.dumps(list(trace.arrays))}  # safetensors sorts names
    trial.check_out(path, is_trace, "a trace")
    with room_for(path), atomic.replaced(path) as part:
        save_file({name: np.require(a, requirements="C") for name, a in trace.arrays.items()}, part, texts)


def is_trace(path: Path) -> bool:
    """Whether a file is a trace, also of another format; one that cannot be read is none."""
    try:
        with safe_open(path, framework="np") as file:
            texts = file.metadata() or {}
            return "format" in json.loads(texts["about"]) and "order" in texts
    except Exception:
        return False


def read(path: Path) -> Trace:
    """Read a trace. Raises UserError for what is none."""
    if path.is_dir():
        raise UserError(f"{path} is a folder; name a trace in it.")
    try:
        with safe_open(path, framework="np") as file:
            texts = file.metadata() or {}
            about = json.loads(texts["about"])
            if about["format"] != FORMAT:
                raise UserError(f"{path} is a trace of format {about['format']}; this version reads {FORMAT}.")
            if not all(isinstance(about[word], str) and about[word] for word in ("recipe", "name", "precision")):
                raise ValueError("a trace names its recipe and precision")
            arrays = {name: file.get_tensor(name) for name in json.loads(texts["order"])}
            return Trace(path.stem, about, arrays)
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot read the trace {path}: {error}.") from None
    except (KeyError, ValueError, TypeError, RecursionError):
        raise UserError(f"{path} is not a trace; `triport parity record` makes them.") from None
