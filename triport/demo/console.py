"""What the demo says in the terminal, in lines of 80 columns at most."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from pathlib import Path

from triport.demo.result import Result
from triport.demo.scores import Scores

WIDTH = 80
BAR = 36  # characters of a full bar

NEXT = """\
Try next:
  triport pretrain photos/moco_resnet18 --data photos/   your own photos
  triport neighbours {run} PICTURES --among PHOTOS --page near.html
  triport measure {run}       probes, few-shot, per class
  triport convert {run}/encoder.safetensors encoder.pth
  triport pretrain tiny/mae_vit_tiny --processes 2       MAE, two processes
  triport recipes    triport models    triport doctor"""


def stage(number: int, count: int, title: str) -> None:
    """The heading of a part."""
    print(f"\n── {number}/{count}  {title} {'─' * max(2, WIDTH - 9 - len(title))}"[: WIDTH + 1], flush=True)


def say(text: str) -> None:
    """A sentence in lines of the width."""
    print(textwrap.fill(text, WIDTH), flush=True)


def bars(scores: Scores) -> str:
    """Accuracies as bars."""
    lines = []
    for score in scores.scores.values():
        lines.append(f"  pictures {score.title}")
        rows = (("raw pixels", score.pixels, "·"), ("untrained", score.untrained, "·"), ("trained", score.trained, "█"))
        lines += [f"    {name:<12}{100 * share:5.1f} %  {mark * round(BAR * share)}" for name, share, mark in rows]
    return "\n".join(lines)


def losses(curves: Mapping[str, Mapping[int, float]]) -> str:
    """The losses of several frameworks at a few steps."""
    common = sorted(set.intersection(*(set(curve) for curve in curves.values())))
    chosen = sorted({common[0], *common[len(common) // 4 :: max(len(common) // 4, 1)], common[-1]})
    lines = [f"  {'step':<10}" + "".join(f"{name:>14}" for name in curves)]
    lines += [f"  {step:<10}" + "".join(f"{curve[step]:>14.6f}" for curve in curves.values()) for step in chosen]
    return "\n".join(lines)


def conclude(result: Result, page: Path, poster: Path, run: Path) -> None:
    """The verdict, and what to look at and to try."""
    print()
    say(result.verdict())
    say(f"All of it took {result.minutes:.1f} minutes.")
    print(f"\nLook at it:\n  {page}\n  {poster}\n")
    print(NEXT.format(run=run), flush=True)
