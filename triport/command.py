"""The command line: finds the command, imports only its code, turns errors of the user into one line."""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass

from triport.core.errors import UserError, closest, room_for
from triport.core.record.console import forget_unwritten, show, tolerate_any_text


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
    "setup": Command("start", "create the environments of torch, paddle and oneflow", "triport.setup:main"),
    "doctor": Command("start", "check what works on this machine and how to fix the rest", "triport.doctor:main"),
    "demo": Command(
        "start", "pretrain a small network on real images and show what it learned", "triport.demo:main", True
    ),
    "models": Command("look", "list models: parameters, FLOPs, recipes, accuracies", "triport.models:main", True),
    "recipes": Command("look", "list recipes, or show one", "triport.recipes:main", True),
    "data": Command("look", "describe a dataset and draw samples as the network sees them", "triport.data:main", True),
    "pretrain": Command("run", "train an encoder without labels: MoCo v3, MAE", RUN, named=True),
    "linear": Command("run", "train a linear classifier on a frozen encoder", RUN, named=True),
    "finetune": Command("run", "train encoder and classifier end to end", RUN, named=True),
    "evaluate": Command("run", "evaluate accuracy, or kNN accuracy of an encoder", RUN, named=True),
    "train": Command(
        "run", "train from a configuration file, like mmpretrain's train.py", "triport.other_commands:train"
    ),
    "test": Command("run", "evaluate a checkpoint, like mmpretrain's test.py", "triport.other_commands:test"),
    "predict": Command("use", "classify images", VERB, named=True),
    "embed": Command("use", "write features of images to a file", VERB, named=True),
    "neighbours": Command("use", "show images beside their nearest neighbours", VERB, named=True),
    "reconstruct": Command("use", "show MAE's reconstructions of masked images", VERB, named=True),
    "attention": Command("use", "show attention maps and patch features of a ViT", VERB, named=True),
    "measure": Command("use", "evaluate a representation against baselines", VERB, named=True),
    "export": Command("use", "export a model to ONNX, transformers or timm", VERB, named=True),
    "report": Command("run", "plot a run's curves in its report.html", "triport.report:main", needs_numpy=True),
    "compare": Command(
        "run", "compare runs: recipes, curves, final numbers", "triport.verbs.compare:main", needs_numpy=True
    ),
    "convert": Command(
        "weights", "convert weights between layouts", "triport.verify:main", needs_numpy=True, named=True
    ),
    "inspect": Command("weights", "describe a weights file", WEIGHTS, needs_numpy=True, named=True),
    "extract-weight": Command(
        "weights", "extract an encoder for PASSL's DeiT", "triport.other_commands:extract", needs_numpy=True
    ),
    "diff": Command("weights", "compare two weights files", WEIGHTS, needs_numpy=True, named=True),
    "layouts": Command("weights", "list the known layouts of weights", WEIGHTS, needs_numpy=True, named=True),
    "parity": Command("weights", "compare frameworks with each other and with a reference", "triport.launch:parity"),
}
GROUPS = {
    "start": "getting started",
    "look": "information",
    "run": "training and evaluation",
    "use": "using a model",
    "weights": "weights and parity",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line and return its exit code: 0 done, 1 failed, 2 a mistake of the user, 130 interrupted."""
    words = list(sys.argv[1:] if argv is None else argv)
    tolerate_any_text()
    try:
        with room_for("the output"):
            code = dispatch(words)
            sys.stdout.flush()
            return code
    except UserError as error:
        if "--traceback" in words:
            traceback.print_exc()
        show(f"triport: error: {error}", sys.stderr)
        forget_unwritten()
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
    lines += ["usage: triport COMMAND …    triport COMMAND --help for details"]
    for group, title in GROUPS.items():
        lines += ["", f"{title}:"]
        lines += [f"  {name:<15}{command.summary}" for name, command in COMMANDS.items() if command.group == group]
    lines += ["", "examples:"]
    lines += ["  triport setup torch", "  triport demo", "  triport pretrain tiny/moco_vit_tiny --backend torch"]
    return "\n".join(lines)
