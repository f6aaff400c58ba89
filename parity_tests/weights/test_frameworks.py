"""What a framework saves is read here with the same bits, and what is written here loads there with the same bits."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from triport import environments
from triport.parity_tests.conftest import here
from triport.parity_tests.fixtures.weights_worker import flat
from triport.weights.arrays import Lazy
from triport.weights.files.files import read, write

WORKER = Path(__file__).parents[1] / "fixtures" / "weights_worker.py"
BITS = {np.dtype(ml_dtypes.bfloat16): "@bfloat16"}


def ask(framework: str, task: str, folder: Path) -> None:
    """Run the worker in an interpreter that has the framework."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": ""}
    command = [str(part) for part in (environments.require(framework), WORKER, framework, task, folder)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]


def is_lazy(value: object) -> bool:
    return isinstance(value, Lazy)


def stored(tree: Any) -> dict[str, np.ndarray]:
    """The arrays of a tree as the worker's truth writes them."""
    found = {}
    for key, lazy in flat(tree, is_lazy)[1].items():
        array = lazy.read()
        found[key + BITS.get(array.dtype, "")] = array.view(np.uint16) if array.dtype in BITS else array
    return found


def same(got: dict[str, np.ndarray], wanted: dict[str, np.ndarray]) -> None:
    assert set(got) == set(wanted)
    for key, array in wanted.items():
        assert got[key].dtype == array.dtype, key
        assert got[key].shape == array.shape, key
        assert got[key].tobytes() == array.tobytes(), key


@pytest.fixture(scope="module")
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of files that the framework saved."""
    folder = tmp_path_factory.mktemp(here(request.param, request.config))
    ask(request.param, "save", folder)
    return folder


def truth(folder: Path) -> dict[str, np.ndarray]:
    with np.load(folder / "truth.npz") as file:
        return dict(file)


FLAT = {
    "torch": ["flat_zip.pth", "flat_legacy.pth", "protocol_4.pth", "no_crc.pth"],
    "paddle": ["a2.pdparams", "a3.pdparams", "a4.pdparams"],
    "oneflow": ["flat", "plain.pkl"],
}
NESTED = {"torch": ["zip.pth.tar", "legacy.pth.tar"], "paddle": ["b2.pd", "b3.pd", "b4.pd"], "oneflow": ["nested"]}


@pytest.mark.parametrize("saved", list(FLAT), indirect=True)
def test_what_a_framework_saves_is_read_with_the_same_bits(saved: Path) -> None:
    framework = next(name for name in FLAT if (saved / FLAT[name][0]).exists())
    wanted = truth(saved)
    for name in FLAT[framework]:
        file = read(saved / name)
        assert file.form == framework
        same({key[1:]: value for key, value in stored(file.tree).items()}, wanted)
    for name in NESTED[framework]:
        tree = read(saved / name).tree
        same({key[1:]: value for key, value in stored(tree["state_dict"]).items()}, wanted)
        plain = [tree[key] for key in ("epoch", "arch", "more")]
        assert json.dumps(plain) == json.dumps([3, "vit_small", [1, 2.5, None, [True, "y"]]])


@pytest.mark.parametrize("saved", ["torch"], indirect=True)
def test_what_stands_beside_a_pytorch_model_is_read_as_plain_values(saved: Path) -> None:
    for name in NESTED["torch"]:
        tree = read(saved / name).tree
        assert tree["args"] == {"lr": 1e-3, "mean": (0.5, 0.5), "output": "/out", "resume": ""}
        assert tree["state"] == {1: {"a": 1}}
        assert [tree[key] for key in ("best", "size", "device", "dtype", "names", "path")] == [
            0.5, (1, 2), "cuda:0", "torch.float16", ["x"], "a/b",
        ]  # fmt: skip
        assert tree["scaler"]["scale"] == 65536.0
        assert tree["log"].read().tolist() == [0, 1, 2]
        assert tree["parameter"].read().tobytes() == truth(saved)["float32"].tobytes()
        assert tree["model"]["weight"].shape == (2, 3)
        assert tree["optimizer"]["state"][0]["exp_avg"].shape == (2, 3)
        assert tree["optimizer"]["param_groups"][0]["betas"] == (0.9, 0.999)
    shared = read(saved / "shared.pth").tree
    assert {name: lazy.shape for name, lazy in shared.items()} == {
        "a": (4, 4),
        "b": (4,),
        "c": (2, 4, 4),
        "storage": (32,),
    }
    untyped = read(saved / "untyped.pth").tree
    assert [(lazy.dtype, lazy.read().astype(float).tolist()) for lazy in untyped.values()] == [
        ("float8_e4m3fn", [1, 1, 1]), ("uint16", [1, 1, 1]),
    ]  # fmt: skip


@pytest.mark.parametrize("saved", ["paddle"], indirect=True)
def test_paddles_own_tensor_names_are_preserved(saved: Path) -> None:
    state = read(saved / "adam.pdopt").tree
    assert {key for key, value in state.items() if is_lazy(value) and value.name} == {
        key for key in state if "w_0" in key or "b_0" in key
    }
    assert state["LR_Scheduler"]["last_epoch"] == 0
    assert all(value.name for value in read(saved / "b4.pd").tree["state_dict"].values())


@pytest.mark.parametrize("saved", ["oneflow"], indirect=True)
def test_folders_of_libai_are_read(saved: Path) -> None:
    for path in (saved / "run", saved / "run" / "model_0000002"):
        file = read(path)
        assert set(file.tree) == {"model", "lr_scheduler"} and "model_0000002" in file.note
        assert file.tree["model"]["weight"].shape == (2, 3) and file.tree["lr_scheduler"]["base_lrs"] == [0.1]
    wanted = truth(saved)["float32"]
    assert read(saved / "bfloat16").tree["b"].read().astype(np.float32).tobytes() == wanted.tobytes()


WRITTEN = {
    "torch": ["model.pth", "model.pth.tar", "model.bin"],
    "paddle": ["model.pdparams", "model.pd"],
    "oneflow": ["model", "model.oneflow.pkl"],
}


@pytest.mark.parametrize("saved", list(WRITTEN), indirect=True)
@pytest.mark.parametrize("kind", ["flat", "nested"])
def test_what_is_written_here_loads_there_with_the_same_bits(saved: Path, kind: str, tmp_path: Path) -> None:
    framework = next(name for name in FLAT if (saved / FLAT[name][0]).exists())
    tree = read(saved / (FLAT if kind == "flat" else NESTED)[framework][0]).tree
    for name in WRITTEN[framework]:
        write(tmp_path / name, tree)
    ask(framework, "load", tmp_path)
    for name in WRITTEN[framework]:
        with np.load(tmp_path / f"{name}.loaded.npz") as file:
            same(dict(file), stored(tree))
        assert json.loads((tmp_path / f"{name}.json").read_text()) == json.loads(json.dumps(flat(tree, is_lazy)[0]))


@pytest.mark.parametrize("saved", ["oneflow"], indirect=True)
def test_a_checkpoint_written_for_libai_has_the_parts_its_loader_opens(saved: Path, tmp_path: Path) -> None:
    tree = read(saved / "flat").tree
    write(tmp_path / "run", {"model": tree, "lr_scheduler": {"last_step": 1}}, form="libai")
    parts = tmp_path / "run" / (tmp_path / "run" / "last_checkpoint").read_text()
    assert sorted(part.name for part in parts.iterdir()) == ["lr_scheduler", "model"]
    ask("oneflow", "load", parts)
    with np.load(parts / "model.loaded.npz") as file:
        same(dict(file), stored(tree))
