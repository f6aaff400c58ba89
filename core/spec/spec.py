"""The whole vocabulary: frozen dataclasses that say what a model, an augmentation, a schedule and a recipe are.

What every recipe shares has a default; a choice that a paper makes has none. `kind` tags the unions.
Nothing here computes: `inventory` lists a model's parameters, `schedule` its learning rates, and so on.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, Union

Pair = tuple[int, int]  # (height, width) in pixels
Interpolation = Literal["bilinear", "bicubic"]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


# ---------------------------------------------------------------- models
@dataclass(frozen=True, kw_only=True)
class ViT:
    """A vision transformer encoder, pre-norm, fused qkv, exact GELU (moco-v3 vits.py, mae models_vit.py)."""

    kind: Literal["vit"] = "vit"
    width: int
    depth: int  # blocks; the conv stem of MoCo v3 replaces one of them, so its recipes say 11
    heads: int  # never inferred: MoCo v3 ViT-S has 12, DeiT-S has 6, with the same shapes
    position: Literal["moco", "mae"]  # which fixed 2-D sin-cos table the tokens start with
    initial_values: Literal["moco", "mae", "timm"]  # how weights are drawn
    patch: Pair = (16, 16)
    image: Pair = (224, 224)
    channels: int = 3
    mlp_ratio: float = 4.0
    stem: Literal["patch", "conv"] = "patch"
    frozen_patch: bool = False  # MoCo v3 keeps the random patch projection of ViTs frozen
    trainable_position: bool = False  # fine-tuning trains the table
    norm_eps: float = 1e-6
    drop_path: float = 0.0  # rate of the last block; block i has drop_path * i / (depth - 1)


@dataclass(frozen=True, kw_only=True)
class ResNet:
    """A ResNet v1.5 encoder with torchvision's names and initial values."""

    kind: Literal["resnet"] = "resnet"
    depth: Literal[18, 34, 50, 101]
    zero_init_residual: bool  # the last norm of each residual branch starts at 0
    image: Pair = (224, 224)
    channels: int = 3


Encoder = Union[ViT, ResNet]


@dataclass(frozen=True, kw_only=True)
class MoCo:
    """MoCo v3: two encoders with projectors, a predictor, a symmetric contrastive loss (arXiv 2104.02057)."""

    kind: Literal["moco"] = "moco"
    temperature: float
    momentum: float  # of the momentum encoder at the start
    momentum_cosine: bool = True  # grows to 1 over the run
    momentum_compounds: bool = (
        False  # LiBai: each step's cosine starts from the last step's momentum, not from the first
    )
    hidden: int = 4096
    dim: int = 256


@dataclass(frozen=True, kw_only=True)
class MAE:
    """Masked autoencoder: encoder on the visible patches, a light decoder on all of them (arXiv 2111.06377)."""

    kind: Literal["mae"] = "mae"
    normalised_pixels: bool  # the target of each patch has mean 0 and unbiased variance 1
    mask_ratio: float = 0.75
    decoder_width: int = 512
    decoder_depth: int = 8
    decoder_heads: int = 16


@dataclass(frozen=True, kw_only=True)
class Classifier:
    """An encoder and a linear head: linear probe, fine-tuning, evaluation."""

    kind: Literal["classifier"] = "classifier"
    classes: int
    pooling: Literal["token", "mean"]  # class token after `norm`, or mean of the patches then `fc_norm`; ResNet: mean
    head_std: float  # the head's weight starts as a normal of this deviation cut at +-2, its bias at 0
    frozen_encoder: bool = False  # linear probe: only the head learns
    frozen_mode: Literal["eval", "train"] = "eval"  # MoCo v3 probes in eval mode, MAE in train mode
    head_norm: bool = False  # MAE's probe: BatchNorm1d without affine parameters, eps 1e-6, before the head


Objective = Union[MoCo, MAE, Classifier]


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """An encoder under an objective."""

    encoder: Encoder
    objective: Objective


# ---------------------------------------------------------------- augmentation
@dataclass(frozen=True, kw_only=True)
class RandomResizedCrop:
    """A random area and aspect ratio, resized to `size`. Style "once" (MAE's probe): one draw, clipped."""

    kind: Literal["random_resized_crop"] = "random_resized_crop"
    min_area: float
    interpolation: Interpolation
    size: Pair = (224, 224)
    max_area: float = 1.0
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    style: Literal["retry", "once"] = "retry"


@dataclass(frozen=True, kw_only=True)
class ColorJitter:
    """Brightness, contrast, saturation and hue in a random order, with probability p for the whole."""

    kind: Literal["color_jitter"] = "color_jitter"
    p: float
    brightness: float
    contrast: float
    saturation: float
    hue: float


@dataclass(frozen=True, kw_only=True)
class Grayscale:
    """All channels become the luma with probability p."""

    kind: Literal["grayscale"] = "grayscale"
    p: float


@dataclass(frozen=True, kw_only=True)
class GaussianBlur:
    """Pillow's GaussianBlur with a radius drawn between the two sigmas, with probability p."""

    kind: Literal["gaussian_blur"] = "gaussian_blur"
    p: float
    min_sigma: float = 0.1
    max_sigma: float = 2.0


@dataclass(frozen=True, kw_only=True)
class Solarize:
    """Values at or above the threshold are inverted, with probability p."""

    kind: Literal["solarize"] = "solarize"
    p: float
    threshold: int = 128


@dataclass(frozen=True, kw_only=True)
class HorizontalFlip:
    """Mirrored left to right with probability p."""

    kind: Literal["horizontal_flip"] = "horizontal_flip"
    p: float = 0.5


@dataclass(frozen=True, kw_only=True)
class RandAugment:
    """timm's `rand-m9-mstd0.5-inc1` family: `operations` draws with replacement, each applied with probability p."""

    kind: Literal["rand_augment"] = "rand_augment"
    magnitude: float = 9.0
    deviation: float = 0.5
    operations: int = 2
    p: float = 0.5


@dataclass(frozen=True, kw_only=True)
class RandomErasing:
    """A rectangle of normal noise after normalisation, with probability p."""

    kind: Literal["random_erasing"] = "random_erasing"
    p: float = 0.25
    min_area: float = 0.02
    max_area: float = 1 / 3
    ratio: float = 0.3  # aspect between ratio and 1 / ratio


@dataclass(frozen=True, kw_only=True)
class Resize:
    """The shorter side becomes `size` pixels; the aspect ratio stays."""

    kind: Literal["resize"] = "resize"
    size: int
    interpolation: Interpolation


@dataclass(frozen=True, kw_only=True)
class CenterCrop:
    """The middle of the image, padded with zeros where the image is smaller."""

    kind: Literal["center_crop"] = "center_crop"
    size: Pair = (224, 224)


Operation = Union[
    RandomResizedCrop,
    ColorJitter,
    Grayscale,
    GaussianBlur,
    Solarize,
    HorizontalFlip,
    RandAugment,
    RandomErasing,
    Resize,
    CenterCrop,
]


@dataclass(frozen=True, kw_only=True)
class AugmentSpec:
    """Views of one image, each a chain of operations; then scaled to [0, 1] and normalised per channel."""

    views: tuple[tuple[Operation, ...], ...]
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD


@dataclass(frozen=True, kw_only=True)
class MixSpec:
    """Mixup and CutMix of a batch with its reverse, and label smoothing (timm 0.3.2 data/mixup.py)."""

    mixup: float = 0.0  # alpha of the beta distribution; 0 is off
    cutmix: float = 0.0
    probability: float = 1.0
    switch: float = 0.5  # chance of CutMix where both are on
    smoothing: float = 0.0


# ---------------------------------------------------------------- training
@dataclass(frozen=True, kw_only=True)
class OptimizerSpec:
    """The update rule. Learning rate at batch B is `lr` * B / `lr_batch`."""

    kind: Literal["adamw", "lars", "sgd"]
    lr: float
    weight_decay: float
    decays: Literal["all", "matrices", "matrices_but_tokens", "all_but_norms_and_tokens"]
    # all: every trained tensor (MoCo v3); matrices: not 1-d and not `.bias` (MAE pretraining);
    # matrices_but_tokens: as matrices, and not cls_token, pos_embed or mask_token (fine-tuning);
    # all_but_norms_and_tokens: biases of linear layers decay too (PASSL's DeiT). LARS skips 1-d tensors itself.
    lr_batch: int = 256
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    momentum: float = 0.9  # sgd and lars
    trust: float = 0.001  # lars
    layer_decay: float | None = None
    clip_norm: float | None = None
    average: float | None = None  # decay of the exponential moving average of the weights (DeiT: 0.99996)


@dataclass(frozen=True, kw_only=True)
class ScheduleSpec:
    """Cosine with warm-up.

    cosine: `after_warmup` spans what is left after the warm-up (MoCo v3, MAE); `whole` spans all epochs (DeiT);
    `early` begins with the run and is as long as what the warm-up leaves, so that it ends before the run and rises
    again (LiBai's warmup_cosine_lr_scheduler). warmup_end: the warm-up goes to the peak, or to the value that the
    cosine has where the warm-up ends (OneFlow's WarmupLR).
    """

    epochs: int
    warmup_epochs: float
    min_lr: float = 0.0
    warmup_lr: float = 0.0
    per: Literal["step", "epoch"] = "step"
    cosine: Literal["after_warmup", "whole", "early"] = "after_warmup"
    warmup_end: Literal["peak", "cosine"] = "peak"
    lag: int = 0  # DeiT's scheduler is one epoch late: epoch n uses the value of n - 1


@dataclass(frozen=True, kw_only=True)
class DataSpec:
    """What the recipe was made for; the command line's --data replaces the path."""

    name: str  # "imagenet" and the like for the reader, or a name that core.data.datasets ships: "fashion-mnist"
    repeats: int = 1  # DeiT's repeated augmentation: every drawn sample stands 3 times in an epoch's order


@dataclass(frozen=True, kw_only=True)
class MonitorSpec:
    """What is watched during a run."""

    knn_every: int = 0  # epochs between kNN scores on held-out images; 0 is off
    knn_neighbours: int = 20
    knn_temperature: float = 0.07
    probe: bool = False  # pretraining: a linear classifier learns beside the encoder, whose gradient never reaches it
    evaluate_every: int = 1  # epochs between evaluations of a classifier, and of the probe where there is no kNN
    baselines: bool = True  # chance and raw pixels are scored once, before training
    pictures: bool = True  # input views, reconstructions and a projection of features are drawn for the report
    save_every: int = 1  # epochs between kept checkpoints
    keep: int = 3  # how many of them are kept


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What the paper says. Paths, devices, processes, micro-batch, precision and resume are the command line's."""

    name: str  # its path under configs/, without the ending
    title: str
    source: str  # where the numbers come from
    task: Literal["pretrain", "linear", "finetune"]
    model: ModelSpec
    train: AugmentSpec
    evaluate: AugmentSpec  # one view: held-out images of kNN, probe and accuracy
    optimizer: OptimizerSpec
    schedule: ScheduleSpec
    data: DataSpec
    batch: int  # global: all processes and accumulation steps together
    mix: MixSpec = MixSpec()
    monitor: MonitorSpec = MonitorSpec()
    seed: int = 0
    reported: dict[str, float] = field(default_factory=dict)  # task -> top-1 % that the source reports
