"""`python -m triport`: works from a bare checkout, with nothing installed."""

import sys

if sys.version_info < (3, 10):
    sys.exit("triport needs Python 3.10 or later; this is " + sys.version.split()[0])

from triport.command import main

if __name__ == "__main__":
    sys.exit(main())
