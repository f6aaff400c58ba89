"""The order in which other projects' optimisers list their parameters, by position or under names of their own.

moco-v3 registers base encoder, momentum encoder, predictor, frozen ones too (main_moco.py); MAE has two groups, first
what does not decay (timm optim_factory.py); PASSL lists what its state dict lists, running statistics too, under the
names that Paddle gave the tensors. mmengine and LiBai list parameters as their files do, all of them or those that are
trained; LiBai puts those of equal settings into one group (optim/build.py).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from triport.core.model.groups import Group
from triport.weights.layouts.layout import Layout
from triport.weights.model.model import Model, ordered
from triport.weights.model.opening import Opened

Groups = Sequence[Mapping[str, Any]]


def order_of(opened: Opened, groups: Groups, trained: Mapping[str, Group] | None) -> list[str] | None:
    """Canonical names in the order of a file's parameter groups; None where it is not known.

    trained: the names that a recipe trains, with their decay.
    """
    return _named(opened, groups) or orders(opened.model, opened.candidate.layout) or _listed(opened, groups, trained)


def orders(model: Model, layout: Layout) -> list[str] | None:
    """Canonical names in the order of a layout's list of parameters; None where that is not known."""
    expected = model.architecture.expected()
    if any(name not in model.pieces for name, p in expected.items() if not p.buffer):
        return None
    if layout.name in ("moco-v3", "moco-v3-bare"):
        return [name for name, p in expected.items() if not p.buffer]
    if layout.name == "mae" and model.architecture.method == "mae":
        trained = [p for p in expected.values() if p.trainable and not p.buffer]
        still = [p.name for p in trained if len(p.shape) == 1 or p.name.endswith(".bias")]
        return still + [p.name for p in trained if p.name not in set(still)]
    if layout.name == "passl-moco":
        return [name for name, _ in ordered(model.pieces, layout) if expected[name].role != "counter"]
    return None


def unknown_order(layout: Layout, groups: Groups, trained: Mapping[str, Group] | None) -> str:
    """Why the order of a file's parameters is not known."""
    if layout.name.startswith("libai") and len(groups) > 1:
        decays = [number(group_options(group).get("weight_decay")) for group in groups[:3]]
        shown = " and ".join(f"{len(g['params'])} of decay {d}" for g, d in zip(groups, decays, strict=False))
        if trained is None:
            return f"in groups ({shown}) that only a recipe tells apart: convert --to triport-run --recipe NAME"
        ours = sorted({rule.weight_decay for rule in trained.values()})
        counts = " and ".join(f"{sum(r.weight_decay == d for r in trained.values())} of decay {d:g}" for d in ours)
        return f"in groups ({shown}) that are not the recipe's ({counts}): set its optimizer.decays and weight_decay"
    return f"{layout.name} has no known order of them"


def group_options(group: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a group; OneFlow keeps them one level below."""
    own = {key: value for key, value in group.items() if key not in ("params", "_options")}
    inner = group.get("_options")
    return {**(inner if isinstance(inner, Mapping) else {}), **own}


def number(value: object) -> float | None:
    """A finite number of a file; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        found = float(value)
    except OverflowError:
        return None
    return found if math.isfinite(found) else None


def _named(opened: Opened, groups: Groups) -> list[str] | None:
    """The order by the names that Paddle gave the tensors, where groups and model have them."""
    arrays, found = opened.candidate.state.arrays, opened.candidate.names.found
    names = {arrays[files[0]].name: name for name, (_, files) in found.items() if len(files) == 1}
    places = [place for group in groups for place in group["params"]]
    if not all(isinstance(place, str) and place in names for place in places):
        return None
    return [names[place] for place in places]


def _listed(opened: Opened, groups: Groups, trained: Mapping[str, Group] | None) -> list[str] | None:
    """The order of the file itself, for projects that list parameters as their modules have them.

    mmengine makes one group of all, or one per parameter, frozen ones too; LiBai one group of those that are trained,
    or one for each weight decay, which a recipe tells apart.
    """
    layout, found = opened.candidate.layout, opened.candidate.names.found
    if not layout.name.startswith(("mmpretrain", "mmselfsup", "libai")):
        return None
    place = {name: number for number, name in enumerate(opened.candidate.state.arrays)}
    expected = opened.model.architecture.expected()
    own = [name for name in found if name in expected and not expected[name].buffer]
    own.sort(key=lambda name: place[found[name][1][0]])
    rest = [name for name in own if (expected[name].trainable if trained is None else name in trained)]
    if len(groups) > 1 and any(len(group["params"]) != 1 for group in groups):
        return _by_decay(rest, groups, trained) if layout.name.startswith("libai") and trained else None
    count = sum(len(group["params"]) for group in groups)
    return next((names for names in (own, rest) if len(names) == count), None)


def _by_decay(names: list[str], groups: Groups, trained: Mapping[str, Group]) -> list[str] | None:
    """The order where every group has a weight decay of its own, which the recipe gives to as many parameters."""
    decays = [number(group_options(group).get("weight_decay")) for group in groups]
    if len(set(decays)) != len(decays) or None in decays:
        return None
    split = [[name for name in names if trained[name].weight_decay == decay] for decay in decays]
    if [len(part) for part in split] != [len(group["params"]) for group in groups]:
        return None
    return [name for part in split for name in part]
