"""The specification's ViT classifier on LiBai's layers, and its arrays under canonical names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from triport.backends.oneflow.libai.mesh import Mesh
from triport.backends.oneflow.libai.repairs import Gelu, LayerNorm, TransformerLayer, VisionTransformer, dist
from triport.backends.oneflow.runtime import Tensor, flow, nn
from triport.core.backend.build import check, trainable
from triport.core.model.inventory import inventory
from triport.core.spec import Classifier, ModelSpec, ViT
from triport.weights import transforms
from triport.weights.arrays import lazy
from triport.weights.layouts import catalogue
from triport.weights.layouts.layout import write_name

Arrays = Mapping[str, np.ndarray]


class Layer(TransformerLayer):
    """LiBai's block with stochastic depth by given numbers, so that it is the same whatever the mesh."""

    def forward(self, hidden_states: Tensor, draws: Tensor | None = None) -> Tensor:
        """(n, tokens, width) -> the same; `draws` (n, 2): uniform numbers for the two branches."""
        place = dist.get_layer_placement(self.layer_idx)
        x = hidden_states.to_global(placement=place)
        draws = None if draws is None else draws.to_global(placement=place)
        x = x + self._drop(self.self_attention(self.input_layernorm(x)), draws, 0)
        return x + self._drop(self.mlp(self.post_attention_layernorm(x)), draws, 1)

    def _drop(self, branch: Tensor, draws: Tensor | None, which: int) -> Tensor:
        if draws is None or self.keep == 1:
            return branch
        return branch * (flow.floor(draws[:, which] + self.keep) / self.keep).reshape(-1, 1, 1)


class HeadNorm(nn.Module):
    """Batch norm without affine in front of a probe's head, over the rows of all processes (main_linprobe.py)."""

    def __init__(self, width: int, eps: float = 1e-6, momentum: float = 0.1) -> None:
        super().__init__()
        self.eps, self.momentum = eps, momentum
        where = {"placement": dist.get_layer_placement(-1), "sbp": whole()}
        self.register_buffer("running_mean", flow.zeros(width, **where))
        self.register_buffer("running_var", flow.ones(width, **where))
        self.register_buffer("num_batches_tracked", flow.zeros(1, dtype=flow.int64, **where))

    def forward(self, x: Tensor) -> Tensor:
        """(n, width), whole on every process, -> the same."""
        mean, var = self.running_mean, self.running_var
        if self.training:
            mean = x.mean(dim=0)
            var = ((x - mean) * (x - mean)).mean(dim=0)
            with flow.no_grad():
                n, share = x.shape[0], self.momentum
                self.num_batches_tracked.add_(1)
                self.running_mean.mul_(1 - share).add_(mean, alpha=share)
                self.running_var.mul_(1 - share).add_(var * (n / max(n - 1, 1)), alpha=share)
        return (x - mean) * flow.rsqrt(var + self.eps)


class Vit(VisionTransformer):
    """LiBai's ViT with the specification's blocks, eps and pooling. Its values are given, not drawn."""

    def __init__(self, spec: ModelSpec) -> None:
        encoder, objective = spec.encoder, spec.objective
        assert isinstance(encoder, ViT) and isinstance(objective, Classifier)
        super().__init__(
            img_size=encoder.image,
            patch_size=encoder.patch,
            in_chans=encoder.channels,
            embed_dim=encoder.width,
            depth=0,
            num_heads=encoder.heads,
            num_classes=objective.classes,
        )
        self.blocks = nn.ModuleList([self._layer(encoder, i) for i in range(encoder.depth)])
        self.head_norm = HeadNorm(encoder.width) if objective.head_norm else None
        self.pooling, self.frozen = objective.pooling, objective.frozen_encoder
        for module in self.modules():
            if isinstance(module, LayerNorm):
                module.eps = encoder.norm_eps

    def _layer(self, encoder: ViT, index: int) -> Layer:
        hidden = int(encoder.width * encoder.mlp_ratio)
        layer = Layer(encoder.width, hidden, encoder.heads, layer_idx=index)
        layer.mlp.activation_func = Gelu()
        layer.keep = 1 - encoder.drop_path * index / max(encoder.depth - 1, 1)
        return layer

    def forward_features(self, images: Tensor, draws: Tensor | None = None) -> Tensor:
        """Images (n, channels, height, width) -> (n, width): the class token, or the mean of the patches, normed."""
        x = self.patch_embed(images)
        token = self.cls_token.expand(x.shape[0], -1, -1).to_global(sbp=x.sbp)
        x = flow.cat((token, x), dim=1) + self.pos_embed.expand(x.shape[0], -1, -1).to_global(sbp=x.sbp)
        for i, block in enumerate(self.blocks):
            x = block(x, None if draws is None else draws[:, i])
        return self.norm(x[:, 0] if self.pooling == "token" else x[:, 1:].mean(dim=1))

    def forward(self, images: Tensor, draws: Tensor | None = None) -> Tensor:
        """Images -> logits (n, classes), whole on every process of the last stage."""
        if self.frozen:
            with flow.no_grad():
                x = self.forward_features(images)
        else:
            x = self.forward_features(images, draws)
        if self.head_norm is not None:
            x = self.head_norm(x.to_global(sbp=whole()))
        return self.head(x).to_global(sbp=whole())


def whole() -> list[Any]:
    """The sbp of what every process of a stage has entirely."""
    return dist.get_nd_sbp([flow.sbp.broadcast, flow.sbp.broadcast])


def is_split(x: Tensor) -> bool:
    """Say whether processes of a stage have parts of a tensor."""
    return any(sbp != flow.sbp.broadcast for sbp in x.sbp)


# ---------------------------------------------------------------- arrays
class Names:
    """Canonical names of a classifier against LiBai's, and how the arrays are transposed between them."""

    def __init__(self, spec: ModelSpec) -> None:
        assert isinstance(spec.encoder, ViT) and isinstance(spec.objective, Classifier)
        self.heads = spec.encoder.heads
        pooled = spec.objective.pooling == "mean"
        layout = catalogue.target("libai-0.1", "classifier", pooled)
        self.own: dict[str, str] = {}  # canonical -> LiBai's
        self.transposes: dict[str, tuple[str, ...]] = {}
        for p in inventory(spec):
            plain = p.name.replace("head.1.", "head.").replace("head.0.", "head_norm.")
            hit = write_name(layout, "vit", plain)
            self.own[p.name] = plain if hit is None else hit[1][0]
            self.transposes[p.name] = () if hit is None else layout.rearrangements(hit[0], p.name)

    def to_libai(self, name: str, array: np.ndarray) -> np.ndarray:
        """An array of the specification as LiBai keeps it."""
        result = lazy(np.ascontiguousarray(array))
        for step in self.transposes[name]:
            result = transforms.transpose(result) if step == "transpose" else transforms.by_head(result, self.heads)
        return result.read().reshape(-1) if array.ndim == 0 else result.read()

    def to_canonical(self, name: str, array: np.ndarray) -> np.ndarray:
        """The other way."""
        result = lazy(np.ascontiguousarray(array))
        for step in reversed(self.transposes[name]):
            result = transforms.transpose(result) if step == "transpose" else transforms.by_role(result, self.heads)
        return result.read().reshape(()) if name.endswith("num_batches_tracked") else result.read()


def model(spec: ModelSpec, arrays: Arrays, precision: str = "float32") -> Vit:
    """Return the model with the given values under canonical names; see triport.backends.oneflow.build."""
    check(spec, arrays)
    made = Vit(spec)
    if precision == "float64":
        made = made.double()
    fill(made, Names(spec), arrays)
    trained, state = trainable(spec), dict(made.named_parameters())
    for name, own in Names(spec).own.items():
        if own in state:
            state[own].requires_grad_(trained[name])
    return made


def fill(made: Vit, names: Names, arrays: Arrays) -> None:
    """Put values in place, each process its part."""
    state = made.state_dict()
    with flow.no_grad():
        for name, own in names.own.items():
            floats = np.float64 if state[own].dtype == flow.float64 else np.float32
            dtype = np.int64 if arrays[name].dtype.kind in "iu" else floats
            array = names.to_libai(name, np.asarray(arrays[name], dtype))
            state[own].copy_(Mesh.split(array, state[own]))


def to_arrays(made: Vit, names: Names) -> dict[str, np.ndarray]:
    """Every parameter and buffer under its canonical name; all processes have to ask."""
    state = made.state_dict()
    return {name: names.to_canonical(name, state[own].detach().numpy()) for name, own in names.own.items()}
