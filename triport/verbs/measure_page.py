"""What `triport measure` shows of a report: a table in the terminal, and a page."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from triport.core.record import page
from triport.verbs.compare import aligned
from triport.verbs.pages import confusion_picture

WIDTH = 80  # columns of the terminal's table
TITLES = {"trained": "this network", "raw_pixels": "raw pixels", "untrained": "untrained network"}


def rows(report: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Return the head and the rows of the table: a row for each measure, a column for each kind of features."""
    scores = report["scores"]
    own = scores["trained"]

    table = [[f"kNN, {k} neighbours", *(percent(s["knn"][k]) for s in scores.values())] for k in own["knn"]]
    for share in own["few_shot"]:
        few = [score["few_shot"][share] for score in scores.values()]
        cells = [f"{percent(spread['mean'])} ± {100 * spread['deviation']:.2f}" for spread in few]
        title = share if "per class" in share else f"{100 * float(share):g} % of labels"
        table.append([f"few-shot, {title}", *cells])
    for key in ("linear_probe", "logistic_regression"):
        table.append([key.replace("_", " "), *(percent(s[key]["accuracy"]) for s in scores.values())])
    if "lidar" in own:
        ranks = [f"{score['lidar']['rank']:.1f}" if "lidar" in score else "" for score in scores.values()]
        table.append(["LiDAR, views told apart", *ranks])
    table.append(["effective rank (RankMe)", *(f"{s['effective_rank']:.1f} of {s['width']}" for s in scores.values())])
    return ["", *(TITLES[name] for name in scores)], table


def percent(share: float) -> str:
    """Return a share as people read it."""
    return f"{100 * share:.2f} %"


def verdict(report: Mapping[str, Any]) -> tuple[str, str]:
    """Return ("good" or "note", a sentence): is it better than its baselines by the linear probe?"""
    probe = {name: score["linear_probe"]["accuracy"] for name, score in report["scores"].items()}
    images = report["images"]["test"]
    own = f"A linear probe on the features is right on {100 * probe['trained']:.1f} % of {images} images"
    others = {TITLES[name]: share for name, share in probe.items() if name != "trained"}
    others["chance"] = max(report["chance"].values())
    best = max(others, key=lambda name: others[name])
    better = probe["trained"] > others[best]
    return (
        "good" if better else "note",
        f"{own}, {'more' if better else 'not more'} than {best} ({100 * others[best]:.1f} %).",
    )


def lines(report: Mapping[str, Any]) -> list[str]:
    """Return what the terminal shows."""
    chance = ", ".join(f"{name} {100 * share:.2f} %" for name, share in report["chance"].items())
    head, table = rows(report)
    return [*aligned([head, *table], WIDTH), f"chance: {chance}", *textwrap.wrap(verdict(report)[1], WIDTH)]


def render(report: Mapping[str, Any], confusion: np.ndarray, classes: Sequence[str]) -> str:
    """Return the page as HTML that needs no other file."""
    kind, sentence = verdict(report)
    count = report["images"]
    facts = [
        f"Model: {report['model']}",
        f"Data: {report['data']}, {count['train']} images to learn from, {count['test']} held out ({report['split']}), "
        f"{len(classes)} classes",
        "Chance: " + ", ".join(f"{name} {100 * share:.2f} %" for name, share in report["chance"].items()),
    ]
    per_class = sorted(
        ((name, share) for name, share in report["per_class"].items() if share is not None), key=lambda row: row[1]
    )
    shares = [(name, f"{100 * share:.2f} %") for name, share in per_class]
    temperature = f"kNN votes have the temperature {report['temperature']:g}; the probe's rate is chosen on part of "
    lidar = report["scores"]["trained"].get("lidar")
    if lidar:
        temperature = f"LiDAR is of {lidar['images']} images with {lidar['views']} views each; {temperature}"
    note = f"<p>{temperature}the training images; few-shot is the mean and deviation of five draws.</p>"
    body = [
        page.header("Representation", kind, sentence, facts),
        page.section("Measures", page.table(*rows(report), "numeric"), note),
        page.section("Confusion of the linear probe", confusion_picture(confusion, classes)),
        page.section("Accuracy by class, the weakest first", page.table(("class", "linear probe"), shares, "numeric")),
    ]
    return page.document("Representation", body)
