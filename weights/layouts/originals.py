"""Layouts under the originals' names: moco-v3, MAE, DeiT, timm and torchvision, and this project's own.

Sources: moco-v3 main_moco.py, main_lincls.py, convert_to_deit.py; mae util/misc.py; deit main.py.
"""

from __future__ import annotations

from triport.weights.layouts.layout import Heads, Layout
from triport.weights.layouts.tables import (
    PREDICTOR,
    RESNET,
    RESNET_HEAD,
    RESNET_PROJECTOR,
    VIT_HEAD,
    VIT_PROJECTOR,
    Table,
    decoder,
    moco,
    table,
    vit,
)

NON_COMMERCIAL = "The weights released by {} are under CC BY-NC 4.0: no commercial use."
MOCO_NOTICE = NON_COMMERCIAL.format("facebookresearch/moco-v3")
MAE_NOTICE = NON_COMMERCIAL.format("facebookresearch/mae")
DEIT_NOTICE = (
    "DeiT's own weights are under Apache-2.0; those that come from moco-v3 or MAE stay under CC BY-NC 4.0: "
    "no commercial use."
)

MOCO_ARCHS: dict[str, Heads] = {
    "vit_small": (12, None),
    "vit_base": (12, None),
    "vit_conv_small": (12, None),
    "vit_conv_base": (12, None),
}
MAE_ARCHS: dict[str, Heads] = {
    "mae_vit_base_patch16": (12, 16),
    "mae_vit_large_patch16": (16, 16),
    "mae_vit_huge_patch14": (16, 16),
    "mae_vit_base_patch16_dec512d8b": (12, 16),
    "mae_vit_large_patch16_dec512d8b": (16, 16),
    "mae_vit_huge_patch14_dec512d8b": (16, 16),
    "vit_base_patch16": (12, None),
    "vit_large_patch16": (16, None),
    "vit_huge_patch14": (16, None),
}
DEIT_ARCHS: dict[str, Heads] = {  # without deit_small_patch16_224: 6 heads, or moco-v3's 12 after its README's edit
    "deit_tiny_patch16_224": (3, None),
    "deit_base_patch16_224": (12, None),
    "deit_base_patch16_384": (12, None),
}

_VIT = vit()
_RESNET = table(RESNET)
_MOCO = {
    "vit": moco(_VIT, table(VIT_PROJECTOR), table(PREDICTOR)),
    "resnet": moco(_RESNET, table(RESNET_PROJECTOR), table(PREDICTOR)),
}
_CLASSIFIER = {"vit": _VIT + table(VIT_HEAD), "resnet": _RESNET + table(RESNET_HEAD)}
_MAE = {"vit": _VIT + decoder()}

# convert_to_deit.py knows only `head`, so the MLP of a ResNet stays in its files under these names
_LEFT = {
    f"fc.{k}": "a ResNet's projector, which moco-v3's conversion leaves in"
    for k in (
        "0.weight",
        "1.weight",
        "1.bias",
        "1.running_mean",
        "1.running_var",
        "1.num_batches_tracked",
        "3.weight",
        "4.running_mean",
        "4.running_var",
        "4.num_batches_tracked",
    )
}
_DEIT: dict[str, Table] = {
    "vit": _CLASSIFIER["vit"],
    "resnet": _RESNET + tuple(r for r in table(RESNET_HEAD) if r.canonical in ("fc.weight", "fc.bias")),
}

TRIPORT = Layout(
    name="triport",
    title="this project's own: canonical names, PyTorch's shapes",
    framework="any",
    methods=("encoder", "moco", "mae", "classifier"),
    families={"vit": _MOCO["vit"] + _MAE["vit"] + table(VIT_HEAD), "resnet": _MOCO["resnet"] + _CLASSIFIER["resnet"]},
    pooling=("token", "mean"),
    head_norm=True,
)
MOCO_V3 = Layout(
    name="moco-v3",
    title="moco-v3 pretraining: {epoch, arch, state_dict}, names after `module.`",
    framework="torch",
    methods=("moco",),
    families=_MOCO,
    container="state_dict",
    prefix="module.",
    archs=MOCO_ARCHS,
    notice=MOCO_NOTICE,
)
MOCO_V3_BARE = Layout(
    name="moco-v3-bare",
    title="moco-v3 pretraining without `module.` in front of the names",
    framework="torch",
    methods=("moco",),
    families=_MOCO,
    container="state_dict",
    archs=MOCO_ARCHS,
    notice=MOCO_NOTICE,
)
MOCO_V3_LINEAR = Layout(
    name="moco-v3-linear",
    title="moco-v3 linear probe: {epoch, arch, state_dict, best_acc1}, names after `module.`",
    framework="torch",
    methods=("classifier",),
    families=_CLASSIFIER,
    container="state_dict",
    prefix="module.",
    archs=MOCO_ARCHS,
    notice=MOCO_NOTICE,
)
DEIT = Layout(
    name="deit",
    title="DeiT: {model}, an encoder or a classifier",
    framework="torch",
    methods=("encoder", "classifier"),
    families=_DEIT,
    container="model",
    ignored=_LEFT,
    archs=DEIT_ARCHS,
    notice=DEIT_NOTICE,
    remark="DeiT's deit_small has 6 heads, moco-v3's ViT-S 12: give it num_heads=12 before loading weights of moco-v3",
    remark_width=384,
)
MAE = Layout(
    name="mae",
    title="MAE pretraining: {model}, with or without the decoder",
    framework="torch",
    methods=("mae", "encoder"),
    families=_MAE,
    container="model",
    archs=MAE_ARCHS,
    notice=MAE_NOTICE,
)
MAE_FINETUNE = Layout(
    name="mae-finetune",
    title="MAE fine-tuning and linear probe: {model}, a classifier with norm or fc_norm",
    framework="torch",
    methods=("classifier",),
    families={"vit": _CLASSIFIER["vit"]},
    container="model",
    archs=MAE_ARCHS,
    notice=MAE_NOTICE,
    pooling=("token", "mean"),
    head_norm=True,
)
TIMM = Layout(
    name="timm",
    title="timm, and torchvision's ResNets: a flat state dict, an encoder or a classifier",
    framework="torch",
    methods=("encoder", "classifier"),
    families=_CLASSIFIER,
    pooling=("token", "mean"),
)
LAYOUTS = (MOCO_V3, MOCO_V3_BARE, MOCO_V3_LINEAR, DEIT, MAE, MAE_FINETUNE, TIMM, TRIPORT)
