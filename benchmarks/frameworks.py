"""Training steps of a recipe on several frameworks, in turn: each in a process of its own, the same weights and images.

python benchmarks/frameworks.py torch paddle [--recipe NAME ...] [--batch N] [--rounds N] [--threads N] [--compile]
                                [--processes N]

The first framework is what the others are held against: the median of the ratios of rounds that followed each other.
With --processes each one also runs in N processes, which share the batch, and is held against itself in one.
With --malloc each one runs a second time as glibc comes, giving freed memory back at once, which a run does not.
Seconds are also given as processor time of all threads, which says more on a machine that others use as well.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import socket
import statistics
import subprocess
import sys
import time
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import numpy as np

from triport import environments, place
from triport.core import machine
from triport.core.data.loader import Batch
from triport.core.model import masking
from triport.core.model.init import initial_values
from triport.core.model.inventory import grid
from triport.core.model.schedule import Values
from triport.core.spec import MAE, Classifier, MoCo, Recipe, ViT
from triport.core.spec.recipe import load

RECIPES = (
    "moco_v3/vit_small_300ep",
    "moco_v3/vit_conv_small_300ep",
    "moco_v3/resnet50_100ep",
    "mae/vit_base_800ep",
    "transfer/mae_vit_base_finetune",
)


# ---------------------------------------------------------------- one framework
def random_batch(recipe: Recipe, n: int) -> Batch:
    """White-noise images and what the objective needs beside them."""
    rng, encoder, objective = np.random.default_rng(0), recipe.model.encoder, recipe.model.objective
    views = tuple(
        rng.standard_normal((n, encoder.channels, *encoder.image), dtype=np.float32)
        for _ in range(2 if isinstance(objective, MoCo) else 1)
    )
    noise = draws = None
    if isinstance(objective, MAE) and isinstance(encoder, ViT):
        noise = masking.noise(0, 0, range(n), int(np.prod(grid(encoder))))
    if isinstance(objective, Classifier) and isinstance(encoder, ViT) and encoder.drop_path:
        draws = rng.random((n, encoder.depth, 2), dtype=np.float32)
    labels = np.arange(n, dtype=np.int64)
    return Batch(images=views, labels=labels, targets=None, indices=labels, mask_noise=noise, drop_path=draws)


def share(batch: Batch, rank: int, world: int) -> Batch:
    """What one of `world` processes has of a batch."""

    def of(array: np.ndarray | None) -> np.ndarray | None:
        return None if array is None else array[rank::world]

    return replace(
        batch,
        images=tuple(view[rank::world] for view in batch.images),
        labels=of(batch.labels),
        indices=batch.indices[rank::world],
        mask_noise=of(batch.mask_noise),
        drop_path=of(batch.drop_path),
    )


def work(framework: str, name: str, n: int, compile: bool, retain: bool) -> None:
    """Do a step for each line on standard input and print loss, seconds, processor seconds and page faults."""
    if not retain:  # whoever asks finds the user's own choice; glibc itself read its own before this
        os.environ["MALLOC_TRIM_THRESHOLD_"] = ""
    machine.retain_freed_memory()  # as a run does
    processes = import_module(f"triport.backends.{framework}.distributed").start("cpu")
    recipe = load(name)
    make = import_module(f"triport.backends.{framework}.learner").make
    learner = make(recipe, initial_values(recipe.model, 0), processes=processes, compile=compile)
    batch = share(random_batch(recipe, n), processes.rank, processes.world)
    for _ in sys.stdin:
        begin, (used, faults) = time.perf_counter(), usage()
        loss = learner.step([batch], Values(1e-4, 0.99)).loss
        seconds, (after, more) = time.perf_counter() - begin, usage()
        print(json.dumps([loss, seconds, after - used, more - faults]), flush=True)


def usage() -> tuple[float, int]:
    """Seconds that all threads of this process have computed, and pages that were faulted in."""
    so_far = resource.getrusage(resource.RUSAGE_SELF)
    return so_far.ru_utime + so_far.ru_stime, so_far.ru_minflt


# ---------------------------------------------------------------- all of them
def ranks(framework: str, world: int) -> list[dict[str, str]]:
    """The environment variables by which the processes of a group know their places; none for a process alone."""
    if world == 1:
        return [{}]
    ports = []
    for _ in range(world):
        with socket.create_server(("127.0.0.1", 0)) as server:
            ports.append(server.getsockname()[1])
    places = [f"127.0.0.1:{port}" for port in ports]
    if framework == "paddle":
        given = {"PADDLE_TRAINERS_NUM": world, "PADDLE_TRAINER_ENDPOINTS": ",".join(places)}
        own = [{"PADDLE_TRAINER_ID": i, "PADDLE_CURRENT_ENDPOINT": place} for i, place in enumerate(places)]
    else:
        given = {"WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": ports[0]}
        own = [{"RANK": i, "LOCAL_RANK": i} for i in range(world)]
    return [{name: str(value) for name, value in {**given, **each}.items()} for each in own]


class Worker:
    """A framework's processes."""

    def __init__(
        self, framework: str, name: str, options: argparse.Namespace, retain: bool = True, world: int = 1
    ) -> None:
        python = environments.require(framework)
        command = [str(python), __file__, framework, "--work", name, "--batch", str(options.batch)]
        command += ["--compile"] if options.compile else []
        command += [] if retain else ["--no-retain"]
        settings = {**place.variables(place.Place(framework, python)), "OMP_NUM_THREADS": str(options.threads)}
        settings["PYTHONPATH"] = str(Path(__file__).resolve().parent.parent)
        pipe = subprocess.PIPE
        self.processes = [
            subprocess.Popen(command, env={**os.environ, **settings, **own}, stdin=pipe, stdout=pipe, text=True)
            for own in ranks(framework, world)
        ]

    def step(self) -> list[float]:
        """Mean loss, longest seconds, processor seconds, page faults."""
        for process in self.processes:
            assert process.stdin
            process.stdin.write("step\n")
            process.stdin.flush()
        answers = []
        for process in self.processes:
            assert process.stdout
            answers.append(json.loads(process.stdout.readline()))
        losses, seconds, used, faults = zip(*answers, strict=True)
        return [statistics.mean(losses), max(seconds), sum(used), sum(faults)]

    def end(self) -> None:
        """Let the processes end."""
        for process in self.processes:
            assert process.stdin
            process.stdin.close()
        for process in self.processes:
            process.wait()


def compare(name: str, options: argparse.Namespace) -> None:
    """Time the frameworks in turn on one recipe and print a line for each."""
    workers = {framework: Worker(framework, name, options) for framework in options.frameworks}
    if options.malloc:
        workers |= {f"{f} as glibc comes": Worker(f, name, options, retain=False) for f in options.frameworks}
    if options.processes > 1:
        together = f"in {options.processes} processes"
        workers |= {f"{f} {together}": Worker(f, name, options, world=options.processes) for f in options.frameworks}
    first = {framework: worker.step()[0] for framework, worker in workers.items()}  # builds, compiles, warms up
    taken: dict[str, list[list[float]]] = {framework: [] for framework in workers}
    for worker in workers.values():
        worker.step()  # the second step still grows memory
    for _ in range(options.rounds):
        for framework, worker in workers.items():
            taken[framework].append(worker.step())
    for framework, worker in workers.items():
        worker.end()
        against = framework.split()[0] if " in " in framework else options.frameworks[0]
        base = taken[against]
        wall, used = (
            statistics.median(theirs[i] / ours[i] for theirs, ours in zip(base, taken[framework], strict=True))
            for i in (1, 2)
        )
        seconds, computed, faults = (statistics.median(step[i] for step in taken[framework]) for i in (1, 2, 3))
        print(
            f"{name}, batch {options.batch}, {framework}: {seconds:.3f} s, processors {computed:.3f} s; "
            f"speed {wall:.2f} of {against}, by processors {used:.2f}; {faults:,.0f} faults; "
            f"first loss {first[framework]:.7f}",
            flush=True,
        )


def main() -> None:
    """Read the command line and compare."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("frameworks", nargs="+", choices=environments.FRAMEWORKS)
    parser.add_argument("--recipe", action="append", metavar="NAME")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--processes", type=int, default=1, metavar="N", help="also in so many, of --threads each")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--malloc", action="store_true", help="also without the memory that a run retains")
    parser.add_argument("--no-retain", dest="retain", action="store_false", help=argparse.SUPPRESS)
    parser.add_argument("--work", metavar="NAME", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        work(options.frameworks[0], options.work, options.batch, options.compile, options.retain)
        return
    for name in options.recipe or RECIPES:
        compare(name, options)


if __name__ == "__main__":
    main()
