"""`python -m triport.verbs NAME …`: a verb in this very interpreter, which has the framework."""

from __future__ import annotations

import os
import sys
import traceback

from triport.core.errors import UserError, room_for
from triport.core.record.console import forget_unwritten, show, tolerate_any_text
from triport.verbs import start


def main(words: list[str]) -> int:
    """Run a verb and return its exit code: 0 done, 1 failed, 2 a mistake of the user, 130 interrupted."""
    tolerate_any_text()
    try:
        with room_for("the output"):
            code = start.run(words)
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
    except BrokenPipeError:  # `triport predict … | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 141


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
