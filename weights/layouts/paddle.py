"""PASSL's layouts: the originals' names, fully connected weights (in, out), Paddle's names for running statistics.

Sources: PASSL tasks/ssl/mocov3/main_moco.py, main_lincls.py and extract_weight.py (v2.4), passl/models/mae.py.
"""

from __future__ import annotations

from triport.weights.layouts.layout import Layout
from triport.weights.layouts.originals import DEIT_ARCHS, MAE_ARCHS, MOCO_ARCHS
from triport.weights.layouts.tables import (
    PADDLE,
    PREDICTOR,
    RESNET,
    RESNET_HEAD,
    RESNET_PROJECTOR,
    VIT_HEAD,
    VIT_PROJECTOR,
    decoder,
    moco,
    table,
    vit,
)

# Converting to SyncBN gives the last norms a weight and a bias that nothing trains
SYNC_VIT = """
- {base_encoder|momentum_encoder}.head.7.weight     ones?
- {base_encoder|momentum_encoder}.head.7.bias       zeros?
- predictor.4.weight                                ones?
- predictor.4.bias                                  zeros?
"""
SYNC_RESNET = """
- {base_encoder|momentum_encoder}.fc.4.weight       ones?
- {base_encoder|momentum_encoder}.fc.4.bias         zeros?
"""
VARIANCES = "Paddle's running variances are of the biased kind, PyTorch's of the unbiased: they differ by n / (n - 1)"

_VIT = vit(PADDLE)
_RESNET = table(RESNET, PADDLE)
_PREDICTOR = table(PREDICTOR, PADDLE)
_CLASSIFIER = {"vit": _VIT + table(VIT_HEAD, PADDLE), "resnet": _RESNET + table(RESNET_HEAD, PADDLE)}
# the optional `moco_` is how the integrated models of PASSL are called
_MOCO_ARCHS = MOCO_ARCHS | {f"moco_{name}": heads for name, heads in MOCO_ARCHS.items()}

MOCO = Layout(
    name="passl-moco",
    title="PASSL MoCo v3 pretraining: {epoch, arch, state_dict, optimizer, scaler}",
    framework="paddle",
    methods=("moco",),
    families={
        "vit": moco(_VIT, table(VIT_PROJECTOR, PADDLE), _PREDICTOR) + table(SYNC_VIT),
        "resnet": moco(_RESNET, table(RESNET_PROJECTOR, PADDLE), _PREDICTOR) + table(SYNC_RESNET),
    },
    container="state_dict",
    in_out=True,
    counters=False,
    archs=_MOCO_ARCHS,
    position_first=True,
    remark=VARIANCES,
)
LINEAR = Layout(
    name="passl-linear",
    title="PASSL linear probe: {epoch, arch, state_dict, best_acc1}",
    framework="paddle",
    methods=("classifier",),
    families=_CLASSIFIER,
    container="state_dict",
    in_out=True,
    counters=False,
    archs=_MOCO_ARCHS,
    position_first=True,
)
DEIT = Layout(
    name="passl-deit",
    title="PASSL encoders and classifiers: a flat state dict, as extract_weight.py writes and passl-train loads",
    framework="paddle",
    methods=("encoder", "classifier"),
    families=_CLASSIFIER,
    in_out=True,
    counters=False,
    archs=DEIT_ARCHS,
    position_first=True,
    remark="passl-train takes the path without .pdparams",
)
MAE = Layout(
    name="passl-mae",
    title="PASSL MAE: {model, epoch}, pretraining with or without the decoder, and classifiers",
    framework="paddle",
    methods=("mae", "encoder", "classifier"),
    families={"vit": _VIT + decoder(PADDLE) + table(VIT_HEAD, PADDLE)},
    container="model",
    in_out=True,
    counters=False,
    archs=MAE_ARCHS,
    pooling=("token", "mean"),
    head_norm=True,
)
LAYOUTS = (MOCO, LINEAR, DEIT, MAE)
