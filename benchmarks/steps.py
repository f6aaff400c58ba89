"""Training steps on CPUs: ours, the original code, the original made modern; one table, one picture, raw JSON.

python benchmarks/steps.py --moco FOLDER --mae FOLDER [--minutes M] [--out FOLDER] [--model NAME ...] [--batch N ...]

The folders hold checkouts of facebookresearch/moco-v3 and facebookresearch/mae; without them the plain textbook and the
same with fused AdamW take their place. Nothing is fetched. Every variant runs in processes of its own, which wait in
turn: a round is one step of each and the matrix-product peak. Ratios are medians of the rounds' ratios. Cases that
OUT/steps.json holds already are not measured again: the same command goes on where the last one stopped.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PLACES = {"1": (1, 2), "2": (2, 1), "1 core": (1, 1)}  # name -> processes, threads of each
SPARE = 0.8  # of the free memory that processes which wait may hold in sum


@dataclass(frozen=True)
class Case:
    """What is measured."""

    model: str
    precision: str
    batch: int  # of all processes
    place: str

    @property
    def name(self) -> str:
        """As a key of the JSON file."""
        return f"{self.model} {self.precision} {self.batch} {self.place}"


# ---------------------------------------------------------------- within a process
def usage() -> tuple[float, int, int]:
    """Processor seconds, page faults and most bytes in use of this process so far."""
    own = resource.getrusage(resource.RUSAGE_SELF)
    return own.ru_utime + own.ru_stime, own.ru_minflt, own.ru_maxrss * 1024


def work(variant: str, case: Case, options: argparse.Namespace) -> None:
    """Do a step for each line on standard input and print what it took."""
    warnings.filterwarnings("ignore")
    import torch

    from triport.core import machine
    from triport.core.model.init import initial_values
    from triport.core.model.schedule import Values
    from triport.core.spec.recipe import load

    import variants  # isort: skip
    import workload  # isort: skip

    processes, threads = PLACES[case.place]
    torch.set_num_threads(processes * threads if variant == "peak" else threads)  # the peak of all cores in use
    if variant == "peak":
        for _ in sys.stdin:
            print(json.dumps({"peak": workload.peak(case.precision)}), flush=True)
        return
    if variant == "ours":
        machine.retain_freed_memory()  # as a run does
    recipe = load(workload.RECIPES[case.model])
    places = SimpleNamespace(device="cpu", precision=case.precision, compile=False, moco=options.moco, mae=options.mae)
    made = variants.make(variant, recipe, initial_values(recipe.model, 0), places)
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    batch, values = workload.part(workload.random_batch(recipe, case.batch), rank, world), Values(1e-4, 0.99)
    for line in sys.stdin:
        if line.strip() == "profile":
            print(json.dumps(profiled(lambda: made.step(batch, values))), flush=True)
            continue
        (used, faults, _), begin = usage(), time.perf_counter()
        loss = made.step(batch, values)
        seconds, (after, more, memory) = time.perf_counter() - begin, usage()
        answer = {"loss": loss, "seconds": seconds, "processor": after - used, "faults": more - faults}
        print(json.dumps({**answer, "memory": memory}), flush=True)


def profiled(step: Any) -> dict[str, list[float]]:
    """Operation -> its own processor seconds, calls, and floating-point operations where they are known."""
    from torch.profiler import ProfilerActivity, profile
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        step()
    counted = {str(op).replace(".", "::"): n for op, n in counter.get_flop_counts().get("Global", {}).items()}
    counted["aten::mkldnn_convolution"] = counted.pop("aten::convolution", 0)  # by which name the time is known
    with profile(activities=[ProfilerActivity.CPU]) as record:
        step()
    return {
        event.key: [event.self_cpu_time_total / 1e6, event.count, counted.get(event.key, 0)]
        for event in record.key_averages()
        if event.self_cpu_time_total > 0
    }


# ---------------------------------------------------------------- the processes of a variant
class Group:
    """A variant's processes, which step when they are told to."""

    def __init__(self, variant: str, case: Case, options: argparse.Namespace) -> None:
        processes, threads = PLACES[case.place]
        processes, threads = (1, processes * threads) if variant == "peak" else (processes, threads)
        self.store = tempfile.mkdtemp()
        chosen = ["--work", variant, "--case", json.dumps(asdict(case))]
        folders = [
            word for name in ("moco", "mae") if getattr(options, name) for word in (f"--{name}", getattr(options, name))
        ]
        self.processes = []
        for rank in range(processes):
            place = {"RANK": rank, "WORLD_SIZE": processes, "LOCAL_RANK": rank, "OMP_NUM_THREADS": threads}
            place |= {"TRIPORT_STORE": str(Path(self.store) / "store")} if processes > 1 else {}
            environment = {
                **os.environ,
                **{n: str(v) for n, v in place.items()},
                "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]),
            }
            self.processes.append(
                subprocess.Popen(
                    [sys.executable, __file__, *chosen, *folders],
                    env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                )
            )  # fmt: skip

    def ask(self, word: str = "step") -> list[dict[str, Any]]:
        """Tell all processes the same word and return their answers."""
        self.tell(word)
        return self.hear()

    def tell(self, word: str) -> None:
        """Tell all processes the same word."""
        for process in self.processes:
            assert process.stdin
            process.stdin.write(f"{word}\n")
            process.stdin.flush()

    def hear(self) -> list[dict[str, Any]]:
        """Wait for all processes' answers."""
        answers = []
        for process in self.processes:
            assert process.stdout
            line = process.stdout.readline()
            if not line:
                raise RuntimeError(f"a process ended with exit code {process.wait()}; its last words are above")
            answers.append(json.loads(line))
        return answers

    def step(self) -> dict[str, float]:
        """One step of all processes: the longest time, sums of the rest."""
        answers = self.ask()
        if "peak" in answers[0]:
            return answers[0]
        total = {name: sum(answer[name] for answer in answers) for name in answers[0]}
        return {**total, "seconds": max(a["seconds"] for a in answers), "loss": total["loss"] / len(answers)}

    def end(self) -> None:
        """Let the processes end."""
        for process in self.processes:
            assert process.stdin
            process.stdin.close()
        for process in self.processes:
            process.wait()


# ---------------------------------------------------------------- all of them
def free_memory() -> int:
    """Bytes that new processes may take."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable"):
            return int(line.split()[1]) * 1024
    return 0


def compare(case: Case, names: list[str], options: argparse.Namespace) -> dict[str, Any]:
    """Measure a case; processes wait for each other's steps, or start again each round where memory is short."""
    free = free_memory()
    first, groups, taken = {}, {}, {name: [] for name in (*names, "peak")}  # type: ignore[var-annotated]
    resident = True
    for name in names:
        groups[name] = Group(name, case, options)
        first[name] = groups[name].step()
        needed = sum(step["memory"] for step in first.values()) * len(names) / len(first)
        resident = resident and needed < SPARE * free
        if not resident:
            groups.pop(name).end()
    groups["peak"] = Group("peak", case, options)
    for group in groups.values():  # the second step still grows memory; and the peak's process has started then
        group.step()
    for turn in range(options.rounds):
        for name in [*taken][turn % len(taken) :] + [*taken][: turn % len(taken)]:  # none is always first
            if name not in groups:
                group = Group(name, case, options)
                group.step()
                taken[name].append(group.step())
                group.end()
            else:
                taken[name].append(groups[name].step())
    profiles = {}
    if options.profile and case.place == "1" and case.batch == max(options.batch):
        for name in (names[0], names[1]):
            group = groups.get(name) or Group(name, case, options)
            profiles[name] = group.ask("profile")[0]
            groups[name] = group
    for group in groups.values():
        group.end()
    return {"case": asdict(case), "first": first, "rounds": taken, "profiles": profiles, "load": os.getloadavg()[0]}


def order(options: argparse.Namespace) -> list[Case]:
    """The cases, those that matter most first."""
    batches = sorted(options.batch, key=lambda n: (n != 8, n))
    places = [p for p in PLACES if p in options.place]
    return [Case(m, p, n, place) for n in batches for place in places for p in options.precision for m in options.model]


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--moco", metavar="FOLDER", help="a checkout of facebookresearch/moco-v3")
    parser.add_argument("--mae", metavar="FOLDER", help="a checkout of facebookresearch/mae")
    parser.add_argument("--model", nargs="+", default=["moco-s", "moco-b", "mae-b", "r50"])
    parser.add_argument("--precision", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--batch", nargs="+", type=int, default=[4, 8, 16], help="images of a step, of all processes")
    meaning = "1: a process with two threads; 2: two with one each; '1 core': one with one"
    parser.add_argument("--place", nargs="+", choices=PLACES, default=list(PLACES), help=meaning)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--minutes", type=float, default=0.0, help="begin no case after so long; 0: measure all")
    parser.add_argument("--out", default="benchmarks-steps", metavar="FOLDER")
    parser.add_argument("--no-profile", dest="profile", action="store_false", help="leave out the time by operation")
    parser.add_argument("--work", help=argparse.SUPPRESS)
    parser.add_argument("--case", help=argparse.SUPPRESS)
    return parser.parse_args()


def variants_of(case: Case, options: argparse.Namespace) -> list[str]:
    """The three that are compared; none where the code for it is missing."""
    if {"mae": options.mae, "tin": None}.get(case.model[:3], options.moco):
        return ["ours", "original", "modern"]
    return [] if case.model == "r50" else ["ours", "textbook", "fused"]


def main() -> None:
    """Read the command line, measure, print the table, draw the picture."""
    options = parsed()
    if options.work:
        work(options.work, Case(**json.loads(options.case)), options)
        return
    import steps_report

    folder, begun = Path(options.out), time.monotonic()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "steps.json"
    known: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    for case in order(options):
        names = variants_of(case, options)
        if case.name in known:
            continue
        if not names or (options.minutes and time.monotonic() - begun > 60 * options.minutes):
            print(f"not measured, {'the time is over' if names else 'it needs --moco'}: {case.name}", flush=True)
            continue
        try:
            known[case.name] = compare(case, names, options)
        except RuntimeError as error:
            print(f"{case.name}: {error}", flush=True)
            continue
        path.write_text(json.dumps(known, indent=1))
        print(steps_report.line(known[case.name]), flush=True)
    if known:
        text = steps_report.tables(known)
        (folder / "steps.md").write_text("\n".join(text) + "\n")
        print("\n".join(text), steps_report.draw(known, folder / "steps.svg"), sep="\n")


if __name__ == "__main__":
    main()
