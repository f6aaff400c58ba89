"""Says in words what a departure looks like: a multiple, a transpose, another weight decay, and which side is wrong."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from triport.core.spec import MoCo
from triport.parity_tests.tool import formulas
from triport.parity_tests.tool.align import align, multiple, relation
from triport.parity_tests.tool.precision import of_formula
from triport.parity_tests.tool.trace import Trace, title

if TYPE_CHECKING:
    from triport.parity_tests.tool.comparison import Line

TELLING = 1e-5  # a weight decay that anybody would set

KEYS = {
    "forward": "layers/{name}",
    "backward": "backward/{name}",
    "gradients": "step{step}/grad/{name}",
    "initial values": "first/{name}",
    "inputs": "inputs/{step}/{name}",
}


def explain(a: Trace, b: Trace, line: Line) -> list[str]:
    """Sentences about a departure, the surest first; none where nothing simple fits."""
    how: dict[str, Callable[[Trace, Trace, Line], list[str]]] = {
        "batch-norm statistics": _statistic,
        "optimiser update": _update,
        "optimiser state": _update,
        "momentum update": _momentum,
        "loss": _loss,
    }
    sentences = how.get(line.stage, _array)(a, b, line)
    return [*sentences, *_layer(a, b, line)]


def _array(a: Trace, b: Trace, line: Line) -> list[str]:
    key = KEYS.get(line.stage, "step{step}/{name}").format(step=line.step, name=line.name)
    pair = align(a.arrays[key], b.arrays[key])
    words = relation(*pair) if pair else ""
    return [f"{words}."] if words else []


def _layer(a: Trace, b: Trace, line: Line) -> list[str]:
    """Who is wrong, where a layer has a formula; what stands before an input, which no layer has computed."""
    if line.stage != "forward":
        return []
    if line.name.endswith("/input"):
        layer = line.name.removesuffix("/input")
        return [f"it is computed before {layer}, outside of any layer."]
    misses = [(trace, formulas.layer(trace, line.name)) for trace in (a, b)]
    return [
        f"{title(trace)} misses the layer's formula on its own input by {missed:.1e}."
        for trace, missed in misses
        if missed is not None and missed > of_formula(a.precision, b.precision)
    ]


def _loss(a: Trace, b: Trace, line: Line) -> list[str]:
    ratio = float(b.arrays[f"step{line.step}/loss"]) / float(a.arrays[f"step{line.step}/loss"])
    sentences = [f"the second is {ratio:.5g} times the first."]
    objective = a.recipe.model.objective
    if isinstance(objective, MoCo):
        for factor, words in ((2 * objective.temperature, "2 T"), (1 / (2 * objective.temperature), "1 / (2 T)")):
            if factor != 1 and abs(ratio / factor - 1) < 1e-3:
                sentences.append(f"that is {words} at the recipe's temperature of {objective.temperature:g}.")
    return sentences


def _statistic(a: Trace, b: Trace, line: Line) -> list[str]:
    """Running statistics move by a part of the way towards the batch's: another part, or a biased variance."""
    start = formulas.before(a, line.step)[line.name].astype(np.float64)
    ours, theirs = (t.arrays[f"step{line.step}/{line.name}"].astype(np.float64) for t in (a, b))
    factor = multiple(ours - start, theirs - start)
    if factor is not None:
        return [f"the second moves {factor:.5g} times as far: another momentum of the batch norm."]
    if line.name.endswith("running_var"):  # 0.9 of the old and 0.1 of the batch's
        factor = multiple(ours - 0.9 * start, theirs - 0.9 * start, tolerance=1e-4)
        if factor is not None:
            values = round(1 / abs(1 - factor)) + (factor > 1)  # (n - 1) / n, or the other way round
            which = "biased" if factor < 1 else "unbiased"
            return [f"the second is what the {which} variance of {values} values would give."]
    return []


def _update(a: Trace, b: Trace, line: Line) -> list[str]:
    """Optimiser: who misses the formula, and whether weight decay would explain it."""
    name = f"state/{line.name}" if line.stage == "optimiser state" else line.name
    sentences = []
    for trace in (a, b):
        missed = formulas.update(trace, line.step)[name]
        if missed.relative > line.allowed:
            sentences.append(f"{title(trace)} misses the rule by {missed.relative:.1e} on its own gradients.")
            extra = extra_decay(trace, line.step, line.name.partition("/")[2] or line.name, missed)
            if extra is not None and abs(extra) > TELLING:
                sentences.append(f"it is as if the weight decay were {extra:+.3g} away from the recipe's.")
    return sentences


def extra_decay(trace: Trace, step: int, name: str, missed: formulas.Missed) -> float | None:
    """The weight decay that would explain by how much a parameter misses its update; None where none would."""
    start = formulas.before(trace, step)[name].astype(np.float64)
    lr = trace.about["values"][step][0]
    factor = multiple(start, missed.by, tolerance=0.05)
    return None if factor is None or lr == 0 else -factor / lr


def _momentum(a: Trace, b: Trace, line: Line) -> list[str]:
    sentences = []
    if line.name in ("k1", "k2"):
        for trace in (a, b):
            missed = formulas.keys(trace, line.step)[line.name]
            if missed.relative > line.allowed:
                sentences.append(
                    f"{title(trace)} misses what its own momentum encoder makes of the view by {missed.relative:.1e}: "
                    "was it moved before the keys were computed?"
                )
        return sentences
    for trace in (a, b):
        missed = formulas.momentum(trace, line.step)[line.name]
        if missed.relative > line.allowed:
            sentences.append(f"{title(trace)} misses m * old + (1 - m) * base by {missed.relative:.1e}.")
            now = trace.arrays[f"step{line.step}/{line.name}"].astype(np.float64)
            base = trace.arrays[f"step{line.step}/base_encoder.{line.name.partition('.')[2]}"].astype(np.float64)
            old, m = (
                formulas.before(trace, line.step)[line.name].astype(np.float64),
                trace.about["values"][line.step][1],
            )
            if np.abs(now - (m * old + (1 - m) * base)).max() < line.allowed * missed.size:
                sentences.append("it used the base encoder as the optimiser left it: moved after the step, not before.")
    return sentences
