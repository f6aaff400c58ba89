"""`triport parity run`: climbs the ladder with a user's own recipe, on every framework that is set up.

Each framework is asked in its own interpreter, held against the numpy float64 reference, against the formulas of the
optimisers, and against the other frameworks. Writes parity.json, parity.md and parity.html.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from core import environment
from core.errors import UserError, closest
from parity_tests import page, rungs, rungs_exact, trial
from parity_tests.ask import Failure
from parity_tests.findings import Finding, Report
from parity_tests.report import markdown
from parity_tests.rungs import Climb
from parity_tests.trace import version
from triport import environments

RECIPE = "tiny/test_moco_vit"
RUNGS: dict[str, Callable[[Climb, str], list[Finding]]] = {
    "files": rungs_exact.files,
    "data": rungs_exact.data,
    "forward": rungs.forward,
    "gradients": rungs.gradients,
    "optimizer": rungs.optimizer,
    "training": rungs.training,
    "processes": rungs.processes,
}
BETWEEN: dict[str, Callable[[Climb, str, str], list[Finding]]] = {
    "forward": rungs.forward_between,
    "gradients": rungs.gradients_between,
    "training": rungs.training_between,
}


@dataclass
class Options:
    """What a climb is asked to do."""

    backends: list[str]
    rungs: list[str]
    missing: dict[str, str] = field(default_factory=dict)  # backend -> remedy


def main(argv: Sequence[str]) -> int:
    """Run `triport parity run`: 0 every rung holds, 1 one does not, 2 a mistake of the user."""
    parser = trial.parser("run", "Climb the ladder of parity with a recipe, on every framework that is set up.")
    parser.add_argument("--recipe", default=RECIPE, metavar="RECIPE", help=f"a recipe ({RECIPE})")
    trial.add_options(parser, steps=10)
    parser.add_argument("--backends", metavar="NAMES", help="frameworks, separated by commas (all that are set up)")
    parser.add_argument("--rungs", metavar="NAMES", help=f"some of {','.join(RUNGS)} (all)")
    parser.add_argument("--out", metavar="DIR", help="where the report goes (runs/parity-RECIPE)")
    parser.add_argument("--quiet", action="store_true", help="print the verdict alone")
    options = parser.parse_intermixed_args(list(argv))
    asked = choose(options.backends, options.rungs)
    what = trial.make(options.recipe, options)
    console = Console(quiet=options.quiet)
    folder = Path(options.out or f"runs/parity-{what.recipe.name.replace('/', '_')}")
    trial.check_out(folder / "parity.json")
    report = climb(Climb(what, options.data, options.weights), asked, console)
    write(report, folder)
    console.print(table(report))
    for f in report.findings:
        if not f.passed:
            console.print(f"[red]{f.rung}[/]: {escape(report.sentence(f))}", highlight=False, soft_wrap=True)
    print(f"{report.verdict}; the report is {folder / 'parity.html'}")
    return 0 if report.passed else 1


def choose(backends: str | None, chosen: str | None) -> Options:
    """Backends and rungs of the command line: a backend that was named must be there, others may be missing."""
    names = [word for word in (chosen or "").split(",") if word] or list(RUNGS)
    for name in names:
        if name not in RUNGS:
            raise UserError(f"no rung '{name}' ({', '.join(RUNGS)}).{closest(name, RUNGS)}")
    named = [environments.known(word) for word in (backends or "").split(",") if word]
    found, missing = [], {}
    for name in named or environments.FRAMEWORKS:
        try:
            environments.require(name)
            found.append(name)
        except UserError as error:
            if named:
                raise
            missing[name] = str(error)
    if not found:
        raise UserError(f"no framework is set up. {' '.join(missing.values())}")
    return Options(found, names, missing)


def climb(state: Climb, asked: Options, console: Console) -> Report:
    """Every rung for every backend, then the backends in pairs. A backend that fails fails its rungs, not the rest."""
    began, what = time.monotonic(), state.trial
    findings: list[Finding] = []
    for rung in asked.rungs:
        for backend in asked.backends:
            console.print(f"[dim]{rung}: {environments.TITLES[backend]} ...[/]")
            findings += tried(rung, backend, lambda: RUNGS[rung](state, backend))  # noqa: B023 (called at once)
        for a, b in combinations(asked.backends, 2) if rung in BETWEEN else ():
            if not {a, b} & state.failed:
                findings += tried(rung, a, lambda: BETWEEN[rung](state, a, b))  # noqa: B023
    return Report(
        recipe=what.recipe.name,
        title=what.recipe.title,
        about=f"{what.batch} images a step ({what.images}), {what.steps} steps, seed {what.recipe.seed}",
        backends={name: f"{environments.TITLES[name]} {version(name)}" for name in asked.backends},
        missing=asked.missing,
        rungs=asked.rungs,
        findings=findings,
        layers=state.layers,
        losses=state.losses,
        noise=state.noise,
        seconds=time.monotonic() - began,
        environment=environment.describe(),
    )


def tried(rung: str, backend: str, work: Callable[[], list[Finding]]) -> list[Finding]:
    """What a rung found, or the failure of its backend as a finding."""
    try:
        return work()
    except Failure as error:
        message = str(error).partition("\n")[0]
        return [Finding(rung, "answer", backend, "", float("nan"), float("nan"), 0.0, "", message)]


# ---------------------------------------------------------------- what is written
def write(report: Report, folder: Path) -> None:
    """Write parity.json, parity.md and parity.html."""
    (folder / "parity.json").write_text(json.dumps(report.plain(), indent=1) + "\n", encoding="utf-8")
    (folder / "parity.md").write_text(markdown(report), encoding="utf-8")
    (folder / "parity.html").write_text(page.html(report), encoding="utf-8")


def table(report: Report) -> Table:
    """The findings for the console."""
    found = Table(title=f"{report.recipe}: {report.about}", title_justify="left", box=None, pad_edge=False)
    for column in ("rung", "what", "of", "against", "largest", "allowed", ""):
        found.add_column(column, overflow="fold", justify="right" if column in ("largest", "allowed") else "left")
    last = ""
    for f in report.findings:
        word = "[green]holds[/]" if f.passed else "[red]departs[/]" if not f.message else "[red]failed[/]"
        names = [report.name(f.backend), report.name(f.against)]
        limit = "" if f.message else f.limit
        found.add_row("" if f.rung == last else f.rung, f.what, *names, f.difference, limit, word)
        last = f.rung
    return found
