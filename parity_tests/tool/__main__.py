"""`triport parity ...`: proofs that frameworks compute the same."""

from __future__ import annotations

import importlib
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

from triport.core.errors import UserError, closest, room_for
from triport.core.record.console import forget_unwritten
from triport.parity_tests.tool.foreign.files import is_record

# command -> its line in the help, the module whose `main` it is
COMMANDS = {
    "run": ("check every level with a recipe on every framework; writes a report", "levels"),
    "curve": ("the same run on every framework: where do the losses part?", "curve"),
    "record": ("write down all that a framework computes in the first steps of a recipe, or of any --model", "trace"),
    "compare": ("name the first layer in which two such records depart", "compare"),
    "upgrade": ("record and compare in two environments, or at two commits", "foreign.upgrade"),
    "env": ("what two environments or machines differ in, and what of it changes numbers", "foreign.env"),
    "batches": ("write the very batches of a recipe, for a training loop of one's own", "foreign.batches"),
    "faults": ("plant faults in every framework and print where compare finds each", "fault_matrix"),
    "replay": ("hold a framework against golden records of the original code", "replay"),
}


def code_of(command: str, words: Sequence[str]) -> str:
    """The module of a command. Records of a --model have their own, also where they are compared."""
    of_model = any(word.partition("=")[0] == "--model" for word in words)
    if command == "record" and of_model:
        return "foreign.record"
    if command == "compare" and any(is_record(Path(word)) for word in words if not word.startswith("-")):
        return "foreign.compare"
    return COMMANDS[command][1]


def main(argv: Sequence[str]) -> int:
    """Run one of the commands and return its exit code: 0 the same, 1 departed, 2 a mistake of the user."""
    if not argv or argv[0] in ("-h", "--help"):
        print("usage: triport parity COMMAND ...    triport parity COMMAND --help for details\n")
        for name, (summary, _) in COMMANDS.items():
            print(f"  {name:<10}{summary}")
        return 0
    try:
        if argv[0] not in COMMANDS:
            raise UserError(f"no command 'parity {argv[0]}'.{closest(argv[0], COMMANDS)}")
        words = [word for word in argv[1:] if word != "--traceback"]
        module = importlib.import_module(f"triport.parity_tests.tool.{code_of(argv[0], words)}")
        with room_for("the output"):
            code = int(module.main(words))
            sys.stdout.flush()
            return code
    except UserError as error:
        if "--traceback" in argv:
            traceback.print_exc()
        print(f"triport: error: {error}", file=sys.stderr)
        forget_unwritten()
        return 2
    except KeyboardInterrupt:
        print("triport: interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
