"""The command line: finds the command, imports only its code, turns errors of the user into one line."""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass

from triport.core.errors import UserError, closest
from triport.core.record.console import show, tolerate_any_text


@dataclass(frozen=True)
class Command:
    """A command: its group and line in the help, and where its code is (`module:function`, called with the words)."""

    group: str
    summary: str
    code: str
    needs_numpy: bool = False  # numpy and what else core and weights import
    named: bool = False  # wants its own name as the first word


RUN, WEIGHTS = "triport.launch:main", "triport.weights.__main__:main"
VERB = "triport.verbs.start:main"
COMMANDS = {
    "setup": Command("start", "make the environments of torch, paddle and oneflow", "triport.setup:main"),
    "doctor": Command("start", "say what works on this machine, and what to do about the rest", "triport.doctor:main"),
    "demo": Command(
        "start", "pretrain a small network on real images and show what it learned", "triport.demo:main", True
    ),
    "models": Command("look", "list models: parameters, FLOPs, recipes, accuracies", "triport.models:main", True),
    "recipes": Command("look", "list recipes, or show one", "triport.recipes:main", True),
    "data": Command(
        "look", "say what a data set holds, and draw samples as the network sees them", "triport.data:main", True
    ),
    "pretrain": Command("run", "train an encoder without labels: MoCo v3, MAE", RUN, named=True),
    "linear": Command("run", "train a linear classifier on a frozen encoder", RUN, named=True),
    "finetune": Command("run", "train encoder and classifier end to end", RUN, named=True),
    "evaluate": Command("run", "measure accuracy, or kNN accuracy of an encoder", RUN, named=True),
    "train": Command(
        "run", "train what a configuration says, as mmpretrain's train.py", "triport.other_commands:train"
    ),
    "test": Command("run", "measure a checkpoint, as mmpretrain's test.py", "triport.other_commands:test"),
    "predict": Command("use", "say which classes pictures show", VERB, named=True),
    "embed": Command("use", "write the features of pictures to a file", VERB, named=True),
    "neighbours": Command("use", "show pictures beside those most like them", VERB, named=True),
    "reconstruct": Command("use", "show what an MAE makes of pictures that it sees in part", VERB, named=True),
    "attention": Command("use", "show where a ViT looks, and patch features as colours", VERB, named=True),
    "measure": Command("use", "measure a representation, beside its baselines", VERB, named=True),
    "export": Command("use", "write a model as ONNX, or for transformers or timm", VERB, named=True),
    "report": Command("run", "draw a run's curves into its report.html", "triport.report:main", needs_numpy=True),
    "compare": Command(
        "run", "compare runs: recipes, curves, final numbers", "triport.verbs.compare:main", needs_numpy=True
    ),
    "convert": Command(
        "weights", "turn weights of one layout into another's", "triport.verify:main", needs_numpy=True, named=True
    ),
    "inspect": Command("weights", "say what a file of weights holds", WEIGHTS, needs_numpy=True, named=True),
    "extract-weight": Command(
        "weights", "a pretrained encoder for PASSL's DeiT", "triport.other_commands:extract", needs_numpy=True
    ),
    "diff": Command("weights", "hold two files of weights against each other", WEIGHTS, needs_numpy=True, named=True),
    "layouts": Command("weights", "list the layouts of weights that are known", WEIGHTS, needs_numpy=True, named=True),
    "parity": Command("weights", "hold frameworks against each other and against formulas", "triport.launch:parity"),
}
GROUPS = {
    "start": "to begin with",
    "look": "to look around",
    "run": "to train and measure",
    "use": "to use what was trained",
    "weights": "weights and parity",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line and return its exit code: 0 done, 1 failed, 2 a mistake of the user, 130 interrupted."""
    words = list(sys.argv[1:] if argv is None else argv)
    tolerate_any_text()
    try:
        return dispatch(words)
    except UserError as error:
        if "--traceback" in words:
            traceback.print_exc()
        show(f"triport: error: {error}", sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("triport: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `triport recipes | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 141


def dispatch(words: list[str]) -> int:
    """Find the command and call its code."""
    if not words or words[0] in ("-h", "--help", "help"):
        print(help_text())
        return 0
    if words[0] in ("-V", "--version"):
        from triport import __version__

        print(__version__)
        return 0
    name, rest = words[0], words[1:]
    command = COMMANDS.get(name)
    if command is None:
        raise UserError(f"no command '{name}'.{closest(name, COMMANDS) or ' `triport --help` lists them.'}")
    if command.needs_numpy:
        move_to_base_python(words)
    module, _, function = command.code.partition(":")
    code = getattr(importlib.import_module(module), function)
    return int(code([name, *rest] if command.named else rest) or 0)


def move_to_base_python(words: list[str]) -> None:
    """Become an interpreter that has numpy and what else core imports, if this one has not. Returns if it has."""
    from triport import environments

    python = str(environments.base_python())
    if python != sys.executable:
        os.execve(python, [python, "-m", "triport", *words], environments.with_project(os.environ))


def help_text() -> str:
    """Return the help: what it is, every command in its group, where to begin."""
    lines = ["triport: MoCo v3 and MAE on PyTorch, Paddle and OneFlow, with the same numbers", ""]
    lines += ["usage: triport COMMAND …    triport COMMAND --help tells more"]
    for group, title in GROUPS.items():
        lines += ["", f"{title}:"]
        lines += [f"  {name:<15}{command.summary}" for name, command in COMMANDS.items() if command.group == group]
    lines += ["", "begin with:"]
    lines += ["  triport setup torch", "  triport demo", "  triport pretrain tiny/moco_vit_tiny --backend torch"]
    return "\n".join(lines)
