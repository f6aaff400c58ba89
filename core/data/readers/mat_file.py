"""Reads numeric arrays from MATLAB files, the format of Flowers-102's labels, by scipy."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np

from triport.core.errors import UserError

_LIMIT = 1 << 18  # bytes of a file, which unpack to a thousand times as many at most; Flowers' have 15 thousand


def load(path: Path) -> dict[str, np.ndarray]:
    """Return the numeric arrays of a MATLAB file up to version 7 by name; text, cells, structs, complex are left out.

    UserError where the file is something else or damaged, where it is too large, and where scipy is missing.
    """
    try:
        from scipy.io import loadmat
    except ImportError:
        raise UserError(f"'{path}' is a MATLAB file, which scipy reads: pip install scipy") from None
    if not path.is_file():
        raise UserError(f"MATLAB file '{path}' is missing")
    if path.stat().st_size > _LIMIT:
        raise UserError(
            f"'{path}' has more than {_LIMIT} bytes, too many for labels; fetch the original .mat file again"
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # what scipy only warns about would be read in part
            found = loadmat(path)
    except Exception as error:  # scipy meets a damaged file with any kind: TypeError, KeyError, zlib.error, ...
        reason = " ".join(str(error).split())  # scipy's warnings have lines
        raise UserError(
            f"'{path}' is not a whole MATLAB 5 file ({reason}); fetch the original .mat file again"
        ) from None
    return {name: array for name, array in found.items() if isinstance(array, np.ndarray) and array.dtype.kind in "iuf"}
