"""How two processes on two cores scale, beside what the machine itself allows: steps in turn, medians and ratios.

python benchmarks/scaling.py [--moco FOLDER --mae FOLDER] [--model NAME ...] [--precision NAME ...] [--rounds N]

Each round is a step of one process with one thread; the same batch on two processes with a thread each; and two such
processes with half of the batch each that know nothing of each other, which is what two cores do at best, and how far
apart they end shows how long those that wait for each other must. With the folders the original code goes through the
same.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import steps
import workload

BATCH = 8


class Apart:
    """Two groups of one process each that step at the same time."""

    def __init__(self, variant: str, case: steps.Case, options: argparse.Namespace) -> None:
        half = steps.Case(case.model, case.precision, case.batch // 2, "1 core")
        self.groups = [steps.Group(variant, half, options) for _ in range(2)]

    def step(self) -> dict[str, float]:
        """One step of both."""
        for group in self.groups:
            group.tell("step")
        both = [group.hear()[0] for group in self.groups]
        seconds = [answer["seconds"] for answer in both]
        return {"seconds": max(seconds), "least": min(seconds), "processor": sum(a["processor"] for a in both)}

    def end(self) -> None:
        """Let them end."""
        for group in self.groups:
            group.end()


def compare(variant: str, model: str, precision: str, options: argparse.Namespace) -> dict[str, Any]:
    """Measure a variant."""
    one, two = (steps.Case(model, precision, options.batch, place) for place in ("1 core", "2"))
    groups: dict[str, Any] = {
        "one": steps.Group(variant, one, options),
        "two": steps.Group(variant, two, options),
        "apart": Apart(variant, one, options),
    }
    taken: dict[str, list[dict[str, float]]] = {name: [] for name in groups}
    for turn in range(2 + options.rounds):
        for group in groups.values() if turn < 2 else ():  # the first steps grow memory
            group.step()
        names = [*groups][turn % 3 :] + [*groups][: turn % 3]
        for name in names if turn >= 2 else ():
            taken[name].append(groups[name].step())
    for group in groups.values():
        group.end()
    return {"variant": variant, "model": model, "precision": precision, "batch": options.batch, "rounds": taken}


def row(found: dict[str, Any]) -> str:
    """A measured variant as a line of the table."""
    rounds = found["rounds"]

    def ratio(of: Callable[[dict[str, float], dict[str, float], dict[str, float]], float]) -> float:
        return statistics.median(of(*each) for each in zip(rounds["one"], rounds["two"], rounds["apart"], strict=True))

    clock = ratio(lambda one, two, _: one["seconds"] / two["seconds"])
    processor = ratio(lambda one, two, _: 2 * one["processor"] / two["processor"])
    limit = ratio(lambda one, _, apart: one["seconds"] / apart["seconds"])
    uneven = ratio(lambda one, two, apart: apart["seconds"] / apart["least"])
    return (
        f"| {workload.TITLES[found['model']]} | {found['precision']} | {found['variant']} "
        f"| {clock:.2f} | {processor:.2f} | {limit:.2f} | {uneven:.2f} |"
    )


def main() -> None:
    """Read the command line, measure, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--moco", metavar="FOLDER", help="a checkout of facebookresearch/moco-v3")
    parser.add_argument("--mae", metavar="FOLDER", help="a checkout of facebookresearch/mae")
    parser.add_argument("--model", nargs="+", default=["r50", "moco-s", "mae-b"])
    parser.add_argument("--precision", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--batch", type=int, default=BATCH, help="images of a step, of all processes")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", metavar="FILE", help="also write every measurement, as JSON")
    options = parser.parse_args()
    print(
        "| model | precision | code | two / one, clock | processor | two that share nothing / one | slower / faster |"
    )
    print("|" + "---|" * 7, flush=True)
    known = []
    for precision in options.precision:
        for model in options.model:
            code = options.mae if model.startswith("mae") else options.moco
            for variant in ("ours", "original") if code else ("ours",):
                known.append(compare(variant, model, precision, options))
                print(row(known[-1]), flush=True)
                if options.out:
                    Path(options.out).write_text(json.dumps(known, indent=1))


if __name__ == "__main__":
    main()
