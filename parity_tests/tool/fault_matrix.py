"""`triport parity faults`: every fault planted in every framework, and where `compare` finds and names each of them.

The faults are those that ports really had (`faults.py`) and those of small size (`small_faults.py`). Each framework is
asked in its own interpreter; a trace with the fault is held against one of the same framework without it.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from triport import environments
from triport.core import atomic
from triport.core.errors import UserError
from triport.parity_tests.tool import faults, levels, trial
from triport.parity_tests.tool.small_faults import CONV, FAULTS, MAE, MOCO, PROBE, SmallFault, found, named

Where = tuple[int, str, str]  # step, stage, array
PORTED = (
    SmallFault("eps 1e-5 of the frameworks in a layer norm", MAE, (0, "forward", "blocks.0.norm2"),
               faults.planted(faults.eps, "blocks.0.norm2")),
    SmallFault("a square weight used transposed", MAE, (0, "forward", "blocks.1.attn.proj"),
               faults.planted(faults.transposed, "blocks.1.attn.proj")),
    SmallFault("the other method's position table", MOCO, (0, "forward", "base_encoder.blocks.0.norm1/input"),
               faults.planted(faults.other_position, "mae", "base_encoder")),
    SmallFault("momentum 0.01 of batch norms in place of 0.1", PROBE,
               (0, "batch-norm statistics", "head.0.running_mean"), faults.planted(faults.batch_norm_momentum)),
    SmallFault("biased variance in the statistics of batch norms", CONV,
               (0, "batch-norm statistics", "base_encoder.patch_embed.proj.1.running_var"),
               faults.planted(faults.biased_variance)),
    SmallFault("the tanh form of GELU", MAE, (0, "forward", "blocks.0.mlp.fc2/input"),
               faults.planted(faults.tanh_gelu)),
    SmallFault("a contrastive loss without 2 T", MOCO, (0, "loss", "loss"), faults.planted(faults.no_two_t)),
    SmallFault("a momentum encoder that moves after the step", MOCO,
               (0, "momentum update", r"momentum_encoder\..*"), faults.planted(faults.momentum_after_step)),
    SmallFault("a momentum encoder that moves after its keys", MOCO, (1, "momentum update", "k1"),
               faults.planted(faults.momentum_after_keys)),
    SmallFault("weight decay on all biases", MAE, (0, "optimiser update", r".*\.bias"),
               faults.planted(faults.decayed_biases)),
    SmallFault("a gradient larger by 1 % behind a layer norm", MAE, (0, "backward", "blocks.1.norm2/input"),
               faults.planted(faults.wrong_gradient, "blocks.1.norm2")),
)  # fmt: skip
EVERY = PORTED + FAULTS


def main(argv: Sequence[str]) -> int:
    """Run `triport parity faults`: 0 where each fault is found and named on each framework, 1 where one is not."""
    parser = trial.parser("faults", "Plant faults in every framework and print where `compare` finds each.")
    parser.add_argument("--backends", metavar="NAMES", help="frameworks, separated by commas (all that are set up)")
    parser.add_argument("--only", default="", metavar="WORDS", help="faults with these words in their description")
    parser.add_argument("-o", "--out", type=Path, metavar="FILE", help="write the matrix, .md")
    parser.add_argument("--here", metavar="NAME", help="plant in a framework of this interpreter; prints JSON")
    options = parser.parse_args(list(argv))
    chosen = [fault for fault in EVERY if options.only in fault.about]
    if not chosen:
        raise UserError(f"no fault has '{options.only}' in its description; docs/parity.md lists them all.")
    if options.here:
        for fault in chosen:
            where = found(options.here, fault)
            print(json.dumps({"fault": fault.about, "where": where}), flush=True)
        return 0
    if options.out is not None:
        trial.check_out(options.out)
    console, answers = Console(stderr=True), {}
    for backend in levels.choose(options.backends, None).backends:
        answers[backend] = dict(asked(backend, options.only, console))
    text = matrix(chosen, answers)
    print(text, end="")
    if options.out is not None:
        atomic.write_text(options.out, text)
    return 0 if all(named(fault, answers[name].get(fault.about)) for name in answers for fault in chosen) else 1


def asked(backend: str, only: str, console: Console) -> Iterator[tuple[str, Where | None]]:
    """Of each fault where it is found in a framework, asked in its own interpreter."""
    command = [str(environments.require(backend)), "-m", "triport.parity_tests.tool", "faults", "--here", backend]
    variables = environments.with_project(os.environ)
    with subprocess.Popen([*command, "--only", only], stdout=subprocess.PIPE, text=True, env=variables) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith('{"fault"'):
                answer: dict[str, Any] = json.loads(line)
                where = answer["where"]
                console.print(f"[dim]{environments.TITLES[backend]}: {answer['fault']}[/]", highlight=False)
                yield answer["fault"], None if where is None else (where[0], where[1], where[2])
    if process.returncode:
        raise UserError(f"{environments.TITLES[backend]} failed before its last fault; what it said is above.")


def matrix(chosen: Sequence[SmallFault], answers: Mapping[str, Mapping[str, Where | None]]) -> str:
    """The matrix as Markdown: "named" where a framework found what the first one did, else what it found."""
    titles = [environments.TITLES[name] for name in answers]
    lines = [f"| fault | found at | {' | '.join(titles)} |", f"|---|---|{'---|' * len(titles)}"]
    for fault in chosen:
        places = [answers[name].get(fault.about) for name in answers]
        first = next((place for place in places if named(fault, place)), None)
        cells = [cell(fault, place, first) for place in places]
        lines.append(f"| {fault.about} | {words(first)} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def cell(fault: SmallFault, place: Where | None, first: Where | None) -> str:
    """What one framework found of one fault."""
    if not named(fault, place):
        return f"**WRONG**: {words(place)}"
    return "named" if place == first else words(place)


def words(place: Where | None) -> str:
    """A place for readers."""
    if place is None:
        return "not found"
    step = f"step {place[0]}, " if place[0] else ""
    return f"{step}{place[1]}: `{place[2]}`"
