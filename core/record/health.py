"""What a run's records say of it: whether it learned, and what is wrong, each in a sentence with what to do."""

from __future__ import annotations

import numpy as np

from triport.core.record.chart import number
from triport.core.record.recorded import Line, Run

BEFORE = 50  # steps that a spike is measured against
SPIKE = 20.0  # times the steps before, from which on a spike is a warning
COLLAPSED = 0.1  # of the spread at the start
STARVED = 0.25  # of the time
FALLEN = 0.05  # of accuracy, below the best
ACCURACIES = {
    "knn": "kNN accuracy",
    "probe": "online probe accuracy",
    "top1": "top-1 accuracy",
    "top5": "top-5 accuracy",
    "mean_per_class": "accuracy, mean of the classes",
}
BLOCK = 50_000  # steps whose medians are taken at once


def percent(value: float) -> str:
    """An accuracy as people read it."""
    return f"{100 * value:.1f} %"


def ends(values: list[float]) -> tuple[float, float]:
    """Return the means of the first and of the last twentieth."""
    count = max(len(values) // 20, 1)
    return float(np.mean(values[:count])), float(np.mean(values[-count:]))


def verdict(run: Run) -> tuple[str, str]:
    """Return ("good", "note" or "bad", a sentence): whether the run learned, and how far it is."""
    losses, scores = run.values("loss"), run.values(run.score, "epoch") if run.score else []
    if not losses and not scores:
        return "note", "No step and no score has been recorded yet."
    kind, text = _learned(run, losses, scores)
    return kind, f"{text} But it is not healthy: see below." if broken(run) or collapsed(run) else text


def _learned(run: Run, losses: list[float], scores: list[float]) -> tuple[str, str]:
    total = run.recipe.schedule.epochs if run.recipe else 0
    where = f"after {number(run.last)}{f' of {total}' if total and not run.done else ''} epochs"
    kind = "bad" if broken(run) or collapsed(run) else "good" if run.done else "note"
    if len(scores) > 1:
        gain = 100 * (scores[-1] - scores[0])
        word = "It learned" if gain > 1 else "It has not learned"
        since = "the untrained network's" if run.epochs[0]["epoch"] == 0 else "the first measured"
        text = f"{word}: {ACCURACIES[run.score]} {percent(scores[-1])} {where}, {gain:+.1f} points on {since}"
        kind = "bad" if gain <= 1 else "note" if kind == "good" and below(run) else kind
        return kind, f"{text} {percent(scores[0])}{_beside(run)}."
    if scores:
        return kind, f"{ACCURACIES[run.score]} {percent(scores[-1])} {where}{_beside(run)}."
    first, last = ends(losses)
    word = "fell" if last < first else "did not fall: it went"
    kind = kind if last < first or len(losses) < BEFORE else "bad"
    return kind, f"The loss {word} from {number(first)} to {number(last)} {where}; no accuracy was measured."


def _beside(run: Run) -> str:
    """What the score is compared with, where that was measured."""
    words = [f"{name} {percent(known)}" for name, known in run.baselines.items()]
    return f" ({', '.join(words)})" if words else ""


def warnings(run: Run) -> list[str]:
    """Return what stands out, each in a sentence that says what it means and what helps."""
    found = [broken(run), collapsed(run)]
    ratio, line = highest(run.steps, "first_layer_gradient")
    if line and ratio > SPIKE:
        found.append(
            f"Spike: the first layer's gradient rose to {number(ratio)} times the steps before at epoch "
            f"{number(line['epoch'])} (step {line['step']}). Such spikes go before dips of the accuracy in MoCo v3; a "
            "frozen patch projection (model.encoder.frozen_patch=true), a lower lr or a longer warm-up removes them."
        )
    took, waited = run.seconds()
    if took and waited / took > STARVED:
        found.append(
            f"Slow loader: {100 * min(waited / took, 1):.0f} % of the time the network waited for images. "
            "More --workers, a faster disk or images stored smaller make the run faster."
        )
    scores = run.values(run.score, "epoch") if run.score else []
    if scores and max(scores) - scores[-1] > FALLEN:
        found.append(
            f"Fallen: {ACCURACIES[run.score]} was {percent(max(scores))} and is {percent(scores[-1])}. "
            "checkpoints/best holds the best; a lower lr keeps it."
        )
    found.append(below(run))
    return [warning for warning in found if warning]


def below(run: Run) -> str:
    """A sentence where raw pixels are better than the trained network, else ""."""
    pixels, scores = run.baselines.get("raw pixels"), run.values(run.score, "epoch") if run.score else []
    if pixels is None or not scores or scores[-1] >= pixels or not run.done:
        return ""
    return (
        f"Below raw pixels: kNN on the pixels themselves is right on {percent(pixels)}, the network on "
        f"{percent(scores[-1])}. Longer training, more images or milder crops raise it; on small, centred pictures of "
        "one kind raw pixels are strong, and fail once pictures are moved or recoloured."
    )


def broken(run: Run) -> str:
    """A sentence where values were not finite, else ""."""
    count = sum(value is None for _, value in run.curve("loss"))
    return (
        f"Not finite: the loss of {count} recorded step{'s' * (count != 1)} was not a number. Lower the learning rate "
        "or go on from the last checkpoint with --on-nonfinite=rollback."
        if count
        else ""
    )


def collapsed(run: Run) -> str:
    """A sentence where the features of all images have become the same, else ""."""
    spreads = run.values("spread", "epoch")
    if len(spreads) < 2 or spreads[-1] > COLLAPSED * spreads[0]:
        return ""
    return (
        f"Collapse: the spread of held-out features fell from {number(spreads[0])} to {number(spreads[-1])}, so all "
        "images look nearly the same to the network. A lower lr, a longer warm-up or a larger batch helps."
    )


def highest(steps: list[Line], key: str) -> tuple[float, Line | None]:
    """Return how many times the median of the BEFORE steps before it a value reaches at most, and where."""
    known = [line for line in steps if line.get(key) is not None]
    values = np.array([line[key] for line in known], float)
    half = BEFORE // 2
    if len(values) <= half:
        return 0.0, None
    usual = np.array([np.median(values[:at]) for at in range(half, min(BEFORE, len(values)))])
    if len(values) > BEFORE:
        windows = np.lib.stride_tricks.sliding_window_view(values[:-1], BEFORE)
        parts = [np.median(windows[at : at + BLOCK], axis=1) for at in range(0, len(windows), BLOCK)]
        usual = np.concatenate([usual, *parts])
    ratios = np.divide(values[half:], usual, out=np.zeros(len(usual)), where=usual > 0)
    at = int(ratios.argmax())
    return (float(ratios[at]), known[half + at]) if ratios[at] > 0 else (0.0, None)
