"""Layouts of encoders taken out of other files: by hand, by mmselfsup's own tool; and of mmselfsup before 1.0.

Sources: mmselfsup tools/model_converters/extract_backbone_weights.py; mmselfsup 0.x models/algorithms/mocov3.py.
"""

from __future__ import annotations

from triport.weights.layouts import mmpretrain
from triport.weights.layouts.layout import Layout
from triport.weights.layouts.originals import MOCO_NOTICE
from triport.weights.layouts.tables import RESNET, VIT_PROJECTOR, Table, table, under, vit

MOCO_STRIPPED = Layout(
    name="moco-v3-stripped",
    title="moco-v3 with `module.base_encoder.` cut off by hand: an encoder, and the projector as its head",
    framework="torch",
    methods=("encoder",),
    families={"vit": vit()},
    marks=("head.0.weight",),
    read_only=True,
    ignored={
        rule.foreign[0]: "MoCo v3's projector, left in as the head of the encoder" for rule in table(VIT_PROJECTOR)
    },
    notice=MOCO_NOTICE,
)
BACKBONE = Layout(
    name="mmpretrain-backbone",
    title="a backbone of mmpretrain or mmselfsup alone: {state_dict, author}, names without `backbone.`",
    framework="torch",
    methods=("encoder",),
    families={"vit": mmpretrain.TRUNK_TABLE},
    container="state_dict",
    marks=("patch_embed.projection.weight",),
)


def _moco(trunk: Table, neck: str) -> Table:
    rules = table(mmpretrain.PREDICTOR.replace("momentum_encoder.steps", "steps"))
    for canonical in ("base_encoder.", "momentum_encoder."):
        rules += under(canonical, f"{canonical}0.", trunk) + under(canonical, f"{canonical}1.", table(neck))
    return tuple(rule for rule in rules if rule.canonical is not None)


def _again(*tables: Table) -> dict[str, str]:
    """The names `backbone.` and `neck.` under which the base encoder's arrays stand a second time."""
    found = {}
    for rule in (rule for rules in tables for rule in rules):
        for place, name in (("base_encoder.0.", "backbone."), ("base_encoder.1.", "neck.")):
            for foreign in rule.foreign:
                if foreign.startswith(place):
                    found[name + foreign[len(place) :]] = "base_encoder under a second name"
    return found


_FAMILIES = {
    "vit": _moco(mmpretrain.TRUNK_TABLE, mmpretrain.VIT_NECK),
    "resnet": _moco(table(RESNET), mmpretrain.RESNET_NECK),
}
MMSELFSUP_MOCO = Layout(
    name="mmselfsup-0-moco",
    title="mmselfsup 0.x MoCo v3: {meta, state_dict}, base_encoder.0 and .1, momentum_encoder.0 and .1, head.predictor",
    framework="torch",
    methods=("moco",),
    families=_FAMILIES,
    container="state_dict",
    needs=("projector", "momentum encoder", "predictor"),
    ignored=_again(*_FAMILIES.values()),
    remark="mmselfsup has the base encoder a second time as backbone and neck: load with strict=False",
)
LAYOUTS = (MOCO_STRIPPED, BACKBONE, MMSELFSUP_MOCO)
