"""From a command line with another project's file or flags to one with a recipe, for the entry points of all backends.

--libai-config FILE, --passl-config FILE [-o KEY=VALUE], --mmpretrain-config FILE [--cfg-options KEY=VALUE]
[--mmengine], or the file itself in the recipe's place; the flags of main_moco.py and its kind; --show prints the recipe
and starts nothing.
"""

from __future__ import annotations

import os
import sys
import tempfile
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from triport.core.cluster import drop_no_rank
from triport.core.errors import UserError
from triport.core.options import Task, parser
from triport.core.spec import recipe as recipes
from triport.core.spec.foreign import flags, libai, mmpretrain, passl
from triport.core.spec.foreign.reading import Reading
from triport.core.spec.foreign.settings import literal
from triport.core.spec.foreign.whose import project_of
from triport.core.spec.spec import Recipe

FILES = {"--libai-config": "LiBai", "--passl-config": "PASSL", "--mmpretrain-config": "mmpretrain"}
SETS = {"-o": "PASSL", "--cfg-options": "mmpretrain"}
EXECUTED = "--mmengine"  # read mmpretrain's file through mmengine, which executes it
ENDINGS = (".py", ".yaml", ".yml")
MEASURING = ("--data", "--device", "--workers", "--weights")  # what evaluation takes of a file's options
OUTDONE = {  # a word of the command line -> the file's options that it leaves out
    "batch": ("--micro-batch", "--accumulate"),
    "--micro-batch": ("--accumulate",),
    "--accumulate": ("--micro-batch",),
    "--from-scratch": ("--weights",),
    "--weights": ("--from-scratch",),
    "--resume": ("--out", "--weights", "--from-scratch"),
}
Start = Callable[[list[str], "Reading | None"], int]


@dataclass
class Line:
    """A command line, taken apart."""

    words: list[str]  # what is this suite's own
    file: Path | None = None
    project: str = ""
    sets: list[str] = field(default_factory=list)  # key=value of the other project
    show: bool = False
    executed: bool = False  # by mmengine


def run(task: Task, argv: Sequence[str] | None, start: Start) -> int:
    """Start a run with the recipe in place of what is another project's; return the exit code.

    start(words, reading): starts it; `reading` is None where the words are this suite's own.
    """
    given = list(sys.argv[1:] if argv is None else argv)
    try:
        if {"-h", "--help"} & set(given):
            return start(given, None)
        line = taken(given)
        found = read(task, line)
        if found is None:
            if line.show:
                return show(own(task, line.words), [])
            return start(given if line.file is None else ["--libai-config", str(line.file), *line.words], None)
        reading, words = found
        chosen = reading.words([*words, *outdone(words)], MEASURING if task == "evaluate" else None)
        if line.show:
            with Written(reading) as path:
                return show(own(task, [str(path), *words]), heading(reading, chosen))
        if task not in ("evaluate", reading.recipe.task):
            raise UserError(
                f"{reading.path} is for the task '{reading.recipe.task}': use `triport {reading.recipe.task}`."
            )
    except UserError as error:
        print(f"triport: error: {error}", file=sys.stderr, flush=True)
        return 2
    if rank() == 0 and "--quiet" not in words:
        print(
            "\n  ".join([f"{reading.path.name}: a configuration of {reading.project}", *reading.report()]), flush=True
        )
    with Written(reading) as path:
        return start([str(path), *words, *chosen], reading)


def outdone(words: Sequence[str]) -> list[str]:
    """The options of a file that words of the command line leave out."""
    given = {word.partition("=")[0] for word in words}
    return [option for word, options in OUTDONE.items() if word in given for option in options]


def rank() -> int:
    """Which process of the job this is."""
    drop_no_rank(os.environ)
    return int(os.environ.get("RANK", os.environ.get("PADDLE_TRAINER_ID", 0)))


def processes() -> int:
    """How many processes the job has."""
    return int(os.environ.get("WORLD_SIZE", os.environ.get("PADDLE_TRAINERS_NUM", 1)))


class Written(tempfile.TemporaryDirectory[str]):
    """A folder with the recipe as a file, as long as the run goes on; gives the file's path."""

    def __init__(self, reading: Reading) -> None:
        """Write the recipe of `reading`."""
        super().__init__()
        self.file = Path(self.name) / f"{reading.recipe.name}.toml"
        self.file.write_text(recipes.to_toml(reading.recipe), encoding="utf-8")

    def __enter__(self) -> Path:  # type: ignore[override]
        super().__enter__()
        return self.file


# ---------------------------------------------------------------- the command line
def taken(argv: Sequence[str]) -> Line:
    """Take a command line apart: the file, its project, settings of it, and all other words."""
    line, words = Line([]), list(argv)
    while words:
        word = words.pop(0)
        key, equals, value = word.partition("=")
        if key in FILES or key in SETS:
            if not equals and (not words or words[0].startswith("-")):
                raise UserError(f"{key} wants {'a file' if key in FILES else 'KEY=VALUE'} after it.")
            text = value if equals else words.pop(0)
            if key in SETS:
                _only(line, SETS[key], key)
                line.sets.append(text)
                while key == "--cfg-options" and words and "=" in words[0] and words[0][0] != "-":
                    line.sets.append(words.pop(0))
            else:
                _only(line, FILES[key], key)
                line.file = Path(text)
        elif word == "--show":
            line.show = True
        elif word == EXECUTED:
            _only(line, "mmpretrain", EXECUTED)
            line.executed = True
        elif not line.words and line.file is None and word.endswith(ENDINGS) and "=" not in word and word[0] != "-":
            line.file = Path(word)
        else:
            line.words.append(word)
    if line.file is None and line.executed:
        raise UserError(f"{EXECUTED} goes with --mmpretrain-config FILE")
    if line.file is None and line.sets:
        wanted = {"PASSL": "--passl-config FILE", "mmpretrain": "--mmpretrain-config FILE"}[line.project]
        flag = "-o" if line.project == "PASSL" else "--cfg-options"
        raise UserError(f"{flag} goes with {wanted}; overrides of a recipe are plain key=value words")
    return line


def _only(line: Line, project: str, key: str) -> None:
    if line.project not in ("", project):
        raise UserError(f"{key} is of {project}, and the command line has something of {line.project}.")
    line.project = project


def read(task: Task, line: Line) -> tuple[Reading, list[str]] | None:
    """Read what is another project's; None where nothing is, or where LiBai's file only changes a named recipe."""
    if line.file is None:
        if flags.program_of(task, line.words) is None:
            return None
        return flags.read(task, line.words, processes())
    reading, words = read_file(line.file, line.project, line.sets, line.words, processes(), line.executed)
    return None if reading is None else (reading, words)


def read_file(
    path: Path,
    project: str = "",
    sets: Sequence[str] = (),
    words: Sequence[str] = (),
    world: int = 1,
    executed: bool = False,
    given: Sequence[str] = (),
) -> tuple[Reading | None, list[str]]:
    """Read a file of another project; None where LiBai's file only changes a recipe that it or the words name.

    given: more options that go before the file's.
    """
    project, every = project or project_of(path), [*words, *given]
    if project == "PASSL":
        return passl.read(path, sets, world, every), list(words)
    if project == "mmpretrain":
        changes = dict(pair(text) for text in sets)
        return mmpretrain.read(path, changes, world, overrides(words), executed, every), list(words)
    if (words and _names(words[0])) or "recipe" in libai.read_tree(path):
        return None, list(words)
    theirs = [word for word in words if _libais(word)]
    ours = [word for word in words if word not in theirs]
    return libai.read(path, dict(pair(word) for word in theirs), world, overrides(ours), every), ours


def overrides(words: Sequence[str]) -> list[str]:
    """The words of a command line that override the recipe."""
    return [word for word in words if "=" in word and word[0] != "-" and "/" not in word.partition("=")[0]]


def _libais(word: str) -> bool:
    """Say whether a word sets something by LiBai's name; the recipe's own model.encoder and train.views are others."""
    key, equals, _ = word.partition("=")
    first, _, second = key.partition(".")
    recipes_own = second.partition(".")[0] in ("encoder", "objective", "views", "mean", "std", "repeats", "name")
    return bool(equals) and first in libai.SECTIONS and bool(second) and not recipes_own


def _names(word: str) -> bool:
    return not word.startswith("-") and "=" not in word


def pair(text: str) -> tuple[str, object]:
    """A setting KEY=VALUE, its value a Python literal or a text."""
    key, equals, value = text.partition("=")
    if not equals:
        raise UserError(f"{text}: write KEY=VALUE")
    lower = {"true": True, "false": False, "none": None}
    return key, lower[value.lower()] if value.lower() in lower else literal(value)


# ---------------------------------------------------------------- showing
def own(task: Task, words: Sequence[str]) -> Recipe:
    """The recipe of a command line of this suite, overrides and all."""
    options, rest = parser(task).parse_known_args(list(words))
    positional = [*options.words, *(word for word in rest if "=" in word and not word.startswith("-"))]
    if not positional:
        raise UserError("name a recipe; `triport recipes` lists them.")
    given = {"seed": options.seed, "schedule.epochs": options.epochs}
    changes = [f"{key}={value}" for key, value in given.items() if value is not None]
    return recipes.load(positional[0], [*positional[1:], *changes])


def heading(reading: Reading, options: Sequence[str]) -> list[str]:
    """What stands above a recipe that is shown: whose it is, the options, what became of every setting."""
    lines = [f"{reading.path.name} of {reading.project} as a recipe; options of the run: {' '.join(options) or 'none'}"]
    return [*lines, *reading.report()]


def show(recipe: Recipe, lines: Sequence[str]) -> int:
    """Print a recipe with comments above it: what is printed is a recipe's file."""
    wrapped = [part for line in lines for part in textwrap.wrap(line, 116, subsequent_indent="    ")]
    print("".join(f"# {line}\n" for line in wrapped) + recipes.to_toml(recipe), end="", flush=True)
    return 0
