"""torchvision's layout: VisionTransformer under its own names, ResNets under those that everybody took over.

Sources: torchvision models/vision_transformer.py (MLPBlock renamed its layers in its second version), models/resnet.py;
references/classification/train.py for {model, args}.
"""

from __future__ import annotations

from triport.weights.layouts.layout import Heads, Layout
from triport.weights.layouts.tables import RESNET, Table, table

MOST = 48  # blocks; their number is no word of its own in these names
ARCHS: dict[str, Heads] = {
    "vit_b_16": (12, None),
    "vit_b_32": (12, None),
    "vit_l_16": (16, None),
    "vit_l_32": (16, None),
    "vit_h_14": (16, None),
}

TRUNK = """
cls_token               class_token
pos_embed               encoder.pos_embedding
patch_embed.proj.{wb}   conv_proj.{wb}
norm.{wb}               encoder.ln.{wb}
head.{wb}               heads.head.{wb}     linear
"""

BLOCK = """
blocks.{k}.norm1.{wb}       encoder.layers.encoder_layer_{k}.ln_1.{wb}
blocks.{k}.attn.qkv.weight  encoder.layers.encoder_layer_{k}.self_attention.in_proj_weight  qkv
blocks.{k}.attn.qkv.bias    encoder.layers.encoder_layer_{k}.self_attention.in_proj_bias    qkv
blocks.{k}.attn.proj.{wb}   encoder.layers.encoder_layer_{k}.self_attention.out_proj.{wb}   linear
blocks.{k}.norm2.{wb}       encoder.layers.encoder_layer_{k}.ln_2.{wb}
blocks.{k}.mlp.fc1.{wb}     encoder.layers.encoder_layer_{k}.mlp.FIRST.{wb}                 linear
blocks.{k}.mlp.fc2.{wb}     encoder.layers.encoder_layer_{k}.mlp.SECOND.{wb}                linear
"""


def _vit(first: str, second: str) -> Table:
    block = BLOCK.replace("FIRST", first).replace("SECOND", second)
    return table(TRUNK) + tuple(rule for k in range(MOST) for rule in table(block.replace("{k}", str(k))))


TORCHVISION = Layout(
    name="torchvision",
    title="torchvision: VisionTransformer and ResNet, a flat state dict",
    framework="torch",
    methods=("encoder", "classifier"),
    families={
        "vit": _vit("0", "3"),
        "vit-older": _vit("linear_1", "linear_2"),
        "resnet": table(RESNET) + table("fc.{wb} = linear"),
    },
    archs=ARCHS,
)
LAYOUTS = (TORCHVISION,)
