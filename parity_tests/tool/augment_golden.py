"""Replays golden records of torchvision's transforms: any file of the form that the goldens' README describes.

A record names an operation and its parameters in JSON and holds the pixels that came out. `replay_augment` carries the
same operations out here and says how many grey levels apart the two are.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from triport.core.augment import pixels, steps
from triport.core.augment.augment import center_window, resized_shape
from triport.core.augment.steps import Plan, Step
from triport.core.errors import UserError, closest
from triport.core.spec import IMAGENET_MEAN, IMAGENET_STD, Interpolation, Pair

Record = Mapping[str, Any]
Array = NDArray[Any]


def replay_augment(arrays: Mapping[str, Array], meta: Mapping[str, Any]) -> dict[str, float]:
    """Carry out every record of `meta` and return its largest difference from `arrays`, in grey levels.

    `arrays` holds "image" (uint8 HWC) and a result per record; `meta` maps names to {"op": ..., parameters,
    "on": name of the record it starts from}. Normalised results are measured in grey levels too (times std * 255).
    An operation that is not known raises a UserError that names it.
    """
    return {name: float(_difference(name, arrays, meta)) for name in records(meta) if name in arrays}


def records(meta: Mapping[str, Any]) -> dict[str, Record]:
    """The entries of `meta` that describe an operation."""
    return {name: entry for name, entry in meta.items() if isinstance(entry, Mapping) and "op" in entry}


def _difference(name: str, arrays: Mapping[str, Array], meta: Mapping[str, Any]) -> float:
    record, expected = meta[name], arrays[name]
    source = _source(name, arrays, meta)
    if "normalise" in str(record["op"]).lower() or "normalize" in str(record["op"]).lower():
        mean, std = tuple(record.get("mean", IMAGENET_MEAN)), tuple(record.get("std", IMAGENET_STD))
        corner = pixels.normalise(source, mean, std)[:, : expected.shape[-2], : expected.shape[-1]]
        return float(np.max(np.abs(corner - expected) * np.array(std)[:, None, None]) * 255)
    result = pixels.apply(record_plan(name, meta, source.shape[:2]), source)
    if result.shape != expected.shape:
        raise UserError(f"Golden record {name!r} has shape {expected.shape}, the replay gives {result.shape}.")
    return float(np.max(np.abs(result.astype(np.int64) - expected)))


def _source(name: str, arrays: Mapping[str, Array], meta: Mapping[str, Any]) -> Array:
    """What the record starts from: its "on"; without one the last sequence (normalisation) or the image."""
    on = meta[name].get("on")
    if on is None and "normali" in str(meta[name]["op"]).lower():
        before = list(meta)[: list(meta).index(name)] or list(meta)
        sequences = [n for n, r in records(meta).items() if r["op"] == "sequence" and n in before]
        on = sequences[-1] if sequences else None
    on = on or "image"
    if on not in arrays:
        raise UserError(
            f"Golden record {name!r} starts from {on!r}, which the file does not hold.{closest(on, arrays)}"
        )
    return np.asarray(arrays[on])


def record_plan(name: str, meta: Mapping[str, Any], size: Pair) -> Plan:
    """The steps of one record on an image of `size` (height, width)."""
    record = meta[name]
    if record["op"] != "sequence":
        return _steps(str(record["op"]), record, size)
    drawn: list[Step] = []
    wanted = record["steps"]
    for text in wanted.split(",") if isinstance(wanted, str) else wanted:
        words = str(text).split()
        if words[0] in meta:
            drawn += record_plan(words[0], meta, size)
        else:
            drawn += _steps(words[0], _from_words(words), size)
    return tuple(drawn)


def _from_words(words: list[str]) -> dict[str, Any]:
    """{"sigma": 0.7} of "gaussian_blur sigma .7"; a number without a name belongs to the operation's one parameter."""
    parameters: dict[str, Any] = {"op": words[0]}
    key = "value"
    for word in words[1:]:
        if re.fullmatch(r"[-+]?\d*\.?\d+(e[-+]?\d+)?", word):
            parameters[key] = float(word)
            key = "value"
        else:
            key = word.strip("=:")
    return parameters


def _steps(op: str, record: Record, size: Pair) -> Plan:
    """One operation by torchvision's name, timm's or Pillow's."""
    eval_resize = re.match(r"resize shorter side (\d+)(?:, cent(?:re|er) crop (\d+))?$", op)
    if eval_resize:
        return _evaluation(int(eval_resize[1]), eval_resize[2], record, size)
    number, relative = _number(record), op.endswith("_rel") or "pct" in record
    fill = _fill(record)
    interpolation: Interpolation = record.get("interpolation", "bicubic")
    match op:
        case "resized_crop":
            top, left, height, width = (int(record[key]) for key in ("top", "left", "height", "width"))
            side = record["size"]
            shape: Pair = (side, side) if isinstance(side, int) else (side[0], side[1])
            return (steps.Crop(top, left, height, width, shape, record["interpolation"]),)
        case "color_jitter":
            return tuple(_one(part, float(record[part])) for part in record["order"])
        case "grayscale" | "to_grayscale":
            return (steps.Gray(),)
        case "hflip" | "horizontal_flip" | "mirror":
            return (steps.Mirror(),)
        case "autocontrast" | "auto_contrast":
            return (steps.AutoContrast(),)
        case "equalize":
            return (steps.Equalize(),)
        case "invert":
            return (steps.Invert(0),)
        case "rotate":
            return (steps.Rotate(number, fill, interpolation),)
        case "shear_x":
            return (steps.Shear(number, 0.0, fill, interpolation),)
        case "shear_y":
            return (steps.Shear(0.0, number, fill, interpolation),)
        case "translate_x" | "translate_x_rel":
            return (steps.Translate(number * (size[1] if relative else 1), 0.0, fill, interpolation),)
        case "translate_y" | "translate_y_rel":
            return (steps.Translate(0.0, number * (size[0] if relative else 1), fill, interpolation),)
    if number != number and op in KNOWN:
        raise UserError(f"The golden of {op!r} lacks its number; name it one of: {', '.join(NUMBERS)}.")
    return (_one(op, number),)


def _one(op: str, number: float) -> Step:
    """An operation with one number."""
    match op:
        case "brightness" | "adjust_brightness":
            return steps.Brightness(number)
        case "contrast" | "adjust_contrast":
            return steps.Contrast(number)
        case "saturation" | "adjust_saturation" | "color" | "colour":
            return steps.Saturation(number)
        case "hue" | "adjust_hue":
            return steps.Hue(number)
        case "sharpness" | "adjust_sharpness":
            return steps.Sharpness(number)
        case "gaussian_blur" | "blur":
            return steps.Blur(number)
        case "solarize":
            return steps.Invert(int(number))
        case "solarize_add":
            return steps.Add(int(number))
        case "posterize":
            return steps.Posterize(int(number))
    raise UserError(f"The goldens name an operation that is not known here: {op!r}.{closest(op, KNOWN)}")


KNOWN = (
    *("resized_crop", "color_jitter", "brightness", "contrast", "saturation", "hue", "sharpness", "grayscale"),
    *("gaussian_blur", "solarize", "solarize_add", "posterize", "hflip", "autocontrast", "equalize", "invert"),
    *("rotate", "shear_x", "shear_y", "translate_x", "translate_y", "sequence"),
)
NUMBERS = (
    *("factor", "sigma", "radius", "threshold", "bits", "bits_to_keep", "amount", "add", "degrees", "angle", "shear"),
    *("pixels", "pct", "magnitude", "value"),
)


def _number(record: Record) -> float:
    """The one parameter of an operation, whatever it is called; not a number where it has none."""
    return next((float(record[key]) for key in NUMBERS if key in record), float("nan"))


def _fill(record: Record) -> tuple[int, ...]:
    fill = record.get("fill", record.get("fillcolor", 0))
    return tuple(int(f) for f in fill) if isinstance(fill, (list, tuple)) else (int(fill),)


def _evaluation(shorter: int, crop: str | None, record: Record, size: Pair) -> Plan:
    shape = resized_shape(size, shorter)
    resized = steps.Resize(shape, record.get("interpolation", "bilinear"))
    return (resized, center_window(shape, (int(crop), int(crop)))) if crop else (resized,)
