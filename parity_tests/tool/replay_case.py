"""What a backend makes of a golden record's model: errors by group, each held to its row of the table of bounds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from triport.core.errors import UserError
from triport.core.model.schedule import Values
from triport.core.spec import MoCo
from triport.parity_tests.tool import cases
from triport.parity_tests.tool.bounds import LIMITS
from triport.parity_tests.tool.questions import batch, distance

Answer = Mapping[str, NDArray]
GROWTH = 100  # by which rounding grows in a step of a ResNet with LARS
ORDER = LIMITS["golden64-order"]
ROWS_OF_A_BATCH = ("step0/q1", "step0/q2", "step0/k1", "step0/k2")
ROWS = {  # quantity -> its row of the table of bounds for records in float64 and in float32; None: not held
    "output": ("golden64-output", "forward-full"),
    "loss": ("golden64-output", "forward-full"),
    "normed": ("golden64-output", "golden-normed"),
    "gradient": ("golden64-tensor", "golden-gradient"),
    "later": ("golden64-later", None),
    "weight": ("golden64-tensor", None),
}


@dataclass(frozen=True)
class Finding:
    """The largest error of a group of records."""

    group: str
    bound: str  # a row of parity_tests/README.md
    error: float
    worst: str  # the record it comes from
    count: int
    times: float = 1.0  # how often the bound of the row is allowed
    eased: bool = False  # whether that is because of what another order of the batch does

    @property
    def limit(self) -> float:
        """The largest error that is allowed."""
        return LIMITS[self.bound] * self.times

    @property
    def passed(self) -> bool:
        """Whether the error is under the bound; NaN is not."""
        return self.error < self.limit


def row(case: cases.Case, quantity: str) -> str:
    """The row of the table of bounds for a quantity of a case, by the precision it was recorded in."""
    wide, rough = ROWS[quantity]
    found = wide if case.precision == "float64" else rough
    assert found is not None
    return found


def grows(case: cases.Case) -> bool:
    """Whether rounding grows by itself from step to step: a ResNet's batch norms, moved by LARS."""
    return case.kind == "moco" and case.optimizer is not None and case.optimizer.kind == "lars"


def training(case: cases.Case, probe: Any, most: int | None = None) -> list[Finding]:
    """MoCo v3 and MAE: evaluation outputs where recorded, then the recorded training steps.

    Of a record in float32 the first step is held, and of MoCo v3 no gradients: behind its batch norms over few rows
    stand ReLUs that rounding switches, which moves everything after by more than a fault would (README.md).
    """
    arrays, inputs, findings = case.arrays(), case.inputs(), []
    if "eval/projection" in case.record:
        given = {"images": inputs["images"]}
        answer = probe.forward(case.spec, arrays, given, precision=case.precision)
        findings.append(outputs(case, "eval", answer, ("projection", "prediction")))
    count = min(case.steps, most or case.steps) if case.precision == "float64" else 1
    answer = trained(case, probe, arrays, inputs, count)
    found = of_training(case, answer, count)
    if case.precision == "float64" and grows(case) and not all(f.passed for f in found):
        turned = trained(case, probe, arrays, {name: array[::-1].copy() for name, array in inputs.items()}, count)
        found = eased(found, of_training(as_record(case, answer, count), turned_back(turned), count))
    return findings + found


def trained(case: cases.Case, probe: Any, arrays: Answer, inputs: Answer, count: int) -> Answer:
    """What a backend makes of some training steps, all of the same inputs."""
    assert case.optimizer is not None
    steps, values = [[batch(inputs)]] * count, [Values(case.optimizer.lr, case.momentum)] * count
    saved = ("first gradients",) if sloped(case) else ()
    answer: Answer = probe.train(case.spec, arrays, case.optimizer, steps, values, saved, case.precision)
    return answer


def sloped(case: cases.Case) -> bool:
    """Whether the gradients of the first step are held."""
    return case.precision == "float64" or not isinstance(case.spec.objective, MoCo)


def of_training(case: cases.Case, answer: Answer, count: int) -> list[Finding]:
    """An answer of some training steps held against the record."""
    findings = losses(case, answer, count) + step_outputs(case, answer)
    if sloped(case):
        gradients = {n.removeprefix("step0/grad/"): a for n, a in answer.items() if n.startswith("step0/grad/")}
        findings += tensors(case, "step0/grad", gradients, "gradients", row(case, "gradient"))
    if case.precision == "float64" and count == case.steps:
        final = {n.removeprefix("final/"): a for n, a in answer.items() if n.startswith("final/")}
        bound = "golden64-lars-weight" if grows(case) else row(case, "weight")
        findings += tensors(case, "final/param", final, "parameters", bound)
        findings += tensors(case, "final/buffer", final, "buffers", bound)
    return findings


def as_record(case: cases.Case, answer: Answer, count: int) -> cases.Case:
    """The case with an answer in the place of its record."""
    record = {name: answer[name] for name in ROWS_OF_A_BATCH}
    record |= {f"step{i}/loss": np.reshape(answer[f"step{i}/loss"], 1) for i in range(count)}
    for prefix, place in (("step0/grad", "step0/grad"), ("final/param", "final"), ("final/buffer", "final")):
        names = [key.removeprefix(f"{prefix}_norm/") for key in case.record if key.startswith(f"{prefix}_norm/")]
        record |= cases.summary(prefix, {n: answer[f"{place}/{n}"] for n in names if f"{place}/{n}" in answer})
    return replace(case, record=record)


def turned_back(answer: Answer) -> Answer:
    """An answer of a batch in the opposite order, its rows in the first order again."""
    return {name: a[::-1] if name in ROWS_OF_A_BATCH else a for name, a in answer.items()}


def eased(findings: Sequence[Finding], own: Sequence[Finding]) -> list[Finding]:
    """Findings over their bound, allowed `golden64-order` times what another order of the batch does to the backend."""
    moved = {f.group: f.error for f in own}
    out = []
    for f in findings:
        times = ORDER * moved.get(f.group, 0.0) / LIMITS[f.bound]
        out.append(f if f.passed or not times > f.times else replace(f, times=times, eased=True))
    return out


def losses(case: cases.Case, answer: Answer, count: int) -> list[Finding]:
    """The losses of some steps: the first, and the later ones together or, where rounding grows, each by itself."""
    errors = {f"step{i}/loss": distance(answer[f"step{i}/loss"], case.record[f"step{i}/loss"][0]) for i in range(count)}
    found = [worst("first loss", row(case, "loss"), {"step0/loss": errors.pop("step0/loss")})]
    if case.precision == "float64" and grows(case):
        for i, (name, error) in enumerate(errors.items()):
            found.append(Finding(f"loss of step {i + 2}", "golden64-lars", error, name, 1, times=GROWTH**i))
    elif errors:
        found.append(worst("later losses", row(case, "later"), errors))
    return found


def step_outputs(case: cases.Case, answer: Answer) -> list[Finding]:
    """What the first training step gave: keys and queries of MoCo v3, mask and prediction of MAE."""
    record = case.record
    if isinstance(case.spec.objective, MoCo):
        errors = {k: distance(answer[f"step0/{k}"], record[f"step0/{k}"]) for k in ("q1", "q2", "k1", "k2")}
        return [worst("training outputs", row(case, "normed"), errors)]
    prediction = answer["step0/prediction"]
    errors = {
        "mask": distance(answer["step0/mask"], record["step0/mask"]),
        "prediction": distance(prediction[:, :4, :32], record["step0/pred_head"]),
        "prediction norm": distance(length(prediction), record["step0/pred_norm"][0]),
    }
    return [worst("outputs", row(case, "output"), errors)]


def evaluation(case: cases.Case, probe: Any) -> list[Finding]:
    """Classifiers: logits, and where recorded loss, gradients and the groups of layer decay."""
    record, tuned = case.record, "eval/loss" in case.record
    answer = probe.forward(case.spec, case.arrays(), case.inputs(), gradients=tuned, precision=case.precision)
    findings = [outputs(case, "eval", answer, ("logits",))]
    if tuned:
        loss = distance(answer["loss"], record["eval/loss"][0])
        findings.append(worst("loss", row(case, "loss"), {"eval/loss": loss}))
        gradients = {n.removeprefix("grad/"): a for n, a in answer.items() if n.startswith("grad/")}
        findings += tensors(case, "eval/grad", gradients, "gradients", row(case, "gradient"))
    rules = case.rule_errors()
    if rules:
        findings.append(worst("layer decay", "golden-rule", rules))
    return findings


# ---------------------------------------------------------------- errors
def outputs(case: cases.Case, prefix: str, answer: Answer, names: Sequence[str]) -> Finding:
    """Whole arrays, relative to their largest value."""
    errors = {name: distance(answer[name], case.record[f"{prefix}/{name}"]) for name in names}
    return worst("outputs", row(case, "output"), errors)


def tensors(case: cases.Case, prefix: str, ours: Answer, group: str, bound: str) -> list[Finding]:
    """Norms and, in float64, first eight values of the tensors recorded as `<prefix>_norm/…` and `<prefix>_head/…`.

    Tensors of a float64 record whose norm is 0 in truth, as a gradient's may be, are held by an absolute bound.
    """
    record, marker = case.record, f"{prefix}_norm/"
    wanted = {key.removeprefix(marker): float(record[key][0]) for key in record if key.startswith(marker)}
    if not wanted:
        return []
    norms, heads, zeros = {}, {}, {}
    for name, norm in wanted.items():
        if name not in ours:
            raise UserError(f"the golden records '{name}', which the backend did not compute")
        if case.precision == "float64" and norm < LIMITS["golden64-zero"]:
            zeros[name] = length(ours[name])
            continue
        norms[name] = distance(length(ours[name]), norm)
        top = max(float(np.abs(ours[name]).max(initial=0)), 1e-12)
        difference = np.asarray(ours[name], np.float64).ravel()[:8] - record[f"{prefix}_head/{name}"]
        heads[name] = float(np.abs(difference).max(initial=0)) / top
    found = [worst(f"{group}, norms", bound, norms)]
    if case.precision == "float64":
        found.append(worst(f"{group}, first values", bound, heads))
    return [*found, worst(f"{group} of 0, absolute", "golden64-zero", zeros)] if zeros else found


def worst(group: str, bound: str, errors: Mapping[str, float]) -> Finding:
    """The largest of some errors; NaN is larger than any."""
    name = max(errors, key=lambda key: np.inf if np.isnan(errors[key]) else errors[key])
    return Finding(group, bound, errors[name], name, len(errors))


def length(array: ArrayLike) -> float:
    """L2 norm in float64."""
    return float(np.sqrt((np.asarray(array, np.float64) ** 2).sum()))
