"""What the training loop drives, on PyTorch."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from triport.backends.torch import build, memory, optim, report, sharding, shared_gradients
from triport.backends.torch.classify import classification_loss
from triport.backends.torch.compiled import Compiled
from triport.backends.torch.distributed import Processes
from triport.backends.torch.feed import CudaTransfer, Feed, Staged, mask, normalised
from triport.backends.torch.layers import Block
from triport.backends.torch.scaling import Scaling
from triport.backends.torch.tensors import Tensors
from triport.core.backend import objectives
from triport.core.backend.base_learner import BaseLearner
from triport.core.data.batches import Batch
from triport.core.errors import UserError
from triport.core.model import masking
from triport.core.model.schedule import Values
from triport.core.record.console import show
from triport.core.spec import MAE, Recipe, ResNet

HALVES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


class Learner(BaseLearner):
    """A model, its optimizer and its recipe on one process among several."""

    loss = staticmethod(classification_loss)
    own_options = frozenset({"checkpoint_activations", "shard"})

    def __init__(
        self,
        recipe: Recipe,
        arrays: Mapping[str, np.ndarray],
        processes: Processes,
        precision: str = "float32",
        compile: bool | None = False,
        checkpoint_activations: bool = False,
        shard: bool = False,
    ) -> None:
        self.precision, device = precision, processes.device
        if precision == "float64" and device.type == "mps":
            raise UserError("device 'mps' has no float64: take --device cpu, or another --precision")
        if compile and device.type == "cpu":
            raise UserError("--compile is for GPUs: on CPUs PyTorch's compiler gave wrong numbers. Leave it out.")
        if shard:
            sharding.check(recipe.model, processes.world, compile)
        model = build.build(recipe.model, arrays, precision)
        model = model if shard else model.to(device)  # a divided one goes there part by part
        encoder = recipe.model.encoder
        self.maps = isinstance(encoder, ResNet) or encoder.stem == "conv"  # channels-last is for convolutions
        if self.maps and not shard:
            model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if checkpoint_activations:
            memory.recompute([module for module in model.modules() if isinstance(module, Block)])
        self.shards: sharding.Shards | None = None
        if shard:
            sharding.divide(model, processes)
            self.shards = sharding.Shards(recipe.model, processes, precision, model)
        tensors = self.shards or Tensors(recipe.model, device, precision)
        super().__init__(recipe, model, tensors, processes, optim.RULES)
        self.divided = shard
        self.scaling = Scaling(device) if precision == "float16" else None
        cuda = device.type == "cuda"
        self.late = cuda or self.scaling is not None
        self.compile = cuda and not shard if compile is None else compile
        self.feed = Feed(CudaTransfer(device), self._staged_arrays) if cuda else None
        self.run: Any = None
        self.on_one_machine = processes.peers  # sockets among them, where all compute on its CPUs
        self.shared: shared_gradients.SharedGradients | None = None
        self.takes_bytes = self.feed is not None and recipe.task == "pretrain"

    # ------------------------------------------------------------ on its way to the device
    def ahead(self, steps: Iterable[Sequence[Batch]]) -> Iterable[Sequence[Any]]:
        """Staged one step ahead on a device with memory of its own."""
        return steps if self.feed is None else self.feed.ahead(steps)

    def _staged_arrays(self, batch: Batch) -> dict[str, np.ndarray]:
        """What goes to the device as it is: bytes of images, and noise whose order is found there."""
        if isinstance(self.recipe.model.objective, MAE):
            assert batch.mask_noise is not None
            given = {"images": batch.images[0], "noise": self.tensors.typed(batch.mask_noise)}
        else:
            given = objectives.inputs(self.recipe.model, batch)
        given = {n: a if a.dtype == np.uint8 else self.tensors.typed(a) for n, a in given.items()}
        return given if batch.table is None else {**given, "table": batch.table}

    def inputs(self, batch: Any) -> dict[str, Tensor]:
        """A batch as the tensors that `forward` takes."""
        if not isinstance(batch, Staged):
            given = super().inputs(batch) if batch.table is None else self._whole(batch)
        else:
            assert self.feed is not None
            given = self.feed.take(batch)
        return self._prepared(given)

    def _whole(self, batch: Batch) -> dict[str, Tensor]:
        arrays = self._staged_arrays(batch)
        return {name: torch.from_numpy(array).to(self.device) for name, array in arrays.items()}

    def _prepared(self, given: dict[str, Tensor]) -> dict[str, Tensor]:
        """What is left to do on the device: normalise bytes, sort noise."""
        table, noise = given.pop("table", None), given.pop("noise", None)
        for name in [name for name, value in given.items() if value.dtype == torch.uint8]:
            assert table is not None
            images = normalised(given[name], table)
            given[name] = (images if self.maps else images.contiguous()).to(
                torch.float64 if self.precision == "float64" else torch.float32
            )
        if noise is not None:
            objective = self.recipe.model.objective
            assert isinstance(objective, MAE)
            given |= mask(noise, masking.visible_patches(noise.shape[1], objective.mask_ratio))
        return given

    # ------------------------------------------------------------ the step
    def forward(self, **given: Tensor) -> dict[str, Tensor]:
        """As one module, so that it can be wrapped and compiled."""
        return self.run(**given)

    def learn(self, given: Mapping[str, Tensor], count: int, last: bool) -> dict[str, Tensor]:
        """Gradients are averaged over the processes with the last micro-batch's backward pass."""
        if self.run is None:
            self.run = self._wrapped(count)
        if self.shards is not None:  # every backward pass adds to the divided gradients: whole ones have no place
            outputs = super().learn(given, count, last)
            if last:
                self.shards.take_gradients(self.trained)
            return outputs
        with self._reduced(last):
            return super().learn(given, count, last)

    def _reduced(self, last: bool) -> AbstractContextManager[Any]:
        """The context of a backward pass, whose gradients are averaged if it is the last of a step."""
        if self.shared is not None:
            return self.shared.averaged() if last else nullcontext()
        return nullcontext() if last or self.processes.world == 1 else self.run.no_sync()

    def _wrapped(self, micro: int) -> Any:
        """The step as one module, among processes, compiled."""
        run: nn.Module = _Step(self.model, super().forward)
        together = self.processes.world > 1 and self.shards is None
        if together and self.on_one_machine is not None:
            in_place = self.recipe.optimizer.clip_norm is not None or self.scaling is not None
            parameters = list(self.trained.values())
            self.shared = shared_gradients.share(parameters, self.on_one_machine, in_place)
        if together and self.shared is None:
            run = DistributedDataParallel(
                run,
                device_ids=[self.device.index] if self.device.type == "cuda" else None,
                forward_sync_buffers=False,
                gradient_as_bucket_view=True,
                static_graph=micro == 1,  # with more, not every backward pass is reduced
            )
        if not self.compile:
            return run
        say = (lambda text: show(f"triport: {text}", sys.stderr)) if self.processes.rank == 0 else (lambda text: None)
        return Compiled(run, self.precision, self._all, say)

    def _all(self, well: bool) -> bool:
        return bool(self.processes.reduce(torch.tensor(float(not well), device=self.device)) == 0)

    def backward(self, loss: Tensor) -> None:
        """Of a loss that is made large in float16."""
        super().backward(loss if self.scaling is None else loss * self.scaling.scale)

    def average_gradients(self, gradients: Mapping[str, Tensor]) -> None:
        """It is done: with the backward pass, or by fully_shard."""

    @torch.no_grad()
    def update(self, total: Tensor, values: Values, flags: Sequence[int] = ()) -> Any:
        """Where a GPU computes, nothing here waits for it: it decides itself whether all is finite."""
        if not self.late:
            return super().update(total, values, flags)
        gradients = {name: p.grad for name, p in self.trained.items() if p.grad is not None}
        if self.scaling is not None:
            self.scaling.unscale(list(gradients.values()))
        each = self.tensors.norms(list(gradients.values()))
        norm = torch.linalg.vector_norm(each)
        own = torch.cat([total.to(norm.dtype).reshape(1), self._flags(flags).to(norm.dtype)])
        ranks = self.processes.gather_rows(own.unsqueeze(0))
        finite = torch.isfinite(ranks[:, 0].sum()) & torch.isfinite(norm)
        skip = self.optimizer.skip = (~finite).float()
        if self.recipe.optimizer.clip_norm is not None:
            self.tensors.clip(list(self.trained.values()), norm, self.recipe.optimizer.clip_norm)
        self.optimizer.step(values.lr)
        if self.averages:
            pace = 1.0 - (self.recipe.optimizer.average or 0.0)
            for slow, fast in zip(self.averages.values(), self.trained.values()):
                slow.lerp_(fast, (1.0 - skip.to(slow.dtype)) * pace)  # a skipped step moves no average either
        scale = torch.ones_like(norm)
        if self.scaling is not None:
            scale = self.scaling.scale.clone()
            self.scaling.update((~torch.isfinite(norm)).float())
        nothing = norm.new_full((), float("nan"))
        place = list(gradients).index(self.first_layer) if self.first_layer in gradients else None
        first = norm.new_zeros(()) if place is None else each[place]
        views = self.outputs.get("q1")
        apart = nothing if views is None else report.spread(views)
        head = torch.stack([number.to(norm.dtype) for number in (norm, first, apart, skip, scale)])
        numbers = torch.cat([ranks.flatten(), head, each])
        host, done = report.send(numbers)
        scaled = self.scaling is not None
        return report.Report(host, done, list(gradients), len(flags), self.processes.world, scaled)

    def _flags(self, flags: Sequence[int]) -> Tensor:
        """On the device; none is set but once in a run, and zeros need no copy."""
        if not any(flags):
            return torch.zeros(len(flags), device=self.device)
        return torch.tensor(flags, dtype=torch.float32).to(self.device)

    @contextmanager
    def whole(self) -> Iterator[None]:
        """With a whole model for the evaluation, of averaged weights where there are any; the keys' encoder apart."""
        if self.shards is None:
            yield
            return
        trained, tensors = self.model, self.shards
        state = {**trained.state_dict(), **self.averages}
        with torch.device("meta"):
            self.model = build.structure(self.recipe.model)
        gathered = {n: tensors.whole(n, x) for n, x in state.items() if not n.startswith("momentum_encoder.")}
        self.model.load_state_dict(gathered, strict=False, assign=True)
        try:
            yield
        finally:
            self.model = trained

    def _swap(self) -> None:
        if self.shards is None:
            super()._swap()

    def autocast(self) -> AbstractContextManager[Any]:
        """Half precision where it is asked for."""
        half = HALVES.get(self.precision)
        # casts that autocast remembers would be a whole model where each process has a part of one
        remembers = self.shards is None
        return torch.autocast(self.device.type, dtype=half, enabled=half is not None, cache_enabled=remembers)

    def optimizer_arrays(self) -> dict[str, np.ndarray]:
        """The optimizer's state and, in float16, the scale of the loss."""
        state = super().optimizer_arrays()
        return state if self.scaling is None else {**state, **self.scaling.arrays()}

    def load(self, arrays: Mapping[str, np.ndarray], optimizer_arrays: Mapping[str, np.ndarray] | None) -> None:
        """Take over a checkpoint."""
        super().load(arrays, optimizer_arrays)
        if self.scaling is not None and optimizer_arrays is not None:
            self.scaling.load(optimizer_arrays)

    def inference(self) -> AbstractContextManager[Any]:
        """Nothing is recorded."""
        return torch.inference_mode()

    def device_memory(self) -> int:
        """Of a CUDA device."""
        return torch.cuda.max_memory_allocated(self.device) if self.device.type == "cuda" else 0


class _Step(nn.Module):
    """Inputs -> loss and outputs, as one module."""

    def __init__(self, model: nn.Module, function: Callable[..., dict[str, Tensor]]) -> None:
        super().__init__()
        self.model, self.function = model, function

    def forward(self, **given: Tensor) -> dict[str, Tensor]:
        """See triport.core.backend.objectives."""
        return self.function(**given)


make = Learner.make
