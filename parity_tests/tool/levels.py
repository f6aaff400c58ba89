"""`triport parity run`: checks every parity level with a user's own recipe, on every framework that is set up.

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

from triport import environments
from triport.core.errors import UserError, closest
from triport.core.record import environment
from triport.parity_tests.tool import checks, checks_exact, page, trial
from triport.parity_tests.tool.ask import Failure
from triport.parity_tests.tool.checks import ParityRun
from triport.parity_tests.tool.findings import Finding, Report
from triport.parity_tests.tool.report import markdown
from triport.parity_tests.tool.trace import version

RECIPE = "tiny/test_moco_vit"
LEVELS: dict[str, Callable[[ParityRun, str], list[Finding]]] = {
    "files": checks_exact.files,
    "data": checks_exact.data,
    "forward": checks.forward,
    "gradients": checks.gradients,
    "optimizer": checks.optimizer,
    "training": checks.training,
    "processes": checks.processes,
}
BETWEEN: dict[str, Callable[[ParityRun, str, str], list[Finding]]] = {
    "forward": checks.forward_between,
    "gradients": checks.gradients_between,
    "training": checks.training_between,
}


@dataclass
class Options:
    """What a parity run is asked to do."""

    backends: list[str]
    levels: list[str]
    missing: dict[str, str] = field(default_factory=dict)  # backend -> remedy


def main(argv: Sequence[str]) -> int:
    """Run `triport parity run`: 0 every level holds, 1 one does not, 2 a mistake of the user."""
    parser = trial.parser("run", "Check every parity level of a recipe, on every framework that is set up.")
    parser.add_argument("--recipe", default=RECIPE, metavar="RECIPE", help=f"a recipe ({RECIPE})")
    trial.add_options(parser, steps=20)
    parser.add_argument("--backends", metavar="NAMES", help="frameworks, separated by commas (all that are set up)")
    parser.add_argument("--levels", metavar="NAMES", help=f"some of {','.join(LEVELS)} (all)")
    parser.add_argument("--out", metavar="DIR", help="where the report goes (runs/parity-RECIPE)")
    parser.add_argument("--quiet", action="store_true", help="print the verdict alone")
    options = parser.parse_intermixed_args(list(argv))
    asked = choose(options.backends, options.levels)
    what = trial.make(options.recipe, options)
    console = Console(quiet=options.quiet)
    folder = Path(options.out or f"runs/parity-{what.recipe.name.replace('/', '_')}")
    trial.check_out(folder / "parity.json")
    report = run(ParityRun(what, options.data, options.weights), asked, console)
    write(report, folder)
    console.print(table(report))
    for f in report.findings:
        if not f.passed:
            console.print(f"[red]{f.level}[/]: {escape(report.sentence(f))}", highlight=False, soft_wrap=True)
    print(f"{report.verdict}; the report is {folder / 'parity.html'}")
    return 0 if report.passed else 1


def choose(backends: str | None, chosen: str | None) -> Options:
    """Backends and levels of the command line: a backend that was named must be there, others may be missing."""
    names = [word for word in (chosen or "").split(",") if word] or list(LEVELS)
    for name in names:
        if name not in LEVELS:
            raise UserError(f"no level '{name}' ({', '.join(LEVELS)}).{closest(name, LEVELS)}")
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


def run(state: ParityRun, asked: Options, console: Console) -> Report:
    """Every level for every backend, then the backends in pairs. A failing backend fails its own levels alone."""
    began, what = time.monotonic(), state.trial
    findings: list[Finding] = []
    for level in asked.levels:
        for backend in asked.backends:
            console.print(f"[dim]{level}: {environments.TITLES[backend]} ...[/]")
            findings += tried(level, backend, lambda: LEVELS[level](state, backend))  # noqa: B023 (called at once)
        for a, b in combinations(asked.backends, 2) if level in BETWEEN else ():
            if not {a, b} & state.failed:
                findings += tried(level, a, lambda: BETWEEN[level](state, a, b))  # noqa: B023
    return Report(
        recipe=what.recipe.name,
        title=what.recipe.title,
        about=f"{what.batch} images a step ({what.images}), {what.steps} steps in {what.precision}, "
        f"seed {what.recipe.seed}",
        backends={name: f"{environments.TITLES[name]} {version(name)}" for name in asked.backends},
        missing=asked.missing,
        levels=asked.levels,
        findings=findings,
        layers=state.layers,
        losses=state.losses,
        precision=what.precision,
        seconds=time.monotonic() - began,
        environment=environment.describe(),
    )


def tried(level: str, backend: str, work: Callable[[], list[Finding]]) -> list[Finding]:
    """What a level found, or the failure of its backend as a finding."""
    try:
        return work()
    except Failure as error:
        message = str(error).partition("\n")[0]
        return [Finding(level, "answer", backend, "", float("nan"), float("nan"), 0.0, "", message)]


# ---------------------------------------------------------------- what is written
def write(report: Report, folder: Path) -> None:
    """Write parity.json, parity.md and parity.html."""
    (folder / "parity.json").write_text(json.dumps(report.plain(), indent=1) + "\n", encoding="utf-8")
    (folder / "parity.md").write_text(markdown(report), encoding="utf-8")
    (folder / "parity.html").write_text(page.html(report), encoding="utf-8")


def table(report: Report) -> Table:
    """The findings for the console."""
    found = Table(title=f"{report.recipe}: {report.about}", title_justify="left", box=None, pad_edge=False)
    for column in ("level", "what", "of", "against", "largest", "allowed", ""):
        found.add_column(column, overflow="fold", justify="right" if column in ("largest", "allowed") else "left")
    last = ""
    for f in report.findings:
        word = "[green]holds[/]" if f.passed else "[red]departs[/]" if not f.message else "[red]failed[/]"
        names = [report.name(f.backend), report.name(f.against)]
        limit = "" if f.message else f.limit
        found.add_row("" if f.level == last else f.level, f.what, *names, f.difference, limit, word)
        last = f.level
    return found
