"""Does a recipe make sense? Ranges of every number, and what must agree with what."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

from triport.core.errors import UserError
from triport.core.spec.spec import (
    MAE,
    AugmentSpec,
    CenterCrop,
    Classifier,
    MoCo,
    ModelSpec,
    Pair,
    RandomErasing,
    RandomResizedCrop,
    Recipe,
    ResNet,
    ViT,
)

Range = tuple[str, Callable[[float], bool]]
POSITIVE: Range = ("must be above 0", lambda x: x > 0)
NOT_NEGATIVE: Range = ("must not be below 0", lambda x: x >= 0)
SHARE: Range = ("must lie in [0, 1]", lambda x: 0 <= x <= 1)
BELOW_ONE: Range = ("must lie in [0, 1)", lambda x: 0 <= x < 1)
INSIDE: Range = ("must lie between 0 and 1", lambda x: 0 < x < 1)
UP_TO_ONE: Range = ("must lie in (0, 1]", lambda x: 0 < x <= 1)

FIELDS: dict[Range, str] = {  # a field of the same name has the same range wherever it stands
    POSITIVE: "width depth heads patch image channels mlp_ratio norm_eps temperature hidden dim decoder_width "
    "decoder_depth decoder_heads head_std size ratio operations std lr lr_batch eps trust clip_norm epochs repeats "
    "batch knn_neighbours knn_temperature evaluate_every save_every keep max_sigma",
    NOT_NEGATIVE: "brightness contrast saturation min_sigma deviation weight_decay warmup_epochs min_lr warmup_lr lag "
    "mixup cutmix knn_every seed mean",
    SHARE: "p momentum probability switch",
    BELOW_ONE: "drop_path smoothing betas",
    INSIDE: "mask_ratio average",
    UP_TO_ONE: "min_area max_area layer_decay",
    ("must be 2 or more", lambda x: x >= 2): "classes",
    ("must lie in 0 ... 256", lambda x: 0 <= x <= 256): "threshold",
    ("must lie in [0, 0.5]", lambda x: 0 <= x <= 0.5): "hue",
    ("must lie in [0, 10]", lambda x: 0 <= x <= 10): "magnitude",
    ("is a percentage", lambda x: 0 <= x <= 100): "reported",
}
RANGES: dict[str, Range] = {name: allowed for allowed, names in FIELDS.items() for name in names.split()}


def check(recipe: Recipe) -> None:
    """Raise a UserError that names the field and the remedy where `recipe` could not be run as it is meant."""
    for where, name, value in _numbers(recipe, "", ""):
        words, holds = RANGES[name]
        if not holds(value):
            raise UserError(f"{where} {words}, got {value}.")
    check_model(recipe.model)
    _task(recipe)
    _views(recipe.train, recipe, "train", 2 if isinstance(recipe.model.objective, MoCo) else 1)
    _views(recipe.evaluate, recipe, "evaluate", 1)
    _run(recipe)


def check_model(model: ModelSpec) -> None:
    """Raise a UserError where the sizes of a model are inconsistent."""
    encoder, objective = model.encoder, model.objective
    if isinstance(encoder, ViT):
        _vit(encoder)
    if isinstance(objective, MAE):
        _mae(encoder, objective)
    if isinstance(objective, MoCo) and objective.momentum_compounds and not objective.momentum_cosine:
        raise UserError(
            "model.objective.momentum_compounds: there is no cosine to compound; set momentum_cosine to true."
        )
    if isinstance(objective, Classifier) and isinstance(encoder, ResNet) and objective.pooling != "mean":
        raise UserError("model.objective.pooling: a ResNet has no class token, write 'mean'.")
    if isinstance(objective, Classifier) and isinstance(encoder, ResNet) and objective.head_norm:
        raise UserError("model.objective.head_norm: the norm before the head is MAE's and needs a ViT.")


def _vit(encoder: ViT) -> None:
    image, patch, width = encoder.image, encoder.patch, encoder.width
    if image[0] % patch[0] or image[1] % patch[1]:
        near = tuple(max(1, round(i / p)) * p for i, p in zip(image, patch, strict=True))
        raise UserError(f"model.encoder.image {image} is not a multiple of the patch {patch}. Nearest: {near}.")
    if width % encoder.heads:
        raise UserError(f"model.encoder.width {width} is not a multiple of its {encoder.heads} heads.")
    if width % 4:
        raise UserError(f"model.encoder.width {width} is not a multiple of 4, as the position table needs.")
    if encoder.stem == "conv" and patch != (16, 16):
        raise UserError(f"model.encoder.stem 'conv' needs the patch (16, 16), got {patch}.")
    if encoder.stem == "conv" and width % 8:
        raise UserError(f"model.encoder.stem 'conv' needs a width that is a multiple of 8, got {width}.")
    if encoder.stem == "conv" and encoder.frozen_patch:
        raise UserError("model.encoder.frozen_patch is for the plain patch stem; with stem 'conv' set it to false.")


def _mae(encoder: ViT | ResNet, objective: MAE) -> None:
    if not isinstance(encoder, ViT):
        raise UserError("model.encoder.kind: the objective 'mae' needs a 'vit'.")
    if objective.decoder_width % objective.decoder_heads or objective.decoder_width % 4:
        raise UserError(
            f"model.objective.decoder_width {objective.decoder_width} must be a multiple of 4 "
            f"and of its {objective.decoder_heads} heads."
        )
    patches = (encoder.image[0] // encoder.patch[0]) * (encoder.image[1] // encoder.patch[1])
    if not 0 < int(patches * (1 - objective.mask_ratio)) < patches:
        raise UserError(f"model.objective.mask_ratio {objective.mask_ratio} of {patches} patches hides all or none.")


def _task(recipe: Recipe) -> None:
    objective, task, mix = recipe.model.objective, recipe.task, recipe.mix
    if (task == "pretrain") == isinstance(objective, Classifier):
        needed = "'moco' or 'mae'" if task == "pretrain" else "'classifier'"
        raise UserError(f"model.objective.kind: the task '{task}' needs {needed}, got '{objective.kind}'.")
    if isinstance(objective, Classifier) and objective.frozen_encoder != (task == "linear"):
        needed = "true" if task == "linear" else "false"
        raise UserError(f"model.objective.frozen_encoder must be {needed} for the task '{task}'.")
    if not isinstance(objective, Classifier) and (mix.mixup or mix.cutmix or mix.smoothing):
        raise UserError("mix: Mixup, CutMix and smoothing need labels, so a classifier; leave them out here.")
    path_rate = getattr(recipe.model.encoder, "drop_path", 0.0)
    if path_rate and not isinstance(objective, Classifier):
        raise UserError(
            f"model.encoder.drop_path {path_rate}: pretraining drops no paths here, as in the papers; set it to 0."
        )
    if (mix.mixup or mix.cutmix) and recipe.batch % 2:
        raise UserError(f"batch must be even for Mixup and CutMix, got {recipe.batch}.")
    if isinstance(objective, MoCo) and recipe.batch < 2:
        raise UserError("batch must be 2 or more: MoCo's negatives are the other images of the batch.")


def _views(augment: AugmentSpec, recipe: Recipe, where: str, count: int) -> None:
    encoder, size = recipe.model.encoder, recipe.model.encoder.image
    if len(augment.views) != count:
        objective = recipe.model.objective.kind
        raise UserError(f"{where}.views: {count} needed ({where}, objective '{objective}'), got {len(augment.views)}.")
    for i, view in enumerate(augment.views):
        crops = [(j, op) for j, op in enumerate(view) if isinstance(op, (RandomResizedCrop, CenterCrop))]
        if not crops:
            raise UserError(f"{where}.views.{i} needs a random_resized_crop or a center_crop, so that batches stack.")
        for j, crop in crops:
            _crop(crop, size, f"{where}.views.{i}.{j}")
        for j, op in enumerate(view):
            _order(op, f"{where}.views.{i}.{j}", last=j == len(view) - 1)
    for name in ("mean", "std"):
        if len(getattr(augment, name)) != encoder.channels:
            length = len(getattr(augment, name))
            raise UserError(
                f"{where}.{name} has {length} value{'s' * (length != 1)} for model.encoder.channels = "
                f"{encoder.channels}. Override mean and std of train and evaluate too, as {where}.{name}=[0.5, ...]."
            )


def _crop(crop: RandomResizedCrop | CenterCrop, size: Pair, where: str) -> None:
    if crop.size != size:
        shown = size[0] if size[0] == size[1] else list(size)
        raise UserError(
            f"{where}.size {crop.size} differs from model.encoder.image {size}. "
            f"The override image={shown} sets all sizes at once."
        )


def _order(op: Any, where: str, *, last: bool) -> None:
    for low, high in (("min_area", "max_area"), ("min_sigma", "max_sigma")):
        if hasattr(op, low) and getattr(op, low) > getattr(op, high):
            raise UserError(f"{where}.{low} {getattr(op, low)} is above {high} {getattr(op, high)}.")
    if isinstance(op, RandomResizedCrop) and op.ratio[0] > op.ratio[1]:
        raise UserError(f"{where}.ratio must be [smallest, largest], got {list(op.ratio)}.")
    if isinstance(op, RandomErasing) and op.ratio > 1:
        raise UserError(f"{where}.ratio must lie in (0, 1], got {op.ratio}.")
    if isinstance(op, RandomErasing) and not last:
        raise UserError(f"{where}: random_erasing works after normalisation, so it stands last in its view.")


def _run(recipe: Recipe) -> None:
    schedule = recipe.schedule
    if schedule.warmup_epochs >= schedule.epochs:
        raise UserError(
            f"schedule.warmup_epochs {schedule.warmup_epochs:g} must be below schedule.epochs {schedule.epochs}. "
            f"Shorten it, for example warmup={schedule.epochs / 10:g}."
        )
    if recipe.optimizer.momentum >= 1:
        raise UserError(f"optimizer.momentum must lie in [0, 1), got {recipe.optimizer.momentum}.")


def _numbers(value: Any, where: str, name: str) -> Iterator[tuple[str, str, float]]:
    """Every number of a recipe as (dotted field, name of the field, value)."""
    if dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            dotted = f"{where}.{field.name}" if where else field.name
            yield from _numbers(getattr(value, field.name), dotted, field.name)
    elif isinstance(value, (tuple, dict)):
        items = enumerate(value) if isinstance(value, tuple) else value.items()
        for key, item in items:
            yield from _numbers(item, f"{where}.{key}", name)
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        yield where, name, value
