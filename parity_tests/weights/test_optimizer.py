"""The optimiser's state between moco-v3, MAE, PASSL and this project: every moment stays with its parameter."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from triport.core.model.inventory import inventory
from triport.core.spec import ModelSpec
from triport.core.spec.recipe import load
from triport.parity_tests.tool import small
from triport.weights.commands.convert import convert
from triport.weights.files import files

MOCO, PIXELS = small.MODELS["moco-vit"], small.MODELS["mae"]


def trained(torch: Any, spec: ModelSpec, lists: list[list[str]], **options: Any) -> tuple[dict[str, Any], Any]:
    """A model of which two steps of AdamW were taken, as PyTorch keeps it; `lists` are the optimiser's groups."""
    arrays = small.arrays(spec)
    trains = {p.name for p in inventory(spec) if p.trainable}
    tensors = {name: torch.from_numpy(a).requires_grad_(name in trains) for name, a in arrays.items()}
    optimizer = torch.optim.AdamW([{"params": [tensors[n] for n in names]} for names in lists], **options)
    for _ in range(2):
        for k, tensor in enumerate(tensors.values()):
            if tensor.requires_grad:
                tensor.grad = torch.full_like(tensor, 0.01 * (k + 1)) * tensor.detach()
        optimizer.step()
    return {name: t.detach() for name, t in tensors.items()}, optimizer


def moco(torch: Any, path: Path) -> tuple[dict[str, Any], Any]:
    names = [p.name for p in inventory(MOCO) if not p.buffer]
    tensors, optimizer = trained(torch, MOCO, [names], lr=1e-3, weight_decay=0.1)
    scaler = {
        "scale": 1024.0,
        "growth_factor": 2.0,
        "backoff_factor": 0.5,
        "growth_interval": 2000,
        "_growth_tracker": 5,
    }
    state = {f"module.{n}": t for n, t in tensors.items()}
    tree = {"epoch": 2, "arch": "other", "state_dict": state, "optimizer": optimizer.state_dict(), "scaler": scaler}
    torch.save(tree, path)
    return tensors, optimizer


def moments(optimizer: Any, tensors: list[Any]) -> list[dict[str, np.ndarray]]:
    return [{k: v.numpy() for k, v in optimizer.state[t].items()} for t in tensors if t in optimizer.state]


def test_moco_through_paddle_and_back(torch: Any, tmp_path: Path) -> None:
    """What PyTorch's own optimiser loads at the end is what it saved at the start."""
    _, optimizer = moco(torch, tmp_path / "a.pth.tar")
    report = convert(tmp_path / "a.pth.tar", tmp_path / "b.pd", heads=8, optimizer=True)
    assert "optimizer" not in dict(report.dropped) and any("2 steps" in note for note in report.notes)
    tree = files.read(tmp_path / "b.pd").tree
    (group,) = tree["optimizer"]["param_groups"]
    assert list(group["params"]) == list(tree["state_dict"]) and group["weight_decay"] == 0.1  # by position
    own = tree["optimizer"]["state"]["predictor.0.weight"]
    assert own["step"] == 2 and own["exp_avg"].shape == tree["state_dict"]["predictor.0.weight"].shape
    assert not any(name.startswith("momentum") or "_mean" in name for name in tree["optimizer"]["state"])
    assert (tree["scaler"]["scale"], tree["scaler"]["incr_count"]) == ([1024.0], 5)  # as its GradScaler reads it
    convert(tmp_path / "b.pd", tmp_path / "c.pth.tar", optimizer=True)
    again = torch.load(tmp_path / "c.pth.tar", weights_only=True)
    assert again["scaler"] == torch.load(tmp_path / "a.pth.tar", weights_only=True)["scaler"]
    tensors = [t for n, t in again["state_dict"].items() if n[7:] in {p.name for p in inventory(MOCO) if not p.buffer}]
    second = torch.optim.AdamW(tensors)
    second.load_state_dict(again["optimizer"])
    assert second.param_groups[0]["weight_decay"] == 0.1 and second.param_groups[0]["lr"] == 1e-3
    first = moments(optimizer, optimizer.param_groups[0]["params"])
    for one, two in zip(first, moments(second, tensors), strict=True):
        assert all(np.array_equal(one[k], two[k]) for k in ("step", "exp_avg", "exp_avg_sq"))


def test_mae_lists_what_does_not_decay_first(torch: Any, tmp_path: Path) -> None:
    trains = [p for p in inventory(PIXELS) if p.trainable]
    still = [p.name for p in trains if len(p.shape) == 1 or p.name.endswith(".bias")]
    rest = [p.name for p in trains if p.name not in still]
    tensors, optimizer = trained(torch, PIXELS, [still, rest], lr=1e-3, weight_decay=0.05)
    torch.save({"model": tensors, "optimizer": optimizer.state_dict(), "epoch": 1}, tmp_path / "a.pth")
    convert(tmp_path / "a.pth", tmp_path / "b.safetensors", optimizer=True)
    own = {name: array.read() for name, array in files.read(tmp_path / "b.optimizer.safetensors").tree.items()}
    assert own["step"] == 2 and own["step"].dtype == np.int64
    for name, tensor in zip(still + rest, [t for g in optimizer.param_groups for t in g["params"]], strict=True):
        assert np.array_equal(own[f"exp_avg/{name}"], optimizer.state[tensor]["exp_avg"].numpy()), name
    convert(
        tmp_path / "b.safetensors",
        tmp_path / "c.pth",
        optimizer=True,
        recipe=replace(load("mae/vit_base_800ep"), model=PIXELS),
    )
    whole = torch.load(tmp_path / "c.pth", weights_only=True)
    assert set(whole) == {"model", "optimizer", "scaler", "epoch"} and whole["epoch"] == 1  # what MAE resumes from
    again = whole["optimizer"]
    assert [len(g["params"]) for g in again["param_groups"]] == [len(still), len(rest)]
    assert [g["weight_decay"] for g in again["param_groups"]] == [0.0, 0.05]
    assert np.array_equal(again["state"][3]["exp_avg_sq"].numpy(), own[f"exp_avg_sq/{still[3]}"])


def test_lars_keeps_its_momentum(tmp_path: Path) -> None:
    names = [p.name for p in inventory(MOCO) if not p.buffer]
    arrays = small.arrays(MOCO)
    state = {k: {"mu": arrays[name] * 2} for k, name in enumerate(names) if not name.startswith("momentum")}
    group = {
        "lr": 9.6,
        "weight_decay": 1e-6,
        "momentum": 0.9,
        "trust_coefficient": 0.001,
        "params": list(range(len(names))),
    }
    tree = {"epoch": 1, "arch": "x", "state_dict": arrays, "optimizer": {"state": state, "param_groups": [group]}}
    files.write(tmp_path / "a.pth", tree, "torch")
    convert(tmp_path / "a.pth", tmp_path / "b.pth", optimizer=True)
    report = convert(tmp_path / "a.pth", tmp_path / "b.pd", optimizer=True)
    assert "the optimiser's state is kept" in report.notes  # LARS does not count its steps
    passl = files.read(tmp_path / "b.pd").tree["optimizer"]["state"]  # PASSL's LARS has its momentum as exp_avg
    assert set(passl) <= set(files.read(tmp_path / "b.pd").tree["state_dict"]) and len(passl) == len(state)
    assert all(set(slots) == {"exp_avg"} for slots in passl.values())
    convert(tmp_path / "b.pd", tmp_path / "c.pth", optimizer=True)
    for name in ("b.pth", "c.pth"):
        again = files.read(tmp_path / name).tree["optimizer"]
        assert again["param_groups"] == [group] and set(again["state"]) == set(state)
        assert all(np.array_equal(again["state"][k]["mu"].read(), state[k]["mu"]) for k in state)


def test_a_group_that_another_project_wrote_has_what_moco_v3s_lars_looks_up(tmp_path: Path) -> None:
    arrays = small.arrays(MOCO)
    files.write(tmp_path / "a.pth", {"epoch": 1, "arch": "x", "state_dict": arrays}, "torch")
    convert(tmp_path / "a.pth", tmp_path / "a.pd")
    tree = files.read(tmp_path / "a.pd").tree
    group = {"lr": 0.1, "lr_func": None, "grad_clip": None, "weight_decay": 0.0, "params": list(tree["state_dict"])}
    name = "base_encoder.blocks.0.attn.qkv.weight"
    state = {name: {"exp_avg": tree["state_dict"][name]}}
    files.write(tmp_path / "b.pd", {**tree, "optimizer": {"state": state, "param_groups": [group]}}, "paddle")
    convert(tmp_path / "b.pd", tmp_path / "b.pth", optimizer=True)
    found = files.read(tmp_path / "b.pth").tree["optimizer"]
    ((slot, values),) = [item for entry in found["state"].values() for item in entry.items()]
    assert slot == "mu" and np.array_equal(values.read(), arrays[name])
    (group,) = found["param_groups"]
    assert group.keys() == {"lr", "weight_decay", "momentum", "trust_coefficient", "params"}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"optimizer": {"state": {}, "param_groups": [{"params": [0, 1, 2]}]}}, "lists 3 parameters"),
        ({"optimizer": "nonsense"}, "the source has none"),
        ({"optimizer": {"state": 3, "param_groups": 4}}, "the source has none"),
        ({"optimizer": {"state": {}, "param_groups": [{"params": [[]]}]}}, "the source has none"),
        ({}, "the source has none"),
    ],
)
def test_what_cannot_be_told_is_dropped_with_its_reason(tmp_path: Path, change: dict[str, Any], reason: str) -> None:
    files.write(tmp_path / "a.pth", {"epoch": 1, "state_dict": small.arrays(MOCO), **change}, "torch")
    report = convert(tmp_path / "a.pth", tmp_path / "b.pd", optimizer=True)
    assert reason in dict(report.dropped)["optimizer"]


def test_layouts_without_a_known_order_say_so(torch: Any, tmp_path: Path) -> None:
    moco(torch, tmp_path / "a.pth")
    for target, to in (("b", None), ("c.pth", "mmpretrain"), ("d.pth", "deit")):
        report = convert(tmp_path / "a.pth", tmp_path / target, to=to, heads=8, optimizer=True)
        assert "is not known" in dict(report.dropped)["optimizer"]
    report = convert(tmp_path / "a.pth", tmp_path / "e.npz", only="encoder", optimizer=True)
    assert "what is kept has 42" in dict(report.dropped)["optimizer"]
    report = convert(tmp_path / "a.pth", tmp_path / "e.pth")
    assert "--optimizer" in dict(report.dropped)["optimizer"]
