"""Recipes: TOML -> Recipe, strictly, with overrides; Recipe -> TOML for the run folder.

A recipe under configs/ is whole: nothing is inherited, and every field that a paper chose is written in it.
An override is `key=value`: the key is a dotted field (`optimizer.lr=1e-3`), list items by index
(`train.views.0.3.p=0.5`), the value is TOML, and what is not TOML is a text (`optimizer.kind=lars`);
`none` empties an optional field (`optimizer.clip_norm=none`). Shorthands:

    epochs=10    schedule.epochs            lr=1e-3    optimizer.lr
    warmup=1     schedule.warmup_epochs     batch=64   batch (all processes and accumulation steps together)
    image=96     model.encoder.image, the size of every crop, and every resize in its ratio to the old image
                 (256/224 in the papers); image=[96, 128] is height and width
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tomli_w

from triport.core.errors import UserError, closest
from triport.core.spec import aliases, checks, schema
from triport.core.spec.spec import Pair, Recipe

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

CONFIGS = (Path(__file__).parents[2] / "configs").resolve()
MAX_TEXT, MAX_LINE = 1 << 16, 1 << 10  # weights carry recipes, and a name of many dots takes Python's parser hours
NUMBERS = re.compile(r"\[\n\s+([^\[\]{}]*?),\n\s*\]")
RENAMED = {"first_values": "initial_values"}  # fields of [model.encoder] in recipes of earlier versions
SHORTHANDS = {"epochs": "schedule.epochs", "warmup": "schedule.warmup_epochs", "lr": "optimizer.lr"}


def names() -> list[str]:
    """Return the names of the shipped recipes: their paths under configs/ without the ending, 800ep before 1600ep."""
    found = [path.relative_to(CONFIGS).with_suffix("").as_posix() for path in CONFIGS.rglob("*.toml")]
    return sorted(found, key=lambda name: [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)])


def find(name: str) -> Path:
    """Return the file of a shipped recipe (`moco_v3/vit_small_300ep`), or of any path to a TOML file."""
    known = names()
    short = name.removeprefix("configs/").removesuffix(".toml")
    if Path(name).is_file():
        return Path(name)
    if short in aliases.aliases():
        short = aliases.aliases()[short].recipe
    if short in known:
        return CONFIGS / f"{short}.toml"
    raise UserError(unknown(name, short))


def unknown(name: str, short: str) -> str:
    """The line about an unknown recipe: what is near it among recipes, other projects' names and models."""
    from triport.core.spec import zoo  # which knows the models by their recipes

    known = names()
    if short in zoo.names():
        own = zoo.find(short).recipes
        return f"No recipe '{name}': it is a model, and its recipes are {', '.join(own)}."
    last = {known_name.rpartition("/")[2]: known_name for known_name in known}
    hint = closest(short, [*known, *aliases.aliases(), *zoo.names()]) or closest(short.rpartition("/")[2], last)
    for stem, whole in last.items():
        hint = hint.replace(f"'{stem}'", f"'{whole}'")
    if any(f"'{model}'" in hint for model in zoo.names()):
        hint = hint.replace("mean", "mean the model")
    return f"No recipe '{name}'.{hint or ' `triport recipes` lists them; a path to a TOML file works too.'}"


def load(name_or_path: str, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe, strictly: unknown, missing or ill-typed fields and sizes that do not fit raise a UserError.

    `overrides` are `key=value` texts (see the top of this file), applied in order; the sense of the whole is
    checked once they all stand.
    """
    path = find(name_or_path)
    alias = aliases.aliases().get(name_or_path)
    overrides = [*alias.changes, *overrides] if alias else overrides
    try:
        text = path.read_bytes().decode()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"Cannot read the recipe {path}: {error}.") from None
    return parse(text, path, overrides)


def parse(text: str, path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """As `load`, of a text; `path` is named in errors and names the recipe where the text does not."""
    if len(text) > MAX_TEXT or max(map(len, text.splitlines()), default=0) > MAX_LINE:
        raise UserError(
            f"{path} is not a recipe: it has more than {MAX_TEXT} characters, or a line of over {MAX_LINE}."
        )
    try:
        tree = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise UserError(f"{path} is not valid TOML: {error}.") from None
    tree.setdefault("name", _name(path))
    _rename(tree)
    recipe = _read(tree, str(path))
    for override in overrides:
        tree = schema.plain(recipe)  # every field stands in it, so a key that is not there is a mistake
        try:
            _apply(tree, override)
        except UserError as error:
            raise UserError(f"Override '{override}': {error}") from None
        recipe = _read(tree, f"Override '{override}'")
    try:
        checks.check(recipe)
    except UserError as error:
        changed = f" with {' '.join(overrides)}" if overrides else ""
        raise UserError(f"{path}{changed}: {error}") from None
    return recipe


def to_toml(recipe: Recipe) -> str:
    """Return a TOML text that loads back equal: every field, defaults and overrides included."""
    head = "# A resolved recipe: every field of it, defaults and overrides included.\n\n"
    text = tomli_w.dumps(_without_none(schema.plain(recipe)), indent=2)
    # tomli-w gives every number of a list a line; line ends in texts are escaped, so that those found are its own
    return head + NUMBERS.sub(lambda found: "[" + re.sub(r",\n\s+", ", ", found[1]) + "]", text)


def _without_none(value: Any) -> Any:
    """TOML has no null: an optional field that is empty is left out."""
    if isinstance(value, dict):
        return {key: _without_none(item) for key, item in value.items() if item is not None}
    return [_without_none(item) for item in value] if isinstance(value, list) else value


def _read(tree: dict[str, Any], origin: str) -> Recipe:
    try:
        recipe: Recipe = schema.read(Recipe, tree)
    except UserError as error:
        raise UserError(f"{origin}: {error}") from None
    return recipe


def _rename(tree: dict[str, Any]) -> None:
    """Give fields of earlier versions their present names, in place; where both stand, `_read` refuses the old one."""
    model = tree.get("model")
    encoder = model.get("encoder") if isinstance(model, dict) else None
    if isinstance(encoder, dict):
        for old, new in RENAMED.items():
            if old in encoder and new not in encoder:
                encoder[new] = encoder.pop(old)


def _name(path: Path) -> str:
    path = path.resolve()
    inside = CONFIGS in path.parents
    return path.relative_to(CONFIGS).with_suffix("").as_posix() if inside else path.stem


# ---------------------------------------------------------------- overrides
def _apply(tree: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    key = key.strip()
    if not equals or not key:
        raise UserError("write key=value, for example epochs=10 or optimizer.lr=1e-3.")
    value = _value(text.strip())
    if key == "image":
        _set_image(tree, schema.read(Pair, value, "image"))
    else:
        _set(tree, SHORTHANDS.get(key, key), value)


def _value(text: str) -> Any:
    try:
        parsed = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return text
    return parsed["value"] if len(parsed) == 1 else text


def _set(tree: Any, dotted: str, value: Any) -> None:
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
                choices = [*node, *SHORTHANDS, "image"] if node is tree else list(node)
                raise UserError(f"unknown field '{walked}'.{closest(part, choices)}")
            key = part
        else:
            raise UserError(f"'{walked.rpartition('.')[0]}' is a value, not a table.")
        if walked == dotted:
            node[key] = value
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
