"""mmpretrain's MoCoV3, MAE and ImageClassifier as models of this suite."""

from __future__ import annotations

from typing import Any

from triport.core.errors import UserError
from triport.core.spec.foreign.settings import Settings
from triport.core.spec.spec import MAE, Classifier, Encoder, MixSpec, MoCo, Objective, ResNet, ViT

SIZES = {"small": (384, 12, 12), "base": (768, 12, 12), "large": (1024, 24, 16), "huge": (1280, 32, 16)}
SHORT = {"b": "base", "l": "large", "h": "huge", "mocov3-small": "small"}
Model = tuple[str, Encoder, Objective, MixSpec, str | None]


def model(s: Settings) -> Model:
    """Return task, encoder, objective, mixing and the file of weights, if the configuration names one."""
    kind = str(s.take("model.type", ""))
    make = {"MoCoV3": _moco, "MAE": _mae, "ImageClassifier": _classifier}.get(kind)
    if not kind:
        raise UserError(
            f"{s.path}: the model has no type: the file sets a part of the model in place of its base's, so that "
            "nothing else of it is left, in mmengine as here; write model.update(...), or read the file of configs/"
        )
    if make is None:
        raise UserError(f"{s.path}: the model {kind} is not known here: MoCoV3, MAE, ImageClassifier are")
    return make(s)


def _vit(s: Settings, kinds: tuple[str, ...], **more: Any) -> ViT:
    kind = s.take("model.backbone.type")
    if kind not in kinds:
        raise UserError(f"{s.path}: the encoder {kind} is not known here: {', '.join(kinds)} with this model")
    width, depth, heads, ratio = _size(s, str(kind))
    return ViT(
        width=width,
        depth=depth,
        heads=heads,
        mlp_ratio=ratio,
        image=s.pair("model.backbone.img_size", 224),
        patch=s.pair("model.backbone.patch_size", 16),
        drop_path=s.number("model.backbone.drop_path_rate", 0.0),
        **more,
    )


def _size(s: Settings, kind: str) -> tuple[int, int, int, float]:
    """Width, blocks, heads and the perceptrons' ratio of `arch`, which is a name or four numbers."""
    key = "model.backbone.arch"
    if s.inside(key):
        width, depth, heads = (s.whole(f"{key}.{name}") for name in ("embed_dims", "num_layers", "num_heads"))
        return width, depth, heads, s.whole(f"{key}.feedforward_channels") / width
    arch = str(s.take(key, "base"))
    arch = SHORT.get(arch, arch)
    if arch not in SIZES:
        raise UserError(f"{s.path}: {key} is '{arch}'; here it can be {', '.join(SIZES)}, or a dict of four sizes")
    if arch == "small" and kind == "VisionTransformer":
        raise UserError(f"{s.path}: {key} 'small' is of another shape in mmpretrain: take 'mocov3-small'")
    return *SIZES[arch], 4.0


def _neck(s: Settings, key: str, layers: int, width: int, norm: bool) -> tuple[int, int]:
    """Hidden and last width of one of MoCo v3's two perceptrons, which have to be built as the paper's."""
    s.only(f"{key}.type", "NonLinearNeck")
    s.only(f"{key}.in_channels", width)
    s.only(f"{key}.num_layers", layers)
    for name, value in (("with_bias", False), ("with_last_bn", norm), ("with_last_bn_affine", False),
                        ("with_last_bias", False)):  # fmt: skip
        s.only(f"{key}.{name}", value)
    s.take(f"{key}.with_avg_pool", False)
    return s.whole(f"{key}.hid_channels"), s.whole(f"{key}.out_channels")


def _moco(s: Settings) -> Model:
    encoder: Encoder
    if s.left.get("model.backbone.type") == "ResNet":
        encoder, width = _resnet(s), 2048
    else:
        frozen = s.flag("model.backbone.stop_grad_conv1", False)
        encoder = _vit(s, ("MoCoV3ViT",), position="moco", initial_values="moco", frozen_patch=frozen)
        width = encoder.width
    vit = isinstance(encoder, ViT)
    hidden, dim = _neck(s, "model.neck", 3 if vit else 2, width, True)
    s.only("model.head.type", "MoCoV3Head")
    if _neck(s, "model.head.predictor", 2, dim, vit) != (hidden, dim):
        raise UserError(f"{s.path}: model.neck and model.head.predictor have different widths; here they are alike")
    temperature = s.number("model.head.temperature")
    s.only("model.head.loss.type", "CrossEntropyLoss")
    s.only("model.head.loss.loss_weight", 2 * temperature)
    momentum = round(1 - s.number("model.base_momentum"), 12)
    return (
        "pretrain",
        encoder,
        MoCo(temperature=temperature, momentum=momentum, hidden=hidden, dim=dim),
        MixSpec(),
        None,
    )


def _mae(s: Settings) -> Model:
    mask = s.number("model.backbone.mask_ratio", 0.75)
    encoder = _vit(s, ("MAEViT",), position="mae", initial_values="mae")
    s.only("model.neck.type", "MAEPretrainDecoder")
    s.only("model.neck.embed_dim", encoder.width)
    s.only("model.neck.mlp_ratio", 4.0)
    for key in ("model.neck.patch_size", "model.head.patch_size"):
        s.only(key, encoder.patch[0])
    s.only("model.head.type", "MAEPretrainHead")
    s.one_of("model.head.loss.type", ("PixelReconstructionLoss",))
    s.one_of("model.head.loss.criterion", ("L2",))
    s.take("model.neck.in_chans", 3)
    s.take("model.neck.num_patches", 196)
    objective = MAE(
        normalised_pixels=s.flag("model.head.norm_pix", False),
        mask_ratio=mask,
        decoder_width=s.whole("model.neck.decoder_embed_dim", 512),
        decoder_depth=s.whole("model.neck.decoder_depth", 8),
        decoder_heads=s.whole("model.neck.decoder_num_heads", 16),
    )
    return "pretrain", encoder, objective, MixSpec(), None


def _resnet(s: Settings) -> ResNet:
    s.only("model.backbone.type", "ResNet")
    s.one_of("model.backbone.norm_cfg.type", ("SyncBN", "BN"), "BN")
    for key in ("num_stages", "out_indices", "style", "norm_cfg.requires_grad"):
        s.take(f"model.backbone.{key}", None)
    depth = s.one_of("model.backbone.depth", (18, 34, 50, 101))
    zero = s.flag("model.backbone.zero_init_residual", True)
    return ResNet(depth=depth, zero_init_residual=zero)


# ---------------------------------------------------------------- classifiers
def _classifier(s: Settings) -> Model:
    frozen = s.take("model.backbone.frozen_stages", None)
    evaluated = s.flag("model.backbone.norm_eval", False)
    weights = s.take("model.backbone.init_cfg.checkpoint", None)
    mean = s.take("model.backbone.out_type", "cls_token") == "avg_featmap"
    s.take("model.backbone.final_norm", not mean)
    normed = s.left.get("model.neck.type") == "ClsBatchNormNeck"
    kind = s.left.get("model.backbone.type")
    mae = mean or normed or "mae" in s.path.resolve().parts
    s.take("model.backbone.stop_grad_conv1", False)
    encoder: Encoder
    if kind == "ResNet":
        encoder, mean = _resnet(s), True
        blocks = 4
    else:
        position = "mae" if mae and kind != "MoCoV3ViT" else "moco"
        drawn = {"initial_values": position if frozen else "timm", "trainable_position": not frozen}
        encoder = _vit(s, ("VisionTransformer", "MoCoV3ViT"), position=position, **drawn)
        blocks = encoder.depth
    if frozen not in (None, -1, blocks):
        raise UserError(f"{s.path}: model.backbone.frozen_stages is {frozen}; here all {blocks} are frozen, or none")
    probe = frozen == blocks
    s.one_of("model.head.type", ("LinearClsHead", "VisionTransformerClsHead"))
    s.take("model.head.in_channels", None)
    s.take("model.head.topk", None)
    smoothing = _smoothing(s)
    head = Classifier(
        classes=s.whole("model.head.num_classes", 1000),
        pooling="mean" if mean else "token",
        head_std=_deviation(s),
        frozen_encoder=probe,
        frozen_mode="eval" if evaluated or not probe else "train",
        head_norm=normed,
    )
    s.forget("data_preprocessor.num_classes", "the data says how many classes there are")
    return "linear" if probe else "finetune", encoder, head, _mix(s, smoothing), weights


def _deviation(s: Settings) -> float:
    """The deviation that the head is drawn with: of the one rule for its linear layer."""
    key, found = "model.head.init_cfg", 0.01
    for number in s.inside(key) if "type" not in s.inside(key) else [""]:
        layer = f"{key}.{number}" if number else key
        if s.left.get(f"{layer}.layer") == "Linear":
            s.one_of(f"{layer}.type", ("TruncNormal", "Normal"))
            s.take(f"{layer}.layer")
            s.take(f"{layer}.bias", 0.0)
            found = s.number(f"{layer}.std")
    s.forget(key, "layer norms begin at 1 and 0")
    return found


def _smoothing(s: Settings) -> float:
    kind = s.one_of("model.head.loss.type", ("LabelSmoothLoss", "CrossEntropyLoss"))
    s.only("model.head.loss.loss_weight", 1.0)
    if kind == "CrossEntropyLoss":
        return 0.0
    s.only("model.head.loss.mode", "original")
    return s.number("model.head.loss.label_smooth_val")


def _mix(s: Settings, smoothing: float) -> MixSpec:
    key, alphas = "model.train_cfg.augments", dict[str, float]()
    for number in s.inside(key):
        name = s.one_of(f"{key}.{number}.type", ("Mixup", "CutMix"))
        alphas[name] = s.number(f"{key}.{number}.alpha")
    if s.has("model.train_cfg.probs"):
        raise UserError(f"{s.path}: model.train_cfg.probs is not known here: one of the two is taken for each batch")
    return MixSpec(mixup=alphas.get("Mixup", 0.0), cutmix=alphas.get("CutMix", 0.0), smoothing=smoothing)
