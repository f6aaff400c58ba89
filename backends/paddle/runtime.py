"""Paddle, imported quietly and with all cores; every file of this backend takes it from here."""

from __future__ import annotations

import contextlib
import io
import os
import sys
import warnings
from collections.abc import Iterator

from triport.core.data.worker_count import local_processes, usable_cores
from triport.core.machine import amd_with_avx2, die_with_parent, retain_freed_memory

__all__ = ["F", "Tensor", "dist", "muted", "nn", "paddle"]

WORLD = int(os.environ.get("PADDLE_TRAINERS_NUM", 1))
REMARKS = ("OMP_NUM_THREADS", "PLEASE USE OMP", "Modified FLAGS", "FLAGS(name=", "=" * 20)  # said to everyone


def prepare() -> None:
    """Set what Paddle and its libraries read from the environment while they load, where the user did not."""
    wanted = {
        "OMP_NUM_THREADS": str(max(1, usable_cores() // local_processes(WORLD))),  # Paddle would make it 1
        "GLOG_minloglevel": "2",
        "NVIDIA_TF32_OVERRIDE": "0",  # float32 means float32
    }
    if amd_with_avx2():
        # Its math library takes a slow path there by itself. 7 is faster again where there is AVX-512, but rounds
        # otherwise than PyTorch's, which is enough to miss the goldens behind batch norms.
        wanted["MKL_DEBUG_CPU_TYPE"] = "5"
    os.environ.update({name: value for name, value in wanted.items() if name not in os.environ})


def end_with_launcher() -> None:
    """Ask Linux to end this process when its launcher ends; Paddle's own leaves its workers running when killed."""
    die_with_parent()


@contextlib.contextmanager
def muted() -> Iterator[None]:
    """Within, Paddle's remarks on standard error are dropped; everything else is printed at the end."""
    output = io.StringIO()
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(output):
            warnings.filterwarnings("ignore", message="No ccache found")
            yield
    finally:
        for line in output.getvalue().splitlines():
            if not any(remark in line for remark in REMARKS):
                print(line, file=sys.stderr)


if WORLD > 1 and sys.platform == "linux":
    end_with_launcher()
if "paddle" not in sys.modules:
    prepare()
    retain_freed_memory()  # Paddle gives it back after each operation, and would wait for fresh pages
with muted():
    import paddle
    import paddle.distributed as dist
    import paddle.nn.functional as F
    from paddle import Tensor, nn
