"""`triport parity ...`: proofs that frameworks compute the same."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from core.errors import UserError, closest

COMMANDS = {"replay": "hold a backend against golden records of the original code"}


def main(argv: Sequence[str]) -> int:
    """Run one of the commands and return its exit code."""
    if not argv or argv[0] in ("-h", "--help"):
        print("usage: triport parity COMMAND ...\n")
        for name, summary in COMMANDS.items():
            print(f"  {name:<10}{summary}")
        return 0
    try:
        if argv[0] == "replay":
            from parity_tests import replay

            return replay.main(argv[1:])
        raise UserError(f"no command 'parity {argv[0]}'.{closest(argv[0], COMMANDS)}")
    except UserError as error:
        print(f"triport: error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
