"""The report of a parity run as Markdown: largest and mean difference by stage, as reviewers of ports ask for them."""

from __future__ import annotations

from triport.parity_tests.tool.findings import Report, number


def markdown(report: Report) -> str:
    """The report as one page of Markdown."""
    mark = "**passed**" if report.passed else "**FAILED**"
    lines = [f"# Parity of {report.recipe}", "", f"{mark}: {report.verdict}. {report.about}.", ""]
    lines += ["| framework | |", "|---|---|"]
    lines += [f"| {name} | compared |" for name in report.backends.values()]
    lines += [f"| {name} | missing: {remedy} |" for name, remedy in report.missing.items()]
    for level in report.levels:
        rows = [f for f in report.findings if f.level == level]
        if not rows:
            continue
        lines += ["", f"## {level.capitalize()}", ""]
        lines += [
            "| what | framework | against | largest diff | mean diff | allowed | | at |",
            "|---|---|---|---|---|---|---|---|",
        ]
        for f in rows:
            word = "passed" if f.passed else "**FAILED**"
            at = f"`{f.where}`" if f.where else ""
            names = f"{report.name(f.backend)} | {report.name(f.against)}"
            numbers = (
                f"{f.difference} | {number(f.mean, 1) if not f.message else ''} | {f.limit if not f.message else ''}"
            )
            lines.append(f"| {f.message or f.what} | {names} | {numbers} | {word} | {at} |")
    if report.losses:
        backends = list(report.losses)
        lines += ["", "## Losses", "", f"| step | {' | '.join(map(report.name, backends))} |"]
        lines.append(f"|---|{'---|' * len(backends)}")
        for step in range(len(report.losses[backends[0]])):
            lines.append(f"| {step} | {' | '.join(f'{report.losses[name][step]:.8f}' for name in backends)} |")
    lines += ["", "Differences are relative to the largest value of the array; pixels are in grey levels.", ""]
    return "\n".join(lines)
