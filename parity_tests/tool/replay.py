"""Replays golden records on a backend: weights and inputs from names, errors by group, exit code 1 over a bound."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from rich.console import Console
from rich.table import Table
from safetensors import safe_open

from triport import environments
from triport.core.errors import UserError
from triport.core.model.schedule import Values
from triport.core.options import positive_number
from triport.core.spec import MoCo
from triport.parity_tests.tool import cases, levels, trial
from triport.parity_tests.tool.augment_golden import replay_augment
from triport.parity_tests.tool.bounds import LIMITS
from triport.parity_tests.tool.compare import WIDE
from triport.parity_tests.tool.findings import number
from triport.parity_tests.tool.questions import batch, distance

Answer = Mapping[str, NDArray]
GROWTH = 100  # by which rounding grows in a step of a ResNet with LARS


@dataclass(frozen=True)
class Finding:
    """The largest error of a group of records."""

    group: str
    bound: str  # a row of parity_tests/README.md
    error: float
    worst: str  # the record it comes from
    count: int
    times: float = 1.0  # how often the bound of the row is allowed

    @property
    def limit(self) -> float:
        """The largest error that is allowed."""
        return LIMITS[self.bound] * self.times

    @property
    def passed(self) -> bool:
        """Whether the error is under the bound; NaN is not."""
        return self.error < self.limit


def main(argv: Sequence[str]) -> int:
    """Replay files on frameworks, each in its interpreter: 0 all are under their bounds, 1 one is over, 2 a mistake."""
    parser = trial.parser("replay", "Hold frameworks against golden records of the original code.")
    parser.add_argument("files", nargs="*", type=Path, metavar="FILE", help="golden records (those that are shipped)")
    parser.add_argument(
        "--backends", "--backend", metavar="NAMES", help="frameworks, separated by commas (all that are set up)"
    )
    parser.add_argument(
        "--steps",
        type=positive_number,
        metavar="N",
        help="training steps at most (all; weights are compared after all)",
    )
    trial.add_device(parser)
    parser.add_argument("--json", action="store_true", help="print the findings as JSON, a line for each file")
    options = parser.parse_args(list(argv))
    files = options.files or sorted(cases.GOLDENS.glob("*.safetensors"))
    for path in files:
        kind(path)  # a mistake is told before any work
    return max(_on(name, files, options.steps, options.json) for name in levels.choose(options.backends, None).backends)


def _on(backend: str, files: Sequence[Path], steps: int | None, as_json: bool) -> int:
    """Replay files on a framework, here or in its interpreter, and return the exit code."""
    if find_spec(backend) is None:
        words = [*map(str, files), "--backends", backend, *(["--json"] if as_json else [])]
        words += ["--steps", str(steps)] if steps else []
        command = [str(environments.require(backend)), "-m", "triport.parity_tests.tool", "replay", *words]
        code = subprocess.run(command, env=environments.with_project(os.environ), check=False).returncode
        return code if code >= 0 else 1
    passed = True
    for path in files:
        findings = replay(path, backend, steps)
        passed &= all(f.passed for f in findings)
        show(path.stem, backend, findings, as_json)
    return 0 if passed else 1


def replay(path: Path, backend: str, steps: int | None = None) -> list[Finding]:
    """Replay one golden file on a backend that this interpreter can import, with so many training steps at most."""
    if kind(path) == "augment":
        return [augmentation(path)]
    case = cases.read(path)
    probe = import_module(f"triport.backends.{backend}.probe")
    return training(case, probe, steps) if case.optimizer is not None else evaluation(case, probe)


def kind(path: Path) -> str:
    """What a golden file records: "augment", or the model case's kind."""
    if not path.is_file():
        raise UserError(f"no golden file at {path}; the shipped ones are in {cases.GOLDENS}")
    try:
        with safe_open(path, framework="np") as file:
            meta = json.loads((file.metadata() or {}).get("meta", "{}"))
    except Exception as error:
        raise UserError(f"{path} is not a golden file: {error}") from None
    return "augment" if "image" in meta else str(meta.get("case", path.stem)).partition("-")[0]


def augmentation(path: Path) -> Finding:
    """Pixels of every recorded operation; these are core's and the same on every backend."""
    with safe_open(path, framework="np") as file:
        meta = json.loads(file.metadata()["meta"])
        arrays = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a mapping)
    return worst("augmentations (grey levels)", "golden-pixel", replay_augment(arrays, meta))


# ---------------------------------------------------------------- model cases
def row(case: cases.Case, quantity: str) -> str:
    """The row of the table of bounds for a quantity of a case, by the precision it was recorded in."""
    return f"golden64-{quantity}" if case.precision == "float64" else f"golden-{quantity}"


def grows(case: cases.Case) -> bool:
    """Whether rounding grows by itself from step to step: a ResNet's batch norms, moved by LARS."""
    return case.optimizer is not None and case.optimizer.kind == "lars"


def training(case: cases.Case, probe: Any, most: int | None = None) -> list[Finding]:
    """MoCo v3 and MAE: evaluation outputs where recorded, then the recorded training steps.

    Of a MoCo v3 record in float32 the first loss and what leads to it are held: behind its batch norms over few rows
    stand ReLUs that rounding switches, which moves everything after by more than a fault would (README.md).
    """
    assert case.optimizer is not None
    arrays, inputs, record = case.arrays(), case.inputs(), case.record
    findings, wide = [], case.precision == "float64"
    if "eval/projection" in record:
        given = {"images": inputs["images"]}
        answer = probe.forward(case.spec, arrays, given, precision=case.precision)
        findings.append(outputs(case, "eval", answer, ("projection", "prediction")))
    whole = wide or not isinstance(case.spec.objective, MoCo)
    count = min(case.steps, most or case.steps) if whole else 1
    steps, values = [[batch(inputs)]] * count, [Values(case.optimizer.lr, case.momentum)] * count
    saved = ("first gradients",) if whole else ()
    answer = probe.train(case.spec, arrays, case.optimizer, steps, values, saved, case.precision)
    findings += losses(case, answer, count)
    findings += step_outputs(case, answer)
    if whole:
        gradients = {n.removeprefix("step0/grad/"): a for n, a in answer.items() if n.startswith("step0/grad/")}
        findings += tensors(case, "step0/grad", gradients, "gradients", "gradient")
    if whole and count == case.steps:
        final = {n.removeprefix("final/"): a for n, a in answer.items() if n.startswith("final/")}
        quantity = "lars-weight" if wide and grows(case) else "weight"
        findings += tensors(case, "final/param", final, "parameters", quantity)
        findings += tensors(case, "final/buffer", final, "buffers", quantity)
    return findings


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
        findings += tensors(case, "eval/grad", gradients, "gradients", "gradient")
    rules = case.rule_errors()
    if rules:
        findings.append(worst("layer decay", "golden-rule", rules))
    return findings


# ---------------------------------------------------------------- errors
def outputs(case: cases.Case, prefix: str, answer: Answer, names: Sequence[str]) -> Finding:
    """Whole arrays, relative to their largest value."""
    errors = {name: distance(answer[name], case.record[f"{prefix}/{name}"]) for name in names}
    return worst("outputs", row(case, "output"), errors)


def tensors(case: cases.Case, prefix: str, ours: Answer, group: str, quantity: str) -> list[Finding]:
    """Norms and heads of the tensors recorded as `<prefix>_norm/<name>` and `<prefix>_head/<name>`.

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
    bound = row(case, quantity)
    head = bound if case.precision == "float64" else f"{bound}-head"
    found = [worst(f"{group}, norms", bound, norms), worst(f"{group}, initial values", head, heads)]
    return [*found, worst(f"{group} of 0, absolute", "golden64-zero", zeros)] if zeros else found


def worst(group: str, bound: str, errors: Mapping[str, float]) -> Finding:
    """The largest of some errors; NaN is larger than any."""
    name = max(errors, key=lambda key: np.inf if np.isnan(errors[key]) else errors[key])
    return Finding(group, bound, errors[name], name, len(errors))


def length(array: ArrayLike) -> float:
    """L2 norm in float64."""
    return float(np.sqrt((np.asarray(array, np.float64) ** 2).sum()))


def show(name: str, backend: str, findings: Sequence[Finding], as_json: bool) -> None:
    """Print one file's findings."""
    if as_json:
        rows = [{**vars(f), "limit": f.limit, "passed": f.passed} for f in findings]
        print(json.dumps({"case": name, "backend": backend, "findings": rows}), flush=True)
        return
    table = Table(title=f"{name} on {environments.TITLES[backend]}", title_justify="left", box=None, pad_edge=False)
    for column in ("", "largest", "allowed", "group", "of", "at"):
        table.add_column(column, justify="right" if column in ("largest", "allowed", "of") else "left", overflow="fold")
    for f in findings:
        colour = "green" if f.passed else "red"
        cells = [f"[{colour}]{'holds' if f.passed else 'departs'}[/]", number(f.error, 1), number(f.limit, 0)]
        table.add_row(*cells, f.group, str(f.count), f.worst)
    Console(width=None if sys.stdout.isatty() else WIDE).print(table)
