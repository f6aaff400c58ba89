"""Replays golden records on a backend: weights and inputs from names, errors by group, exit code 1 over a bound."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
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
from triport.core.spec import MoCo, ViT
from triport.parity_tests.tool import cases, levels, trial
from triport.parity_tests.tool.augment_golden import replay_augment
from triport.parity_tests.tool.bounds import LIMITS
from triport.parity_tests.tool.compare import WIDE
from triport.parity_tests.tool.findings import number
from triport.parity_tests.tool.questions import batch, distance

Answer = Mapping[str, NDArray]


@dataclass(frozen=True)
class Finding:
    """The largest error of a group of records."""

    group: str
    bound: str  # a row of parity_tests/README.md
    error: float
    worst: str  # the record it comes from
    count: int

    @property
    def passed(self) -> bool:
        """Whether the error is under the bound; NaN is not."""
        return self.error < LIMITS[self.bound]


def main(argv: Sequence[str]) -> int:
    """Replay files on frameworks, each in its interpreter: 0 all are under their bounds, 1 one is over, 2 a mistake."""
    parser = trial.parser("replay", "Hold frameworks against golden records of the original code.")
    parser.add_argument("files", nargs="*", type=Path, metavar="FILE", help="golden records (those that are shipped)")
    parser.add_argument(
        "--backends", "--backend", metavar="NAMES", help="frameworks, separated by commas (all that are set up)"
    )
    parser.add_argument("--json", action="store_true", help="print the findings as JSON, a line for each file")
    options = parser.parse_args(list(argv))
    files = options.files or sorted(cases.GOLDENS.glob("*.safetensors"))
    for path in files:
        kind(path)  # a mistake is told before any work
    return max(_on(name, files, options.json) for name in levels.choose(options.backends, None).backends)


def _on(backend: str, files: Sequence[Path], as_json: bool) -> int:
    """Replay files on a framework, here or in its interpreter, and return the exit code."""
    if find_spec(backend) is None:
        words = [*map(str, files), "--backends", backend, *(["--json"] if as_json else [])]
        command = [str(environments.require(backend)), "-m", "triport.parity_tests.tool", "replay", *words]
        code = subprocess.run(command, env=environments.with_project(os.environ), check=False).returncode
        return code if code >= 0 else 1
    passed = True
    for path in files:
        findings = replay(path, backend)
        passed &= all(f.passed for f in findings)
        show(path.stem, backend, findings, as_json)
    return 0 if passed else 1


def replay(path: Path, backend: str) -> list[Finding]:
    """Replay one golden file on a backend that this interpreter can import."""
    if kind(path) == "augment":
        return [augmentation(path)]
    case = cases.read(path)
    probe = import_module(f"triport.backends.{backend}.probe")
    if case.optimizer is not None:
        found = training(case, probe)
        return [switched(one) for one in found] if isinstance(case.spec.objective, MoCo) else found
    return evaluation(case, probe)


def kind(path: Path) -> str:
    """What a golden file records: "augment", or the model case's kind."""
    if not path.is_file():
        raise UserError(f"no golden file at {path}; the shipped ones are in {cases.GOLDENS}")
    try:
        with safe_open(path, framework="np") as file:
            meta = json.loads((file.metadata() or {}).get("meta", "{}"))
    except Exception as error:
        raise UserError(f"{path} is no golden file: {error}") from None
    return "augment" if "image" in meta else str(meta.get("case", path.stem)).partition("-")[0]


def augmentation(path: Path) -> Finding:
    """Pixels of every recorded operation; these are core's and the same on every backend."""
    with safe_open(path, framework="np") as file:
        meta = json.loads(file.metadata()["meta"])
        arrays = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a mapping)
    return worst("augmentations (grey levels)", "golden-pixel", replay_augment(arrays, meta))


# ---------------------------------------------------------------- model cases
def switched(found: Finding) -> Finding:
    """The finding under its bound; where it is over that, under the one of a run that rounds otherwise than the record.

    With MoCo v3's batch norms over few rows a single ReLU that switches moves what comes after it by more than the
    common bounds, in exact arithmetic too: README.md has the figures. Outputs and first loss have no such bound.
    """
    stage, head, _ = found.bound.partition("-head")
    wider = f"{stage}-relu{head}"
    return found if found.passed or wider not in LIMITS else replace(found, bound=wider)


def training(case: cases.Case, probe: Any) -> list[Finding]:
    """MoCo v3 and MAE: evaluation outputs where recorded, then the recorded training steps."""
    assert case.optimizer is not None
    arrays, inputs, record = case.arrays(), case.inputs(), case.record
    findings = []
    if "eval/projection" in record:
        given = {"images": inputs["images"]}
        findings.append(outputs(record, "eval", probe.forward(case.spec, arrays, given), ("projection", "prediction")))
    steps = [[batch(inputs)]] * case.steps
    values = [Values(case.optimizer.lr, case.momentum)] * case.steps
    answer = probe.train(case.spec, arrays, case.optimizer, steps, values)
    losses = {f"step{i}/loss": distance(answer[f"step{i}/loss"], record[f"step{i}/loss"][0]) for i in range(case.steps)}
    findings.append(worst("first loss", "golden-loss", {"step0/loss": losses.pop("step0/loss")}))
    if losses:
        findings.append(worst("later losses", "golden-later", losses))
    findings += step_outputs(case, answer)
    nothing = null_directions(case)
    gradients = {n.removeprefix("step0/grad/"): a for n, a in answer.items() if n.startswith("step0/grad/")}
    findings += tensors(record, "step0/grad", gradients, "gradients", "golden-gradient", nothing)
    final = {n.removeprefix("final/"): a for n, a in answer.items() if n.startswith("final/")}
    findings += tensors(record, "final/param", final, "parameters", "golden-weight", nothing)
    findings += tensors(record, "final/buffer", final, "buffers", "golden-weight", nothing)
    return findings


def step_outputs(case: cases.Case, answer: Answer) -> list[Finding]:
    """What the first training step gave: keys and queries of MoCo v3, mask and prediction of MAE."""
    record = case.record
    if isinstance(case.spec.objective, MoCo):
        errors = {k: distance(answer[f"step0/{k}"], record[f"step0/{k}"]) for k in ("q1", "q2", "k1", "k2")}
        return [worst("training outputs", "golden-normed", errors)]
    prediction = answer["step0/prediction"]
    return [
        worst(
            "outputs",
            "golden-output",
            {
                "mask": distance(answer["step0/mask"], record["step0/mask"]),
                "prediction": distance(prediction[:, :4, :32], record["step0/pred_head"]),
                "prediction norm": distance(length(prediction), record["step0/pred_norm"][0]),
            },
        )
    ]


def evaluation(case: cases.Case, probe: Any) -> list[Finding]:
    """Classifiers: logits, and where recorded loss, gradients and the groups of layer decay."""
    record, tuned = case.record, "eval/loss" in case.record
    answer = probe.forward(case.spec, case.arrays(), case.inputs(), gradients=tuned)
    findings = [outputs(record, "eval", answer, ("logits",))]
    if tuned:
        loss = distance(answer["loss"], record["eval/loss"][0])
        findings.append(worst("loss", "golden-loss", {"eval/loss": loss}))
        gradients = {n.removeprefix("grad/"): a for n, a in answer.items() if n.startswith("grad/")}
        findings += tensors(record, "eval/grad", gradients, "gradients", "golden-gradient", frozenset())
    rules = case.rule_errors()
    if rules:
        findings.append(worst("layer decay", "golden-rule", rules))
    return findings


def null_directions(case: cases.Case) -> frozenset[str]:
    """Tensors whose gradient is 0 in truth, and what absorbs their wandering under AdamW.

    A shift of every feature alike does not pass a batch norm: with a ViT's projector of linear layers without
    bias, the encoder's last `norm.bias` moves nothing but the running mean behind the first of them.
    """
    if isinstance(case.spec.objective, MoCo) and isinstance(case.spec.encoder, ViT):
        return frozenset({"base_encoder.norm.bias", "base_encoder.head.1.running_mean"})
    return frozenset()


# ---------------------------------------------------------------- errors
def outputs(record: Answer, prefix: str, answer: Answer, names: Sequence[str]) -> Finding:
    """Whole arrays, relative to their largest value."""
    errors = {name: distance(answer[name], record[f"{prefix}/{name}"]) for name in names}
    return worst("outputs", "golden-output", errors)


def tensors(
    record: Answer, prefix: str, ours: Answer, group: str, bound: str, nothing: frozenset[str]
) -> list[Finding]:
    """Norms and heads of the tensors recorded as `<prefix>_norm/<name>` and `<prefix>_head/<name>`."""
    marker = f"{prefix}_norm/"
    names = [key.removeprefix(marker) for key in record if key.startswith(marker)]
    if not names:
        return []
    norms, heads = {}, {}
    for name in names:
        if name not in ours:
            raise UserError(f"the golden records '{name}', which the backend did not compute")
        if name not in nothing:
            norms[name] = distance(length(ours[name]), record[f"{marker}{name}"][0])
            top = max(float(np.abs(ours[name]).max(initial=0)), 1e-12)
            difference = np.asarray(ours[name], np.float64).ravel()[:8] - record[f"{prefix}_head/{name}"]
            heads[name] = float(np.abs(difference).max(initial=0)) / top
    return [worst(f"{group}, norms", bound, norms), worst(f"{group}, initial values", f"{bound}-head", heads)]


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
        rows = [{**vars(f), "limit": LIMITS[f.bound], "passed": f.passed} for f in findings]
        print(json.dumps({"case": name, "backend": backend, "findings": rows}), flush=True)
        return
    table = Table(title=f"{name} on {environments.TITLES[backend]}", title_justify="left", box=None, pad_edge=False)
    for column in ("", "largest", "allowed", "group", "of", "at"):
        table.add_column(column, justify="right" if column in ("largest", "allowed", "of") else "left", overflow="fold")
    for f in findings:
        colour = "red" if not f.passed else "yellow" if "-relu" in f.bound else "green"
        cells = [f"[{colour}]{'holds' if f.passed else 'departs'}[/]", number(f.error, 1), number(LIMITS[f.bound], 0)]
        table.add_row(*cells, f.group, str(f.count), f.worst)
    console = Console(width=None if sys.stdout.isatty() else WIDE)
    console.print(table)
    if any("-relu" in f.bound for f in findings):
        console.print("held to the bounds of a run that rounds otherwise than the record did: parity_tests/README.md")
