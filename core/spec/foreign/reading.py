"""What a reader of a foreign configuration returns: the recipe, a run's options, and what became of every setting."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from triport.core.errors import UserError
from triport.core.spec import recipe as recipes
from triport.core.spec import schema
from triport.core.spec.foreign.settings import Settings
from triport.core.spec.spec import Recipe

NO_OPTION = ("", None)


@dataclass(frozen=True, kw_only=True)
class Reading:
    """A foreign configuration, read. What could be neither used nor named has been refused with a UserError."""

    project: str  # whose configuration it is: "LiBai", "PASSL", ...
    path: Path  # the file, or the name of the program whose flags were read
    recipe: Recipe
    options: dict[str, Any] = field(default_factory=dict)  # a run's option -> its value; True for a bare flag
    notes: tuple[str, ...] = ()  # settings without a counterpart, each with what becomes of it
    used: tuple[str, ...] = ()  # settings that reached the recipe or the options
    beside: dict[str, Any] = field(default_factory=dict)  # what one backend alone can take: degrees, loss scaling

    def words(self, given: Sequence[str] = (), only: Sequence[str] | None = None) -> list[str]:
        """The options as words of a command line, without those that are `given` on it; `only` these, if named."""
        own = {word.partition("=")[0] for word in given}
        chosen = {key: value for key, value in self.options.items() if value not in NO_OPTION and key not in own}
        if only is not None:
            chosen = {key: value for key, value in chosen.items() if key in only}
        return [word for key, value in chosen.items() for word in ((key,) if value is True else (key, str(value)))]

    def report(self) -> list[str]:
        """Lines for the user: where the file differs from the paper's recipe, then what has no counterpart."""
        near = nearest(self.recipe)
        found = differences(near, self.recipe) if near is not None else []
        name = near.name if near is not None else ""
        what = f"{self.project}'s {'file' if self.path.suffix else 'command line'} differs from {name} here"
        return [*(f"{what}: {line}" for line in found), *self.notes]


def made(settings: Settings, project: str, recipe: Recipe, **more: Any) -> Reading:
    """Assemble a reading and check every number of its recipe; one that only overrides put right is taken with them."""
    settings.check_spelling()
    text = recipes.to_toml(recipe)
    try:
        checked = recipes.parse(text, settings.path)
    except UserError:
        if not settings.own:
            raise
        checked = recipes.parse(text, settings.path, settings.own)
    return Reading(
        project=project,
        path=settings.path,
        recipe=checked,
        notes=tuple(settings.remarks),
        used=tuple(dict.fromkeys(settings.used)),
        **more,
    )


# ---------------------------------------------------------------- the paper's recipe
APART = ("name", "title", "source", "reported", "monitor", "seed", "data.name")


def nearest(recipe: Recipe) -> Recipe | None:
    """Return the shipped recipe of a paper that is for the same model and task and most like `recipe`."""
    best: tuple[int, Recipe] | None = None
    for name in recipes.names():
        if name.startswith(("tiny/", "photos/")):
            continue
        other = recipes.load(name)
        if _subject(other) == _subject(recipe):
            count = len(differences(other, recipe))
            if best is None or count < best[0]:
                best = count, other
    return best[1] if best else None


def _subject(recipe: Recipe) -> tuple[Any, ...]:
    encoder = recipe.model.encoder
    size = (getattr(encoder, "width", 0), encoder.depth, getattr(encoder, "stem", ""))
    return recipe.task, recipe.model.objective.kind, encoder.kind, size


def differences(paper: Recipe, recipe: Recipe) -> list[str]:
    """Return a line for every field in which `recipe` differs from the paper's; the rates are compared as they act."""
    old, new = flat_recipe(paper), flat_recipe(recipe)
    keys = dict.fromkeys([*old, *new])
    lone = {key.removesuffix(".kind") for key in keys if key.endswith(".kind") and (key in old) != (key in new)}
    return [
        f"{key.removesuffix('.kind')} is {_shown(new.get(key), key)}, there {_shown(old.get(key), key)}"
        for key in keys
        if old.get(key) != new.get(key) and (key.endswith(".kind") or key.rpartition(".")[0] not in lone)
    ]


def flat_recipe(recipe: Recipe) -> dict[str, Any]:
    """A recipe's fields by dotted key; operations of views by their kind; the learning rate of the whole batch."""
    found: dict[str, Any] = {}
    _walk(schema.plain(recipe), "", found)
    lr, per = found.pop("optimizer.lr"), found.pop("optimizer.lr_batch")
    found["learning rate of the whole batch"] = float(f"{lr * recipe.batch / per:.10g}")
    if not recipe.schedule.warmup_epochs:
        found.pop("schedule.cosine", None)  # without warm-up both spans are the same
        found.pop("schedule.warmup_lr", None)
        found.pop("schedule.warmup_end", None)
    unused = ("momentum", "trust") if recipe.optimizer.kind == "adamw" else ("betas", "eps")
    for name in unused:
        found.pop(f"optimizer.{name}", None)
    return {key: value for key, value in found.items() if not key.startswith(APART)}


def _walk(value: Any, where: str, found: dict[str, Any]) -> None:
    if isinstance(value, dict):
        for key, item in value.items():
            _walk(item, f"{where}.{key}" if where else key, found)
    elif isinstance(value, list) and any(isinstance(item, (dict, list)) for item in value):
        for number, item in enumerate(value):
            name = item["kind"] if isinstance(item, dict) and "kind" in item else str(number)
            _walk(item, f"{where}.{name}", found)
    else:
        found[where] = tuple(value) if isinstance(value, list) else value


def _shown(value: Any, key: str) -> str:
    if key.endswith(".kind") and ".views." in key and value is not None:
        return "present"
    return "absent" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
