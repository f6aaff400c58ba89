"""What the command line decides about a run: paths, devices, micro-batches, saving. The rest is the recipe's."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Literal, NoReturn

from triport.core.errors import UserError

Task = Literal["pretrain", "linear", "finetune", "evaluate"]

PURPOSE = {
    "pretrain": "Train an encoder without labels.",
    "linear": "Train a linear classifier on a frozen encoder.",
    "finetune": "Train an encoder and a classifier end to end.",
    "evaluate": "Measure a classifier's accuracy, an encoder's kNN accuracy, or write features.",
}


class Parser(argparse.ArgumentParser):
    """Reports a wrong command line as any other error of the user: one line."""

    def error(self, message: str) -> NoReturn:
        """Raise instead of printing the whole usage."""
        raise UserError(f"{message}. See {self.prog} --help.")


def parse(task: Task, argv: Sequence[str]) -> argparse.Namespace:
    """Return the options of `task`; `recipe` is the recipe's name or None, `overrides` the key=value words."""
    options = parser(task).parse_intermixed_args(list(argv))
    options.task = task
    words: list[str] = options.words
    # A path may have a "=" in it, but an override cannot come first.
    options.recipe = words[0] if words and not _is_override(words[0]) else None
    options.overrides = words[1:] if options.recipe is not None else words
    for word in options.overrides:
        if not _is_override(word):
            raise UserError(f"'{word}' is no key=value override, and the recipe is '{options.recipe}' already.")
    if options.seed is not None:
        options.overrides.append(f"seed={options.seed}")
    if options.epochs is not None:
        options.overrides.append(f"schedule.epochs={options.epochs}")
    return options


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
    what = (
        "a recipe; or, of what it made, a run folder, a checkpoint or encoder.safetensors"
        if task == "evaluate"
        else "a recipe"
    )
    p.add_argument("words", nargs="*", metavar="RECIPE key=value", help=f"{what}; then overrides of its fields")
    p.add_argument(
        "--data",
        metavar="PATH",
        help="the data set; without it, the one that the recipe names, if it comes with triport",
    )
    p.add_argument("--device", default="auto", help="auto, cpu, cuda, mps, ... as the backend knows them")
    p.add_argument(
        "--precision",
        choices=("float32", "bfloat16", "float64"),
        default="float32",
        help="float64: of everything; bfloat16: of activations, weights stay float32",
    )
    p.add_argument(
        "--workers", type=whole_number, metavar="N", help="processes that prepare images; default: all cores shared out"
    )
    p.add_argument(
        "--max-broken", type=whole_number, default=10, metavar="N", help="broken images to skip before giving up (10)"
    )
    p.add_argument("--weights", metavar="FILE", help="file, run folder or checkpoint to take the encoder from")
    p.add_argument("--from-scratch", action="store_true", help="begin with random weights where --weights is expected")
    p.add_argument("--compile", action="store_true", help="let the framework compile the model")
    p.add_argument("--seed", type=int, help="short for the override seed=N")
    p.add_argument("--epochs", type=positive_number, help="short for the override schedule.epochs=N")
    p.add_argument("--quiet", action="store_true", help="show errors only")
    p.add_argument("--traceback", action="store_true", help="show where an error was raised")
    _evaluating(p) if task == "evaluate" else _training(p)
    return p


def _evaluating(p: Parser) -> None:
    p.set_defaults(resume=None, accumulate=None, micro_batch=None)
    p.add_argument(
        "--knn", action="store_true", help="kNN accuracy of the encoder's features (the default for an encoder)"
    )
    p.add_argument("--embed", metavar="OUT", help="write features and labels of --split to OUT (.npz or .safetensors)")
    p.add_argument("--split", choices=("train", "test"), default="test", help="images for --embed and accuracy (test)")
    p.add_argument("--out", metavar="FILE", help="also write the scores as JSON")
    p.add_argument("--overwrite", action="store_true", help="replace the files of --embed and --out")
    p.add_argument("--batch", type=positive_number, default=64, metavar="N", help="images at once on each process (64)")


def _training(p: Parser) -> None:
    p.add_argument("--out", metavar="DIR", help="run folder; default runs/<recipe>-<n>")
    p.add_argument(
        "--resume",
        nargs="?",
        const="",
        metavar="DIR",
        help="go on with the run in DIR (default: --out, else the newest)",
    )
    p.add_argument("--overwrite", action="store_true", help="move a run that is in the folder aside and begin anew")
    split = p.add_mutually_exclusive_group()
    split.add_argument(
        "--accumulate", type=positive_number, metavar="K", help="split each process's batch into K micro-batches"
    )
    split.add_argument(
        "--micro-batch", type=positive_number, metavar="N", help="split each process's batch into micro-batches of N"
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
        help="at a NaN or infinity stop, or go back to the last checkpoint and on with other batches",
    )
    p.add_argument(
        "--max-rollbacks",
        type=whole_number,
        default=3,
        metavar="N",
        help="rollbacks before the run stops all the same (3)",
    )
