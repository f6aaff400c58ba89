"""Replays golden records on a backend: weights and inputs from names, errors by group, exit code 1 over a bound."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from rich.console import Console
from rich.table import Table
from safetensors import safe_open

from triport import environments
from triport.core.errors import UserError
from triport.core.options import positive_number
from triport.parity_tests.tool import cases, levels, trial
from triport.parity_tests.tool.augment_golden import replay_augment
from triport.parity_tests.tool.compare import WIDE
from triport.parity_tests.tool.findings import number
from triport.parity_tests.tool.replay_case import ORDER, Finding, evaluation, training, worst


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
        verdict = "[red]departs[/]" if not f.passed else "[yellow]eased[/]" if f.eased else "[green]holds[/]"
        cells = [verdict, number(f.error, 1), number(f.limit, 0)]
        table.add_row(*cells, f.group, str(f.count), f.worst)
    Console(width=None if sys.stdout.isatty() else WIDE).print(table)
    if any(f.eased for f in findings):
        print(f"eased: over the bound, within {ORDER:.0f} times what another order of the batch alone changes")
