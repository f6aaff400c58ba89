"""LiBai's layouts: own block names, the fused projection by head; version 0.1.1 transposes fully connected weights.

Sources: LiBai projects/MOCOV3 and projects/MAE (modeling, utils/weight_convert.py), libai/models/vision_transformer.py.
LiBai of PyPI (0.1.1) keeps fully connected weights (in, out), LiBai main (out, in); `-0.1` names the first.
"""

from __future__ import annotations

from dataclasses import replace

from triport.weights.layouts.layout import Layout
from triport.weights.layouts.tables import DECODER, PREDICTOR, TOKENS, VIT_PROJECTOR, Table, moco, table, under

BLOCK = """
norm1.{wb}      input_layernorm.{wb}
attn.qkv.{wb}   self_attention.query_key_value.{wb}     qkv
attn.proj.{wb}  self_attention.dense.{wb}               linear
norm2.{wb}      post_attention_layernorm.{wb}
mlp.fc1.{wb}    mlp.dense_h_to_4h.{wb}                  linear
mlp.fc2.{wb}    mlp.dense_4h_to_h.{wb}                  linear
"""
NORM = "norm.{wb}"
POOLED_NORM = "fc_norm.{wb} norm.{wb}"
HEAD = "head.{wb} = linear"

# LiBai's last norms are affine; newer OneFlow keeps such constants as buffers
AFFINE = """
- {base_encoder|momentum_encoder}.head.7.weight     ones
- {base_encoder|momentum_encoder}.head.7.bias       zeros
- predictor.4.weight                                ones
- predictor.4.bias                                  zeros
"""
EPS = "LiBai's layer norms keep eps 1e-5: set module.eps = {eps} after building the model, or features differ slightly"


def _blocks(name: str) -> Table:
    return under(f"{name}.#.", f"{name}.#.", table(BLOCK))


_TRUNK = table(TOKENS) + _blocks("blocks")

MOCO = Layout(
    name="libai-moco",
    title="LiBai MoCo v3 pretraining (projects/MOCOV3)",
    framework="oneflow",
    methods=("moco",),
    families={"vit": moco(_TRUNK + table(NORM), table(VIT_PROJECTOR), table(PREDICTOR)) + table(AFFINE)},
    by_head=True,
    counters=False,
    norm_eps=None,
    remark=EPS,
)
MAE = Layout(
    name="libai-mae",
    title="LiBai MAE pretraining (projects/MAE)",
    framework="oneflow",
    methods=("mae",),
    families={"vit": _TRUNK + table(NORM) + table(DECODER) + _blocks("decoder_blocks")},
    by_head=True,
    counters=False,
    norm_eps=None,
    remark=EPS,
)
VIT = Layout(
    name="libai-vit",
    title="LiBai VisionTransformer: an encoder, or a classifier on the class token",
    framework="oneflow",
    methods=("encoder", "classifier"),
    families={"vit": _TRUNK + table(NORM) + table(HEAD)},
    by_head=True,
    counters=False,
    ignored={"mask_token": "MAE's mask token, which LiBai's weight loader leaves in"},
    norm_eps=None,
    remark=EPS,
)
MAE_FINETUNE = Layout(
    name="libai-mae-finetune",
    title="LiBai MAE fine-tuning: a classifier on averaged patches, whose `norm` is MAE's fc_norm",
    framework="oneflow",
    methods=("classifier",),
    families={"vit": _TRUNK + table(POOLED_NORM) + table(HEAD)},
    by_head=True,
    counters=False,
    norm_eps=None,
    remark=EPS,
    pooling=("mean",),
)


def _old(layout: Layout) -> Layout:
    return replace(layout, name=f"{layout.name}-0.1", title=f"{layout.title}, LiBai 0.1.1", in_out=True)


NEW = (MOCO, MAE, VIT, MAE_FINETUNE)
LAYOUTS = NEW + tuple(_old(layout) for layout in NEW)
