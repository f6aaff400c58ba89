"""LiBai 0.1.1 on OneFlow 0.9.0, imported and repaired. Other files take LiBai from here.

Each repair says what it fixes and when it can go, and leaves a LiBai or OneFlow alone that does not need it.
"""

from __future__ import annotations

import sys
import warnings
from functools import wraps
from pathlib import Path
from types import ModuleType
from typing import Any

from triport.backends.oneflow.numerics import gelu, rows
from triport.backends.oneflow.runtime import F, Tensor, flow, muted, nn
from triport.core.errors import UserError


def installed_only() -> None:
    """Leave out checkouts of LiBai that stand ahead on PYTHONPATH of the LiBai of this environment.

    The layers here are those of 0.1.1; a checkout is newer, wants packages of its own, and its files are read where
    they lie.
    """
    having = [path for path in sys.path if (Path(path or ".") / "libai" / "__init__.py").is_file()]
    sys.path[:] = [path for path in sys.path if path not in having[:-1]]


installed_only()
try:
    with muted(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import libai.evaluation.utils as padding
        import libai.utils.distributed as dist
        from libai.config import LazyConfig
        from libai.data import data_utils
        from libai.engine import DefaultTrainer
        from libai.engine.hooks import PeriodicWriter
        from libai.engine.trainer import EagerTrainer, GraphTrainer, HookBase
        from libai.evaluation import ClsEvaluator, evaluator
        from libai.layers import LayerNorm, Linear, PatchEmbedding, TransformerLayer
        from libai.models import VisionTransformer
        from libai.models.utils import GraphBase
        from libai.utils.events import EventStorage, JSONWriter
except ModuleNotFoundError as error:
    raise UserError(
        f"LiBai cannot be imported ({error}): a C++ compiler and `triport setup oneflow` bring it."
    ) from None

__all__ = ["EagerTrainer", "EventStorage", "GraphTrainer", "HookBase", "JSONWriter", "LayerNorm", "LazyConfig"]
__all__ += ["Linear", "PatchEmbedding", "PeriodicWriter", "TransformerLayer", "VisionTransformer", "dist"]


def repair_layer_norm() -> None:
    """OneFlow's layer norms with an axis have no CPU kernel: they end the process (layer_norm_cpu_kernel.cpp).

    Can go when a OneFlow has the kernel. CUDA keeps its own, and so does a graph, in the form that has a kernel.
    """
    fused = flow._C.layer_norm_affine

    def layer_norm_affine(
        x: Tensor, weight: Tensor, bias: Tensor, begin_norm_axis: int, begin_params_axis: int, epsilon: float = 1e-5
    ) -> Tensor:
        on_cpu = (x.placement.type if x.is_global else x.device.type) == "cpu"
        if not on_cpu:
            return fused(x, weight, bias, begin_norm_axis, begin_params_axis, epsilon)
        if x.is_lazy or begin_norm_axis % x.ndim != x.ndim - 1:
            return F.layer_norm(x, tuple(x.shape[begin_norm_axis:]), weight, bias, epsilon)
        return local(x, lambda part: rows(part, epsilon)) * weight + bias

    flow._C.layer_norm_affine = layer_norm_affine


def local(x: Tensor, function: Any) -> Tensor:
    """Apply a function of rows or of single numbers to each process's part of a tensor; one without a part skips it."""
    if not x.is_global:
        return function(x)
    part = x.to_local()
    part = function(part) if part.numel() else part * 1.0
    return part.to_global(placement=x.placement, sbp=x.sbp)


class Gelu(nn.Module):
    """The exact GELU, quickly: `gelu` of numerics where it can be used."""

    def forward(self, x: Tensor) -> Tensor:
        """Same shape in and out."""
        return F.gelu(x) if x.is_lazy else local(x, gelu)


def repair_devices() -> None:
    """LiBai's trainer and evaluation name "cuda" where they mean the device in use (ttol, pad_batch).

    Can go with LiBai 0.2 (ttol), and where pad_batch takes its device from the batch.
    """
    if flow.cuda.is_available():
        return
    for module, names in ((dist, ("ttol",)), (padding, ("pad_batch",))):
        for name in names:
            setattr(module, name, _speaking_of_cpus(getattr(module, name)))
    evaluator.pad_batch = padding.pad_batch


def _speaking_of_cpus(function: Any) -> Any:
    """The function, with "cpu" where it says "cuda"."""
    code = function.__code__
    function.__code__ = code.replace(co_consts=tuple("cpu" if c == "cuda" else c for c in code.co_consts))
    return function


def repair_compiling() -> None:
    """LiBai's set-up runs `make` in the installed package, which has no Makefile, and ends the process.

    pip has built that extension already. Can go when the PyPI package holds its Makefile.
    """
    data_utils.compile_helper = lambda: None


def repair_stages() -> None:
    """GraphBase reads `block.origin` and `block.config`, which OneFlow 0.8 had: 0.9 asks for `block.to(...)`.

    Can go with a LiBai that knows both, as its main branch does.
    """

    def set_pipeline_stage_id(self: Any) -> None:
        for block in self.model.modules():
            layer = block.to(nn.Module)
            index = layer.layer_idx if isinstance(layer, (TransformerLayer, LayerNorm)) else None
            index = (
                0 if isinstance(layer, PatchEmbedding) else -1 if isinstance(layer, Linear) and index is None else index
            )
            if index is not None:
                stage, place = dist.get_dist_util().get_layer_stage_id(index), dist.get_layer_placement(index)
                block.to(nn.graph.GraphModule).set_stage(stage, place)

    GraphBase.set_pipeline_stage_id = set_pipeline_stage_id


def repair_data_rank() -> None:
    """With data and pipeline parallel, all ranks of a stage were told the same data rank and learnt the same images.

    Can go with LiBai 0.2, whose formula this is.
    """

    @wraps(dist.get_data_parallel_rank)
    def get_data_parallel_rank() -> int:
        mesh = dist.get_dist_util()
        return int(flow.env.get_rank() // mesh.tensor_parallel_size % mesh.data_parallel_size)

    dist.get_data_parallel_rank = get_data_parallel_rank


def repair_position() -> None:
    """DefaultTrainer works out how many samples a resumed run has had, and puts it where no data loader looks.

    So the run learns the first images again. Can go when it reaches cfg.dataloader.train.
    """
    build = DefaultTrainer.build_train_loader.__func__

    @wraps(build)
    def build_train_loader(cls: Any, config: Any, tokenizer: Any = None) -> Any:
        config.dataloader.train.consumed_samples = config.dataloader.consumed_samples
        return build(cls, config, tokenizer)

    DefaultTrainer.build_train_loader = classmethod(build_train_loader)


def repair_counting() -> None:
    """ClsEvaluator converts a share back into a number of images and cuts it off: 1 right of 3 counted as none.

    Can go when LiBai counts whole images.
    """
    process = ClsEvaluator.process

    @wraps(process)
    def rounded(self: Any, inputs: Any, outputs: Any) -> None:
        process(self, inputs, outputs)
        counts = self._predictions[-1]
        counts["num_correct_topk"] = [round(count) for count in counts["num_correct_topk"]]

    ClsEvaluator.process = rounded


def repair() -> None:
    """Make all repairs, once."""
    if not hasattr(flow, "triport_repaired_libai"):
        flow.triport_repaired_libai = True
        for apply in (
            repair_layer_norm,
            repair_devices,
            repair_compiling,
            repair_stages,
            repair_data_rank,
            repair_position,
            repair_counting,
        ):
            apply()


def version() -> str:
    """LiBai's version."""
    module: ModuleType = __import__("libai")
    return str(module.__version__)


repair()
