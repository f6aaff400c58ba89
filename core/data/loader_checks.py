"""What must hold before a loader starts, and the shapes that follow from model and augmentation."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from PIL import Image

from triport.core.augment.augment import output_size, plan
from triport.core.data.datasets import BrokenImage, Dataset
from triport.core.errors import UserError
from triport.core.rng import generator
from triport.core.spec import (
    MAE,
    AugmentSpec,
    CenterCrop,
    ColorJitter,
    Grayscale,
    MixSpec,
    ModelSpec,
    Operation,
    RandAugment,
    RandomErasing,
    RandomResizedCrop,
    Solarize,
    ViT,
)

if TYPE_CHECKING:
    from triport.core.data.batches import BatchMaker

COLOURS = (ColorJitter, Grayscale, Solarize, RandAugment)  # operations that know grey and RGB alone


def check_batch(batch: int, world: int, micro: int) -> None:
    """Raise UserError unless the global batch can be divided among ranks and micro-batches."""
    if min(batch, world, micro) < 1:
        raise UserError(f"batch {batch}, processes {world} and micro-batches {micro} must all be 1 or more")
    parts = world * micro
    if batch % parts:
        near = max(parts, round(batch / parts) * parts)
        among = f"{world} processes with {micro} micro-batches each"
        raise UserError(f"a batch of {batch} cannot be divided evenly among {among}; use {near}")


def check_maker(maker: BatchMaker) -> None:
    """Raise UserError where the maker could not make a single training batch, or not the one that is asked for."""
    name, length, colours = maker.dataset.name, len(maker.dataset), maker.dataset.channels
    for word, numbers in (("mean", maker.augment.mean), ("std", maker.augment.std)):
        if len(numbers) not in (1, colours):
            raise UserError(
                f"the augmentation's {word} has {len(numbers)} numbers, images of '{name}' {colours} channels; "
                f"set train.{word} and evaluate.{word} to 1 or {colours} numbers"
            )
    if maker.raw and not stays_bytes(maker.augment, maker.mix):
        raise UserError("views that are erased, or blended with others, are no bytes any more: leave out raw=True")
    if not maker.train:
        return
    if not maker.steps:
        raise UserError(f"'{name}' has {length} images, fewer than one batch of {maker.batch}; use a smaller batch")
    if maker.blends and maker.rows % 2:
        raise UserError(
            f"Mixup and CutMix pair the images of a micro-batch, and {maker.rows} are odd; "
            f"use a batch that is a multiple of {2 * maker.world * maker.micro}"
        )
    if (maker.blends or maker.mix.smoothing) and not 0 < len(maker.dataset.classes) <= maker.classes:
        raise UserError(f"'{name}' has {len(maker.dataset.classes)} classes, the targets are for {maker.classes}")


def stays_bytes(augment: AugmentSpec, mix: MixSpec) -> bool:
    """Whether nothing happens to a training image after it was normalised: no erasing, no Mixup or CutMix."""
    erased = any(isinstance(operation, RandomErasing) for view in augment.views for operation in view)
    return not erased and mix.mixup == 0 and mix.cutmix == 0


def check_colours(augment: AugmentSpec, channels: int, name: str) -> None:
    """Raise UserError where a view needs an operation on colours and the images have neither 1 nor 3 channels."""
    if augment.colour_operations == "where_possible":
        return
    for number, operation in impossible(augment, channels):
        raise UserError(
            f"{operation.kind} in view {number} works on images with 1 or 3 channels, and those of '{name}' "
            f"have {channels}; train.colour_operations=where_possible leaves such operations out"
        )


def impossible(augment: AugmentSpec, channels: int) -> list[tuple[int, Operation]]:
    """Return the operations that images with so many channels cannot have, each with its view, counted from 1."""
    if channels in (1, 3):
        return []
    return [
        (number, operation)
        for number, view in enumerate(augment.views, 1)
        for operation in view
        if isinstance(operation, COLOURS) and getattr(operation, "p", 1.0) > 0
    ]


def possible(augment: AugmentSpec, channels: int) -> AugmentSpec:
    """Return an augmentation without the operations that images with so many channels cannot have."""
    if channels in (1, 3):
        return augment
    views = tuple(tuple(step for step in view if not isinstance(step, COLOURS)) for view in augment.views)
    return replace(augment, views=views)


def left_out(augment: AugmentSpec, channels: int) -> str:
    """Return a line that names what `possible` leaves out; "" where that is nothing."""
    kinds = dict.fromkeys(operation.kind for _, operation in impossible(augment, channels))
    return f"left out of the views, as the images have {channels} channels: {', '.join(kinds)}" if kinds else ""


def view_shape(dataset: Dataset, augment: AugmentSpec, view: int) -> tuple[int, int, int]:
    """Return (channels, height, width) of a view: what its last crop gives, else what the first image becomes."""
    for operation in reversed(augment.views[view]):
        if isinstance(operation, RandomResizedCrop | CenterCrop):
            return (dataset.channels, *operation.size)
    for index in range(len(dataset)):
        try:
            image = dataset.image(index)
        except BrokenImage:
            continue
        size = (image.height, image.width) if isinstance(image, Image.Image) else (image.shape[0], image.shape[1])
        return dataset.channels, *output_size(plan(augment, view, generator("shape"), size), size)
    raise UserError(f"no image of '{dataset.name}' can be read")


def mask_patches(model: ModelSpec | None) -> int:
    """Return how many patches a masked autoencoder sees; 0 for other models."""
    if model is None or not isinstance(model.objective, MAE) or not isinstance(model.encoder, ViT):
        return 0
    (height, width), (tall, wide) = model.encoder.image, model.encoder.patch
    return (height // tall) * (width // wide)


def drop_path_depth(model: ModelSpec | None) -> int:
    """Return how many blocks want draws for stochastic depth; 0 where there is none."""
    encoder = model.encoder if model else None
    return encoder.depth if isinstance(encoder, ViT) and encoder.drop_path > 0 else 0
