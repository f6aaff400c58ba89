"""What names of arrays say of models that are not the ones known here, in the field's words."""

from __future__ import annotations

import re

# what an array's name says of a model that is not the one known here; the first that fits is taken
REASONS = tuple(
    (re.compile(pattern), reason)
    for pattern, reason in (
        (r"(^|\.)blocks_token_only\.", "class-attention blocks"),
        (r"(^|\.)(ls[12]|layer_?scale_?[12]?|gamma_?[12]|lambda_?[12])(\.|$)", "LayerScale"),
        (r"\.(q|k|query|key|qk)_?(norm|ln|layernorm)\.", "query-key normalisation"),
        (r"(^|\.)(reg|register)_?tokens?$", "register tokens"),
        (r"(^|\.)(dist|distill|distillation)_token$", "a distillation token"),
        (r"(^|\.)(patch_embed|patch_embeddings|patch_embedding)\.(backbone|conv|norm)", "a hybrid or normed stem"),
        (r"\.proj_[lw]\.", "talking-heads attention"),
        (r"(relative_position|rel_pos)", "relative position bias"),
        (r"(^|\.)(rope|freqs|rotary)", "rotary positions"),
        (r"\.(q_bias|v_bias|k_bias)$", "separate biases of queries and values"),
        (r"(^|\.)(norm_pre|ln_pre|pre_layernorm|pre_layrnorm)\.", "a norm before the blocks"),
        (r"(^|\.)(attn_pool|attention_pool)", "attention pooling"),
        (r"\.(w12|w1|w2|w3|fc1_g|fc1_x|gate_proj)\.", "a gated MLP"),
        (r"\.(attn|attention|mlp)\.(norm|ln)\.", "norms within attention or MLP"),
        (r"\.(se|se_module)\.", "squeeze and excitation"),
    )
)
TOKENS = ("register tokens", "a distillation token")
# words at which a part begins that no encoder has: heads, queues, decoders, teachers, what losses and probes keep
OTHERS = re.compile(
    r"(head|heads|head_\w+|\w+_head|fc\d*|classifier\w*|\w*_classifier|neck|necks|queue\w*|predictor\w*|projector\w*|"
    r"projection\w*|decoder\w*|mask_token|masked_embed|teacher\w*|momentum\w*|ema\w*|loss\w*|criterion\w*|prototypes?|memory\w*|"
    r"optimizers?|temperature|logit_scale|knn\w*|linear_probe\w*|data_preprocessor)\Z"
)


def in_field_words(name: str) -> str:
    """What an unknown array is a part of: "LayerScale"; "" where its name does not tell."""
    return next((reason for pattern, reason in REASONS if pattern.search(name)), "")
