"""Hugging Face's layouts of ViT and ViTMAE: query, key and value apart.

Sources: transformers models/vit/modeling_vit.py, models/vit_mae/modeling_vit_mae.py, conversion_mapping.py.
transformers 5 renamed the modules: `save_pretrained` still writes the older names, `state_dict()` has the newer.
"""

from __future__ import annotations

from triport.weights.layouts.layout import Layout
from triport.weights.layouts.tables import Table, table, under

EMBEDDINGS = """
cls_token               embeddings.cls_token
pos_embed               embeddings.position_embeddings
patch_embed.proj.{wb}   embeddings.patch_embeddings.projection.{wb}
norm.{wb}               layernorm.{wb}
"""

BLOCK = """
norm1.{wb}      layernorm_before.{wb}
attn.qkv.{wb}   attention.attention.query.{wb} & attention.attention.key.{wb} & attention.attention.value.{wb}  qkv
attn.proj.{wb}  attention.output.dense.{wb}     linear
norm2.{wb}      layernorm_after.{wb}
mlp.fc1.{wb}    intermediate.dense.{wb}         linear
mlp.fc2.{wb}    output.dense.{wb}               linear
"""

BLOCK_5 = """
norm1.{wb}      layernorm_before.{wb}
attn.qkv.{wb}   attention.q_proj.{wb} & attention.k_proj.{wb} & attention.v_proj.{wb}   qkv
attn.proj.{wb}  attention.o_proj.{wb}           linear
norm2.{wb}      layernorm_after.{wb}
mlp.fc1.{wb}    mlp.fc1.{wb}                    linear
mlp.fc2.{wb}    mlp.fc2.{wb}                    linear
"""

HEAD = "head.{wb} classifier.{wb} linear"

DECODER = """
mask_token              decoder.mask_token
decoder_pos_embed       decoder.decoder_pos_embed
decoder_embed.{wb}      decoder.decoder_embed.{wb}      linear
decoder_norm.{wb}       decoder.decoder_norm.{wb}
decoder_pred.{wb}       decoder.decoder_pred.{wb}       linear
"""

_IGNORED = {
    "pooler.dense.weight": "the pooler, which MoCo v3 and MAE do not have",
    "pooler.dense.bias": "the pooler, which MoCo v3 and MAE do not have",
    "embeddings.mask_token": "the mask token of masked image modelling in ViT, which MAE's decoder does not use",
}
IGNORED = _IGNORED | {f"vit.{name}": reason for name, reason in _IGNORED.items()}
REMARK = "config.json needs num_attention_heads and layer_norm_eps = {eps}; a folder as target has it"


def _layouts(ending: str, which: str, layers: str, block: Table) -> tuple[Layout, Layout]:
    bare = table(EMBEDDINGS) + under("blocks.#.", f"{layers}.#.", block)
    whole = under("", "vit.", bare)
    decoder = table(DECODER)
    # save_pretrained of transformers 5 renames too much on its way back to the older names
    own, renamed = (
        under("decoder_blocks.#.", f"decoder.decoder_{word}.#.", block) for word in ("layers", "encoder.layer")
    )
    plain = Layout(
        name=f"hf-vit{ending}",
        title=f"Hugging Face ViTModel and ViTForImageClassification, {which}",
        framework="torch",
        methods=("encoder", "classifier"),
        families={"vit": whole + table(HEAD), "vit-bare": bare},
        ignored=IGNORED,
        norm_eps=None,
        remark=REMARK,
    )
    mae = Layout(
        name=f"hf-vit-mae{ending}",
        title=f"Hugging Face ViTMAEModel and ViTMAEForPreTraining, {which}",
        framework="torch",
        methods=("mae", "encoder"),
        families={"vit": whole + decoder + own, "vit-bare": bare, "vit-renamed": whole + decoder + renamed},
        ignored=IGNORED,
        norm_eps=None,
        remark=REMARK,
    )
    return plain, mae


LAYOUTS = (
    *_layouts("", "names as save_pretrained writes them", "encoder.layer", table(BLOCK)),
    *_layouts("-5", "names of the modules of transformers 5", "layers", table(BLOCK_5)),
)
