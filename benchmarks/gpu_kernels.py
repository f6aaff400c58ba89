"""What one card can do and what it does in a step: its best product rate, the kernels of a step by time."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from triport.core.backend.learner import settled
from triport.core.model.schedule import Values


def kernels(made: Any, batches: Iterator[list[Any]], steps: int = 3) -> dict[str, Any]:
    """What the device does in a step: milliseconds by kernel, the longest first, and the share of time it is busy."""
    staged = iter(made.learner.ahead(itertools.islice(batches, steps + 2)))
    for _ in range(2):
        settled(made.learner.step(next(staged), Values(1e-5, 0.99)))
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        begun = time.perf_counter()
        for given in staged:
            made.learner.step(given, Values(1e-5, 0.99))
        torch.cuda.synchronize()
        seconds = time.perf_counter() - begun
    spent = {
        event.key: event.self_device_time_total / 1e3 / steps
        for event in seen.key_averages()
        if not event.key.startswith("Memcpy HtoD")  # on a stream of its own, beside the kernels
    }
    longest = sorted(spent.items(), key=lambda item: -item[1])
    return {
        "busy": sum(spent.values()) * steps / 1e3 / seconds, "ms": 1e3 * seconds / steps,
        "longest": {name[:90]: round(ms, 3) for name, ms in longest[:30]},
    }  # fmt: skip


def measured_peak(device: str, precision: str) -> float:
    """The best matrix-product rate that this card shows."""
    dtype = {"bfloat16": torch.bfloat16, "float16": torch.float16}.get(precision, torch.float32)
    size = 8192 if device != "cpu" else 512
    a, b = (torch.randn(size, size, dtype=dtype, device=device) for _ in range(2))
    best = 0.0
    for _ in range(6):
        begin = time.perf_counter()
        for _ in range(4):
            a @ b
        if device != "cpu":
            torch.cuda.synchronize()
        best = max(best, 4 * 2 * size**3 / (time.perf_counter() - begin))
    return best
