"""python -m triport.weights convert | inspect | diff | layouts."""

from __future__ import annotations

import sys

from triport.weights.commands.command import main

if __name__ == "__main__":
    sys.exit(main())
