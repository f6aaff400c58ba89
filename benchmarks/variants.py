"""The variants of a training step that are compared, each with `step(batch, values) -> loss`.

ours       triport's learner
original   the authors' model and update as their training scripts run them, from a folder with their code
modern     the same with fused AdamW, an in-place momentum update, fused attention in float32, channels-last maps
textbook   triport's model with plain operations: whole score matrices, one view and one tensor at a time
fused      the textbook with fused AdamW
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import timm_stand_in
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from triport.backends.torch import build, distributed, layers, learner
from triport.core.backend.learner import settled
from triport.core.data.loader import Batch
from triport.core.model import masking
from triport.core.model.groups import groups
from triport.core.model.inventory import inventory
from triport.core.model.schedule import Values
from triport.core.spec import MAE, Recipe, ResNet, ViT

VARIANTS = ("ours", "original", "modern", "textbook", "fused")


def make(variant: str, recipe: Recipe, arrays: Mapping[str, np.ndarray], places: SimpleNamespace) -> Any:
    """A variant of a recipe's step. places: device, precision, compile, moco and mae (folders or None)."""
    processes = distributed.start(places.device)
    if variant == "ours":
        return Ours(recipe, arrays, processes, places)
    if variant in ("original", "modern"):
        return Original(recipe, arrays, processes, places, modern=variant == "modern")
    return Textbook(recipe, arrays, processes, places, fused=variant == "fused")


class Ours:
    """What a run does."""

    def __init__(self, recipe: Recipe, arrays: Mapping[str, np.ndarray], processes: Any, places: SimpleNamespace):
        self.learner = learner.make(
            recipe, arrays, processes=processes, precision=places.precision, compile=places.compile
        )

    def step(self, batch: Batch, values: Values) -> float:
        """One training step; returns the loss."""
        return float(settled(self.learner.step([batch], values)).loss)


class Plain:
    """What the other variants share: autocast, inputs, backward pass, update."""

    def __init__(self, recipe: Recipe, processes: Any, places: SimpleNamespace) -> None:
        self.recipe, self.processes, self.device = recipe, processes, processes.device
        self.dtype = {"bfloat16": torch.bfloat16, "float16": torch.float16}.get(places.precision)
        self.format, self.pinned = torch.contiguous_format, dict[int, tuple[Any, Tensor]]()
        self.model: Any
        self.optimizer: Any

    def wrapped(self) -> Any:
        """The model, with gradients averaged over the processes."""
        return DistributedDataParallel(self.model) if self.processes.world > 1 else self.model

    def views(self, batch: Batch) -> list[Tensor]:
        """The batch's images on the device."""
        if self.device.type != "cuda":
            return [torch.from_numpy(v).contiguous(memory_format=self.format) for v in batch.images]
        for view in batch.images:  # their loaders pin; the same few batches come again and again
            if id(view) not in self.pinned:
                self.pinned[id(view)] = view, torch.from_numpy(view).pin_memory()
        views = [self.pinned[id(view)][1].to(self.device, non_blocking=True) for view in batch.images]
        return [view.contiguous(memory_format=self.format) for view in views]

    def step(self, batch: Batch, values: Values) -> float:
        """One training step; returns the loss."""
        for group in self.optimizer.param_groups:
            group["lr"] = values.lr
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not None):
            loss = self.loss(batch, values)
        self.optimizer.zero_grad()
        loss.backward()
        if isinstance(self.recipe.model.objective, MAE):  # their script logs it
            gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
            torch.norm(torch.stack([torch.norm(gradient) for gradient in gradients]))
        self.optimizer.step()
        return float(loss.detach())

    def loss(self, batch: Batch, values: Values) -> Tensor:
        """The forward pass."""
        raise NotImplementedError


# ---------------------------------------------------------------- the original code
class Original(Plain):
    """The authors' model, loss and optimizer."""

    def __init__(
        self,
        recipe: Recipe,
        arrays: Mapping[str, np.ndarray],
        processes: Any,
        places: SimpleNamespace,
        modern: bool,
    ) -> None:
        super().__init__(recipe, processes, places)
        timm_stand_in.FUSED_ATTENTION = modern
        timm_stand_in.install()
        mae = isinstance(recipe.model.objective, MAE)
        folder = places.mae if mae else places.moco
        if not folder:
            raise SystemExit("name the folder of the original code: --mae and --moco")
        sys.path.insert(0, str(Path(folder).resolve()))
        self.model = _mae(recipe) if mae else _moco(recipe)
        own = self.model.state_dict()
        self.model.load_state_dict({n: torch.from_numpy(np.array(arrays[n])).reshape(own[n].shape) for n in own})
        self.model.to(self.device)
        if modern and isinstance(recipe.model.encoder, ResNet):
            self.format = torch.channels_last
            self.model.to(memory_format=torch.channels_last)
        if modern and not mae:
            self.model._update_momentum_encoder = self._follow
        self.optimizer = self._optimizer(modern)
        self.network = self.wrapped()

    def _optimizer(self, modern: bool) -> Any:
        spec, model = self.recipe.optimizer, self.model
        if spec.kind == "lars":
            from moco.optimizer import LARS  # theirs

            return LARS(model.parameters(), spec.lr, weight_decay=spec.weight_decay, momentum=spec.momentum)
        given: Any = model.parameters()
        if isinstance(self.recipe.model.objective, MAE):  # timm's add_weight_decay
            trained = [p for p in model.parameters() if p.requires_grad]
            given = [
                {"params": [p for p in trained if p.dim() == 1], "weight_decay": 0.0},
                {"params": [p for p in trained if p.dim() > 1], "weight_decay": spec.weight_decay},
            ]
        chosen = {"fused": True} if modern else {}
        return torch.optim.AdamW(given, betas=spec.betas, weight_decay=spec.weight_decay, **chosen)

    @torch.no_grad()
    def _follow(self, momentum: float) -> None:
        pairs = zip(self.model.base_encoder.parameters(), self.model.momentum_encoder.parameters())
        for fast, slow in pairs:
            slow.mul_(momentum).add_(fast, alpha=1 - momentum)

    def loss(self, batch: Batch, values: Values) -> Tensor:
        """As their training loops call it."""
        views = self.views(batch)
        with _here(self.device, self.processes):
            if batch.mask_noise is None:
                return self.network(*views, values.momentum)
            noise = torch.from_numpy(batch.mask_noise).to(self.device)
            with mock.patch.object(torch, "rand", lambda *_, **__: noise):
                return self.network(*views)[0]


def _moco(recipe: Recipe) -> nn.Module:
    from moco import builder  # theirs

    encoder, objective = recipe.model.encoder, recipe.model.objective
    given = objective.dim, objective.hidden, objective.temperature  # type: ignore[union-attr]
    if isinstance(encoder, ResNet):
        return builder.MoCo_ResNet(partial(timm_stand_in.resnet50(), zero_init_residual=True), *given)
    import vits  # theirs

    stem = "conv_" if encoder.stem == "conv" else ""
    named = getattr(vits, f"vit_{stem}{ {384: 'small', 768: 'base'}[encoder.width] }")
    return builder.MoCo_ViT(partial(named, stop_grad_conv1=encoder.stem == "patch"), *given)


def _mae(recipe: Recipe) -> nn.Module:
    np.float = float  # type: ignore[attr-defined]  # their position table names it
    import models_mae  # theirs

    encoder, objective = recipe.model.encoder, recipe.model.objective
    assert isinstance(encoder, ViT) and isinstance(objective, MAE)
    size = {768: "base_patch16", 1024: "large_patch16", 1280: "huge_patch14"}[encoder.width]
    return getattr(models_mae, f"mae_vit_{size}")(norm_pix_loss=objective.normalised_pixels)


@contextmanager
def _here(device: torch.device, processes: Any) -> Iterator[None]:
    """Within, `.cuda()` is this device, and one process needs no group: their loss asks for both."""
    with mock.patch.object(Tensor, "cuda", lambda self, *_: self.to(device)):
        if processes.world > 1:
            yield
            return
        with (
            mock.patch("torch.distributed.get_rank", lambda: 0),
            mock.patch("torch.distributed.get_world_size", lambda: 1),
            mock.patch("torch.distributed.all_gather", lambda every, own, **_: every[0].copy_(own)),
        ):
            yield


# ---------------------------------------------------------------- the textbook
class PlainAttention(layers.Attention):
    """Softmax of the whole score matrix, every token's row."""

    def forward(self, x: Tensor, token_only: bool = False) -> Tensor:
        """(n, tokens, width) -> the same."""
        n, tokens, width = x.shape
        q, k, v = self.qkv(x).reshape(n, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        scores = (q @ k.transpose(-2, -1)) * (width // self.heads) ** -0.5
        return self.proj((scores.softmax(dim=-1) @ v).transpose(1, 2).reshape(n, tokens, width))


class PlainBlock(layers.Block):
    """Every token goes through, also where only one is used later."""

    def forward(self, x: Tensor, draws: Tensor | None = None, token_only: bool = False) -> Tensor:
        """(n, tokens, width) -> the same."""
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class PlainPatches(layers.PatchEmbedding):
    """The convolution as a convolution."""

    def forward(self, images: Tensor) -> Tensor:
        """(n, channels, height, width) -> (n, patches, width)."""
        return self.proj(images).flatten(2).transpose(1, 2)


class Textbook(Plain):
    """The same model and update, one view and one tensor at a time."""

    def __init__(
        self,
        recipe: Recipe,
        arrays: Mapping[str, np.ndarray],
        processes: Any,
        places: SimpleNamespace,
        fused: bool,
    ) -> None:
        super().__init__(recipe, processes, places)
        if recipe.optimizer.kind != "adamw":
            raise SystemExit("the textbook has AdamW alone")
        self.model = build.build(recipe.model, arrays).to(self.device)
        plain = {layers.Attention: PlainAttention, layers.Block: PlainBlock, layers.PatchEmbedding: PlainPatches}
        for module in self.model.modules():
            module.__class__ = plain.get(type(module), type(module))  # type: ignore[assignment]
        rules, named = groups(inventory(recipe.model), recipe.optimizer), dict(self.model.named_parameters())
        spec = recipe.optimizer
        self.optimizer = torch.optim.AdamW(
            [{"params": [named[n]], "weight_decay": rule.weight_decay} for n, rule in rules.items()],
            betas=spec.betas, eps=spec.eps, foreach=False, fused=fused,
        )  # fmt: skip

    def loss(self, batch: Batch, values: Values) -> Tensor:
        """Forward pass in plain operations."""
        views = self.views(batch)
        return self._mae(views[0], batch) if batch.mask_noise is not None else self._moco(views, values)

    def _moco(self, views: list[Tensor], values: Values) -> Tensor:
        model = self.model
        q1, q2 = (model.predictor(model.base_encoder(view)) for view in views)
        with torch.no_grad():
            for slow, fast in zip(model.momentum_encoder.parameters(), model.base_encoder.parameters()):
                slow.data = slow.data * values.momentum + fast.data * (1 - values.momentum)
            k1, k2 = (model.momentum_encoder(view) for view in views)
        gather, rank = self.processes.gather_rows, self.processes.rank
        return model.contrast(q1, k2, gather, rank) + model.contrast(q2, k1, gather, rank)

    def _mae(self, images: Tensor, batch: Batch) -> Tensor:
        model, objective = self.model, self.recipe.model.objective
        assert batch.mask_noise is not None and isinstance(objective, MAE)
        mask = masking.mask(batch.mask_noise, objective.mask_ratio)
        visible, restore, hidden = (torch.from_numpy(a).to(self.device) for a in mask)
        x = model.patch_embed(images) + model.pos_embed[:, 1:]
        x = torch.gather(x, 1, visible.unsqueeze(-1).expand(-1, -1, x.shape[-1]))
        x = torch.cat([(model.cls_token + model.pos_embed[:, :1]).expand(len(x), -1, -1), x], 1)
        for block in model.blocks:
            x = block(x)
        prediction = model.decode(model.norm(x), restore)
        error = (prediction.float() - model.target(images)).square().mean(-1)
        return (error * hidden).sum() / hidden.sum()


def close(one: float, other: float, precision: str) -> bool:
    """Whether two losses of the same step agree."""
    return math.isclose(one, other, rel_tol=1e-4 if precision == "float32" else 2e-2)
