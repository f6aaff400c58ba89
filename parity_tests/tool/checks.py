"""The levels of the parity levels: what each asks a framework for, and what the answer is held against."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache, cached_property

import numpy as np
from numpy.typing import NDArray

from triport.core.model.inventory import inventory, parameter_count
from triport.parity_tests.reference import objectives, optimizers
from triport.parity_tests.reference.layers import Array, Arrays
from triport.parity_tests.tool import formulas
from triport.parity_tests.tool.ask import Failure, Question, ask, ask_ranks
from triport.parity_tests.tool.bounds import LIMITS
from triport.parity_tests.tool.comparison import Comparison, compare, errors, neighbour
from triport.parity_tests.tool.findings import ALONE, EACH, FORMULA, Finding, from_lines, of
from triport.parity_tests.tool.precision import Bound, bound
from triport.parity_tests.tool.questions import distance, half
from triport.parity_tests.tool.trace import REFERENCE, Trace, question, record
from triport.parity_tests.tool.trial import Trial

STEPS = 2  # of a trace; the training level takes all
LARGE = 2e7  # parameters from which on a trace has one step: it holds five copies of them for each
DIRECTIONS = 3  # along which slopes are measured
SLOPES = {"float64": "float64-gradient", "float32": "gradient", "bfloat16": "bfloat16-gradient"}


@dataclass(eq=False)
class ParityRun:
    """A trial on its way up: what was asked for once serves every level."""

    trial: Trial
    data: str | None = None
    weights: str | None = None
    layers: dict[str, list[tuple[str, float, float, float]]] = field(default_factory=dict)
    losses: dict[str, list[float]] = field(default_factory=dict)
    weights_after: dict[str, dict[str, NDArray]] = field(default_factory=dict)  # the training
    failed: set[str] = field(default_factory=set)
    answers: dict[str, Trace | Failure] = field(default_factory=dict)

    @cached_property
    def short(self) -> Trial:
        """The first steps."""
        what = self.trial
        steps = min(STEPS if parameter_count(what.recipe.model) < LARGE else 1, what.steps)
        return replace(what, batches=what.batches[:steps], values=what.values[:steps])

    @cached_property
    def loss(self) -> Callable[[Arrays], float]:
        """The reference's loss of the first step as a function of the arrays."""
        what = self.trial
        arrays = {name: np.asarray(array, np.float64) for name, array in what.arrays.items()}
        return objectives.train_step(what.recipe.model, arrays, what.inputs(), what.values[0].momentum).again

    def bound(self, stage: str, step: int = 0) -> Bound:
        """The bound of a stage in the trial's precision; of the first step where none is proved later."""
        lars = self.trial.recipe.optimizer.kind == "lars"
        found = bound(stage, self.trial.precision, step, lars) or bound(stage, self.trial.precision)
        assert found is not None
        return found

    def trace(self, backend: str) -> Trace:
        """What a backend computes in the first steps; asked once, and a failure is told again."""
        if backend not in self.answers:
            try:
                self.answers[backend] = record(self.short, backend)
            except Failure as failure:
                self.answers[backend] = failure
                self.failed.add(backend)
        answer = self.answers[backend]
        if isinstance(answer, Failure):
            raise answer
        return answer

    def compared(self, a: str, b: str) -> Comparison:
        """Two traces held against each other; once."""
        return _compared(self, a, b)


@cache
def _compared(parity_run: ParityRun, a: str, b: str) -> Comparison:
    return compare(parity_run.trace(a), parity_run.trace(b))


# ---------------------------------------------------------------- forward, gradients
def forward(parity_run: ParityRun, backend: str) -> list[Finding]:
    """Every layer of a training step against the reference, and of the model in evaluation mode."""
    against = parity_run.compared(REFERENCE, backend)
    layers = of(against, "forward")
    parity_run.layers[backend] = [(line.name, line.error, line.mean, line.allowed) for line in layers]
    found = from_lines("forward", "every layer, training", backend, REFERENCE, layers)
    found += from_lines("forward", "outputs and loss", backend, REFERENCE, of(against, "outputs", "loss"))
    statistics = of(against, "batch-norm statistics")
    found += from_lines("forward", "batch-norm statistics", backend, REFERENCE, statistics)
    what = parity_run.trial
    inputs = {name: array for name, array in what.inputs().items() if name != "targets"}  # these are for training
    given = {"spec": what.recipe.model, "arrays": what.arrays, "inputs": inputs, "precision": what.precision}
    ours = ask(backend, [Question("forward", given)])[0]
    theirs = objectives.forward(what.recipe.model, what.arrays, inputs)
    limit, worst = parity_run.bound("outputs"), ("", 0.0, 0.0)
    for name in theirs:
        largest, mean, length = errors(ours[name], theirs[name])
        worst = max(worst, (name, length if limit.by_length else largest, mean), key=lambda row: row[1])
    where, largest, mean = worst
    last = Finding("forward", "outputs, evaluation", backend, REFERENCE, largest, mean, limit.limit, where)
    return [*found, last]


def forward_between(parity_run: ParityRun, a: str, b: str) -> list[Finding]:
    """Every layer of a training step on two frameworks."""
    against = parity_run.compared(a, b)
    found = from_lines("forward", "every layer, training", a, b, of(against, "forward"))
    return found + from_lines("forward", "outputs and loss", a, b, of(against, "outputs", "loss", step=0))


def gradients(parity_run: ParityRun, backend: str) -> list[Finding]:
    """Slopes of the float64 loss along random directions."""
    what, trace = parity_run.trial, parity_run.trace(backend)
    arrays = {name: np.asarray(array, np.float64) for name, array in what.arrays.items()}
    ours = {p.name: trace.arrays[f"step0/grad/{p.name}"] for p in inventory(what.recipe.model) if p.trainable}
    if what.recipe.optimizer.clip_norm is not None:  # recorded as the optimiser saw them
        scale = float(trace.arrays["step0/gradient_norm"]) / what.recipe.optimizer.clip_norm
        ours = {name: g * max(scale, 1.0) for name, g in ours.items()}
    length = float(np.sqrt(sum(float((np.asarray(g, np.float64) ** 2).sum()) for g in ours.values())))
    wanted = [slope(parity_run, seed) for seed in range(DIRECTIONS)]
    misses = []
    for seed, steep in enumerate(wanted):
        direction = optimizers.random_direction(arrays, ours, seed)
        along = sum(float((np.asarray(ours[name], np.float64) * d).sum()) for name, d in direction.items())
        misses.append(abs(along - steep) / length)
    worst = int(np.argmax(misses))
    limit, where = SLOPES[what.precision], f"direction {worst}"
    what_ = f"slopes, {DIRECTIONS} directions"
    return [
        Finding("gradients", what_, backend, REFERENCE, misses[worst], float(np.mean(misses)), LIMITS[limit], where)
    ]


@cache
def slope(parity_run: ParityRun, seed: int) -> float:
    """How fast the reference's loss grows along a random direction over all trained arrays."""
    what = parity_run.trial
    arrays: dict[str, Array] = {name: np.asarray(array, np.float64) for name, array in what.arrays.items()}
    trained = [p.name for p in inventory(what.recipe.model) if p.trainable]
    return optimizers.slope(parity_run.loss, arrays, optimizers.random_direction(arrays, trained, seed))


def gradients_between(parity_run: ParityRun, a: str, b: str) -> list[Finding]:
    """Gradients of every layer's output and of every parameter on two frameworks, array by array."""
    against = parity_run.compared(a, b)
    found = from_lines("gradients", "of layers' outputs", a, b, of(against, "backward", step=0))
    return found + from_lines("gradients", "of parameters", a, b, of(against, "gradients", step=0))


# ---------------------------------------------------------------- optimiser, training, processes
def optimizer(parity_run: ParityRun, backend: str) -> list[Finding]:
    """Each step's moments, weights and momentum encoder against the rule on the very same gradients."""
    trace, found = parity_run.trace(backend), []
    stages = {"moments": "optimiser state", "weights": "optimiser update", "momentum": "momentum update"}
    worst: dict[str, tuple[float, float, str]] = {}
    for step in range(trace.steps):
        update = formulas.update(trace, step)
        parts = {
            "moments": {name: missed for name, missed in update.items() if name.startswith("state/")},
            "weights": {name: missed for name, missed in update.items() if not name.startswith("state/")},
            "momentum": formulas.momentum(trace, step),
        }
        for part, arrays in parts.items():
            for name, missed in arrays.items():
                mean = float(np.abs(missed.by).mean()) / max(missed.size, 1e-12)
                row = (missed.relative, mean, f"step {step}: {name}")
                worst[part] = max(worst.get(part, (-1.0, 0.0, "")), row)
    words = {"moments": "moments", "weights": "weights after the step", "momentum": "momentum encoder"}
    for part, (largest, mean, where) in worst.items():
        limit = parity_run.bound(stages[part]).limit
        found.append(Finding("optimizer", words[part], backend, FORMULA, largest, mean, limit, where))
    return found


def training(parity_run: ParityRun, backend: str) -> list[Finding]:
    """The losses of all steps, and the weights after them."""
    answer = ask(backend, [question(parity_run.trial, record=())])[0]
    losses = parity_run.losses[backend] = [float(answer[f"step{i}/loss"]) for i in range(parity_run.trial.steps)]
    parity_run.weights_after[backend] = {n.removeprefix("final/"): a for n, a in answer.items() if "final/" in n}
    if np.isfinite(losses).all():
        return []
    return [Finding("training", "losses", backend, "", np.nan, np.nan, 0.0, "", "a loss is not finite")]


def gradient_distance(one: Mapping[str, NDArray], other: Mapping[str, NDArray]) -> float:
    """The length by which the first step's gradients differ, relative to the first's."""
    length = apart = 0.0
    for name, gradient in one.items():
        if name.startswith("step0/grad/"):
            g = np.asarray(gradient, np.float64)
            length, apart = length + float((g**2).sum()), apart + float(((g - other[name]) ** 2).sum())
    return float(np.sqrt(apart / max(length, 1e-24)))


def training_between(parity_run: ParityRun, a: str, b: str) -> list[Finding]:
    """The losses of two frameworks at every step, and the weights after them; of coarser precisions the first loss."""
    if a not in parity_run.losses or b not in parity_run.losses:
        return []
    ours, theirs = np.array(parity_run.losses[a]), np.array(parity_run.losses[b])
    apart = np.abs(theirs - ours) / np.abs(ours)
    if parity_run.trial.precision != "float64":
        limit = parity_run.bound("loss").limit
        return [Finding("training", "first loss", a, b, float(apart[0]), float(apart[0]), limit, "step 0")]
    step, limit = int(np.argmax(apart)), LIMITS["float64-training"]
    what = f"losses of {len(ours)} steps"
    found = [Finding("training", what, a, b, float(apart[step]), float(apart.mean()), limit, f"step {step}")]
    after, others = parity_run.weights_after[a], parity_run.weights_after[b]
    rows = {name: errors(array, others[name], neighbour(after, name)) for name, array in after.items()}
    worst = max(rows, key=lambda name: rows[name][0])
    mean = float(np.mean([row[1] for row in rows.values()]))
    limit = LIMITS["float64-weight"]
    return [*found, Finding("training", "weights after them", a, b, rows[worst][0], mean, limit, worst)]


def processes(parity_run: ParityRun, backend: str) -> list[Finding]:
    """Losses and gradient of two processes, each with half of the batch, against one with all of it."""
    what, one = parity_run.short, parity_run.trace(backend)
    if what.batch % 2:
        return []
    parts = [replace(what, batches=[[half(b, rank) for b in step] for step in what.batches]) for rank in (0, 1)]
    answers = [a[0] for a in ask_ranks(backend, [[question(part, record=("gradients",))] for part in parts])]
    wide = what.precision == "float64"
    missed = [distance(answers[0][f"step{i}/loss"], one.arrays[f"step{i}/loss"]) for i in range(what.steps)]
    missed = missed if wide else missed[:1]  # float32 proves the first
    limit = LIMITS["float64" if wide else "processes"]
    apart = gradient_distance(one.arrays, answers[0])
    gradient = LIMITS["float64"] if wide else parity_run.bound("gradients").limit
    final = [name for name in answers[0] if name.startswith("final/")]
    same = all(np.array_equal(answers[0][name], answers[1][name]) for name in final)
    mean, unequal, count = float(np.mean(missed)), 0.0 if same else np.inf, f"all of {len(final)}"
    return [
        Finding("processes", "losses", backend, ALONE, max(missed), mean, limit, f"step {int(np.argmax(missed))}"),
        Finding("processes", "gradient", backend, ALONE, apart, apart, gradient, "its length"),
        Finding("processes", "weights on both", backend, EACH, unequal, 0.0, 0.0, count),
    ]
