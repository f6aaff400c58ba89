"""What can happen to an image, each step with all its numbers drawn. A plan is a tuple of these.

Drawn by `augment`, carried out by `pixels`. Sizes are (height, width), positions (top, left), in pixels of
the image as it is when the step is reached.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Union

from triport.core.spec import Interpolation, Pair

Fill = tuple[int, ...]  # one byte per channel for what a geometric step uncovers


# ---------------------------------------------------------------- geometry, any number of channels
@dataclass(frozen=True)
class Crop:
    """The box is cut out and resized; the kernel does not see what lies outside the box."""

    top: int
    left: int
    height: int
    width: int
    size: Pair
    interpolation: Interpolation


@dataclass(frozen=True)
class Resize:
    """The whole image becomes `size`."""

    size: Pair
    interpolation: Interpolation


@dataclass(frozen=True)
class Window:
    """The box is cut out; it may reach over the border, where it is 0."""

    top: int
    left: int
    height: int
    width: int


@dataclass(frozen=True)
class Mirror:
    """Left becomes right."""


@dataclass(frozen=True)
class Rotate:
    """Counter-clockwise about the centre, same size."""

    degrees: float
    fill: Fill = (0,)
    interpolation: Interpolation = "bicubic"


@dataclass(frozen=True)
class Shear:
    """Pixel (x, y) comes from (x + across * y, y + down * x)."""

    across: float
    down: float
    fill: Fill = (0,)
    interpolation: Interpolation = "bicubic"


@dataclass(frozen=True)
class Translate:
    """Pixel (x, y) comes from (x + across, y + down)."""

    across: float
    down: float
    fill: Fill = (0,)
    interpolation: Interpolation = "bicubic"


@dataclass(frozen=True)
class Blur:
    """Pillow's GaussianBlur (three box filters) with radius sigma."""

    sigma: float


# ---------------------------------------------------------------- colour, 1 or 3 channels
@dataclass(frozen=True)
class Brightness:
    """0 is black, 1 the image."""

    factor: float


@dataclass(frozen=True)
class Contrast:
    """0 is the image's mean luma, 1 the image."""

    factor: float


@dataclass(frozen=True)
class Saturation:
    """0 is grey, 1 the image."""

    factor: float


@dataclass(frozen=True)
class Sharpness:
    """0 is smoothed, 1 the image."""

    factor: float


@dataclass(frozen=True)
class Hue:
    """Moved by `factor` of the circle, in whole steps of 1/255 as torchvision does."""

    factor: float


@dataclass(frozen=True)
class Gray:
    """Every channel becomes the luma."""


@dataclass(frozen=True)
class Invert:
    """Values from the threshold on are inverted: 128 solarizes, 0 inverts all."""

    threshold: int = 0


@dataclass(frozen=True)
class Add:
    """`amount` is added to values under the threshold, up to 255."""

    amount: int
    threshold: int = 128


@dataclass(frozen=True)
class Posterize:
    """Only the highest `bits` bits stay; 0 is black."""

    bits: int


@dataclass(frozen=True)
class AutoContrast:
    """Each channel is stretched to 0..255."""


@dataclass(frozen=True)
class Equalize:
    """Each channel's histogram becomes flat."""


# ---------------------------------------------------------------- after normalisation
@dataclass(frozen=True)
class Erase:
    """Normal noise, drawn from `key`, in the box of the normalised image."""

    top: int
    left: int
    height: int
    width: int
    key: int


Step = Union[
    Crop,
    Resize,
    Window,
    Mirror,
    Rotate,
    Shear,
    Translate,
    Blur,
    Brightness,
    Contrast,
    Saturation,
    Sharpness,
    Hue,
    Gray,
    Invert,
    Add,
    Posterize,
    AutoContrast,
    Equalize,
    Erase,
]
Plan = tuple[Step, ...]
