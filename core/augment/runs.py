"""A plan cut into runs: steps that follow one another and that the kernels carry out in one call.

A run takes a box of the image, resizes it, changes its colours, blurs and mirrors it. Mirroring commutes with all that
may follow it in a run, to the last bit, so the kernels do it at the end.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Union

from triport.core.augment import colour, geometry, native, steps
from triport.core.augment.native import Operation
from triport.core.augment.steps import Plan, Step
from triport.core.spec import Pair


@dataclass
class Run:
    """What one call of the kernels does; the operations in their order."""

    box: tuple[int, int, int, int]  # top, left, height, width of what is resized, inside the image
    size: Pair
    bicubic: bool = False
    mirrored: bool = False
    operations: list[Operation] = field(default_factory=list)


Part = Union[Run, Step]


def divided(plan: Plan, size: Pair, channels: int) -> Iterator[Part]:
    """Yield runs and the steps that belong to none, in the order of `plan`, for an image of `size` and `channels`.

    Erase steps are left out. Colour steps raise a UserError where there are neither 1 nor 3 channels.
    """
    run: Run | None = None
    for step in plan:
        if isinstance(step, steps.Erase):
            continue
        begun = _begun(step, size)
        if begun is not None:
            if run is not None:
                yield run
            run, size = begun, begun.size
        elif isinstance(step, steps.Mirror):
            run = run or _whole(size)
            run.mirrored = not run.mirrored
        elif isinstance(step, FUSED):
            run = run or _whole(size)
            operation = _operation(step, channels)
            if operation is not None:
                run.operations.append(operation)
        else:
            if run is not None:
                yield run
            run = None
            yield step
            if isinstance(step, steps.Window):
                size = step.height, step.width
            elif isinstance(step, steps.Crop):
                size = step.size
    if run is not None:
        yield run


def _whole(size: Pair) -> Run:
    return Run((0, 0, *size), size)


def _begun(step: Step, size: Pair) -> Run | None:
    """The run that a step begins because it takes other pixels than there are; None for all other steps."""
    if isinstance(step, steps.Crop):
        if min(step.top, step.left) < 0 or step.top + step.height > size[0] or step.left + step.width > size[1]:
            return None  # beyond the image there is a border, which the kernels do not make
        return Run((step.top, step.left, step.height, step.width), step.size, step.interpolation == "bicubic")
    if isinstance(step, steps.Resize):
        return Run((0, 0, *size), step.size, step.interpolation == "bicubic")
    return None


FUSED = (
    steps.Brightness,
    steps.Contrast,
    steps.Saturation,
    steps.Hue,
    steps.Gray,
    steps.Invert,
    steps.Blur,
)


def _operation(step: Step, channels: int) -> Operation | None:
    """The kernels' number for a step; None where it changes nothing."""
    if isinstance(step, steps.Blur):
        if step.sigma <= 0:
            return None
        radius, whole, edge = geometry.box_weights(step.sigma)
        return Operation(native.BLUR, radius, 0.0, whole, edge)
    colour.check_channels(channels, type(step).__name__)
    match step:
        case steps.Brightness(factor):
            return Operation(native.BLEND, 0, factor)
        case steps.Contrast(factor):
            return Operation(native.CONTRAST, 0, factor)
        case steps.Invert(threshold):
            return Operation(native.INVERT, threshold)
        case steps.Saturation(factor) if channels == 3:
            return Operation(native.SATURATION, 0, factor)
        case steps.Gray() if channels == 3:
            return Operation(native.SATURATION, 0, 0.0)
        case steps.Hue(factor) if channels == 3:
            return Operation(native.HUE, colour.hue_shift(factor))
    return None
