"""The first rungs of the ladder, where not a bit may differ: files, and what core draws in each interpreter."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from parity_tests.ask import Question, ask
from parity_tests.bounds import LIMITS
from parity_tests.comparison import errors
from parity_tests.findings import FIRST, Finding
from parity_tests.rungs import Climb
from weights import files as weight_files

ENDINGS = {"torch": ".pth", "paddle": ".pdparams", "oneflow": ".oneflow"}


def _exact(rung: str, what: str, backend: str, ours: dict[str, NDArray], given: dict[str, NDArray]) -> Finding:
    """Every array to the bit."""
    worst, where = 0.0, ""
    for name, wanted in given.items():
        same = name in ours and ours[name].dtype == wanted.dtype and np.array_equal(ours[name], wanted)
        if not same:
            worst = max(worst, errors(ours[name], wanted)[0] if name in ours else np.inf) or np.inf
            where = where or name
    return Finding(rung, what, backend, FIRST, worst, 0.0, 0.0, where or f"all of {len(given)}")


def files(climb: Climb, backend: str) -> list[Finding]:
    """First values through the framework's model and back, and through its own files."""
    given = climb.trial.arrays
    through = _exact("files", "the model and back", backend, climb.trace(backend).part("first/"), given)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"weights{ENDINGS[backend]}"
        weight_files.write(path, given)
        tree = weight_files.read(path).tree
        read = {name: np.array(leaf.read()) for name, leaf in tree.items() if name in given}
        return [through, _exact("files", f"a {ENDINGS[backend]} and back", backend, read, given)]


def data(climb: Climb, backend: str) -> list[Finding]:
    """First values and the first batch, made once more in the framework's interpreter."""
    what = climb.trial
    given = {"recipe": what.recipe, "data": climb.data, "batch": what.batch, "weights": climb.weights}
    made = ask(backend, [Question("made", given)], probe="parity_tests.trial_probe")[0]
    values = _exact("data", "first values", backend, made["arrays"], what.arrays)
    ours, grey = what.inputs(), 0.0
    pictures = [name for name in ours if name in ("images", "view1", "view2")]
    scale = 255 * np.array(what.recipe.train.std, np.float32).reshape(-1, 1, 1)
    for name in pictures:
        grey = max(grey, float(np.abs((made["inputs"][name] - ours[name]) * scale).max()))
    rest = {name: array for name, array in ours.items() if name not in pictures}
    draws = _exact("data", "order, labels, draws", backend, made["inputs"], rest)
    limit = LIMITS["golden-pixel"]
    return [values, draws, Finding("data", "pixels, grey levels", backend, FIRST, grey, 0.0, limit, "images")]
