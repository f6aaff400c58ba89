"""Trains recipes under many settings, several at once on one device, and scores them alike: how settings are chosen.

python benchmarks/trials.py FILE [--device cuda] [--at-once 6] [--minutes M] [--only NAMES] [--out FOLDER]

FILE has a trial in each line: a name, then a recipe and its overrides as `triport pretrain` takes them, then options
(`--data`, `--precision`); what follows a # is a remark. OUT is kept: a second call goes on where the first stopped.
Runs on the shipped pictures are scored as the demo scores them, on held-out pictures as they are and moved; others by
the kNN accuracy that the run itself measured last. OUT/trials.json holds the figures and OUT/trials.md the table.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


def trials(path: Path) -> dict[str, list[str]]:
    """Name -> words of the command line."""
    lines = (shlex.split(line, comments=True) for line in path.read_text().splitlines())
    return {words[0]: words[1:] for words in lines if words}


def score(run: Path, device: str) -> dict[str, float]:
    """kNN accuracies of a finished run, in %."""
    import numpy as np

    from triport import api
    from triport.core.data.datasets import SHIPPED
    from triport.core.run.subject import find_subject
    from triport.core.spec import recipe as recipes
    from triport.demo import moved, scores

    recipe = recipes.load(str(run / "recipe.toml"))
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    found = {"loss": [r["loss"] for r in records if "loss" in r][-1]}
    found |= {"run's kNN": [100 * r["knn"] for r in records if "knn" in r][-1:]}  # type: ignore[dict-item]
    found = {name: value[0] if isinstance(value, list) else value for name, value in found.items() if value != []}
    if recipe.data.name != SHIPPED:
        return found
    shown = moved.load(recipe)
    images = np.concatenate([shown.train.pixels, *(test.pixels for test in shown.tests.values())])
    subject = find_subject(str(run / "encoder.safetensors"), features_only=True)
    rows, classes, at = api.ask(subject, "embed", list(images), "torch", device, 512), len(shown.classes), 0
    at = count = len(shown.train.labels)
    for change in moved.CHANGES:
        test = shown.tests[change.name]
        part, at = rows[at : at + len(test.labels)], at + len(test.labels)
        found[change.title] = 100 * scores.accuracy(shown.train, test, rows[:count], part, classes, recipe.monitor)
    return found


def tried(name: str, words: list[str], options: argparse.Namespace, end: float) -> dict[str, Any]:
    """Train and score one trial in processes of its own."""
    run, figures = Path(options.out) / name, Path(options.out) / f"{name}.json"
    if figures.exists():
        return dict(json.loads(figures.read_text()))
    threads = str(max(1, (os.cpu_count() or 1) // options.at_once // 2))
    surroundings = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]),
        "OMP_NUM_THREADS": threads,
        "TORCHINDUCTOR_COMPILE_THREADS": "1",
    }
    workers = str(max(1, (os.cpu_count() or 1) // options.at_once - 1))
    pretrain = ["-m", "triport", "pretrain", *words, "--backend", "torch", "--device", options.device, "--quiet"]
    pretrain += ["--workers", workers, "--out", str(run), *(["--resume"] if (run / "checkpoints").is_dir() else [])]
    begun, answer = time.monotonic(), {"trial": name, "words": words}
    for what in (pretrain, [__file__, "--score", str(run), "--device", options.device]):
        left = end - time.monotonic()
        if left < 5:
            return {**answer, "problem": "no time was left"}
        try:
            done = subprocess.run(
                [sys.executable, *what], env=surroundings, capture_output=True, text=True, timeout=left, check=False
            )
        except subprocess.TimeoutExpired:
            return {**answer, "problem": "took longer than what was left"}
        if done.returncode:
            return {**answer, "problem": (done.stderr.strip().splitlines() or [f"exit {done.returncode}"])[-1]}
        answer.setdefault("seconds", time.monotonic() - begun)
    answer |= json.loads(done.stdout.strip().splitlines()[-1])
    figures.write_text(json.dumps(answer))
    return answer


def table(found: list[dict[str, Any]]) -> str:
    """Markdown, best first by the last figure."""
    good = [trial for trial in found if "problem" not in trial]
    names = list(dict.fromkeys(key for trial in good for key in trial if key not in ("trial", "words", "seconds")))
    lines = ["| " + " | ".join(["trial", *names, "s", "settings"]) + " |", "|" + "---|" * (len(names) + 3)]
    for trial in sorted(good, key=lambda t: -t.get(names[-1], 0.0)):
        cells = [f"{trial[name]:.2f}" if name in trial else "" for name in names]
        lines.append(
            "| " + " | ".join([trial["trial"], *cells, f"{trial['seconds']:.0f}", " ".join(trial["words"])]) + " |"
        )
    lines += [f"- not measured: {trial['trial']}: {trial['problem']}" for trial in found if "problem" in trial]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Read the command line, train, print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("file", nargs="?", type=Path, help="the trials")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--at-once", type=int, default=6, metavar="N", help="trials at a time (6)")
    parser.add_argument(
        "--minutes", type=float, default=60.0, metavar="M", help="begin and continue none after these (60)"
    )
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these trials alone")
    parser.add_argument("--out", default="trials", metavar="FOLDER")
    parser.add_argument("--score", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.score:
        print(json.dumps(score(options.score, options.device)), flush=True)
        return
    if options.file is None:
        parser.error("name a file with trials")
    end = time.monotonic() + 60 * options.minutes
    Path(options.out).mkdir(parents=True, exist_ok=True)
    chosen = {name: words for name, words in trials(options.file).items() if not options.only or name in options.only}
    with ThreadPoolExecutor(options.at_once) as pool:
        found = list(pool.map(lambda item: tried(*item, options, end), chosen.items()))
    (Path(options.out) / "trials.json").write_text(json.dumps(found, indent=1))
    text = table(found)
    (Path(options.out) / "trials.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
