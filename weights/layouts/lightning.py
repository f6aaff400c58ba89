"""Layouts of projects that train with Lightning: solo-learn, lightly, stable-pretraining.

Sources: solo-learn solo/methods/{base,mocov3,mae}.py; lightly lightly/models/modules/masked_vision_transformer_timm.py,
masked_autoencoder_timm.py; stable-pretraining stable_pretraining/methods/mocov3.py, backbone/utils.py. All keep their
encoders under timm's names, with a ResNet's `fc` or a ViT's `head` taken away. What else is in their files is under no
name of a model here: a prefix is found for it (model/detect.py).
"""

from __future__ import annotations

from triport.weights.layouts.layout import Layout
from triport.weights.layouts.tables import (
    BN,
    PREDICTOR,
    RESNET,
    RESNET_PROJECTOR,
    VIT_PROJECTOR,
    Table,
    decoder,
    table,
    under,
    vit,
)

_ONLINE = "the classifier that is trained beside, on labels"
_SOLO_IGNORED = dict.fromkeys(
    (f"{name}.{word}" for name in ("classifier", "momentum_classifier") for word in ("weight", "bias")), _ONLINE
)


def _moco(trunk: Table, projector: str, stem: str, places: tuple[tuple[str, str, str], ...]) -> Table:
    """Encoders and projectors, where each of them stands: canonical prefix, encoder's prefix, projector's prefix."""
    rules: Table = ()
    for canonical, encoder, head in places:
        heads = under(f"{canonical}{stem}.", f"{head}.", _bare(projector, stem))
        rules += under(canonical, encoder, trunk) + heads
    return rules


def _bare(section: str, stem: str) -> Table:
    """A projector's section without `head.` or `fc.` in front of its names, on either side."""
    return table(section.replace(f"{stem}.", ""))


_SOLO = (
    ("base_encoder.", "backbone.", "projector"),
    ("momentum_encoder.", "momentum_backbone.", "momentum_projector"),
)
_SPT = (
    ("base_encoder.", "backbone.student.", "projector.student"),
    ("momentum_encoder.", "backbone.teacher.", "projector.teacher"),
)
_SHORT = (*(f"predictor.{n}.weight" for n in (0, 3)), *(f"predictor.1.{word}" for word in BN))
_SPT_IGNORED = dict.fromkeys(_SHORT, "a predictor without its last batch norm, which MoCo v3's has")
_COEFFICIENTS = [
    f"{part}.{word}ema_coefficient" for part in ("backbone", "projector") for word in ("", "base_", "final_")
]
_SPT_IGNORED |= dict.fromkeys(_COEFFICIENTS, "the momentum itself")

SOLO_MOCO = Layout(
    name="solo-learn-moco",
    title="solo-learn MoCo v3: {state_dict}, backbone, projector, predictor, momentum_backbone, momentum_projector",
    framework="torch",
    methods=("moco",),
    families={
        "vit": _moco(vit(), VIT_PROJECTOR, "head", _SOLO) + table(PREDICTOR),
        "resnet": _moco(table(RESNET), RESNET_PROJECTOR, "fc", _SOLO) + table(PREDICTOR),
    },
    container="state_dict",
    needs=("projector", "momentum encoder", "predictor"),
    ignored=_SOLO_IGNORED,
    remark="solo-learn also has a classifier beside the model, which it draws itself: load with strict=False",
)
SOLO_MAE = Layout(
    name="solo-learn-mae",
    title="solo-learn MAE: {state_dict}, backbone, decoder",
    framework="torch",
    methods=("mae",),
    families={"vit": under("", "backbone.", vit()) + under("", "decoder.", decoder())},
    container="state_dict",
    marks=("decoder.decoder_pred.weight",),
    ignored=_SOLO_IGNORED,
    remark="solo-learn also has a classifier beside the model, which it draws itself: load with strict=False",
)
LIGHTLY_MAE = Layout(
    name="lightly-mae",
    title="lightly MAE: {state_dict}, backbone.vit, decoder",
    framework="torch",
    methods=("mae",),
    families={"vit": under("", "backbone.vit.", vit()) + under("", "decoder.", decoder())},
    container="state_dict",
    ignored={"backbone.mask_token": "the encoder's mask token, which MAE does not use"},
    remark="lightly's backbone.mask_token, which MAE does not use, is left out: load with strict=False",
)
SPT_MOCO = Layout(
    name="stable-pretraining-moco",
    title="stable-pretraining MoCov3: {state_dict}, backbone and projector, each with student and teacher",
    read_only=True,  # its predictor has no last batch norm
    framework="torch",
    methods=("moco",),
    families={
        "vit": _moco(vit(), VIT_PROJECTOR, "head", _SPT),
        "resnet": _moco(table(RESNET), VIT_PROJECTOR.replace("head.", "fc."), "fc", _SPT),
    },
    container="state_dict",
    needs=("momentum encoder",),
    ignored=_SPT_IGNORED,
    remark="stable-pretraining's predictor has no last batch norm and is left out: load with strict=False",
)
LAYOUTS = (SOLO_MOCO, SOLO_MAE, LIGHTLY_MAE, SPT_MOCO)
