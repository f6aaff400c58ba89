"""Fine-tuning, probing and evaluating with data, tensor and pipeline degrees, on LiBai's layers.

python -m oneflow.distributed.launch --nproc_per_node 4 -m triport.backends.oneflow.libai.finetune RECIPE --weights FILE
    --data-parallel 2 --tensor-parallel 2 ...
"""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from triport.backends.oneflow.libai import mesh as libai_mesh
from triport.backends.oneflow.libai import options as libai_options
from triport.backends.oneflow.runtime import leave
from triport.core.errors import UserError
from triport.core.options import Task, parse
from triport.core.run import run
from triport.core.spec import Recipe

if TYPE_CHECKING:
    from triport.backends.oneflow.libai.learner import Learner

TASKS: dict[str, Callable[..., int]] = {"linear": run.linear, "finetune": run.finetune, "evaluate": run.evaluate}


@dataclass
class Parts:
    """What triport.core.run.run asks of a backend, for a mesh of given degrees."""

    options: Namespace
    quiet: bool
    trains: bool
    learners: list[Learner] = field(default_factory=list)

    def start(self, device: str) -> libai_mesh.Mesh:
        """Join the processes of the launcher into the mesh."""
        return libai_mesh.start(device, libai_options.degrees(self.options))

    def make(self, recipe: Recipe, arrays: Mapping[str, np.ndarray], **how: Any) -> Learner:
        """Return the learner; importing LiBai takes seconds and may fail, so that is left to here."""
        from triport.backends.oneflow.libai import learner as libai_learner
        from triport.backends.oneflow.libai import repairs as libai_repairs

        mesh: libai_mesh.Mesh = how["processes"]
        self.learners.append(libai_learner.make(recipe, arrays, graph=self.options.graph, **how))
        if self.options.libai_out and self.trains:
            self.learners[-1].leave_libai(Path(self.options.libai_out), self.options.libai_every)
        if mesh.rank == 0 and not self.quiet:
            ways = f"data {mesh.degrees.data} x tensor {mesh.degrees.tensor} x pipeline {mesh.degrees.pipeline}"
            mode = "compiled (nn.Graph)" if self.options.graph else "eager"
            print(f"a model in parts: {ways}, {mode}, on the layers of LiBai {libai_repairs.version()}", flush=True)
            rest = self.options.given.rest()
            if rest:
                print(f"not taken from {self.options.given.path}, where the recipe decides: {rest}", flush=True)
        return self.learners[-1]


def main(argv: Sequence[str] | None = None, task: str | None = None) -> int:
    """Run the command line and return its exit code. task: "linear", "finetune" or "evaluate"; else the recipe's."""
    given = sys.argv[1:] if argv is None else list(argv)
    if "-h" in given or "--help" in given:
        print(libai_options.parser().format_help().strip(), end="\n\n", flush=True)
    try:
        options, words = libai_options.settle(given)
        chosen = "evaluate" if options.eval_only else task or libai_options.task(words)
        if chosen not in TASKS:
            raise UserError(
                "LiBai's layers fine-tune, probe and evaluate; pretraining is data parallel: --processes N, or "
                "--compile for --graph on one process."
            )
        if "-h" not in words and "--help" not in words:
            libai_options.check(options, parse(cast(Task, chosen), words))
    except UserError as error:
        print(f"triport: error: {error}", file=sys.stderr, flush=True)
        return 2
    parts = Parts(options, "--quiet" in words, chosen != "evaluate")
    code = TASKS[chosen](words, backend=run.Backend("oneflow", parts.start, parts.make))
    if code == 0 and options.libai_out and chosen != "evaluate":
        parts.learners[-1].write_libai(Path(options.libai_out))
    return code


if __name__ == "__main__":
    leave(main())
