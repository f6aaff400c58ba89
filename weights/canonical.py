"""What a set of canonical names and shapes says about a model: its parts, its method, its architecture."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from triport.core.errors import UserError
from triport.core.model.inventory import BOTTLENECK, STAGES, encoder_inventory, inventory
from triport.core.model.parameters import Parameter
from triport.core.spec import MAE, Classifier, Encoder, MoCo, ModelSpec, Pair, ResNet, ViT

Method = Literal["moco", "mae", "classifier", "encoder"]
Family = Literal["vit", "resnet"]
Shape = tuple[int, ...]

PARTS = ("encoder", "projector", "momentum encoder", "momentum projector", "predictor", "decoder", "head")
BASE, MOMENTUM = "base_encoder.", "momentum_encoder."
NAMES = {192: "Ti", 384: "S", 768: "B", 1024: "L", 1280: "H"}


def part(name: str) -> str:
    """Which of `PARTS` a canonical name belongs to."""
    for prefix, owner in ((BASE, ""), (MOMENTUM, "momentum ")):
        if name.startswith(prefix):
            return owner + ("projector" if name[len(prefix) :].startswith(("head.", "fc.")) else "encoder")
    if name.startswith("predictor."):
        return "predictor"
    if name.startswith("decoder_") or name == "mask_token":
        return "decoder"
    return "head" if name.startswith(("head.", "fc.")) else "encoder"


def parts(names: Iterable[str]) -> tuple[str, ...]:
    """The parts that a set of names has, in the order of `PARTS`."""
    found = {part(name) for name in names}
    return tuple(p for p in PARTS if p in found)


def method_of(names: Collection[str]) -> Method:
    """Which objective a set of names was made for; "encoder" is a bare encoder."""
    if any(name.startswith((BASE, MOMENTUM, "predictor.")) for name in names):
        return "moco"
    found = parts(names)
    return "mae" if "decoder" in found else "classifier" if "head" in found else "encoder"


def prefix_of(names: Collection[str]) -> str:
    """What stands in front of the encoder's names: "base_encoder." for MoCo (or the momentum twin's), else ""."""
    for prefix in (BASE, MOMENTUM):
        if any(name.startswith(prefix) for name in names):
            return prefix
    return ""


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """What names and shapes tell of a model. Heads they cannot tell: None unless the file's own words do."""

    method: Method
    family: Family
    parts: tuple[str, ...]
    width: int  # of the features
    depth: int  # blocks of a ViT; 10, 18, 34, 50, 101 of a ResNet
    channels: int
    patch: Pair = (0, 0)
    tokens: int = 0  # patches in the position table
    stem: Literal["patch", "conv"] = "patch"
    hidden_width: int = 0  # of the MLPs
    classes: int = 0
    head_norm: bool = False
    pooled: bool = False  # `fc_norm` stands in for `norm`
    projector: Pair = (0, 0)  # hidden width and output width
    decoder_width: int = 0
    decoder_depth: int = 0
    heads: int | None = None
    decoder_heads: int | None = None
    norm_eps: float | None = None
    known_grid: Pair | None = None  # where the file's own words tell it

    @property
    def grid(self) -> Pair | None:
        """Rows and columns of the position table where it is square or known; names cannot tell others."""
        if self.known_grid and math.prod(self.known_grid) == self.tokens:
            return self.known_grid
        side = math.isqrt(self.tokens)
        return (side, side) if side and side * side == self.tokens else None

    @property
    def image(self) -> Pair | None:
        """Image size in pixels, for square grids."""
        return (self.grid[0] * self.patch[0], self.grid[1] * self.patch[1]) if self.grid else None

    @property
    def first_stage(self) -> int:
        """Channels of a ResNet's first stage."""
        return self.width // (32 if BOTTLENECK[self.depth] else 8)

    def describe(self) -> str:
        """One line for people: "ViT-S/16, width 384, depth 12, 12 heads, 224 x 224 pixels"."""
        if self.family == "resnet":
            narrow = "" if self.first_stage == 64 else f", width {self.first_stage}"
            return f"ResNet-{self.depth}{narrow}, {self.channels} channels"
        size = NAMES.get(self.width, "")
        patch = str(self.patch[0]) if self.patch[0] == self.patch[1] else f"{self.patch[0]}x{self.patch[1]}"
        name = f"ViT{'-' + size if size else ''}/{patch}" + (" with convolutional stem" * (self.stem == "conv"))
        heads = f"{self.heads} heads" if self.heads else "heads unknown"
        pixels = f"{self.image[0]} x {self.image[1]} pixels" if self.image else f"{self.tokens} patches"
        return f"{name}, width {self.width}, depth {self.depth}, {heads}, {pixels}"

    def encoder(self) -> Encoder:
        """The encoder as a spec; values that names cannot tell stand at any legal value."""
        if self.family == "resnet":
            return ResNet(
                depth=self.depth,  # type: ignore[arg-type]
                width=self.first_stage,
                zero_init_residual=False,
                channels=self.channels,
            )
        rows, columns = self.grid or (1, self.tokens)
        return ViT(
            width=self.width,
            depth=self.depth,
            heads=self.heads or 1,
            position="moco",
            initial_values="moco",
            patch=self.patch,
            image=(rows * self.patch[0], columns * self.patch[1]),
            channels=self.channels,
            mlp_ratio=_ratio(self.hidden_width, self.width),
            stem=self.stem,
            norm_eps=self.norm_eps or 1e-6,
        )

    def expected(self) -> dict[str, Parameter]:
        """Every name that the parts in the file should have, with shapes and roles, in the originals' order."""
        encoder = self.encoder()
        found: tuple[Parameter, ...]
        if self.method == "moco":
            hidden, dim = self.projector
            found = inventory(
                ModelSpec(encoder=encoder, objective=MoCo(temperature=1, momentum=0, hidden=hidden or 1, dim=dim or 1))
            )
        elif self.method == "mae":
            found = inventory(
                ModelSpec(
                    encoder=encoder,
                    objective=MAE(
                        normalised_pixels=True,
                        decoder_width=self.decoder_width,
                        decoder_depth=self.decoder_depth,
                        decoder_heads=self.decoder_heads or 1,
                    ),
                )
            )
        elif self.method == "classifier" or self.pooled:
            head = Classifier(
                classes=self.classes or 1,
                pooling="mean" if self.pooled else "token",
                head_std=0,
                head_norm=self.head_norm,
            )
            found = inventory(ModelSpec(encoder=encoder, objective=head))
        else:
            found = encoder_inventory(encoder)
        return {p.name: p for p in found if part(p.name) in self.parts}

    def same_encoder(self, other: Architecture) -> bool:
        """Whether the encoders fit each other, image size and heads apart."""
        mine, theirs = ((a.family, a.width, a.depth, a.channels, a.patch, a.stem) for a in (self, other))
        return mine == theirs


def architecture(shapes: Mapping[str, Shape]) -> Architecture:
    """Read the architecture off canonical names and shapes. UserError where the encoder's own names are not there."""
    method, found = method_of(shapes), parts(shapes)
    prefix = prefix_of(shapes)
    own = {name[len(prefix) :]: shape for name, shape in shapes.items() if name.startswith(prefix)}
    look = _Shapes(own)
    if not {"cls_token", "pos_embed", "conv1.weight"} & set(own):
        raise UserError(f"it holds no encoder, only {', '.join(found)}")
    base = _resnet(look, method, found) if "conv1.weight" in own else _vit(look, method, found)
    if method == "moco":
        stem = "head" if base.family == "vit" else "fc"
        last = "6" if base.family == "vit" else "3"
        if f"{stem}.{last}.weight" in own:
            base = replace(base, projector=(look(f"{stem}.{last}.weight", 1), look(f"{stem}.{last}.weight", 0)))
        elif "predictor.0.weight" in shapes:
            base = replace(
                base, projector=(_Shapes(shapes)("predictor.0.weight", 0), _Shapes(shapes)("predictor.0.weight", 1))
            )
    if method == "mae":
        base = replace(
            base, decoder_width=look("mask_token", 2), decoder_depth=_count(own, "decoder_blocks.", "norm1.weight")
        )
    if method == "classifier":
        name = "head" if base.family == "vit" else "fc"
        normed = f"{name}.0.running_mean" in own
        base = replace(base, head_norm=normed, classes=look(f"{name}.1.weight" if normed else f"{name}.weight", 0))
    return base


class _Shapes:
    """Asks for one axis of one name; what is not there is the user's error, in one line."""

    def __init__(self, shapes: Mapping[str, Shape]) -> None:
        self.shapes = shapes

    def __call__(self, name: str, axis: int) -> int:
        shape = self.shapes.get(name)
        if shape is None:
            raise UserError(f"'{name}' is missing, so the architecture cannot be told")
        if 0 in shape:
            raise UserError(
                f"'{name}' is empty, as where DeepSpeed's ZeRO-3 or FSDP keeps the values in other files: "
                "gather them into one file first (DeepSpeed's own zero_to_fp32.py)"
            )
        if axis >= len(shape) or shape[axis] < 1:
            raise UserError(f"'{name}' has the shape {tuple(shape)}, which no model here has")
        return shape[axis]


def _vit(look: _Shapes, method: Method, found: tuple[str, ...]) -> Architecture:
    conv = "patch_embed.proj.0.weight" in look.shapes
    if "cls_token" not in look.shapes:
        raise UserError("it has no class token ('cls_token'; timm's class_token=False), which every ViT known here has")
    width, depth = look("cls_token", 2), _count(look.shapes, "blocks.", "norm1.weight")
    if not depth:
        raise UserError("no block of it has a 'norm1.weight', as every block of a ViT that is known here")
    first = "patch_embed.proj.0.weight" if conv else "patch_embed.proj.weight"
    return Architecture(
        method=method,
        family="vit",
        parts=found,
        width=width,
        depth=depth,
        channels=look(first, 1),
        patch=(16, 16) if conv else (look(first, 2), look(first, 3)),
        tokens=look("pos_embed", 1) - 1,
        stem="conv" if conv else "patch",
        hidden_width=look("blocks.0.mlp.fc1.bias", 0),
        pooled="fc_norm.weight" in look.shapes and "norm.weight" not in look.shapes,
    )


def _resnet(look: _Shapes, method: Method, found: tuple[str, ...]) -> Architecture:
    channels = look("conv1.weight", 1)
    counts = tuple(_count(look.shapes, f"layer{stage}.", "conv1.weight") for stage in (1, 2, 3, 4))
    deep = "layer1.0.conv3.weight" in look.shapes
    for depth, stages in STAGES.items():
        if stages == counts and BOTTLENECK[depth] == deep:
            return Architecture(
                method=method,
                family="resnet",
                parts=found,
                width=look("conv1.weight", 0) * (32 if deep else 8),
                depth=depth,
                channels=channels,
            )
    kind = "bottleneck" if deep else "basic"
    raise UserError(f"a ResNet of {counts} {kind} blocks is not one of ResNet-{', '.join(map(str, STAGES))}")


def _ratio(hidden: int, width: int) -> float:
    """The ratio whose product with the width gives back the hidden width when cut to a whole number."""
    ratio = hidden / width
    return ratio if int(width * ratio) == hidden else math.nextafter(ratio, math.inf)


def _count(names: Iterable[str], prefix: str, ending: str) -> int:
    """One more than the highest index i of `prefix`i.`ending`."""
    indices = [
        int(middle)
        for name in names
        if name.startswith(prefix) and name.endswith("." + ending)
        for middle in [name[len(prefix) : -len(ending) - 1]]
        if middle.isdecimal() and len(middle) <= 3
    ]
    return max(indices, default=-1) + 1
