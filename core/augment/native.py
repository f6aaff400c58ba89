"""The pixel kernels of native.c, compiled by `triport setup` and called through ctypes.

Everything here gives bit for bit what numpy and Pillow give in `colour` and `geometry`, only faster. Where
they are not compiled those are used, so nothing depends on this file but time. A run only loads what is there.
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
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]

SOURCE = Path(__file__).with_name("native.c")
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
    key = hashlib.sha256("\n".join((SOURCE.read_text(), *FLAGS, _processor())).encode()).hexdigest()[:16]
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
        return ctypes.CDLL(str(library)), "compiled"
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


def _library() -> ctypes.CDLL:
    library = _loaded()[0]
    assert library is not None, "ask available() first"
    return library


def _at(array: NDArray[np.generic]) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.__array_interface__["data"][0])


def _checked(failed: int) -> None:
    if failed:
        raise MemoryError("no memory for the pixel kernels")


def resample(image: Bytes, height: int, width: int, bicubic: bool) -> Bytes:
    """Antialiased resize of (H, W, C) to (height, width, C); rows may be strided, pixels must be packed."""
    if image.strides[1:] != (image.shape[2], 1):
        image = np.ascontiguousarray(image)
    out = np.empty((height, width, image.shape[2]), np.uint8)
    stride = ctypes.c_long(image.strides[0])
    _checked(_library().resample(_at(image), stride, *image.shape, _at(out), height, width, int(bicubic)))
    return out


def blur(image: Bytes, radius: int, whole: int, edge: int) -> Bytes:
    """Three box filters along each axis; weights of 2^24 as `core.augment.geometry.box_weights` gives them."""
    out = np.array(image, order="C")
    _checked(_library().blur(_at(out), *out.shape, radius, ctypes.c_uint32(whole), ctypes.c_uint32(edge)))
    return out


def _map(kernel: str, image: Bytes, count: int, *numbers: object) -> Bytes:
    image = np.ascontiguousarray(image)
    out = np.empty_like(image)
    getattr(_library(), kernel)(_at(image), _at(out), ctypes.c_long(count), *numbers)
    return out


def blend(image: Bytes, grey: int, factor: float) -> Bytes:
    """grey + factor * (image - grey), any number of channels."""
    return _map("blend", image, image.size, grey, ctypes.c_float(factor))


def saturation(image: Bytes, factor: float) -> Bytes:
    """luma + factor * (image - luma), three channels."""
    return _map("saturation", image, image.size // 3, ctypes.c_float(factor))


def hue(image: Bytes, shift: int) -> Bytes:
    """Hue moved by `shift` of 256 steps, three channels."""
    return _map("hue", image, image.size // 3, shift)


def mirror(image: Bytes) -> Bytes:
    """Left becomes right."""
    image = np.ascontiguousarray(image)
    out = np.empty_like(image)
    _library().mirror(_at(image), _at(out), *image.shape)
    return out


def luma_sum(image: Bytes) -> int:
    """Sum of the luma over all pixels, three channels."""
    image = np.ascontiguousarray(image)
    kernel = _library().luma_sum
    kernel.restype = ctypes.c_int64
    return int(kernel(_at(image), ctypes.c_long(image.size // 3)))


def normalise(image: Bytes, values: NDArray[np.float32], out: NDArray[np.float32]) -> None:
    """out (C, H, W) = values (C, 256) looked up at image (H, W, C)."""
    image, values = np.ascontiguousarray(image), np.ascontiguousarray(values)
    pixels = ctypes.c_long(image.shape[0] * image.shape[1])
    _library().normalise(_at(image), _at(out), pixels, image.shape[2], _at(values))


if __name__ == "__main__":
    raise SystemExit(main())
