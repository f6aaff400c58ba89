"""The reference, part two: MAE, MoCo v3 and classifiers in numpy float64, in evaluation and in training.

Inputs by name: `images` (n, c, height, width); MoCo in training `view1`, `view2`; MAE `mask_noise` (n, L);
classifiers `labels` (n,) or `targets` (n, classes); drop path `drop_path` (n, depth, 2) uniform draws.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from triport.core.spec import MAE, Classifier, Encoder, MoCo, ModelSpec, Pair, ResNet, ViT
from triport.parity_tests.reference.layers import (
    Array,
    Arrays,
    Indices,
    Walk,
    batch_norm,
    block,
    layer_norm,
    linear,
    relu,
    resnet,
    vit,
    wide,
)


# ---------------------------------------------------------------- losses
def number(value: Any) -> float:
    """A sum as a plain number: a float, or the complex number that a slope is taken from."""
    return value.item()


def log_softmax(logits: Array) -> Array:
    """Logarithm of the softmax over the last axis."""
    shifted = logits - logits.real.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def cross_entropy(logits: Array, labels: NDArray, smoothing: float = 0.0) -> float:
    """Mean cross entropy with labels (n,), smoothed: (1 - s) of the label's and s of the mean over all classes."""
    log = log_softmax(logits)
    hit = log[np.arange(len(log)), labels]
    return number(-((1.0 - smoothing) * hit + smoothing * log.mean(axis=1)).mean())


def soft_cross_entropy(logits: Array, targets: ArrayLike) -> float:
    """Mean cross entropy with a distribution (n, classes) per row."""
    return number(-(np.asarray(targets, np.float64) * log_softmax(logits)).sum(axis=1).mean())


# ---------------------------------------------------------------- encoders under an objective
def backbone(
    walk: Walk, prefix: str, encoder: Encoder, images: ArrayLike, pooling: str = "token", draws: Array | None = None
) -> Array:
    """Images -> features (n, d): class token after `norm`, or mean of the patches then `fc_norm`; ResNet: mean."""
    x = np.asarray(images, np.float64)
    if isinstance(encoder, ResNet):
        return resnet(walk, prefix, encoder, x)
    tokens = vit(walk, prefix, encoder, x, draws=draws)
    if pooling == "token":
        return layer_norm(walk, f"{prefix}norm", tokens, encoder.norm_eps)[:, 0]
    return layer_norm(walk, f"{prefix}fc_norm", tokens[:, 1:].mean(axis=1), encoder.norm_eps)


# ---------------------------------------------------------------- MoCo v3
def stack(walk: Walk, name: str, x: Array, layers: int, last_norm: bool) -> Array:
    """Projector or predictor: linear, batch norm, ReLU, ... linear, and a batch norm without scale and shift."""
    for i in range(layers):
        x = linear(walk, f"{name}.{3 * i}", x, bias=False)
        if i < layers - 1:
            x = relu(batch_norm(walk, f"{name}.{3 * i + 1}", x))
    return batch_norm(walk, f"{name}.{3 * layers - 2}", x, affine=False) if last_norm else x


def project(walk: Walk, prefix: str, encoder: Encoder, images: ArrayLike) -> Array:
    """An encoder of MoCo and its projector: three layers on a ViT (`head`), two on a ResNet (`fc`)."""
    features = backbone(walk, prefix, encoder, images)
    is_vit = isinstance(encoder, ViT)
    name = f"{prefix}{'head' if is_vit else 'fc'}"
    return walk.leave(name, stack(walk, name, features, layers=3 if is_vit else 2, last_norm=True))


def predict(walk: Walk, encoder: Encoder, projection: Array) -> Array:
    """The predictor, two layers; on a ViT it ends in a batch norm, on a ResNet it does not."""
    return walk.leave("predictor", stack(walk, "predictor", projection, layers=2, last_norm=isinstance(encoder, ViT)))


def momentum_update(arrays: Arrays, momentum: float) -> dict[str, NDArray]:
    """The momentum encoder's parameters after m * theta_m + (1 - m) * theta_b. Running statistics stay its own."""
    moved = {}
    for name in arrays:
        if name.startswith("momentum_encoder.") and not name.endswith(("running_mean", "running_var", "tracked")):
            base = np.asarray(arrays["base_encoder." + name.partition(".")[2]], np.float64)
            moved[name] = momentum * np.asarray(arrays[name], np.float64) + (1.0 - momentum) * base
    return moved


def unit(x: Array) -> Array:
    """Rows divided by their length, or by 1e-12 where they are shorter."""
    return x / np.maximum(np.sqrt((x**2).sum(axis=1, keepdims=True)), 1e-12)


def contrast(q: Array, k: Array, temperature: float, ranks: int = 1) -> float:
    """2T times the cross entropy of each query against all keys, its own key being the right one.

    The rows of `ranks` processes stand one after another. Each process sees its own queries against the keys of all,
    with labels shifted by its rank; averaging their gradients is the mean of their losses, which is returned.
    """
    keys, losses = unit(np.asarray(k, np.float64)), []
    for rank, local in enumerate(np.split(unit(wide(q)), ranks)):
        labels = np.arange(len(local)) + rank * len(local)
        losses.append(cross_entropy(local @ keys.T / temperature, labels))
    return 2.0 * temperature * number(np.mean(losses))


# ---------------------------------------------------------------- MAE
class Mask(NamedTuple):
    """What masking noise decides: patches seen (n, k) in order, places in the shuffle (n, L), 1 = hidden (n, L)."""

    visible: Indices
    place: Indices
    hidden: Array


def mask_from_noise(noise: NDArray, ratio: float) -> Mask:
    """The int(L * (1 - ratio)) patches of least noise stay visible, ordered by noise.

    A patch's place in that order is counted: how many have less noise, or the same and stand before it.
    """
    patches = noise.shape[1]
    keep = int(patches * (1 - ratio))
    mine, other = noise[:, :, None], noise[:, None, :]
    before = np.tri(patches, k=-1, dtype=bool)
    place = ((other < mine) | ((other == mine) & before)).sum(axis=2)
    visible = np.zeros((len(noise), keep), np.int64)
    rows, columns = np.nonzero(place < keep)
    visible[rows, place[rows, columns]] = columns
    return Mask(visible, place, (place >= keep).astype(np.float64))


def patchify(images: Array, patch: Pair) -> Array:
    """(n, c, height, width) -> (n, L, values): patches row after row; inside, pixel row, pixel column, channel."""
    n, c, height, width = images.shape
    cut = images.reshape(n, c, height // patch[0], patch[0], width // patch[1], patch[1])
    return cut.transpose(0, 2, 4, 3, 5, 1).reshape(n, -1, patch[0] * patch[1] * c)


def mae_target(images: Array, patch: Pair, normalised: bool) -> Array:
    """What the decoder should say: the pixels, or each patch with mean 0 and unbiased variance 1."""
    pixels = patchify(images, patch)
    if not normalised:
        return pixels
    mean, variance = pixels.mean(axis=2, keepdims=True), pixels.var(axis=2, ddof=1, keepdims=True)
    return (pixels - mean) / np.sqrt(variance + 1e-6)


def mae_loss(prediction: Array, target: Array, hidden: Array) -> float:
    """Mean squared error of the hidden patches."""
    error = ((prediction - target) ** 2).mean(axis=2)
    return number((error * hidden).sum() / hidden.sum())


def mae_prediction(walk: Walk, encoder: ViT, objective: MAE, images: Array, mask: Mask) -> Array:
    """Encode the visible patches, put mask tokens where the others were, decode: (n, L, values)."""
    tokens = vit(walk, "", encoder, images, visible=mask.visible)
    latent = layer_norm(walk, "norm", tokens, encoder.norm_eps)
    x = linear(walk, "decoder_embed", latent)
    (n, patches), keep = mask.place.shape, mask.visible.shape[1]
    token = walk.array("mask_token")
    every = np.empty((n, patches, x.shape[2]), np.result_type(x, token))
    every[:] = token
    for i in range(n):
        seen = mask.place[i] < keep
        every[i, seen] = x[i, 1 + mask.place[i, seen]]
    x = np.concatenate([x[:, :1], every], axis=1) + walk.array("decoder_pos_embed")
    for i in range(objective.decoder_depth):
        name = f"decoder_blocks.{i}"
        x = block(walk, name, x, objective.decoder_heads, encoder.norm_eps)
    x = layer_norm(walk, "decoder_norm", x, encoder.norm_eps)
    return linear(walk, "decoder_pred", x)[:, 1:]


def mae(walk: Walk, encoder: ViT, objective: MAE, inputs: Mapping[str, NDArray]) -> tuple[float, Array, Mask]:
    """Loss, prediction (n, L, values) and mask of one batch; the same in training and evaluation."""
    images = np.asarray(inputs["images"], np.float64)
    mask = mask_from_noise(inputs["mask_noise"], objective.mask_ratio)
    prediction = mae_prediction(walk, encoder, objective, images, mask)
    target = mae_target(images, encoder.patch, objective.normalised_pixels)
    return mae_loss(prediction, target, mask.hidden), prediction, mask


# ---------------------------------------------------------------- classifiers
def classify(walk: Walk, spec: ModelSpec, inputs: Mapping[str, NDArray]) -> tuple[Array, Array]:
    """Features (n, d) and logits (n, classes)."""
    objective = spec.objective
    assert isinstance(objective, Classifier)
    features = backbone(walk, "", spec.encoder, inputs["images"], objective.pooling, inputs.get("drop_path"))
    name, x = "head" if isinstance(spec.encoder, ViT) else "fc", features
    if objective.head_norm:
        x, name = batch_norm(walk, f"{name}.0", x, eps=1e-6, affine=False), f"{name}.1"
    return features, linear(walk, name, x)


def classification_loss(logits: Array, inputs: Mapping[str, NDArray]) -> float:
    """Cross entropy with `targets` where a batch has them (mixed or smoothed), else with `labels`."""
    targets = inputs.get("targets")
    return cross_entropy(logits, inputs["labels"]) if targets is None else soft_cross_entropy(logits, targets)


# ---------------------------------------------------------------- whole models
def forward(spec: ModelSpec, arrays: Arrays, inputs: Mapping[str, NDArray], layers: bool = False) -> dict[str, Array]:
    """Evaluation mode. MoCo: projection, prediction; MAE: loss, mask, prediction; classifier: features, logits, loss.

    A classifier's loss is there where the inputs hold labels or targets. With `layers`, every module's output is
    there too, as `layers/<canonical module name>`, in the order of computation.
    """
    walk, objective = Walk(arrays, watched=layers), spec.objective
    out: dict[str, Array] = {}
    if isinstance(objective, MoCo):
        out["projection"] = project(walk, "base_encoder.", spec.encoder, inputs["images"])
        out["prediction"] = predict(walk, spec.encoder, out["projection"])
    elif isinstance(objective, MAE):
        assert isinstance(spec.encoder, ViT)
        loss, out["prediction"], mask = mae(walk, spec.encoder, objective, inputs)
        out["loss"], out["mask"] = np.array(loss), mask.hidden
    else:
        out["features"], out["logits"] = classify(walk, spec, inputs)
        if "labels" in inputs or "targets" in inputs:
            out["loss"] = np.array(classification_loss(out["logits"], inputs))
    if layers:
        out.update({f"layers/{name}": x for name, x in walk.outputs.items()})
    return out


def embed(spec: ModelSpec, arrays: Arrays, images: ArrayLike) -> Array:
    """Features of the encoder alone, evaluation mode: MoCo's base encoder without projector, MAE's on all patches."""
    prefix = "base_encoder." if isinstance(spec.objective, MoCo) else ""
    pooling = spec.objective.pooling if isinstance(spec.objective, Classifier) else "token"
    return backbone(Walk(arrays), prefix, spec.encoder, images, pooling)


@dataclass
class Step:
    """What a training step computes before the optimiser moves anything.

    outputs: MoCo q1, q2, k1, k2; MAE mask, prediction; classifier features, logits.
    moved: what the forward pass itself changes: running statistics and the momentum encoder.
    again: the loss as a function of all arrays, whose slopes are the gradients. Keys do not follow the arrays.
    """

    loss: float
    outputs: dict[str, Array]
    moved: dict[str, NDArray]
    again: Callable[[Arrays], float]


def train_step(
    spec: ModelSpec, arrays: Arrays, inputs: Mapping[str, NDArray], momentum: float = 0.0, ranks: int = 1
) -> Step:
    """The forward half of a training step on the whole batch of `ranks` processes (batch norms see all of it)."""
    if isinstance(spec.objective, MoCo):
        return _train_moco(spec, arrays, inputs, momentum, ranks)
    if isinstance(spec.objective, MAE):
        return _train_mae(spec, arrays, inputs)
    return _train_classifier(spec, arrays, inputs)


def _train_moco(spec: ModelSpec, arrays: Arrays, inputs: Mapping[str, NDArray], momentum: float, ranks: int) -> Step:
    objective, views = spec.objective, ("view1", "view2")
    assert isinstance(objective, MoCo)
    moved = momentum_update(arrays, momentum)  # before the keys are computed
    keys = Walk({**arrays, **moved}, training=True)
    k1, k2 = (project(keys, "momentum_encoder.", spec.encoder, inputs[view]) for view in views)

    def queries(walk: Walk) -> list[Array]:
        return [predict(walk, spec.encoder, project(walk, "base_encoder.", spec.encoder, inputs[v])) for v in views]

    def loss(q1: Array, q2: Array) -> float:
        return contrast(q1, k2, objective.temperature, ranks) + contrast(q2, k1, objective.temperature, ranks)

    walk = Walk(arrays, training=True)
    q1, q2 = queries(walk)
    outputs = {"q1": q1, "q2": q2, "k1": k1, "k2": k2}
    moved = {**moved, **keys.buffers, **walk.buffers}
    return Step(loss(q1, q2), outputs, moved, lambda a: loss(*queries(Walk(a, training=True))))


def _train_mae(spec: ModelSpec, arrays: Arrays, inputs: Mapping[str, NDArray]) -> Step:
    encoder, objective = spec.encoder, spec.objective
    assert isinstance(encoder, ViT) and isinstance(objective, MAE)
    loss, prediction, mask = mae(Walk(arrays, training=True), encoder, objective, inputs)

    def again(a: Arrays) -> float:
        return mae(Walk(a, training=True), encoder, objective, inputs)[0]

    return Step(loss, {"mask": mask.hidden, "prediction": prediction}, {}, again)


def _train_classifier(spec: ModelSpec, arrays: Arrays, inputs: Mapping[str, NDArray]) -> Step:
    objective = spec.objective
    assert isinstance(objective, Classifier)
    training = not (objective.frozen_encoder and objective.frozen_mode == "eval")

    def again(a: Arrays) -> float:
        return classification_loss(classify(Walk(a, training), spec, inputs)[1], inputs)

    walk = Walk(arrays, training)
    features, logits = classify(walk, spec, inputs)
    return Step(classification_loss(logits, inputs), {"features": features, "logits": logits}, walk.buffers, again)
