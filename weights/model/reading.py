"""How a checkpoint is to be read where its names and its own words leave a choice."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypedDict

from triport.core.selection import EVERYTHING, Selection
from triport.core.spec import Recipe

if TYPE_CHECKING:
    from typing_extensions import Unpack as Unpack

Only = Literal["all", "encoder", "momentum"]


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What travels to every place where a checkpoint is opened; None leaves it to the file."""

    from_: str | None = None  # layout or project
    recipe: str | Recipe | None = None  # says heads, image size and norm epsilon
    heads: int | None = None  # of the encoder, for layouts whose fused projection goes by head
    decoder_heads: int | None = None  # of MAE's decoder
    norm_eps: float | None = None  # of the layer norms
    selection: Selection = EVERYTHING  # the key, prefix or average, where the file holds more than one model
    only: Only = "all"  # the whole model, its encoder, or its momentum encoder, the last two under plain names


AS_IT_SAYS = Reading()  # everything is left to the file


class Choices(TypedDict, total=False):
    """The fields of `Reading` as keywords of the public functions."""

    from_: str | None
    recipe: str | Recipe | None
    heads: int | None
    decoder_heads: int | None
    norm_eps: float | None
    selection: Selection
    only: Only
