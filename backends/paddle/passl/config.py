"""What PASSL's YAML files say that only Paddle's backend can do: float16 with loss scaling."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from triport.backends.paddle import learner
from triport.backends.paddle.passl import learner as passl_learner
from triport.backends.paddle.runtime import paddle
from triport.core.backend.scaled import FIRST_SCALE
from triport.core.spec.foreign import hand_over


def half(reading: hand_over.Reading | None, words: Sequence[str]) -> Callable[..., Any]:
    """Return how the learner is made: in float16 with loss scaling where a file of PASSL wants it and there is a GPU.

    Says on rank 0 what becomes of the file's FP16.
    """
    level = reading.beside.get("level", "O0") if reading is not None and reading.project == "PASSL" else "O0"
    if reading is None or level == "O0":
        return learner.make
    make, line = chosen(level, words), ""
    if make is learner.make:
        given = any(word.startswith("--precision") for word in words)
        line = "--precision goes before it" if given else "Paddle computes in float32 on CPUs"
    else:
        line = "float16 with loss scaling, weights in float32; not tried on a GPU yet"
        first = reading.beside.get("first_scale")
        if first not in (None, FIRST_SCALE):
            line += f"; the scale begins at {FIRST_SCALE:g}, not at {first:g}"
    if hand_over.rank() == 0 and "--quiet" not in words:
        print(f"  FP16.level = {level}: {line}", flush=True)
    return make


def chosen(level: str, words: Sequence[str]) -> Callable[..., Any]:
    """Return how the learner is made at a level of PASSL's."""
    given = any(word.startswith("--precision") for word in words)
    cpu = bool({"cpu", "--device=cpu"} & set(words))
    plain = level == "O0" or given or cpu or not paddle.is_compiled_with_cuda()
    if plain:
        return learner.make
    return passl_learner.make_o2 if level == "O2" else passl_learner.make
