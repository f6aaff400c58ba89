"""Processes in a mesh of data x tensor x pipeline degrees that share one model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from triport.backends.oneflow import distributed
from triport.backends.oneflow.runtime import Tensor, flow
from triport.core.errors import UserError
from triport.core.spec import Recipe, ViT

WAIT = 0  # what a process does that has nothing of its own to ask for


@dataclass(frozen=True)
class Degrees:
    """How many ways data, single layers and the row of layers are split."""

    data: int = 1
    tensor: int = 1
    pipeline: int = 1

    @property
    def world(self) -> int:
        """Processes of the mesh."""
        return self.data * self.tensor * self.pipeline

    def check(self, recipe: Recipe) -> None:
        """Raise UserError where a model cannot be split so."""
        encoder = recipe.model.encoder
        if not isinstance(encoder, ViT) or encoder.stem != "patch":
            raise UserError(f"LiBai has layers of plain ViTs alone, not the encoder of {recipe.name}.")
        for word, degree, whole, what in (
            ("tensor", self.tensor, encoder.heads, "heads"),
            ("tensor", self.tensor, int(encoder.width * encoder.mlp_ratio), "hidden units"),
            ("pipeline", self.pipeline, encoder.depth, "blocks"),
        ):
            if whole % degree:
                raise UserError(f"--{word}-parallel {degree} does not divide the {whole} {what} of {recipe.name}.")


class Mesh(distributed.Processes):
    """This process among its peers. What one of them asks of the model, all of them compute.

    A process that waits for the others (in `gather` or `barrier`) therefore takes part in what they ask until all
    wait: `joins` says how. So each may evaluate another number of batches, and the first alone may ask for arrays.
    """

    def __init__(self, rank: int, world: int, device: flow.device, degrees: Degrees) -> None:
        super().__init__(rank, world, device)
        self.degrees = degrees
        self.joins: dict[int, Callable[[list[int]], object]] = {}

    def barrier(self, tag: str) -> None:
        """Wait for all processes."""
        self._wait()

    def gather(self, array: np.ndarray) -> np.ndarray:
        """Return the rows of all processes in rank order; each may bring another number of rows."""
        self._wait()
        return super().gather(array)

    def ask(self, what: int, rows: int = 0) -> list[int]:
        """Tell the others what to compute; returns how many rows each process brings to it."""
        while True:
            asked, every = self._agree(what, rows)
            if asked == what:
                return every
            self.joins[asked](every)

    def _wait(self) -> None:
        while self.world > 1:
            asked, every = self._agree(WAIT, 0)
            if asked == WAIT:
                return
            self.joins[asked](every)

    def _agree(self, what: int, rows: int) -> tuple[int, list[int]]:
        """Return what all processes compute now, the first of what they ask for, and how many rows each brings."""
        message = flow.tensor([[what, rows]], dtype=flow.int64, device=self.device)
        every = self.gather_rows(message).numpy().tolist()
        asked = min((wanted for wanted, _ in every if wanted != WAIT), default=WAIT)
        return asked, [own if wanted == asked else 0 for wanted, own in every]

    # ------------------------------------------------------------ global tensors
    @property
    def data_rank(self) -> int:
        """Which part of a batch this process's replica of the model gets."""
        return self.rank % (self.degrees.data * self.degrees.tensor) // self.degrees.tensor

    def place(self, rows: Tensor, layer: int) -> Tensor:
        """Rows that every process has, (n, ...), as a global tensor split over data, where a layer is."""
        from triport.backends.oneflow.libai.repairs import dist

        own = rows.chunk(self.degrees.data)[self.data_rank].contiguous()
        return own.to_global(placement=dist.get_layer_placement(layer), sbp=dist.get_hidden_sbp())

    @staticmethod
    def split(array: np.ndarray, like: Tensor) -> Tensor:
        """An array that every process has, placed and split as the global tensor `like`."""
        whole = [flow.sbp.broadcast] * len(like.sbp)
        return flow.from_numpy(array).to_global(placement=like.placement, sbp=whole).to_global(sbp=like.sbp)


def start(device: str, degrees: Degrees) -> Mesh:
    """Join the processes that the launcher's environment describes into a mesh."""
    alone = distributed.start(device)
    alone.leave_peers()  # a mesh averages over some of the processes
    if alone.world != degrees.world:
        raise UserError(
            f"{degrees.data} x {degrees.tensor} x {degrees.pipeline} (data, tensor, pipeline) make {degrees.world} "
            f"processes, started were {alone.world}: --processes {degrees.world}, or other degrees."
        )
    if alone.device.type == "cpu" and flow.cuda.is_available():
        raise UserError("LiBai takes a GPU where there is one: hide it with CUDA_VISIBLE_DEVICES= to use the CPU.")
    return Mesh(alone.rank, alone.world, alone.device, degrees)


def set_up(degrees: Degrees, depth: int) -> None:
    """Tell LiBai of the mesh."""
    from omegaconf import DictConfig

    from triport.backends.oneflow.libai.repairs import dist

    sizes = {
        "data_parallel_size": degrees.data,
        "tensor_parallel_size": degrees.tensor,
        "pipeline_parallel_size": degrees.pipeline,
    }
    dist.setup_dist_util(DictConfig({**sizes, "pipeline_num_layers": depth}))
