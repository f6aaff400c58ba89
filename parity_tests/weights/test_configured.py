"""What a config.json says that no array tells: models that it makes another function are refused, in its own words."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from triport.core.errors import UserError
from triport.parity_tests.tool import small
from triport.weights.commands.convert import convert
from triport.weights.commands.inspect import inspect
from triport.weights.files import files

SQUARE = replace(small.TUNED, patch=(8, 8), image=(16, 16))
MODELS = {name: replace(small.MODELS[name], encoder=SQUARE) for name in ("finetune-token", "finetune-mean", "mae")}
MODELS["resnet18"] = small.MODELS["probe-resnet18"]
WORDS: list[tuple[str, str, dict[str, Any], str]] = [
    ("finetune-token", "hf", {"hidden_act": "relu"}, "hidden_act 'relu'"),
    ("finetune-token", "hf", {"hidden_act": "gelu_new"}, "hidden_act 'gelu_new'"),
    ("mae", "hf", {"hidden_act": "gelu_pytorch_tanh"}, "hidden_act 'gelu_pytorch_tanh'"),
    ("mae", "hf", {"hidden_act": ["gelu", "\x1b[2J" * 90]}, r"hidden_act \['gelu', '.x1b"),
    ("finetune-token", "timm", {"model_args": {"act_layer": "relu"}}, "act_layer 'relu'"),
    ("finetune-token", "timm", {"model_args": {"act_layer": "gelu_tanh"}}, "act_layer 'gelu_tanh'"),
    ("finetune-mean", "timm", {"model_args": {"global_pool": "token"}}, "global_pool 'token' beside an fc_norm"),
    ("resnet18", "timm", {"architecture": "resnetaa18"}, "architecture 'resnetaa18'"),
    ("resnet18", "timm", {"architecture": "resnetblur18"}, "architecture 'resnetblur18'"),
    ("resnet18", "timm", {"model_args": {"aa_layer": "avg"}}, "aa_layer 'avg'"),
    ("resnet18", "timm", {"model_args": {"output_stride": 8}}, "output_stride 8"),
    ("resnet18", "timm", {"model_args": {"act_layer": "silu"}}, "act_layer 'silu'"),
    ("resnet18", "timm", {"global_pool": "avgmax"}, "global_pool 'avgmax'"),
]
HARMLESS: list[tuple[str, str, dict[str, Any]]] = [
    ("finetune-token", "hf", {"hidden_act": "gelu_python", "pooler_act": "tanh"}),
    ("finetune-token", "timm", {"model_args": {"act_layer": "gelu", "drop_path_rate": 0.1}}),
    (
        "resnet18",
        "timm",
        {"architecture": "resnet18.a1_in1k", "model_args": {"act_layer": "relu", "output_stride": 32}},
    ),
]


def folder(tmp_path: Path, kind: str, to: str, words: dict[str, Any]) -> Path:
    """A folder of transformers or timm in whose config.json these words stand."""
    files.write(tmp_path / "a.pth", small.arrays(MODELS[kind]), "torch")
    heads: dict[str, Any] = {"heads": 8, "decoder_heads": 4}
    convert(tmp_path / "a.pth", tmp_path / "hub", to=to, **({} if kind == "resnet18" else heads))
    state = {name: array.read() for name, array in files.read(tmp_path / "hub" / "model.safetensors").tree.items()}
    files.write(tmp_path / "hub" / "model.safetensors", state, force=True)  # without the note of the conversion
    config = json.loads((tmp_path / "hub" / "config.json").read_text())
    for key, value in words.items():
        config[key] = config.get(key, {}) | value if isinstance(value, dict) else value
    (tmp_path / "hub" / "config.json").write_text(json.dumps(config))
    return tmp_path / "hub"


@pytest.mark.parametrize(("kind", "to", "words", "line"), WORDS)
def test_a_config_of_another_function_is_refused(
    tmp_path: Path, kind: str, to: str, words: dict[str, Any], line: str
) -> None:
    source = folder(tmp_path, kind, to, words)
    with pytest.raises(UserError, match=f"its config.json says {line}.*without that config.json") as caught:
        convert(source, tmp_path / "b.pth")
    assert str(caught.value).isprintable() and len(str(caught.value)) < 400
    assert "another function" in (inspect(source).fault or "")
    (source / "config.json").unlink()  # what the message says
    eps: dict[str, Any] = {"norm_eps": 1e-6, "heads": 8, "decoder_heads": 4} if kind != "resnet18" else {}
    convert(source, tmp_path / "b.pth", **eps)


@pytest.mark.parametrize(("kind", "to", "words"), HARMLESS)
def test_words_that_change_nothing_are_passed_over(tmp_path: Path, kind: str, to: str, words: dict[str, Any]) -> None:
    assert not convert(folder(tmp_path, kind, to, words), tmp_path / "b.pth").partial


def test_a_config_about_another_model_says_nothing(tmp_path: Path) -> None:
    source = folder(tmp_path, "finetune-token", "hf", {"hidden_act": "relu", "hidden_size": 64})
    convert(source, tmp_path / "b.pth", heads=8, norm_eps=1e-6)
