"""The optimiser's state between moco-v3, MAE, PASSL and this project: kept in lists by position there, by name here.

Which name a position has is optimizer_order's. LiBai's graphs keep AdamW's averages by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from triport.core.errors import UserError
from triport.core.model.groups import Group
from triport.core.spec import Recipe
from triport.core.spec import recipe as recipes
from triport.weights.arrays import Lazy, Tree
from triport.weights.files import files
from triport.weights.layouts.layout import Layout, write_name
from triport.weights.model.model import Model, Piece
from triport.weights.model.opening import Opened
from triport.weights.model.optimizer_order import group_options, number, order_of, orders, unknown_order
from triport.weights.model.report import Report

GRAPH_SLOTS, GRAPH_STEP = {"exp_avg": "m", "exp_avg_sq": "v"}, "System-Train-TrainStep"
SLOTS = ("exp_avg", "exp_avg_sq", "mu")  # AdamW's averages of the gradient and its square; LARS's momentum
TORCH_SCALER = ("scale", "growth_factor", "backoff_factor", "growth_interval", "_growth_tracker")
PADDLE_SCALER = ("scale", "incr_ratio", "decr_ratio", "incr_every_n_steps", "incr_count")
FIRST_SCALER = (65536.0, 2.0, 0.5, 2000, 0)
PADDLE_ONLY = {"lr_func": None, "use_master_param": True, "exp_avg_force_fp32": True, "grad_clip": None}  # of a group
LARS = {"momentum": 0.9, "trust_coefficient": 0.001}  # which moco-v3's LARS looks up in its group at each step


@dataclass
class State:
    """Slots by canonical name, the number of steps taken, and its options."""

    slots: dict[str, dict[str, Lazy]] = field(default_factory=dict)
    step: int = 0
    options: dict[str, Any] = field(default_factory=dict)  # of the group that decays most
    decays: dict[str, float] = field(default_factory=dict)  # weight decay by canonical name, where it is told
    scaler: tuple[float, ...] = FIRST_SCALER


def carry(
    opened: Opened,
    model: Model,
    layout: Layout,
    tree: dict[str, Any],
    report: Report,
    recipe: str | Recipe | None = None,
) -> dict[str, Lazy]:
    """Put the source's optimiser state into the tree that is to be written, or say in the report why not.

    Returns this project's own arrays of it ("exp_avg/<name>", "step") where the target layout is this project's.
    """
    state = read(opened, report)
    if state is None:
        return {}
    if layout.name == "triport":
        arrays = {f"{slot}/{name}": a for slot, found in state.slots.items() for name, a in found.items()}
        return arrays | {"step": _whole(state.step)}
    write = WRITERS.get(layout.name)
    if write is None or model.architecture.method not in layout.methods:
        report.dropped.append(("optimizer", f"the order of parameters in the optimiser of {layout.name} is not known"))
        return {}
    options = state.options or _options(recipe)
    tree["optimizer"] = write(state, model, layout, options)
    names = PADDLE_SCALER if layout.framework == "paddle" else TORCH_SCALER
    tree["scaler"] = dict(zip(names, state.scaler, strict=False))
    if layout.framework == "paddle":  # whose GradScaler takes the first of a list, and asks for three more
        tree["scaler"] |= {"scale": [state.scaler[0]], "decr_every_n_nan_or_inf": 1, "decr_count": 0}
        tree["scaler"]["use_dynamic_loss_scaling"] = True
    if layout.container == "model":
        tree["epoch"] = max((opened.facts.epoch or 0) - 1, 0)  # MAE resumes after the epoch that has ended, from 0
    steps = f" after {state.step} steps" if state.step else ""  # LARS does not count them
    report.notes.append(f"the optimiser's state{steps} is kept")
    return {}


def _whole(value: int) -> Lazy:
    return Lazy((), "int64", lambda: np.array(value, np.int64))


# ---------------------------------------------------------------- reading
def read(opened: Opened, report: Report, trained: Mapping[str, Group] | None = None) -> State | None:
    """The source's state by canonical name; None, with the reason in the report, where it cannot be told.

    trained: the names that were trained with their decay, where a recipe says more than the architecture.
    """
    layout = opened.candidate.layout
    tree = opened.file.tree
    if layout.name == "triport":
        return _read_own(opened, report)
    found = tree.get("optimizer")
    groups = _groups(found)
    if not groups and isinstance(tree.get("graph"), Mapping):
        return _read_graph(opened, tree["graph"], report)
    if not groups:
        report.dropped.append(("optimizer", "the source has none"))
        return None
    places = [place for group in groups for place in group["params"]]
    order = order_of(opened, groups, trained)
    if order is None or len(places) != len(order):
        rest = f"what is kept has {len(order)}" if order else unknown_order(layout, groups, trained)
        report.dropped.append(("optimizer", f"it lists {len(places)} parameters, {rest}"))
        return None
    names = dict(zip(places, order, strict=False))
    options = [group_options(group) for group in groups]
    decays = [number(own.get("weight_decay")) for own in options]
    state = State(
        options=options[max(range(len(groups)), key=lambda k: decays[k] or 0)],
        scaler=_scaler(tree.get("scaler")),
        decays={names[p]: decay for group, decay in zip(groups, decays) if decay is not None for p in group["params"]},
    )
    _count(state, found["state"])  # LiBai counts once for all
    for place, values in found["state"].items():
        if place in names and isinstance(values, Mapping):
            _take(state, opened.model, names[place], values)
    if layout.name == "passl-moco" and set(state.slots) == {"exp_avg"}:  # so PASSL's LARS calls its momentum
        state.slots = {"mu": state.slots["exp_avg"]}
    return state


def _read_graph(opened: Opened, graph: Mapping[Any, Any], report: Report) -> State | None:
    """The state that LiBai keeps of a compiled graph: `model.<name>-m` and `-v` of AdamW, and the number of steps."""
    state = State()
    for name, (_, written) in opened.candidate.names.found.items():
        values = {slot: graph.get(f"model.{written[0]}-{mark}") for slot, mark in GRAPH_SLOTS.items()}
        if len(written) == 1 and any(isinstance(value, Lazy) for value in values.values()):
            _take(state, opened.model, name, values)
    for key, value in graph.items():
        if isinstance(key, str) and key.startswith(GRAPH_STEP):
            _count(state, {"step": value})
    if not state.slots:
        report.dropped.append(("optimizer", "the graph keeps no averages of AdamW"))
        return None
    return state


def _groups(found: object) -> list[Mapping[str, Any]]:
    """The parameter groups of an optimiser's state; none if it is not of the form that PyTorch and PASSL share."""
    if not isinstance(found, Mapping) or not isinstance(found.get("state"), Mapping):
        return []
    groups = found.get("param_groups")
    if not isinstance(groups, (list, tuple)) or not all(isinstance(group, Mapping) for group in groups):
        return []
    lists = [group.get("params") for group in groups]
    sound = all(
        isinstance(places, (list, tuple)) and all(isinstance(p, (int, str)) for p in places) for places in lists
    )
    return list(groups) if sound else []


def _take(state: State, model: Model, name: str, values: Mapping[str, Any]) -> None:
    piece = model.pieces[name]
    _count(state, values)
    for slot in SLOTS:
        array = values.get(slot)
        if isinstance(array, Lazy):
            if array.shape != piece.arrays[0].shape:
                raise UserError(
                    f"the optimiser's {slot} of '{name}' has the shape {array.shape}, not {piece.arrays[0].shape}"
                )
            settled = model.settle(name, replace(piece, arrays=(array,)))
            state.slots.setdefault(slot, {})[name] = settled[0]


def _count(state: State, values: Mapping[str, Any]) -> None:
    """Take the number of steps, if it is said here."""
    step = values.get("step")
    if isinstance(step, Lazy) and step.size == 1:
        step = step.read().reshape(()).item()
    if isinstance(step, (int, float)):
        state.step = max(state.step, int(step))


def _read_own(opened: Opened, report: Report) -> State | None:
    path = opened.file.path
    name = "optimizer.safetensors" if path.name == "model.safetensors" else f"{path.stem}.optimizer.safetensors"
    beside = path.parent / name
    if not beside.is_file():
        report.dropped.append(("optimizer", f"there is no {beside}"))
        return None
    state = State()
    for key, array in files.read(beside).tree.items():
        slot, _, name = str(key).partition("/")
        if slot in SLOTS and name in opened.model.pieces:
            state.slots.setdefault(slot, {})[name] = array
        elif key == "step" and array.size == 1:
            state.step = int(array.read().reshape(()).item())
        else:
            report.dropped.append((str(key), "no layout but this project's own keeps it"))
    return state


def _scaler(found: object) -> tuple[float, ...]:
    if not isinstance(found, Mapping):
        return FIRST_SCALER
    values = []
    for torch, paddle, first in zip(TORCH_SCALER, PADDLE_SCALER, FIRST_SCALER, strict=False):
        value = found.get(torch, found.get(paddle, first))
        if isinstance(value, Lazy):
            value = value.read().reshape(-1)[0].item() if value.size == 1 else first
        value = value[0] if isinstance(value, list) and len(value) == 1 else value
        values.append(value if isinstance(value, (int, float)) else first)
    return tuple(values)


# ---------------------------------------------------------------- writing
def _options(recipe: str | Recipe | None) -> dict[str, Any]:
    if recipe is None:
        raise UserError("the source does not say the optimiser's weight decay and betas: name the recipe with --recipe")
    found = recipes.load(recipe) if isinstance(recipe, str) else recipe
    own = found.optimizer
    options = {"lr": own.lr * found.batch / own.lr_batch, "weight_decay": own.weight_decay}
    if own.kind == "adamw":
        return {**options, "betas": own.betas, "eps": own.eps, "amsgrad": False}
    return {**options, "momentum": own.momentum} | ({"trust_coefficient": own.trust} if own.kind == "lars" else {})


def _torch(state: State, model: Model, layout: Layout, options: dict[str, Any]) -> Tree:
    order = orders(model, layout) or []
    entries = {k: e for k, name in enumerate(order) if (e := _entry(state, name))}
    options = {**(LARS if "mu" in state.slots else {}), **options}
    options = {key: value for key, value in options.items() if key not in PADDLE_ONLY}
    if layout.name != "mae":
        return {"state": entries, "param_groups": [{**options, "params": list(range(len(order)))}]}
    expected = model.architecture.expected()
    still = sum(len(expected[name].shape) == 1 or name.endswith(".bias") for name in order)
    first = {**options, "weight_decay": 0.0, "params": list(range(still))}
    return {"state": entries, "param_groups": [first, {**options, "params": list(range(still, len(order)))}]}


def _paddle(state: State, model: Model, layout: Layout, options: dict[str, Any]) -> Tree:
    order = orders(model, layout) or []
    entries: dict[str, Any] = {}
    written = []
    for name in order:
        hit = write_name(layout, model.architecture.family, name)
        assert hit is not None
        rule, (own,) = hit
        written.append(own)
        entry = _entry(state, name)
        for slot in set(entry) & set(SLOTS):
            piece = Piece(entry[slot].shape, (entry[slot],)).rearranged(layout.rearrangements(rule, name))
            entry["exp_avg" if slot == "mu" else slot] = model.settle(name, piece)[0]
        if entry:
            entries[own] = {key: value for key, value in entry.items() if key != "mu"}
    settings = ("lr", "betas", "eps", "weight_decay", "momentum", "trust_coefficient")
    plain = {key: options[key] for key in settings if key in options}
    return {"state": entries, "param_groups": [{**PADDLE_ONLY, **plain, "params": written}]}


def _entry(state: State, name: str) -> dict[str, Any]:
    entry: dict[str, Any] = {slot: found[name] for slot, found in state.slots.items() if name in found}
    return {"step": state.step, **entry} if entry and "mu" not in entry else entry


WRITERS = {"moco-v3": _torch, "moco-v3-bare": _torch, "mae": _torch, "passl-moco": _paddle}


def path_beside(target: Path) -> Path:
    """Where this project's own optimiser state stands: beside the model."""
    return target.with_name(f"{target.stem}.optimizer.safetensors")
