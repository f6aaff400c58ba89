"""torch.compile with a net: the first step's loss is compared with the one without it, and a failure leaves it out."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

Outputs = dict[str, Tensor]
BEGINS = "torch.compile prepares the training step, which takes up to some minutes; --no-compile does without it"
TOLERANCE = {"float32": 1e-3, "float64": 1e-6}  # of the loss, relative; 5e-2 of half precisions, which round otherwise


class Compiled:
    """Calls the compiled step, once it has given the loss of the plain one."""

    def __init__(
        self,
        plain: nn.Module,
        precision: str,
        agree: Callable[[bool], bool],
        say: Callable[[str], None],
        compiler: Callable[..., Any] = torch.compile,
    ) -> None:
        """`agree`: whether all processes say yes. `say`: shows a line to the user."""
        self.plain, self.agree, self.say = plain, agree, say
        self.tolerance = TOLERANCE.get(precision, 5e-2)
        self.chosen: Any = None
        self.compiler = compiler

    def __call__(self, **given: Tensor) -> Outputs:
        """The step's outputs."""
        return self.chosen(**given) if self.chosen is not None else self._first(given)

    def no_sync(self) -> Any:
        """Of the plain step: nothing is reduced in this context."""
        return self.plain.no_sync()  # type: ignore[operator]

    def _first(self, given: Mapping[str, Tensor]) -> Outputs:
        buffers = [(buffer, buffer.clone()) for buffer in self.plain.buffers()]

        def restore() -> None:
            with torch.no_grad():
                for buffer, before in buffers:
                    buffer.copy_(before)

        with torch.no_grad():
            expected = float(self.plain(**given)["loss"])
        restore()
        self.say(BEGINS)
        outputs, why = None, ""
        try:
            compiled = self.compiler(self.plain)
            outputs = compiled(**given)
            found = float(outputs["loss"].detach())
            if not math.isclose(found, expected, rel_tol=self.tolerance):
                why = f"its first loss is {found:.6g}, not {expected:.6g}"
        except Exception as error:  # whatever the compiler raises, the run goes on without it
            why = f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"
        if self.agree(not why) and outputs is not None:
            self.chosen = compiled
            return outputs
        self.say(f"torch.compile is left out: {why or 'it failed on another process'}; --no-compile saves the attempt")
        self.chosen = self.plain
        restore()
        return self.plain(**given)
