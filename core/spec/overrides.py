"""Changes of a recipe from the command line: `key=value`.

The key is a dotted field (`optimizer.lr=1e-3`), list items by index (`train.views.0.3.p=0.5`). The value is TOML; what
is not TOML is a list of numbers (`0.5,0.5,0.5`, `[.5,.5,.5]`), a number (`.5`), or a text (`optimizer.kind=lars`).
`none` empties an optional field (`optimizer.clip_norm=none`). Shorthands:

    epochs=10    schedule.epochs            lr=1e-3    optimizer.lr
    warmup=1     schedule.warmup_epochs     batch=64   batch (all processes and accumulation steps together)
    image=96     model.encoder.image, the size of every crop, and every resize in its ratio to the old image
                 (256/224 in the papers); image=[96, 128] is height and width
    mean=0.5,0.4,0.4    std=0.2,0.2,0.2    of train and evaluate; one number stands for every channel
    channels=3   model.encoder.channels, and as many numbers in mean and std: a single one repeated, several averaged
                 for one channel; other changes of their number need mean= and std= as well
"""

from __future__ import annotations

import re
import sys
from typing import Any

from triport.core.errors import UserError, closest
from triport.core.spec import schema
from triport.core.spec.spec import Pair

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

SHORTHANDS = {"epochs": "schedule.epochs", "warmup": "schedule.warmup_epochs", "lr": "optimizer.lr"}
WHOLE = ("image", "mean", "std", "channels")  # shorthands that set several fields
STATISTICS = ("mean", "std")  # lists with a number for each channel
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")


def apply(tree: dict[str, Any], override: str) -> None:
    """Change a recipe's plain tree, in which every field stands; UserError for what names none or cannot be read."""
    key, equals, text = override.partition("=")
    key = key.strip()
    if not equals or not key:
        raise UserError("write key=value, for example epochs=10 or optimizer.lr=1e-3.")
    found = value(text.strip())
    if key == "image":
        _set_image(tree, schema.read(Pair, found, "image"))
    elif key == "channels":
        _set_channels(tree, schema.read(int, found, "channels"))
    elif key in STATISTICS:
        for part in ("train", "evaluate"):
            tree[part][key] = _statistics(tree, found)
    elif key in [f"{part}.{name}" for part in ("train", "evaluate") for name in STATISTICS]:
        part, _, name = key.partition(".")
        tree[part][name] = _statistics(tree, found)
    else:
        _set(tree, SHORTHANDS.get(key, key), found)


def value(text: str) -> Any:
    """Return what a text means: TOML, a list of numbers with or without brackets, a number, or the text itself."""
    try:
        parsed = tomllib.loads(f"value = {text}")
        if len(parsed) == 1:
            return parsed["value"]
    except tomllib.TOMLDecodeError:
        pass
    inner = text[1:-1] if text.startswith("[") and text.endswith("]") else text
    items = [item.strip() for item in inner.split(",")]
    if not all(NUMBER.fullmatch(item) for item in items):
        return text
    numbers = [float(item) if re.search(r"[.eE]", item) else int(item) for item in items]
    return numbers if len(numbers) > 1 or inner != text else numbers[0]


def _statistics(tree: dict[str, Any], found: Any) -> Any:
    """A number for each channel; a single number stands for all of them."""
    if isinstance(found, (int, float)) and not isinstance(found, bool):
        return [found] * tree["model"]["encoder"]["channels"]
    return found


def _set_channels(tree: dict[str, Any], channels: int) -> None:
    tree["model"]["encoder"]["channels"] = channels
    for part in ("train", "evaluate"):
        for name in STATISTICS:
            numbers = tree[part][name]
            if len(set(numbers)) == 1:
                tree[part][name] = numbers[:1] * channels
            elif channels == 1:
                tree[part][name] = [round(sum(numbers) / len(numbers), 4)]


def _set(tree: Any, dotted: str, found: Any) -> None:
    *parents, last = dotted.split(".")
    node, walked = tree, ""
    for part in [*parents, last]:
        walked = f"{walked}.{part}" if walked else part
        if isinstance(node, list):
            if not part.isdecimal() or int(part) >= len(node):
                raise UserError(f"'{walked}' needs an index from 0 to {len(node) - 1}.")
            key: Any = int(part)
        elif isinstance(node, dict):
            if part not in node and not walked.startswith("reported."):
                choices = [*node, *SHORTHANDS, *WHOLE] if node is tree else list(node)
                raise UserError(f"unknown field '{walked}'.{closest(part, choices)}")
            key = part
        else:
            raise UserError(f"'{walked.rpartition('.')[0]}' is a value, not a table.")
        if walked == dotted:
            node[key] = found
        else:
            node = node[key]


def _set_image(tree: dict[str, Any], size: tuple[int, int]) -> None:
    old = tree["model"]["encoder"]["image"]
    tree["model"]["encoder"]["image"] = list(size)
    for view in [*tree["train"]["views"], *tree["evaluate"]["views"]]:
        for op in view:
            if op["kind"] == "resize":
                op["size"] = op["size"] * max(size) // max(old)
            elif "size" in op:
                op["size"] = list(size)
