"""`triport convert --verify`: source and target are computed and compared, and a difference is noticed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from triport.core.errors import UserError
from triport.parity_tests.tool import small
from triport.verify import main, verify
from triport.weights.arrays import Lazy
from triport.weights.commands.command import main as weights_main
from triport.weights.commands.convert import convert
from triport.weights.files import files
from triport.weights.model.reading import Reading

HEADS = ["--heads", "8", "--decoder-heads", "4"]
SAME = [
    ("moco-vit", ["b.pd"], {"features", "features of the momentum encoder", "projection", "prediction"}),
    ("moco-vit", ["b.pth", "--only", "encoder"], {"features"}),
    ("moco-vit", ["b.pth", "--only", "momentum"], {"features"}),
    ("moco-conv", ["b.npz"], {"features", "features of the momentum encoder", "projection", "prediction"}),
    ("moco-vit", ["b", "--to", "libai"], {"features", "features of the momentum encoder", "projection", "prediction"}),
    ("mae", ["b", "--to", "libai-0.1"], {"features", "prediction"}),
    ("mae", ["b.safetensors", "--to", "hf"], {"features", "prediction"}),
    ("mae", ["b.pth", "--to", "deit"], {"features"}),
    ("finetune-mean", ["b.pth"], {"features", "logits"}),
    ("probe-mae", ["b.pth", "--to", "timm"], {"features", "logits"}),
    ("probe-resnet18", ["b.pd"], {"features", "logits"}),
]


def save(path: Path, kind: str) -> Path:
    arrays: dict[str, Any] = small.arrays(small.MODELS[kind])
    files.write(path, {"state_dict": arrays} if kind.startswith("moco") else {"model": arrays}, "torch")
    return path


@pytest.mark.parametrize("case", range(len(SAME)))
def test_conversions_compute_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str], case: int) -> None:
    kind, (target, *options), outputs = SAME[case]
    source = save(tmp_path / "a.pth", kind)
    assert main(["convert", str(source), str(tmp_path / target), *HEADS, *options, "--verify", "--json"]) == 0
    verified = json.loads(capsys.readouterr().out)["verified"]
    assert set(verified) == outputs
    folded = (kind, "timm" in options) == ("probe-mae", True)
    assert all(0 <= value <= (1e-6 if folded else 0) for value in verified.values())


def test_other_dtypes_and_sizes_are_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec = replace(small.MODELS["mae"], encoder=replace(small.MAE_VIT, patch=(8, 8), image=(16, 16)))
    files.write(tmp_path / "a.pth", {"model": small.arrays(spec)}, "torch")
    words = ["convert", str(tmp_path / "a.pth"), str(tmp_path / "b.pth"), *HEADS, "--verify", "--json", "--force"]
    assert main([*words, "--dtype", "float16"]) == 0
    assert 1e-6 < json.loads(capsys.readouterr().out)["verified"]["features"] < 1e-2
    assert main([*words, "--image", "32"]) == 0
    assert json.loads(capsys.readouterr().out)["verified"] == {"features": 0, "prediction": 0}


def harm(path: Path, name: str) -> None:
    """Change an array of a file, as a fault of the conversion would."""
    tree = {key: array.read() for key, array in files.read(path).tree.items()}
    metadata = files.read(path).metadata
    tree[name] = tree[name][::-1].copy() if "qkv" in name else tree[name] * np.float32(1.01)
    files.write(path, tree, metadata=metadata, force=True)


@pytest.mark.parametrize("name", ["blocks.1.attn.qkv.weight", "norm.bias", "head.bias", "pos_embed"])
def test_a_target_that_computes_something_else_is_an_error(tmp_path: Path, name: str) -> None:
    source = save(tmp_path / "a.pth", "finetune-token")
    report = convert(source, tmp_path / "b.safetensors", heads=8)
    assert verify(report, Reading(heads=8)) == {"features": 0, "logits": 0}
    harm(tmp_path / "b.safetensors", name)
    with pytest.raises(UserError, match=r"computes something else: its (features|logits) differ"):
        verify(report, Reading(heads=8))


@pytest.mark.parametrize("change", [{"heads": 4}, {"norm_eps": 1e-2}])
def test_heads_and_epsilon_are_part_of_the_function(tmp_path: Path, change: dict[str, Any]) -> None:
    report = convert(save(tmp_path / "a.pth", "finetune-token"), tmp_path / "b.safetensors", heads=8)
    with pytest.raises(UserError, match="computes something else"):
        verify(report, Reading(**{"heads": 8, **change}))


def test_a_partial_model_is_not_verified(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = save(tmp_path / "a.pth", "mae")
    assert main(["convert", str(source), str(tmp_path / "b.npz"), "--verify", "--allow-partial"]) == 2
    assert not (tmp_path / "b.npz").exists() and "--verify does not go with" in capsys.readouterr().err
    assert weights_main(["convert", str(source), str(tmp_path / "b.npz"), "--verify"]) == 2
    assert "needs `triport convert`" in capsys.readouterr().err
    arrays: dict[str, Any] = small.arrays(small.MODELS["finetune-token"])
    files.write(tmp_path / "c.pth", {"model": arrays | {"reg_token": np.ones((1, 4, 32), np.float32)}}, "torch")
    report = convert(tmp_path / "c.pth", tmp_path / "d.npz", allow_partial=True)
    with pytest.raises(UserError, match="partial"):
        verify(report, Reading())


def test_arrays_of_a_target_are_read_from_it(tmp_path: Path) -> None:
    report = convert(save(tmp_path / "a.pth", "mae"), tmp_path / "b.npz")
    assert all(isinstance(array, Lazy) for array in files.read(tmp_path / "b.npz").tree.values())
    (tmp_path / "b.npz").unlink()
    with pytest.raises(UserError, match="no file or folder"):
        verify(report, Reading())
