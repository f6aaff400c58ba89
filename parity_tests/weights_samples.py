"""Small trees, files and helpers that the tests of weights' files share."""

from __future__ import annotations

import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from weights.arrays import DTYPES, Lazy, Tree, lazy, leaves

CASES = Path(__file__).with_name("weights_cases")
FORMS = {
    "torch": "x.pth", "paddle": "x.pdparams", "oneflow": "x", "oneflow-file": "x.oneflow.pkl", "libai": "run",
    "safetensors": "x.safetensors", "npz": "x.npz",
}  # fmt: skip


def array(dtype: str, shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """Random bits of a dtype: also NaN, infinities and denormal numbers."""
    kind = DTYPES[dtype]
    generator = np.random.default_rng(seed)
    if dtype == "bool":
        return generator.integers(0, 2, shape).astype(bool)
    count = int(np.prod(shape, dtype=int)) * kind.itemsize
    return generator.integers(0, 256, count, dtype=np.uint8).view(kind).reshape(shape)


def tensors(*dtypes: str) -> dict[str, Lazy]:
    """One array of each dtype, and shapes that are easily got wrong."""
    made = {f"a.{dtype}": lazy(array(dtype, (2, 3, 4))) for dtype in dtypes}
    made |= {"zero_d": lazy(np.float32(3.5)), "empty": lazy(np.zeros((0, 3), np.float32))}
    made |= {"none": lazy(np.zeros((2, 0), np.int64)), "transposed": lazy(np.arange(12.0).reshape(3, 4).T)}
    return made


def same(got: Any, wanted: Any) -> None:
    """The two trees hold the same values, and arrays of the same shape, dtype and bits."""
    if isinstance(wanted, Lazy):
        assert isinstance(got, Lazy), got
        one, two = got.read(), wanted.read()
        assert (got.shape, got.dtype, one.shape, one.dtype) == (wanted.shape, wanted.dtype, two.shape, two.dtype)
        assert one.flags.c_contiguous and one.flags.aligned
        assert one.tobytes() == two.tobytes()
    elif isinstance(wanted, dict):
        assert isinstance(got, dict) and list(got) == list(wanted)
        for key in wanted:
            same(got[key], wanted[key])
    elif isinstance(wanted, (list, tuple)):
        assert type(got) is type(wanted) and len(got) == len(wanted)
        for one, two in zip(got, wanted, strict=True):
            same(one, two)
    else:
        assert type(got) is type(wanted) and (got == wanted or got != got)


def read_all(tree: Tree) -> int:
    """Read every array; return the bytes."""
    return sum(leaf.read().nbytes for leaf in leaves(tree))


@contextmanager
def bounded(memory: int = 1 << 30, seconds: int = 60) -> Iterator[None]:
    """Within the block no more than `memory` further bytes can be had, and a hang becomes a failure."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)

    def late(*_: object) -> None:
        raise AssertionError(f"took more than {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    resource.setrlimit(resource.RLIMIT_AS, (used + memory, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
