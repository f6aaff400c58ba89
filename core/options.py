"""What the command line decides about a run: paths, devices, micro-batches, saving. The rest is the recipe's."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal, NoReturn, overload

from triport.core import reading, selection, slips
from triport.core.errors import UserError
from triport.core.selection import EVERYTHING, Selection

Task = Literal["pretrain", "linear", "finetune", "evaluate"]

PURPOSE = {
    "pretrain": "Train an encoder without labels.",
    "linear": "Train a linear classifier on a frozen encoder.",
    "finetune": "Train an encoder and a classifier end to end.",
    "evaluate": "Measure a classifier's accuracy, an encoder's kNN accuracy, or write features.",
}


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """What every task is told. `recipe` is the first word where it is not an override."""

    task: Task
    recipe: str | None = None
    overrides: tuple[str, ...] = ()  # key=value
    data: str | None = None
    device: str = "auto"
    precision: Literal["auto", "float32", "bfloat16", "float16", "float64"] = "auto"
    workers: int | None = None
    max_broken: int = 10
    weights: str | None = None
    selection: Selection = EVERYTHING  # of the arrays in the file of weights
    from_scratch: bool = False
    compile: bool | None = None  # None: as the backend finds best
    out: str | None = None
    overwrite: bool = False
    quiet: bool = False
    traceback: bool = False
    max_pixels: int | None = None  # these three: None where nothing is said, so that a run's own values count
    exif: bool | None = None
    value_range: Sequence[float] | None = None  # what becomes black and white

    @property
    def reading(self) -> dict[str, Any]:
        """What is said of how images are read, as keywords of `open_dataset`."""
        return reading.given(self.max_pixels, self.exif, self.value_range)


@dataclass(frozen=True, kw_only=True)
class Limits:
    """When a training run saves, records and stops."""

    save_steps: int = 0  # also save after so many steps; 0 is off
    save_minutes: float = 15.0  # also save when so much time went by; 0 is off
    stop_after_steps: int = 0  # stop, with a checkpoint, when so many steps of the run are done; 0 is off
    log_steps: int = 0  # record every so many steps; 0 is every step, or fewer in very long runs
    on_nonfinite: Literal["stop", "rollback"] = "stop"
    max_rollbacks: int = 3  # how often a run may go back before it stops all the same


@dataclass(frozen=True, kw_only=True)
class TrainOptions(RunOptions):
    """What pretraining, a linear probe and fine-tuning are told besides."""

    resume: str | None = None  # a run folder or checkpoint; "" is the run of --out or the newest
    accumulate: int | None = None
    checkpoint_activations: bool = False
    shard: bool = False
    amp_o2: bool = False
    micro_batch: int | None = None
    data_changed: bool = False  # go on although the images are not those the run was trained on
    limits: Limits = field(default_factory=Limits)


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions(RunOptions):
    """What an evaluation is told besides."""

    knn: bool = False
    embed: str | None = None
    split: Literal["train", "val", "test"] = "val"
    batch: int = 64
    restrict: bool = False  # choose among the data set's classes only, not all that the model knows
    class_names: str | None = None  # a file of names for people


class Parser(argparse.ArgumentParser):
    """Reports a wrong command line as any other error of the user: one line."""

    elsewhere: Sequence[str] = ()  # options that were taken from the line before
    takes_empty = False  # where '' is a value

    def error(self, message: str) -> NoReturn:
        """Raise instead of printing the whole usage."""
        more = slips.remedy(message, [*self._option_string_actions, *self.elsewhere])
        raise UserError(f"{message}{more}{'' if more.endswith('?') else '.'} See {self.prog} --help.")

    def _get_values(self, action: argparse.Action, arg_strings: list[str]) -> Any:
        """Refuse an empty value: as a path it would be the folder that one is in."""
        if not self.takes_empty and "" in arg_strings and action.nargs not in (argparse.PARSER, argparse.REMAINDER):
            raise argparse.ArgumentError(action, "is empty: perhaps a variable of the shell is not set")
        return super()._get_values(action, arg_strings)


@overload
def parse(task: Literal["evaluate"], argv: Sequence[str]) -> EvaluateOptions: ...
@overload
def parse(task: Literal["pretrain", "linear", "finetune"], argv: Sequence[str]) -> TrainOptions: ...
@overload
def parse(task: Task, argv: Sequence[str]) -> TrainOptions | EvaluateOptions: ...
def parse(task: Task, argv: Sequence[str]) -> TrainOptions | EvaluateOptions:
    """Return the options of a command line; UserError where it cannot be understood."""
    given = parser(task).parse_intermixed_args(list(argv))
    found = {**vars(given), "selection": selection.selected(given)}
    for option in selection.OPTIONS:
        del found[option]
    words: list[str] = found.pop("words")
    # A path may have a "=" in it, but an override cannot come first.
    found["recipe"] = words[0] if words and not _is_override(words[0]) else None
    overrides = words[1:] if found["recipe"] is not None else words
    for word in overrides:
        if not _is_override(word):
            raise UserError(f"'{word}' is not a key=value override, and the recipe is '{found['recipe']}' already.")
    for option, key in (("seed", "seed"), ("epochs", "schedule.epochs")):
        value = found.pop(option)
        if value is not None:
            overrides.append(f"{key}={value}")
    found |= {"task": task, "overrides": tuple(overrides)}
    if task == "evaluate":
        return EvaluateOptions(**found)
    limits: dict[str, Any] = {limit.name: found.pop(limit.name) for limit in fields(Limits)}
    return TrainOptions(**found, limits=Limits(**limits))


def _is_override(word: str) -> bool:
    key, equals, _ = word.partition("=")
    return bool(equals) and "/" not in key


def positive_number(text: str) -> int:
    """A whole number from 1 on. argparse names these functions in its errors."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be 1 or more")
    return value


def whole_number(text: str) -> int:
    """A whole number from 0 on."""
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError("must be 0 or more")
    return value


def number(text: str) -> float:
    """A number from 0 on."""
    value = float(text)
    if not value >= 0:
        raise argparse.ArgumentTypeError("must be 0 or more")
    return value


def parser(task: Task) -> Parser:
    """Return the parser of a task; all backends' entry points share it."""
    p = Parser(prog=f"triport {task}", description=PURPOSE[task], allow_abbrev=False)
    p.elsewhere = slips.STARTING
    what = (
        "a recipe; or, of what it made, a run folder, a checkpoint or encoder.safetensors"
        if task == "evaluate"
        else "a recipe"
    )
    p.add_argument("words", nargs="*", metavar="RECIPE key=value", help=f"{what}; then overrides of its fields")
    p.add_argument(
        "--data",
        metavar="PATH",
        help="the dataset; default: the recipe's, if it is shipped with triport",
    )
    p.add_argument("--device", default="auto", help="auto, cpu, cuda, mps, ... as the backend knows them")
    p.add_argument(
        "--precision",
        choices=("auto", "float32", "bfloat16", "float16", "float64"),
        default="auto",
        help="float64: of everything; bfloat16, float16: of activations, weights stay float32; "
        "auto: bfloat16 to pretrain on a GPU that has it, else float32",
    )
    p.add_argument(
        "--workers",
        type=whole_number,
        metavar="N",
        help="processes that prepare images; default: the cores are divided among processes",
    )
    p.add_argument(
        "--max-broken", type=whole_number, default=10, metavar="N", help="broken images to skip before giving up (10)"
    )
    pixel_options(p)
    p.add_argument("--weights", metavar="FILE", help="file, run folder or checkpoint that the encoder begins with")
    selection.add_options(p, "of --weights: its" if task != "pretrain" else "of another project's file: its")
    p.add_argument("--from-scratch", action="store_true", help="start from random weights where --weights is expected")
    p.add_argument(
        "--compile",
        action=argparse.BooleanOptionalAction,
        help="let the framework compile the model, or not; default: PyTorch on GPUs, if the first loss is the same",
    )
    p.add_argument("--seed", type=int, help="short for the override seed=N")
    p.add_argument("--epochs", type=positive_number, help="short for the override schedule.epochs=N")
    p.add_argument("--quiet", action="store_true", help="show errors only")
    p.add_argument("--traceback", action="store_true", help="show where an error was raised")
    _evaluating(p) if task == "evaluate" else _training(p)
    return p


def pixel_options(p: Parser) -> None:
    """How images are read; a run that goes on, or that is measured, keeps its own."""
    p.add_argument(
        "--max-pixels",
        type=positive_number,
        metavar="N",
        help="pixels that an image may have (89478485, Pillow's limit against decompression bombs)",
    )
    p.add_argument(
        "--exif",
        action=argparse.BooleanOptionalAction,
        help="rotate images as their EXIF data say (torchvision does not)",
    )
    p.add_argument(
        "--value-range",
        type=float,
        nargs=2,
        metavar=("LO", "HI"),
        help="values that become black and white, for 16 and 32 bits and floats",
    )


def _evaluating(p: Parser) -> None:
    p.add_argument(
        "--knn", action="store_true", help="kNN accuracy of the encoder's features (the default for an encoder)"
    )
    p.add_argument("--embed", metavar="OUT", help="write features and labels of --split to OUT (.npz or .safetensors)")
    p.add_argument(
        "--split",
        choices=("train", "val", "test"),
        default="val",
        help="images to score or embed (val; of data with one held-out split that is the test split)",
    )
    p.add_argument("--out", metavar="FILE", help="also write the scores as JSON")
    p.add_argument("--overwrite", action="store_true", help="replace the files of --embed and --out")
    p.add_argument("--restrict", action="store_true", help="choose among the data's classes, not all the model knows")
    p.add_argument("--class-names", metavar="FILE", help='names for people: lines "n01440764 tench"')
    p.add_argument("--batch", type=positive_number, default=64, metavar="N", help="images at once on each process (64)")


def _training(p: Parser) -> None:
    p.add_argument("--out", metavar="DIR", help="run folder; default runs/<recipe>-<n>")
    p.add_argument(
        "--resume",
        nargs="?",
        const="",
        metavar="DIR",
        help="resume the run in DIR (default: --out, else the newest)",
    )
    p.add_argument(
        "--overwrite", action="store_true", help="move a run that is in the folder aside and begin a new one"
    )
    p.add_argument("--data-changed", action="store_true", help="resume although the images have changed")
    split = p.add_mutually_exclusive_group()
    split.add_argument(
        "--accumulate", type=positive_number, metavar="K", help="split each process's batch into K micro-batches"
    )
    split.add_argument(
        "--micro-batch", type=positive_number, metavar="N", help="split each process's batch into micro-batches of N"
    )
    p.add_argument(
        "--checkpoint-activations",
        action="store_true",
        help="compute the activations of each transformer block twice instead of storing them; the numbers stay",
    )
    p.add_argument(
        "--shard",
        action="store_true",
        help="divide weights, gradients and optimizer state among the processes; the numbers stay",
    )
    p.add_argument(
        "--amp-o2",
        action="store_true",
        help="Paddle, in half precision: level O2 of amp.auto_cast (O1); weights stay float32",
    )
    _saving(p)


def _saving(p: Parser) -> None:
    p.add_argument(
        "--save-minutes", type=number, default=15.0, metavar="M", help="also save every M minutes (15); 0: never"
    )
    p.add_argument("--save-steps", type=whole_number, default=0, metavar="N", help="also save every N steps")
    p.add_argument(
        "--log-steps", type=whole_number, default=0, metavar="N", help="record every N steps (1; more in long runs)"
    )
    p.add_argument(
        "--stop-after-steps",
        type=whole_number,
        default=0,
        metavar="N",
        help="stop with a checkpoint after step N of the run",
    )
    p.add_argument(
        "--on-nonfinite",
        choices=("stop", "rollback"),
        default="stop",
        help="at a NaN or infinity: stop, or return to the last checkpoint and reorder the samples",
    )
    p.add_argument(
        "--max-rollbacks",
        type=whole_number,
        default=3,
        metavar="N",
        help="rollbacks before the run stops anyway (3)",
    )
