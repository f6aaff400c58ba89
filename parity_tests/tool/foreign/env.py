"""`triport parity env A B`: two environments or machines side by side, and what of it changes numbers."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from triport import environments
from triport.core import atomic
from triport.core.errors import UserError
from triport.core.options import Parser

FACTS = Path(__file__).with_name("facts.py")
TIME = 120  # seconds to import a framework
YES, BITS, NO = "changes numbers", "changes last bits", "does not matter"
# What a fact that differs does to the numbers; the first pattern that fits. The rest does not matter.
EFFECTS = (
    (r"framework\.(error|name)", YES, "not the same framework"),
    (r"framework\.(tf32.*|FLAGS_allow_tf32.*|float32 matmul precision)", YES, "TF32 has 10 bits in place of 23"),
    (r"framework\.reduced precision sums", YES, "sums of half precision are rounded on the way"),
    (r"framework\.default type", YES, "another precision"),
    (r"framework\.(version|git)", YES, "kernels and defaults may have changed"),
    (r"framework\.(deterministic.*|cudnn (deterministic|benchmark)|FLAGS_\w*deterministic)", BITS,
     "kernels are chosen for speed, or their sums have no fixed order"),
    (r"framework\.(cudnn|cuda|devices)", BITS, "other kernels"),
    (r"framework\.(mkl|onednn|build|cpu kernels|FLAGS_use_(mkldnn|onednn))", BITS, "another math library or kernels"),
    (r"framework\.(threads|interop threads)", BITS, "sums are split among threads"),
    (r"framework\..*", BITS, "a setting of the framework"),
    (r"processor\.(instructions|model)", BITS, "math libraries choose their kernels by it"),
    (r"processor\.cores", BITS, "threads follow it where they are not set"),
    (r"library\..*", BITS, "another math or thread library"),
    (r"package\.(torch|paddlepaddle.*|oneflow)", YES, "another version of the framework"),
    (r"package\.(timm|torchvision|transformers)", YES, "models and their defaults may have changed"),
    (r"package\.(pillow|numpy)", BITS, "pixels and random draws"),
    (r"package\.(mkl|intel-openmp|onednn|nvidia.*|triton)", BITS, "another math library"),
    (r"variable\.(NVIDIA_TF32_OVERRIDE|\w*TF32\w*)", YES, "TF32 has 10 bits in place of 23"),
    (r"variable\.(CUBLAS_WORKSPACE_CONFIG|MKL_\w+|OMP_\w+|OPENBLAS_\w+|KMP_\w+|DNNL_\w+|ONEDNN_\w+|ATEN_\w+|BLIS_\w+|"
     r"FLAGS_\w+|ONEFLOW_\w+|CUDNN_\w+|XLA_\w+|LD_PRELOAD)", BITS, "a math library or kernel reads it"),
)  # fmt: skip


@dataclass(frozen=True)
class Difference:
    """One fact that is not the same."""

    name: str
    a: Any
    b: Any
    effect: str
    why: str


def parser() -> Parser:
    """The options."""
    found = Parser(prog="triport parity env", description="Two environments or machines side by side.",
                   allow_abbrev=False)  # fmt: skip
    add = found.add_argument
    where = "torch, paddle or oneflow; an interpreter or environment's folder; or a file that -o wrote elsewhere"
    add("a", metavar="A", help=where)
    add("b", nargs="?", metavar="B", help="the same; without it the facts of A are shown")
    add("--framework", choices=environments.FRAMEWORKS, help="the framework of interpreters (the one they have)")
    add("--all", action="store_true", help="show what is equal as well")
    add("--json", action="store_true", help="print everything as JSON")
    add("-o", "--out", type=Path, metavar="FILE", help="write the facts of A, to be compared on another machine")
    return found


def main(argv: Sequence[str]) -> int:
    """Compare: 0 nothing differs that changes numbers, 1 something does, 2 a mistake of the user."""
    options = parser().parse_args(list(argv))
    a = gathered(options.a, options.framework)
    if options.out is not None:
        atomic.write_text(options.out, json.dumps(a, indent=1) + "\n")
        print(f"{options.out}: {len(a)} facts of {options.a}")
    if options.b is None:
        if options.out is None:
            for name, value in a.items():
                print(f"{name}: {value}")
        return 0
    b = gathered(options.b, options.framework)
    found = differences(a, b)
    if options.json:
        print(json.dumps({"a": a, "b": b, "differences": [vars(d) for d in found]}))
    else:
        show(options.a, options.b, a, b, found, options.all)
    return 1 if any(d.effect != NO for d in found) else 0


def gathered(where: str, framework: str | None = None, more: Mapping[str, str] | None = None) -> dict[str, Any]:
    """The facts of an environment: a framework's name, an interpreter, a folder, or a saved file. Raises UserError."""
    path = Path(where).expanduser()
    if path.suffix == ".json":
        try:
            saved = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UserError(f"cannot read {path}: {error}.") from None
        if not isinstance(saved, dict) or "python.version" not in saved:
            raise UserError(f"{path} does not hold facts; `triport parity env A -o FILE` writes them.")
        return saved
    python, framework = located(where, framework)
    command = [str(python), str(FACTS), framework]
    environment = {**os.environ, "GLOG_minloglevel": "2", **(more or {})}
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIME, check=False, env=environment)
        return dict(json.loads(done.stdout.splitlines()[-1]))
    except subprocess.TimeoutExpired:
        raise UserError(f"{python} did not import {framework} within {TIME} s.") from None
    except (OSError, ValueError, IndexError):
        last = done.stderr.strip().splitlines()[-1:] if "done" in locals() else []
        raise UserError(f"{python} cannot say what it is: {''.join(last) or 'it did not start'}.") from None


def located(where: str, framework: str | None = None) -> tuple[Path, str]:
    """The interpreter of an environment and its framework. Raises UserError."""
    if where in environments.FRAMEWORKS:
        return environments.require(where), where
    path = Path(where).expanduser()
    python = path / "bin" / "python" if path.is_dir() else path
    if not python.is_file() or not os.access(python, os.X_OK):
        names = ", ".join(environments.FRAMEWORKS)
        raise UserError(
            f"'{where}' is not a framework ({names}), an interpreter, an environment's folder or a .json file."
        )
    if framework is None:
        script = f"import importlib.util as u; print(*[n for n in {environments.FRAMEWORKS!r} if u.find_spec(n)])"
        done = subprocess.run([str(python), "-c", script], capture_output=True, text=True, check=False)
        framework = (done.stdout.split() or [""])[0]
        if not framework:
            raise UserError(f"{python} has none of {', '.join(environments.FRAMEWORKS)}.")
    return python.absolute(), framework


def differences(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[Difference]:
    """The facts that differ, those that change numbers first."""
    found = []
    for name in dict.fromkeys([*a, *b]):
        if a.get(name) != b.get(name):
            pattern = next((rule for rule in EFFECTS if re.fullmatch(rule[0], name)), None)
            effect, why = pattern[1:] if pattern else (NO, "")
            found.append(Difference(name, a.get(name), b.get(name), effect, why))
    return sorted(found, key=lambda d: (YES, BITS, NO).index(d.effect))


def show(
    left: str, right: str, a: Mapping[str, Any], b: Mapping[str, Any], found: Sequence[Difference], everything: bool
) -> None:
    """Print them side by side."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in ("", f"A: {left}", f"B: {right}", "", "why"):
        table.add_column(column, overflow="fold")
    colours = {YES: "red", BITS: "yellow", NO: "dim"}
    for d in found:
        table.add_row(d.name, _text(d.a), _text(d.b), f"[{colours[d.effect]}]{d.effect}[/]", d.why)
    if everything:
        for name in a:
            if a[name] == b.get(name):
                table.add_row(name, _text(a[name]), _text(b[name]), "[green]equal[/]", "")
    Console(width=None if sys.stdout.isatty() else 160).print(table)
    print(sentence(a, b, found))


def sentence(a: Mapping[str, Any], b: Mapping[str, Any], found: Sequence[Difference]) -> str:
    """What it comes to."""
    counts = {effect: sum(d.effect == effect for d in found) for effect in (YES, BITS, NO)}
    equal = sum(a[name] == b.get(name) for name in a)
    return (
        f"{equal} facts are equal; of {len(found)} that differ {counts[YES]} may change numbers, "
        f"{counts[BITS]} last bits, {counts[NO]} nothing"
    )


def _text(value: Any) -> str:
    return "-" if value is None else str(value)
