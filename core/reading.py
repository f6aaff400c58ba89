"""How a run reads images: the options that change the pixels a network sees, kept with its weights."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from triport.core.errors import UserError

MAX_PIXELS = 89_478_485  # of an image; above this Pillow itself warns of a decompression bomb
Reading = Mapping[str, Any]  # keywords of `open_dataset`; what is not in it has its default
DEFAULTS: Reading = {"max_pixels": MAX_PIXELS, "exif": False, "value_range": None}


def given(max_pixels: int | None, exif: bool | None, value_range: Sequence[float] | None) -> dict[str, Any]:
    """Return what a command line says of them, None where it says nothing. UserError for a wrong --value-range."""
    numbers = None if value_range is None else checked_range(value_range)
    options = {"max_pixels": max_pixels, "exif": exif, "value_range": numbers}
    return {name: value for name, value in options.items() if value is not None}


def checked_range(numbers: Sequence[float]) -> tuple[float, float]:
    """Return the numbers of --value-range; UserError unless the first is below the second."""
    lowest, highest = numbers
    if not (math.isfinite(lowest) and math.isfinite(highest) and lowest < highest):
        raise UserError(f"--value-range {lowest:g} {highest:g}: the first number must be below the second")
    return lowest, highest


def stored(reading: Reading) -> dict[str, Any]:
    """Return what differs from the defaults, as JSON values: this is kept in a run's state and in its files."""
    return {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in reading.items()
        if value != DEFAULTS[name]
    }


def restored(known: object, where: object) -> dict[str, Any]:
    """Return the keywords that `stored` made. UserError naming `where` it stands for anything else."""
    found = dict(known) if isinstance(known, dict) else {"": None}
    numbers = found.get("value_range")
    right = found.keys() <= DEFAULTS.keys() and isinstance(found.get("exif", False), bool)
    if right and numbers is not None:
        right = isinstance(numbers, list) and len(numbers) == 2 and all(type(x) in (int, float) for x in numbers)
    limit = found.get("max_pixels", MAX_PIXELS)
    if not right or type(limit) is not int or limit < 1:
        raise UserError(f"{where} has a wrong 'reading': another version or program wrote it.")
    return {**found, "value_range": checked_range(numbers)} if numbers is not None else found


def restored_text(text: str | None, where: object) -> dict[str, Any]:
    """Return the keywords from the head of a file of weights, {} where it says nothing of them."""
    try:
        return restored(json.loads(text or "{}"), where)
    except (ValueError, RecursionError):
        raise UserError(f"{where} has a wrong 'reading': another version or program wrote it.") from None


def differences(before: Reading, now: Reading) -> list[str]:
    """Return a phrase for each option that differs, as "--exif (no before)"."""
    old, new = {**DEFAULTS, **before}, {**DEFAULTS, **now}
    return [
        f"{in_words(name, new[name])} (before: {in_words(name, old[name])})" for name in new if new[name] != old[name]
    ]


def in_words(name: str, value: Any) -> str:
    """Return an option as a command line says it."""
    if name == "exif":
        return "--exif" if value else "--no-exif"
    if name == "value_range":
        return "no --value-range" if value is None else f"--value-range {value[0]:g} {value[1]:g}"
    return f"--max-pixels {value}"


def phrase(reading: Reading) -> str:
    """Return all options that are not the defaults, as a command line says them; "" for none."""
    return " ".join(in_words(name, value) for name, value in reading.items() if value != DEFAULTS[name])
