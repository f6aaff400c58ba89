"""The pixel kernels, compiled by `triport setup` and called through ctypes: one call makes a view.

It gives bit for bit what numpy and Pillow give in `colour` and `geometry`, only faster. Where the kernels are not
compiled those are used, so nothing depends on this file but time. A run only loads what is there.
TRIPORT_NATIVE=0 turns it off.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]

SOURCE = Path(__file__).with_name("kernels") / "view.c"  # includes its neighbours *.h
# No contraction: a fused multiply-add would round differently from Pillow.
FLAGS = ("-O3", "-march=native", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math", "-fPIC", "-shared")


def main() -> int:
    """Compile the kernels for this machine and print their state: `python -m triport.core.augment.native`."""
    problem = build()
    print(problem or state())
    return 0


def build() -> str:
    """Compile the kernels for this source and processor if that was not done yet. Returns why not, or nothing."""
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if not compiler:
        return "there is no C compiler; install gcc or clang, then: triport setup kernels"
    try:
        library = _place()
        if not library.exists():
            library.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            with tempfile.TemporaryDirectory(dir=library.parent) as scratch:  # renamed whole: others may build it too
                built = Path(scratch) / library.name
                command = [*shlex.split(compiler), *FLAGS, "-o", str(built), str(SOURCE), "-lm"]
                subprocess.run(command, check=True, capture_output=True, text=True, timeout=120)
                built.replace(library)
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:  # RuntimeError: no home folder
        lines = str(getattr(error, "stderr", None) or error).strip().splitlines()
        return f"{compiler} could not build the kernels: {lines[-1] if lines else type(error).__name__}"
    _loaded.cache_clear()
    return ""


def _place() -> Path:
    """Path of the library for this source and processor."""
    sources = (path.read_text() for path in sorted(SOURCE.parent.iterdir()) if path.suffix in (".c", ".h"))
    key = hashlib.sha256("\n".join((*sources, *FLAGS, _processor())).encode()).hexdigest()[:16]
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "triport"
    return folder / f"native-{key}.so"


@functools.lru_cache(maxsize=1)
def _loaded() -> tuple[ctypes.CDLL | None, str]:
    """The library, or none and why."""
    if os.environ.get("TRIPORT_NATIVE", "1") == "0":
        return None, "turned off by TRIPORT_NATIVE=0"
    try:
        library = _place()
        if not library.exists():
            return None, "not compiled for this machine; remedy: triport setup kernels"
        return _declared(ctypes.CDLL(str(library))), "compiled"
    except (OSError, RuntimeError) as error:
        return None, f"the kernels cannot be loaded: {error}"


def _processor() -> str:
    """What -march=native depends on, so that a home folder shared by unlike machines is safe."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    features = [line for line in lines if line.startswith(("model name", "flags", "Features"))][:2]
    return "\n".join((sys.platform, platform.machine(), platform.processor(), *features))


def available() -> bool:
    """True where the compiled kernels are in use."""
    return _loaded()[0] is not None


def state() -> str:
    """ "compiled", or the reason why numpy and Pillow do the work."""
    return _loaded()[1]


# ---------------------------------------------------------------- one view
class Operation(ctypes.Structure):
    """One change of all pixels, as kernels/view.c has it."""

    _fields_ = (
        ("kind", ctypes.c_int32),
        ("number", ctypes.c_int32),  # grey of a blend, shift of the hue, threshold of an inversion, radius of a blur
        ("factor", ctypes.c_float),  # of a blend, contrast, saturation
        ("whole", ctypes.c_uint32),  # of a blur: weights as `core.augment.geometry.box_weights` gives them
        ("edge", ctypes.c_uint32),
    )


FIRST_SCRATCH, MOST_SCRATCH = 1 << 20, 1 << 25  # bytes of a thread's memory between calls
_lent = threading.local()
BLEND, CONTRAST, SATURATION, HUE, INVERT, BLUR = range(6)  # as in view.c


def _declared(library: ctypes.CDLL) -> ctypes.CDLL:
    number, address = ctypes.c_int, ctypes.c_void_p
    library.view.argtypes = [
        *(address, ctypes.c_long, number, number, number),  # image, bytes from row to row, height, width, channels
        *(number, number, number, number),  # height, width, bicubic, mirrored
        *(address, number),  # operations, how many
        *(address, address, address),  # bytes, floats, values
        *(address, ctypes.c_size_t),  # scratch memory, its bytes
    ]
    return library


def view(
    image: Bytes,
    bicubic: bool,
    operations: Sequence[Operation],
    mirrored: bool,
    out: NDArray[np.generic],
    values: NDArray[np.float32] | None = None,
) -> None:
    """Resize an image (H, W, C), change its colours, mirror it, and write it to `out`; ask available() first.

    out, packed: uint8 (H', W', C), or float32 (C, H', W') looked up in `values`, float32 (C, 256). The lock of the
    interpreter is not held meanwhile. ValueError where they do not fit each other, or have no pixels.
    """
    library = _loaded()[0]
    assert library is not None, "ask available() first"
    if image.strides[1:] != (image.shape[2], 1):
        image = np.ascontiguousarray(image)
    table = None if values is None else np.ascontiguousarray(values, np.float32)
    size, channels = (out.shape[:2], out.shape[2]) if table is None else (out.shape[1:], out.shape[0])
    kind = np.uint8 if table is None else np.float32
    fits = channels == image.shape[2] and out.dtype == kind and out.flags.c_contiguous
    if not fits or image.dtype != np.uint8 or 0 in (*image.shape, *size):
        raise ValueError(f"a view of {image.dtype} {image.shape} cannot be written to {out.dtype} {out.shape}")
    if table is not None and table.shape != (channels, 256):
        raise ValueError(f"{channels} channels are looked up in ({channels}, 256) values, not in {table.shape}")
    places = (_at(out), None, None) if table is None else (None, _at(out), _at(table))
    count = len(operations)
    scratch = getattr(_lent, "scratch", None)
    length = FIRST_SCRATCH if scratch is None else scratch.size
    while True:
        if scratch is None:
            scratch = np.empty(length, np.uint8)
        packed = (Operation * count)(*operations)
        too_small = library.view(
            *(_at(image), image.strides[0], *image.shape, *size, bicubic, mirrored, packed, count),
            *(*places, _at(scratch), length),
        )
        if not too_small:
            break
        scratch, length = None, 2 * length
    if length <= MOST_SCRATCH:
        _lent.scratch = scratch


def _at(array: NDArray[np.generic]) -> int:
    return int(array.ctypes.data)


if __name__ == "__main__":
    raise SystemExit(main())
