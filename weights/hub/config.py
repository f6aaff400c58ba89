"""config.json of transformers and of timm for a model, and the line of Python that loads the folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from triport.core.errors import UserError
from triport.core.spec import Pair
from triport.weights.canonical import Architecture
from triport.weights.hub.preprocessing import Preprocessing

TIMM_NORM_EPS = 1e-6  # of timm's vision transformers
TIMM_SIZES = {192: "tiny", 384: "small", 768: "base", 1024: "large", 1280: "huge"}
MASK_RATIO = 0.75


@dataclass(frozen=True, kw_only=True)
class Described:
    """A model as the configuration of another project needs it."""

    shape: Architecture
    heads: int
    norm_eps: float
    image: Pair
    dtype: str
    classes: Sequence[str] = ()  # names
    decoder_heads: int | None = None
    normalised_pixels: bool | None = None
    mask_ratio: float | None = None


def described(shape: Architecture, dtype: str, **fields: Any) -> Described:
    """Take what an architecture knows; UserError, with the option that says it, for what a configuration needs."""
    if shape.family == "resnet":
        return Described(shape=shape, heads=0, norm_eps=0, image=(224, 224), dtype=dtype, **fields)
    for value, what, option in (
        (shape.heads, "attention heads", "--heads"),
        (shape.norm_eps, "the epsilon of its norms", "--norm-eps"),
        (shape.image, "its image size, for its grid is not square", "--recipe"),
    ):
        if value is None:
            raise UserError(f"config.json needs {what}, and the source does not tell: say it with {option}")
    if shape.method == "mae" and shape.decoder_heads is None:
        raise UserError(
            "config.json needs the decoder's heads, and the source does not tell: say it with --decoder-heads"
        )
    assert shape.heads and shape.norm_eps and shape.image
    return Described(
        shape=shape,
        heads=shape.heads,
        norm_eps=shape.norm_eps,
        image=shape.image,
        dtype=dtype,
        decoder_heads=shape.decoder_heads,
        **fields,
    )


def _size(pair: Pair) -> int | list[int]:
    return pair[0] if pair[0] == pair[1] else list(pair)


# ---------------------------------------------------------------- transformers
def for_transformers(model: Described) -> dict[str, Any]:
    """config.json of ViTModel, ViTForImageClassification or ViTMAEForPreTraining."""
    shape = model.shape
    mae = shape.method == "mae"
    if mae and (model.image[0] != model.image[1] or shape.patch[0] != shape.patch[1]):
        raise UserError(
            "transformers' ViTMAE has square images and patches: take the encoder alone with --only encoder"
        )
    name = {"mae": "ViTMAEForPreTraining", "classifier": "ViTForImageClassification"}.get(shape.method, "ViTModel")
    config: dict[str, Any] = {
        "architectures": [name],
        "model_type": "vit_mae" if mae else "vit",
        "hidden_size": shape.width,
        "num_hidden_layers": shape.depth,
        "num_attention_heads": model.heads,
        "intermediate_size": shape.hidden_width,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "initializer_range": 0.02,
        "layer_norm_eps": model.norm_eps,
        "image_size": _size(model.image),
        "patch_size": _size(shape.patch),
        "num_channels": shape.channels,
        "qkv_bias": True,
        "dtype": model.dtype,
    }
    if mae:
        ratio = MASK_RATIO if model.mask_ratio is None else model.mask_ratio
        return config | {
            "decoder_hidden_size": shape.decoder_width,
            "decoder_num_hidden_layers": shape.decoder_depth,
            "decoder_num_attention_heads": model.decoder_heads,
            "decoder_intermediate_size": int(shape.decoder_width * shape.hidden_width / shape.width),
            "mask_ratio": ratio,
            "norm_pix_loss": bool(model.normalised_pixels),
        }
    if shape.method == "classifier":
        names = model.classes or [f"LABEL_{k}" for k in range(shape.classes)]
        return config | {
            "id2label": {str(k): name for k, name in enumerate(names)},
            "label2id": {name: k for k, name in enumerate(names)},
        }
    # with the identity as its weight, the pooler gives the feature itself: the class token after the last norm
    return config | {"pooler_act": "linear", "pooler_output_size": shape.width}


def transformers_line(shape: Architecture, folder: str) -> str:
    """The line that loads the folder."""
    name = {"mae": "ViTMAEForPreTraining", "classifier": "AutoModelForImageClassification"}
    return f"transformers.{name.get(shape.method, 'AutoModel')}.from_pretrained({folder!r})"


# ---------------------------------------------------------------- timm
def for_timm(model: Described, images: Preprocessing) -> dict[str, Any]:
    """config.json as timm's `save_for_hf` writes it."""
    shape = model.shape
    pooling = "avg" if shape.pooled or shape.family == "resnet" else "token"
    first, last = ("conv1", "fc") if shape.family == "resnet" else ("patch_embed.proj", "head")
    pretrained: dict[str, Any] = {
        "tag": "triport",
        "custom_load": False,
        "input_size": [shape.channels, *model.image],
        "fixed_input_size": shape.family == "vit",
        **images.for_timm(),
        "num_classes": shape.classes,
        "pool_size": [7, 7] if shape.family == "resnet" else None,
        "first_conv": first,
        "classifier": last,
    }
    if model.classes:
        pretrained["label_names"] = list(model.classes)
    return {
        "architecture": _timm_name(shape),
        "num_classes": shape.classes,
        "num_features": shape.width,
        "global_pool": pooling,
        "pretrained_cfg": pretrained,
        "model_args": _timm_arguments(model, pooling),
    }


def _timm_name(shape: Architecture) -> str:
    """The registered model that is nearest; what differs is said by its arguments."""
    if shape.family == "resnet":
        if shape.depth == 10 or shape.first_stage != 64:
            raise UserError(f"timm has no {shape.describe()}: write a file for torchvision or moco-v3 instead")
        return f"resnet{shape.depth}"
    if shape.stem == "conv":
        raise UserError("timm has no ViT with the convolutional stem of MoCo v3: write a file for moco-v3 instead")
    size = TIMM_SIZES.get(shape.width, "base")
    return f"vit_{size}_patch{14 if size == 'huge' else 16}_224"


def _timm_arguments(model: Described, pooling: str) -> dict[str, Any]:
    shape = model.shape
    if shape.family == "resnet":
        return {"in_chans": shape.channels}
    return {
        "img_size": _size(model.image),
        "patch_size": _size(shape.patch),
        "in_chans": shape.channels,
        "embed_dim": shape.width,
        "depth": shape.depth,
        "num_heads": model.heads,
        "mlp_ratio": shape.encoder().mlp_ratio,  # type: ignore[union-attr]
        "global_pool": pooling,
    }


def timm_line(model: Described, folder: str) -> str:
    """The line that loads the folder; timm's configuration has no place for another epsilon."""
    eps = ""
    if model.shape.family == "vit" and model.norm_eps != TIMM_NORM_EPS:
        eps = f", norm_layer=functools.partial(torch.nn.LayerNorm, eps={model.norm_eps:g})"
    return f"timm.create_model({'local-dir:' + folder!r}, pretrained=True{eps})"
