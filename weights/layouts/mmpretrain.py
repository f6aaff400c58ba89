"""mmpretrain's layout: backbone, neck, head, and a momentum encoder of both.

Sources: mmpretrain/models/backbones/vision_transformer.py, necks/nonlinear_neck.py, necks/mae_neck.py,
selfsup/mocov3.py, heads/vision_transformer_head.py, heads/linear_head.py.
"""

from __future__ import annotations

from triport.weights.layouts.layout import Layout
from triport.weights.layouts.tables import RESNET, Table, table, under

BLOCK = """
norm1.{wb}      ln1.{wb}
attn.qkv.{wb}   attn.qkv.{wb}           qkv
attn.proj.{wb}  attn.proj.{wb}          linear
norm2.{wb}      ln2.{wb}
mlp.fc1.{wb}    ffn.layers.0.0.{wb}     linear
mlp.fc2.{wb}    ffn.layers.1.{wb}       linear
"""

TRUNK = """
cls_token
pos_embed
patch_embed.proj.{wb}   patch_embed.projection.{wb}
norm.{wb}               ln1.{wb}
fc_norm.{wb}            ln2.{wb}
"""

VIT_NECK = """
head.{0|3|6}.weight     fc{0|1|2}.weight    linear
head.{1|4}.{bn}         bn{0|1}.{bn}
head.7.{stat}           bn2.{stat}
"""

RESNET_NECK = """
fc.{0|3}.weight         fc{0|1}.weight      linear
fc.1.{bn}               bn0.{bn}
fc.4.{stat}             bn1.{stat}
"""

PREDICTOR = """
predictor.{0|3}.weight  head.predictor.fc{0|1}.weight   linear
predictor.1.{bn}        head.predictor.bn0.{bn}
predictor.4.{stat}      head.predictor.bn1.{stat}
-                       momentum_encoder.steps          count
"""

DECODER = """
mask_token              neck.mask_token
decoder_pos_embed       neck.decoder_pos_embed
decoder_embed.{wb}      neck.decoder_embed.{wb}     linear
decoder_norm.{wb}       neck.ln1.{wb}
decoder_pred.{wb}       neck.decoder_pred.{wb}      linear
"""

# MAE's probe has a batch norm in the neck, ClsBatchNormNeck
PROBE = """
head.0.{stat}   neck.bn.{stat}
head.1.{wb}     head.layers.head.{wb}   linear
"""

# VisionTransformerClsHead stands on the class token, LinearClsHead on averaged patches (fc_norm) and on ResNets
VIT_HEAD = "head.{wb} head.layers.head.{wb} linear"
LINEAR_HEAD = "head.{wb} head.fc.{wb} linear"
RESNET_HEAD = "fc.{wb} head.fc.{wb} linear"


def _moco(trunk: Table, neck: Table) -> Table:
    rules = table(PREDICTOR)
    for canonical, backbone, head in (
        ("base_encoder.", "backbone.", "neck."),
        ("momentum_encoder.", "momentum_encoder.module.0.", "momentum_encoder.module.1."),
    ):
        rules += under(canonical, backbone, trunk) + under(canonical, head, neck)
    return rules


TRUNK_TABLE = (*table(TRUNK), *under("blocks.#.", "layers.#.", table(BLOCK)))
_DECODER = (*table(DECODER), *under("decoder_blocks.#.", "neck.decoder_blocks.#.", table(BLOCK)))
_ENCODER = under("", "backbone.", TRUNK_TABLE)

_IGNORED = {f"data_preprocessor.{word}": "the preprocessing's constants" for word in ("mean", "std")}

MOCO = Layout(
    name="mmpretrain-moco",
    title="mmpretrain MoCo v3: {meta, state_dict}, backbone, neck, head.predictor, momentum_encoder",
    framework="torch",
    methods=("moco",),
    families={"vit": _moco(TRUNK_TABLE, table(VIT_NECK)), "resnet": _moco(table(RESNET), table(RESNET_NECK))},
    container="state_dict",
    needs=("projector", "momentum encoder", "predictor"),
    ignored=_IGNORED,
    remark="momentum_encoder.steps is 0, so mmengine starts its average from the base encoder again",
)
MAE = Layout(
    name="mmpretrain-mae",
    title="mmpretrain MAE pretraining: {meta, state_dict}, backbone, neck",
    framework="torch",
    methods=("mae",),
    families={"vit": _ENCODER + _DECODER},
    container="state_dict",
    ignored=_IGNORED,
)
CLASSIFIER = Layout(
    name="mmpretrain-cls",
    title="mmpretrain classifiers and encoders: {meta, state_dict}, backbone, head",
    framework="torch",
    methods=("encoder", "classifier"),
    families={
        "vit": _ENCODER + table(VIT_HEAD),
        "vit-mean": _ENCODER + table(LINEAR_HEAD),
        "vit-probe": _ENCODER + table(PROBE),
        "resnet": under("", "backbone.", table(RESNET)) + table(RESNET_HEAD),
    },
    container="state_dict",
    ignored=_IGNORED,
    pooling=("token", "mean"),
    head_norm=True,
)
LAYOUTS = (MOCO, MAE, CLASSIFIER)
