"""From the figures of steps.py to tables and a picture: speed, share of the peak, faults, memory, time by operation."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from triport.core.spec.recipe import load

import workload  # isort: skip

KINDS = {  # of operations, by what their names hold; the first that fits
    "matrix products": ("::mm", "addmm", "bmm", "linear", "mkldnn_linear", "einsum"),
    "attention": ("attention",),
    "convolutions": ("conv",),
    "softmax": ("softmax",),
    "GELU": ("gelu",),
    "norms": ("layer_norm", "batch_norm"),
    "optimizer": ("adam", "lerp", "foreach", "momentum"),
    "copies": ("copy", "clone", "contiguous", "cat", "stack", "_to_copy", "fill", "zero"),
}
REST = "other"


def median_ratio(rounds: Mapping[str, list[dict[str, float]]], slow: str, fast: str, what: str = "seconds") -> float:
    """How many times as long `slow` takes, round by round."""
    return statistics.median(a[what] / b[what] for a, b in zip(rounds[slow], rounds[fast], strict=True))


def figures(found: Mapping[str, Any]) -> dict[str, Any]:
    """What a case's row shows."""
    rounds, case = found["rounds"], found["case"]
    names = [name for name in rounds if name != "peak"]
    best = max(step["peak"] for step in rounds["peak"])
    flops = workload.step_flops(load(workload.RECIPES[case["model"]])) * case["batch"]
    row: dict[str, Any] = {"names": names, "peak": best}
    for name in names:
        seconds = statistics.median(step["seconds"] for step in rounds[name])
        row[name] = {
            "seconds": seconds,
            "rate": case["batch"] / seconds,
            "share": flops / seconds / best,
            "speed": median_ratio(rounds, names[1], name),
            "processor": median_ratio(rounds, names[1], name, "processor"),
            "faults": statistics.median(step["faults"] for step in rounds[name]),
            "memory": max(step["memory"] for step in rounds[name]),
            "loss": found["first"][name]["loss"],
        }
    return row


def line(found: Mapping[str, Any]) -> str:
    """A case in a line, while others are measured."""
    case, row = found["case"], figures(found)
    first, other, third = row["names"]
    return (
        f"{workload.TITLES[case['model']]} {case['precision']}, batch {case['batch']}, place {case['place']}: "
        f"{first} {row[first]['rate']:.2f} images/s, {row[first]['speed']:.2f} of {other} "
        f"({row[first]['processor']:.2f} by processor time), {third} {row[third]['speed']:.2f}; "
        f"shares of the peak {row[first]['share']:.0%}, {row[other]['share']:.0%}; load {found['load']:.1f}"
    )


def tables(known: Mapping[str, Any]) -> list[str]:
    """Markdown: all ratios, then how two processes scale."""
    text: list[str] = []
    for names in dict.fromkeys(tuple(figures(found)["names"]) for found in known.values()):
        first, other, third = names
        chosen = [found for found in known.values() if tuple(figures(found)["names"]) == names]
        text += [
            f"| model | precision | batch | processes | {first}, images/s | {first} / {other} | {third} / {other} "
            f"| {first} / {third} | peak, GFLOP/s | share: {other} | {third} | {first} | faults: {other} | {first} "
            f"| GiB: {other} | {first} |",
            "|" + "---|" * 16,
        ]
        text += [_row(found, names) for found in sorted(chosen, key=_place)]
        text.append("")
    return [*text, *_scaling(known), *_operations(known)]


def _place(found: Mapping[str, Any]) -> tuple[int, str, str, int]:
    case = found["case"]
    return list(workload.TITLES).index(case["model"]), case["precision"], case["place"], case["batch"]


def _row(found: Mapping[str, Any], names: tuple[str, ...]) -> str:
    case, row = found["case"], figures(found)
    one, two, three = (row[name] for name in names)
    return (
        f"| {workload.TITLES[case['model']]} | {case['precision']} | {case['batch']} | {case['place']} "
        f"| {one['rate']:.2f} | {one['speed']:.2f} | {three['speed']:.2f} | {one['speed'] / three['speed']:.2f} "
        f"| {row['peak'] / 1e9:.0f} | {two['share']:.0%} | {three['share']:.0%} | {one['share']:.0%} "
        f"| {two['faults']:,.0f} | {one['faults']:,.0f} | {two['memory'] / 2**30:.2f} | {one['memory'] / 2**30:.2f} |"
    )


def _scaling(known: Mapping[str, Any]) -> list[str]:
    """Two processes with a thread each against one with one thread."""
    text = []
    for found in sorted(known.values(), key=_place):
        case = found["case"]
        alone = known.get(f"{case['model']} {case['precision']} {case['batch']} 1 core")
        if case["place"] != "2" or alone is None:
            continue
        gains = {name: figures(found)[name]["rate"] / figures(alone)[name]["rate"] for name in figures(found)["names"]}
        shown = " | ".join(f"{gain:.2f}" for gain in gains.values())
        text.append(f"| {workload.TITLES[case['model']]} | {case['precision']} | {case['batch']} | {shown} |")
    if not text:
        return []
    names = figures(next(iter(known.values())))["names"]
    return [
        f"| two processes over one, a thread each | precision | batch | {' | '.join(names)} |",
        "|---|---|---|" + "---|" * len(names),
        *text,
    ]


def _operations(known: Mapping[str, Any]) -> list[str]:
    """Where the time of each profiled step goes, and what share of the peak its counted products reach."""
    profiled = [found for found in sorted(known.values(), key=_place) if found["profiles"]]
    text = []
    for found in profiled:
        case, best = found["case"], max(step["peak"] for step in found["rounds"]["peak"])
        for name, profile in found["profiles"].items():
            kinds = by_kind(profile)
            whole = sum(seconds for seconds, _ in kinds.values())
            cells = [f"{seconds / whole:.0%}" for seconds, _ in kinds.values()]
            counted = sum(flops for _, flops in kinds.values())
            busy = sum(seconds for seconds, flops in kinds.values() if flops)
            text.append(
                f"| {workload.TITLES[case['model']]} | {case['precision']} | {name} | {' | '.join(cells)} "
                f"| {counted / busy / best:.0%} |"
            )
    if not text:
        return []
    head = f"| time by operation, batch {profiled[0]['case']['batch']} | precision | code "
    kinds_of = [*KINDS, REST]
    return [
        "",
        f"{head}| {' | '.join(kinds_of)} | share of the peak within products |",
        "|---" * (len(kinds_of) + 4) + "|",
        *text,
    ]


# ---------------------------------------------------------------- the picture
def by_kind(profile: Mapping[str, list[float]]) -> dict[str, tuple[float, float]]:
    """Kind of operation -> its seconds and floating-point operations."""
    sums: dict[str, list[float]] = {kind: [0.0, 0.0] for kind in (*KINDS, REST)}
    for name, (seconds, _, flops) in profile.items():
        kind = next((kind for kind, words in KINDS.items() if any(word in name.lower() for word in words)), REST)
        sums[kind][0] += seconds
        sums[kind][1] += flops
    return {kind: (seconds, flops) for kind, (seconds, flops) in sums.items()}


def draw(known: Mapping[str, Any], path: Path) -> str:
    """Draw each profiled step's time by operation, with the share of the peak that its products reach; say where."""
    profiled = [found for found in sorted(known.values(), key=_place) if found["profiles"]]
    if not profiled:
        return "no picture: no step was profiled"
    try:
        import matplotlib as mpl

        mpl.use("svg")
        import matplotlib.pyplot as plt
    except ImportError:
        return "no picture: matplotlib is not installed"
    bars = [(found, name) for found in profiled for name in found["profiles"]]
    figure, axes = plt.subplots(figsize=(11, 0.5 * len(bars) + 1.6), layout="constrained")
    colours = plt.get_cmap("tab10")
    for place, (found, name) in enumerate(bars):
        case, start = found["case"], 0.0
        base = next(iter(found["profiles"]))
        whole = sum(seconds for seconds, _ in by_kind(found["profiles"][base]).values())
        best = max(step["peak"] for step in found["rounds"]["peak"])
        for number, (kind, (seconds, flops)) in enumerate(by_kind(found["profiles"][name]).items()):
            width = seconds / whole
            axes.barh(place, width, left=start, color=colours(number), label=kind if place == 0 else None)
            if flops and width > 0.08:
                axes.text(
                    start + width / 2,
                    place,
                    f"{flops / seconds / best:.0%} of peak",
                    ha="center",
                    va="center",
                    fontsize=7,
                )
            start += width
        title = f"{workload.TITLES[case['model']]} {case['precision']}, batch {case['batch']}, {name}"
        axes.text(-0.01, place, title, ha="right", va="center", fontsize=8, transform=axes.get_yaxis_transform())
    axes.set_yticks([])
    axes.invert_yaxis()
    axes.set_xlabel("time by operation; our step is 1")
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=5, fontsize=8, frameon=False)
    figure.savefig(path)
    plt.close(figure)
    return f"the picture is {path}"
