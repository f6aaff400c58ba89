"""`triport parity ...`: proofs that frameworks compute the same."""

from __future__ import annotations

import importlib
import sys
import traceback
from collections.abc import Sequence

from triport.core.errors import UserError, closest

# command -> its line in the help, the module whose `main` it is
COMMANDS = {
    "run": ("check every level with a recipe on every framework; writes a report", "levels"),
    "curve": ("the same run on every framework: where do the losses part?", "curve"),
    "record": ("write down all that a framework computes in the first steps of a recipe", "trace"),
    "compare": ("name the first layer in which two such records depart", "compare"),
    "replay": ("hold a framework against golden records of the original code", "replay"),
}


def main(argv: Sequence[str]) -> int:
    """Run one of the commands and return its exit code: 0 the same, 1 departed, 2 a mistake of the user."""
    if not argv or argv[0] in ("-h", "--help"):
        print("usage: triport parity COMMAND ...    triport parity COMMAND --help tells more\n")
        for name, (summary, _) in COMMANDS.items():
            print(f"  {name:<10}{summary}")
        return 0
    try:
        if argv[0] not in COMMANDS:
            raise UserError(f"no command 'parity {argv[0]}'.{closest(argv[0], COMMANDS)}")
        module = importlib.import_module(f"triport.parity_tests.tool.{COMMANDS[argv[0]][1]}")
        words = [word for word in argv[1:] if word != "--traceback"]
        return int(module.main(words))
    except UserError as error:
        if "--traceback" in argv:
            traceback.print_exc()
        print(f"triport: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("triport: interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
