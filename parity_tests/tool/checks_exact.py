"""The first levels of the parity levels, where not a bit may differ: files, and what core draws in each interpreter."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from triport.parity_tests.tool.ask import Question, ask
from triport.parity_tests.tool.bounds import LIMITS
from triport.parity_tests.tool.checks import ParityRun
from triport.parity_tests.tool.comparison import errors
from triport.parity_tests.tool.findings import FIRST, Finding
from triport.weights.files import files as weight_files

ENDINGS = {"torch": ".pth", "paddle": ".pdparams", "oneflow": ".oneflow"}


def _exact(level: str, what: str, backend: str, ours: dict[str, NDArray], given: dict[str, NDArray]) -> Finding:
    """Every array to the bit."""
    worst, where = 0.0, ""
    for name, wanted in given.items():
        same = name in ours and ours[name].dtype == wanted.dtype and np.array_equal(ours[name], wanted)
        if not same:
            worst = max(worst, errors(ours[name], wanted)[0] if name in ours else np.inf) or np.inf
            where = where or name
    return Finding(level, what, backend, FIRST, worst, 0.0, 0.0, where or f"all of {len(given)}")


def files(parity_run: ParityRun, backend: str) -> list[Finding]:
    """Initial values through the framework's model and back, and through its own files."""
    given = parity_run.trial.arrays
    through = _exact("files", "the model and back", backend, parity_run.trace(backend).part("first/"), given)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"weights{ENDINGS[backend]}"
        weight_files.write(path, given)
        tree = weight_files.read(path).tree
        read = {name: np.array(leaf.read()) for name, leaf in tree.items() if name in given}
        return [through, _exact("files", f"a {ENDINGS[backend]} and back", backend, read, given)]


def data(parity_run: ParityRun, backend: str) -> list[Finding]:
    """Initial values and the first batch, made once more in the framework's interpreter."""
    what = parity_run.trial
    given = {"recipe": what.recipe, "data": parity_run.data, "batch": what.batch, "weights": parity_run.weights}
    given["precision"] = what.precision
    made = ask(backend, [Question("made", given)], probe="triport.parity_tests.tool.trial_probe")[0]
    values = _exact("data", "initial values", backend, made["arrays"], what.arrays)
    ours, grey = what.inputs(), 0.0
    pictures = [name for name in ours if name in ("images", "view1", "view2")]
    scale = 255 * np.array(what.recipe.train.std, np.float32).reshape(-1, 1, 1)
    for name in pictures:
        grey = max(grey, float(np.abs((made["inputs"][name] - ours[name]) * scale).max()))
    rest = {name: array for name, array in ours.items() if name not in pictures}
    draws = _exact("data", "order, labels, draws", backend, made["inputs"], rest)
    limit = LIMITS["golden-pixel"]
    return [values, draws, Finding("data", "pixels, grey levels", backend, FIRST, grey, 0.0, limit, "images")]
