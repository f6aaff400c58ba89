"""Training steps on one GPU: images/s, MFU, memory, waiting for data; eager and compiled, beside textbook and original.

python benchmarks/gpu.py [--moco FOLDER] [--mae FOLDER] [--minutes 7.5] [--out FOLDER] [--model NAME ...]

One command measures all, under eight minutes on one card; cases for which no time is left are named. It needs PyTorch,
numpy, Pillow and safetensors, and fetches nothing: images are made on the spot. Each case runs in a process of its own,
so that memory is its own and a failure ends nothing else; the next one gets ready while one is measured. With
`--device cpu --model tiny-moco tiny-mae` it can be tried anywhere. OUT/gpu.json holds everything, also the kernels that
a step spends its time in; OUT/gpu.md the table with the card's name.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
BATCHES = {"moco-s": 256, "moco-b": 128, "r50": 256, "mae-b": 256, "mae-l": 128, "tiny-moco": 8, "tiny-mae": 8}
WAYS = ("eager", "original", "compiled", "textbook")  # what starts at once comes first
# dense bfloat16 products, floating-point operations per second, by what the card's name holds: the makers' data sheets
PEAKS = {
    "H200": 989e12, "H100 PCIe": 756e12, "H100": 989e12, "GH200": 989e12, "A100": 312e12, "L40S": 362e12,
    "L4": 121e12, "A10": 125e12, "4090": 165e12, "V100": 125e12, "B200": 2250e12,
}  # fmt: skip
WARM, LEAST, SECONDS = 4, 8, 5.0  # steps before the clock starts, steps at least, seconds at least


# ---------------------------------------------------------------- within a process
def work(model: str, way: str, options: argparse.Namespace) -> dict[str, Any]:
    """Measure one case."""
    warnings.filterwarnings("ignore")
    sys.path.insert(0, str(Path(__file__).parent))
    import gpu_kernels
    import torch
    import variants
    import workload

    from triport.core.model.init import initial_values
    from triport.core.spec.recipe import load

    recipe = load(workload.RECIPES[model])
    arrays, n = initial_values(recipe.model, 0), options.batch or BATCHES[model]
    variant = "ours" if way in ("compiled", "eager") else way
    cuda = options.device != "cpu"
    torch.zeros(1, device=options.device)  # starts the device
    batches = list(itertools.islice(stream(recipe, n, variant == "ours"), 2))
    wait()
    while True:
        places = SimpleNamespace(
            device=options.device, precision=options.precision, compile=way == "compiled" and cuda,
            moco=options.moco, mae=options.mae,
        )  # fmt: skip
        try:
            made = variants.make(variant, recipe, arrays, places)
            found = timed(made, itertools.cycle(batches), n, cuda)
            break
        except torch.cuda.OutOfMemoryError:
            made, n = None, n // 2
            torch.cuda.empty_cache()
            if n < 8:
                raise
            batches = list(itertools.islice(stream(recipe, n, variant == "ours"), 2))
    flops = workload.step_flops(recipe)
    best = gpu_kernels.measured_peak(options.device, options.precision)
    name = torch.cuda.get_device_name() if cuda else "cpu"
    nominal = next((peak for part, peak in PEAKS.items() if part in name), None)
    memory = torch.cuda.max_memory_allocated() / 2**30 if cuda else 0.0
    return {
        **found, "model": model, "way": way, "batch": n, "device": name, "precision": options.precision,
        "mfu": flops * found["rate"] / nominal if nominal else None, "of_products": flops * found["rate"] / best,
        "measured_peak": best, "memory_gib": memory, "torch": torch.__version__,
        "kept_compiled": kept_compiled(made),
        "kernels": gpu_kernels.kernels(made, itertools.cycle(batches)) if cuda and variant == "ours" else None,
    }  # fmt: skip


def wait() -> None:
    """Until the case before this one is measured."""
    if not sys.stdin.readline():
        raise SystemExit("whoever measures has ended")


def kept_compiled(made: Any) -> bool | None:
    """Whether the compiled step passed the check of its first loss; None where there was none."""
    run = getattr(getattr(made, "learner", None), "run", None)
    return None if not hasattr(run, "chosen") else run.chosen is not run.plain


def stream(recipe: Any, n: int, raw: bool) -> Iterator[list[Any]]:
    """The same few batches again and again; as bytes where the step takes them."""
    from dataclasses import replace

    import numpy as np
    import workload

    from triport.core.augment import pixels

    made = [workload.random_batch(recipe, n, seed) for seed in range(2)]
    if raw:
        (mean, std), channels = (recipe.train.mean, recipe.train.std), recipe.model.encoder.channels
        table = np.ascontiguousarray(pixels.table(mean, std, channels))
        rng, (height, width) = np.random.default_rng(0), recipe.model.encoder.image
        views = len(made[0].images)
        made = [
            replace(
                batch,
                images=tuple(rng.integers(0, 256, (n, height, width, channels), np.uint8) for _ in range(views)),
                table=table,
            )
            for batch in made
        ]
    yield from ([batch] for batch in itertools.cycle(made))


def timed(made: Any, batches: Iterator[list[Any]], n: int, cuda: bool) -> dict[str, Any]:
    """Steps one after another as a run takes them: each looks at the result of the one before."""
    import torch

    from triport.core.backend.learner import settled
    from triport.core.model.schedule import Values

    values, learner = Values(1e-5, 0.99), getattr(made, "learner", None)
    steps = learner.ahead(batches) if learner is not None else batches
    taken, losses, marks, begun = None, [], [], 0.0
    first = time.perf_counter()
    for count, given in enumerate(steps):
        if learner is None:
            losses.append(made.step(given[0], values))
        else:
            before, taken = taken, learner.step(given, values)
            losses += [settled(before).loss] if before is not None else []
        marks.append(time.perf_counter())
        if count == WARM - 1:
            if cuda:
                torch.cuda.synchronize()
            begun = time.perf_counter()
        done = count + 1 - WARM
        if done >= LEAST and (time.perf_counter() - begun > SECONDS or not cuda):
            break
    if cuda:
        torch.cuda.synchronize()
    seconds = time.perf_counter() - begun
    apart = statistics.median(b - a for a, b in itertools.pairwise(marks[WARM:]))
    return {"rate": done * n / seconds, "steps": done, "median_step": apart, "start": begun - first, "loss": losses[-1]}


def starvation(options: argparse.Namespace) -> dict[str, Any]:
    """The whole way of MoCo ViT-S from JPEG files: how much of the time the GPU has nothing to do."""
    sys.path.insert(0, str(Path(__file__).parent))
    import loader as images
    import variants
    import workload

    from triport.core.augment import native
    from triport.core.backend.learner import settled
    from triport.core.data.datasets import open_dataset
    from triport.core.data.loader import Loader
    from triport.core.model.init import initial_values
    from triport.core.model.schedule import Values
    from triport.core.spec import DataSpec
    from triport.core.spec.recipe import load

    problem = native.build()
    cuda, name = options.device != "cpu", "moco-s" if options.device != "cpu" else "tiny-moco"
    recipe, n = load(workload.RECIPES[name]), options.batch or BATCHES[name]
    places = SimpleNamespace(device=options.device, precision=options.precision, compile=cuda, moco=None, mae=None)
    made = variants.make("ours", recipe, initial_values(recipe.model, 0), places).learner
    with tempfile.TemporaryDirectory() as folder:
        images.make_folder(Path(folder), max(2 * n, 32))
        wait()
        dataset = open_dataset(folder, "train", DataSpec(name="benchmark"), recipe.model.encoder.channels)
        with Loader(
            dataset, recipe.train, batch=n, train=True, model=recipe.model, epochs=10_000, raw=made.takes_bytes
        ) as source:
            taken, count, begun, waited = None, 0, 0.0, 0.0
            steps = (batches for epoch in range(10_000) for batches in source.epoch(epoch))
            for given in made.ahead(steps):
                before, taken = taken, made.step(given, Values(1e-5, 0.99))
                if before is not None:
                    settled(before)
                count += 1
                if count == WARM:
                    begun, waited = time.perf_counter(), source.waited
                if count >= WARM + LEAST and time.perf_counter() - begun > (2 * SECONDS if cuda else 0.0):
                    break
            seconds = time.perf_counter() - begun
            waited = source.waited - waited
    return {
        "rate": (count - WARM) * n / seconds, "starved": waited / seconds, "batch": n, "model": name,
        "workers": source.workers, "cores": os.cpu_count(), "kernels": problem or native.state(),
    }  # fmt: skip


# ---------------------------------------------------------------- all of them
def begin(words: Sequence[str], options: argparse.Namespace) -> subprocess.Popen[str]:
    """Start the process of a case, which gets ready and waits for a line."""
    given = ["--device", options.device, "--precision", options.precision, "--batch", str(options.batch)]
    for name in ("moco", "mae"):
        given += [f"--{name}", getattr(options, name)] if getattr(options, name) else []
    paths = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return subprocess.Popen(
        [sys.executable, __file__, "--work", *words, *given], env={**os.environ, "PYTHONPATH": paths},
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def answer(process: subprocess.Popen[str], left: float) -> dict[str, Any]:
    """Let a case go and return what it measured, or why there is nothing."""
    if left < 10:
        process.kill()
        process.wait()
        return {"problem": "no time was left"}
    try:
        out, error = process.communicate("go\n", timeout=left)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        return {"problem": f"took longer than the {left:.0f} s that were left"}
    lines = out.strip().splitlines()
    if process.returncode or not lines:
        said = error.strip().splitlines() or [f"exit code {process.returncode}"]
        return {"problem": said[-1], "said": said[-20:]}
    found: dict[str, Any] = json.loads(lines[-1])
    return found


def table(found: dict[str, Any]) -> list[str]:
    """Markdown of what was measured."""
    rows = [case for case in found["cases"] if "rate" in case]
    card = rows[0]["device"] if rows else "nothing"
    text = [
        f"Measured on {card}.", "",
        "| model | way | precision | batch | images/s | MFU | of products | GiB | start, s |", "|" + "---|" * 9,
    ]  # fmt: skip
    for case in rows:
        share = "" if case["mfu"] is None else f"{case['mfu']:.1%}"
        way = case["way"] + (" (left out)" if case["kept_compiled"] is False else "")
        text.append(
            f"| {case['model']} | {way} | {case['precision']} | {case['batch']} | {case['rate']:.1f} | {share} "
            f"| {case['of_products']:.1%} | {case['memory_gib']:.1f} | {case['start']:.0f} |"
        )
    text += [f"- not measured: {c['model']} {c['way']}: {c['problem']}" for c in found["cases"] if "problem" in c]
    data = found.get("data", {})
    if "rate" in data:
        text.append(
            f"\nFrom JPEG files with {data['workers']} workers on {data['cores']} cores ({data['kernels']}): "
            f"{data['rate']:.0f} images/s, {data['starved']:.0%} of the time waiting for data."
        )
    elif data:
        text.append(f"\nFrom JPEG files: not measured: {data['problem']}")
    return text


def main() -> None:
    """Read the command line, measure, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--moco", metavar="FOLDER", help="a checkout of facebookresearch/moco-v3")
    parser.add_argument("--mae", metavar="FOLDER", help="a checkout of facebookresearch/mae")
    parser.add_argument("--model", nargs="+", choices=BATCHES, default=["moco-s", "mae-b", "moco-b", "r50", "mae-l"])
    parser.add_argument("--way", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--precision", default="bfloat16")
    parser.add_argument("--batch", type=int, default=0, help="images of a step; 0: as each model needs to fill a card")
    parser.add_argument("--minutes", type=float, default=7.5)
    parser.add_argument("--no-data", action="store_true", help="leave the steps from JPEG files out")
    parser.add_argument("--out", default="benchmarks-gpu", metavar="FOLDER")
    parser.add_argument("--work", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        found = starvation(options) if options.work == ["data"] else work(*options.work, options)
        print(json.dumps(found), flush=True)
        return
    measure(options)


def is_here(model: str, way: str, options: argparse.Namespace) -> bool:
    """Whether there is code for a case."""
    if way == "original":
        return bool(options.mae if "mae" in model else options.moco)
    return not (way == "textbook" and model == "r50")


def measure(options: argparse.Namespace) -> None:
    """Each case in turn, until the time is over."""
    folder, end = Path(options.out), time.monotonic() + 60 * options.minutes
    folder.mkdir(parents=True, exist_ok=True)
    result: dict[str, Any] = {"cases": []}
    cases = [(model, way) for way in options.way for model in options.model]
    waiting: list[tuple[str, ...]] = [case for case in cases if is_here(*case, options)]
    if not options.no_data:
        waiting.insert(2, ("data",))  # early: it is part of the answer
    if not waiting:
        raise SystemExit("nothing to measure: the original needs --moco or --mae, and ResNet-50 has no textbook")
    ready = begin(waiting[0], options)
    for case, following in zip(waiting, [*waiting[1:], None]):
        process, alone = ready, case == ("data",)  # whose workers need all cores: nothing gets ready beside it
        if following is not None and not alone:
            ready = begin(following, options)
        found = answer(process, end - time.monotonic())
        if following is not None and alone:
            ready = begin(following, options)
        if alone:
            result["data"] = found
        else:
            result["cases"].append({"model": case[0], "way": case[1], **found})
        print(f"{' '.join(case)}: {found.get('rate', found.get('problem'))}", file=sys.stderr, flush=True)
        (folder / "gpu.json").write_text(json.dumps(result, indent=1))
    absent = [case for case in cases if not is_here(*case, options)]
    result["cases"] += [{"model": model, "way": way, "problem": "its code is not here"} for model, way in absent]
    result["cases"].sort(key=lambda case: cases.index((case["model"], case["way"])))
    (folder / "gpu.json").write_text(json.dumps(result, indent=1))
    text = "\n".join(table(result)) + "\n"
    (folder / "gpu.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
