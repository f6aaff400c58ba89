"""A conversion is the same function, or it is refused: other models, lost parts, heads, epsilons."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from triport.core.errors import UserError
from triport.core.spec import ModelSpec
from triport.parity_tests.reference.objectives import forward
from triport.parity_tests.tool import small
from triport.weights.arrays import lazy
from triport.weights.commands.command import main
from triport.weights.commands.convert import convert
from triport.weights.commands.inspect import inspect
from triport.weights.commands.load import load_encoder, load_weights
from triport.weights.files import files

Arrays = dict[str, np.ndarray]
SQUARE = replace(small.TUNED, patch=(8, 8), image=(16, 16))
TOKEN = replace(small.MODELS["finetune-token"], encoder=SQUARE)
MEAN = replace(small.MODELS["finetune-mean"], encoder=SQUARE)


def blocks(*endings: str, shape: tuple[int, ...] = (32,)) -> Callable[[Arrays], Arrays]:
    """Further arrays in every block."""
    return lambda a: a | {f"blocks.{i}.{end}": np.ones(shape, np.float32) for i in range(3) for end in endings}


def more(*names: str, shape: tuple[int, ...] = (1, 1, 32)) -> Callable[[Arrays], Arrays]:
    return lambda a: a | {name: np.ones(shape, np.float32) for name in names}


def without(*words: str) -> Callable[[Arrays], Arrays]:
    return lambda a: {name: array for name, array in a.items() if not any(word in name for word in words)}


def renamed(old: str, new: str) -> Callable[[Arrays], Arrays]:
    return lambda a: {name.replace(old, new): array for name, array in a.items()}


OTHER_MODELS: dict[str, tuple[Callable[[Arrays], Arrays], str]] = {
    "LayerScale of timm": (
        blocks("ls1.gamma", "ls2.gamma"),
        r"LayerScale \(blocks\.\*\.ls1\.gamma, .*\): this ViT has",
    ),
    "LayerScale of DeiT-III": (blocks("gamma_1", "gamma_2"), r"LayerScale \(blocks\.\*\.gamma_1, "),
    "DeiT-III": (
        lambda a: blocks("ls1.gamma")(a | {"pos_embed": a["pos_embed"][:, 1:]}),
        r"no_embed_class.*it also has LayerScale",
    ),
    "query-key norms": (blocks("attn.q_norm.weight", "attn.k_norm.weight"), "query-key normalisation"),
    "register tokens": (more("reg_token"), r"register tokens \(reg_token\)"),
    "distilled DeiT": (more("dist_token", "head_dist.weight"), r"a distillation token \(dist_token\): this ViT"),
    "hybrid stem": (more("patch_embed.backbone.conv.weight"), "hybrid"),
    "CaiT": (more("blocks_token_only.0.norm1.weight", shape=(32,)), "class-attention blocks"),
    "talking heads": (blocks("attn.proj_l.weight", "attn.proj_w.weight", shape=(8, 8)), "talking-heads"),
    "relative positions": (blocks("attn.relative_position_bias_table"), "relative position bias"),
    "norm before the blocks": (more("norm_pre.weight", shape=(32,)), "a norm before the blocks"),
    "something unheard of": (blocks("adapter.up.weight"), r"does not have \(blocks\.\*\.adapter\.up\.weight\)"),
    "two last norms": (more("fc_norm.weight", "fc_norm.bias", shape=(32,)), r"fc_norm\.weight"),
    "no bias of queries": (without("attn.qkv.bias"), r"no bias of queries, keys and values \(blocks\.\*\.attn"),
    "no class token": (without("cls_token"), r"no class token \('cls_token'; timm's class_token=False\)"),
    "a gap": (without("blocks.1."), r"block 1 of 3 is missing \(blocks\.1\.\*\)"),
    "a lost block": (renamed("blocks.2.", "blocks.2.layer."), r"blocks\.\*\.layer\.norm1\.weight"),
    "a lost norm": (without("norm.bias"), r"are missing \(norm\.bias\)"),
    "other norms": (renamed(".norm", ".ln_"), "has no layout that is known here"),
    "no class embedding": (
        lambda a: a | {"pos_embed": a["pos_embed"][:, 1:]},
        r"4 rows for 2 x 2 patches and none for the class token \(timm's no_embed_class\)",
    ),
}


@pytest.mark.parametrize("kind", OTHER_MODELS)
def test_another_model_is_refused_with_its_name(tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str) -> None:
    change, line = OTHER_MODELS[kind]
    source = tmp_path / "a.pth"
    files.write(source, change(small.arrays(TOKEN)), "torch")
    for target in ("b.pth", "b.safetensors", "b.pdparams"):
        with pytest.raises(UserError, match=line):
            convert(source, tmp_path / target)
    assert main(["convert", str(source), str(tmp_path / "b.npz")]) == 2
    shown = capsys.readouterr().err
    assert shown.startswith("triport: error: ") and shown.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["a.pth"]
    found = inspect(source)
    assert found.fault or found.differences


def test_another_model_may_be_written_if_that_is_reported(tmp_path: Path) -> None:
    change, _ = OTHER_MODELS["LayerScale of timm"]
    files.write(tmp_path / "a.pth", change(small.arrays(TOKEN)), "torch")
    report = convert(tmp_path / "a.pth", tmp_path / "b.safetensors", allow_partial=True)
    assert report.partial and any("LayerScale" in note for note in report.notes)
    words = json.loads(files.read(tmp_path / "b.safetensors").metadata["provenance"])
    assert words["partial"] == report.partial
    assert report.counts()["unknown"] == 6 and sum(report.fates()[name] == "unknown" for name in report.arrays) == 6


LEFT = [
    "head_dist.weight",
    "masked_embed",
    "queue",
    "classifier.0.weight",
    "loss.weight",
    "projector.3.weight",
    "decoder_extra.bias",
]


@pytest.mark.parametrize("name", LEFT)
def test_what_no_encoder_has_is_left_out_with_a_note(tmp_path: Path, name: str) -> None:
    files.write(tmp_path / "a.pth", small.arrays(TOKEN) | {name: np.ones(3, np.float32)}, "torch")
    report = convert(tmp_path / "a.pth", tmp_path / "b.pth")
    assert report.unknown == [name] and not report.partial
    with pytest.raises(UserError, match="--strict"):
        convert(tmp_path / "a.pth", tmp_path / "c.pth", strict=True)


def test_a_mask_token_without_a_decoder_is_left_out_with_a_note(tmp_path: Path) -> None:
    arrays, mask = small.arrays(TOKEN), {"mask_token": np.ones((1, 1, 32), np.float32)}
    encoder = {name: array for name, array in arrays.items() if not name.startswith("head.")}
    for state in (arrays, encoder):
        files.write(tmp_path / "a.pth", {"model": state | mask}, "torch", force=True)
        report = convert(tmp_path / "a.pth", tmp_path / "b.pth", force=True)
        assert report.dropped == [("mask_token", "a mask token without MAE's decoder")] and not report.partial
        assert load_weights(tmp_path / "b.pth").keys() == state.keys()


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int32", "bool", "complex64"])
def test_parameters_that_are_no_floating_numbers_are_refused(tmp_path: Path, dtype: str) -> None:
    """They are quantised or packed; scale and meaning are not in the file."""
    arrays = small.arrays(TOKEN)
    one = arrays | {"blocks.1.mlp.fc1.weight": arrays["blocks.1.mlp.fc1.weight"].astype(dtype)}
    for state in (one, {name: array.astype(dtype) for name, array in arrays.items()}):
        files.write(tmp_path / "a.pth", state, "torch", force=True)
        for to in ("timm", "hf", "passl-deit"):
            with pytest.raises(UserError, match=f"holds {dtype} where parameters are floating numbers .*save the"):
                convert(tmp_path / "a.pth", tmp_path / "b", to=to, heads=8)
        with pytest.raises(UserError, match=f"holds {dtype}"):
            load_weights(tmp_path / "a.pth")
        assert f"holds {dtype}" in (inspect(tmp_path / "a.pth").fault or "")
    head = arrays | {"head.weight": arrays["head.weight"].astype(dtype)}
    files.write(tmp_path / "a.pth", head, "torch", force=True)
    convert(tmp_path / "a.pth", tmp_path / "c.pth", only="encoder")


def test_parts_that_are_left_behind_may_be_broken(tmp_path: Path) -> None:
    arrays = small.arrays(small.MODELS["mae"])
    del arrays["decoder_blocks.1.mlp.fc1.bias"]
    arrays["decoder_blocks.0.ls1.gamma"] = np.ones(48, np.float32)
    files.write(tmp_path / "a.pth", {"model": arrays}, "torch")
    with pytest.raises(UserError, match=r"LayerScale \(decoder_blocks.*decoder_blocks\.\*\.mlp\.fc1\.bias"):
        convert(tmp_path / "a.pth", tmp_path / "b.pth")
    report = convert(tmp_path / "a.pth", tmp_path / "b.pth", only="encoder")
    assert not report.partial and not report.missing
    moco = small.arrays(small.MODELS["moco-vit"]) | {"momentum_encoder.reg_token": np.ones((1, 4, 32), np.float32)}
    files.write(tmp_path / "c.pth", {"state_dict": moco}, "torch")
    with pytest.raises(UserError, match=r"register tokens \(momentum_encoder\.reg_token\)"):
        convert(tmp_path / "c.pth", tmp_path / "d.pth")
    convert(tmp_path / "c.pth", tmp_path / "d.pth", only="encoder")


def test_a_grid_that_the_file_says_decides_what_a_position_table_is(tmp_path: Path) -> None:
    """Nine rows are 2 x 4 patches and a class token, or 3 x 3 patches without one."""
    wide = replace(TOKEN, encoder=replace(SQUARE, image=(16, 32)))
    files.write(tmp_path / "a.pth", small.arrays(wide), "torch")
    with pytest.raises(UserError, match="no_embed_class"):
        convert(tmp_path / "a.pth", tmp_path / "b.pth")
    note = {"provenance": json.dumps({"grid": [2, 4]})}
    files.write(tmp_path / "c.safetensors", {n: lazy(a) for n, a in small.arrays(wide).items()}, metadata=note)
    report = convert(tmp_path / "c.safetensors", tmp_path / "d.safetensors")
    assert "16 x 32 pixels" in report.architecture
    assert "16 x 32 pixels" in convert(tmp_path / "d.safetensors", tmp_path / "e.pth").architecture


def test_words_about_another_depth_are_not_passed_over(tmp_path: Path) -> None:
    spec = replace(TOKEN, encoder=replace(SQUARE, width=384, heads=12, depth=2))
    state = {"epoch": 1, "arch": "vit_small", "state_dict": small.arrays(spec)}
    files.write(tmp_path / "a.pth", state, "torch")
    with pytest.raises(UserError, match="has 2 blocks, but its own words say 12"):
        convert(tmp_path / "a.pth", tmp_path / "b.pth")


# ---------------------------------------------------------------- heads
PROBES = {
    "class token": replace(small.MODELS["probe-mae"], encoder=SQUARE),
    "mean": replace(
        small.MODELS["probe-mae"],
        encoder=SQUARE,
        objective=replace(small.MODELS["probe-mae"].objective, pooling="mean"),  # type: ignore[arg-type]
    ),
    "ResNet": replace(
        small.MODELS["probe-resnet18"],
        objective=replace(small.MODELS["probe-resnet18"].objective, head_norm=True),  # type: ignore[arg-type]
    ),
}
FOLDED = [
    *(("class token", to) for to in ("timm", "deit", "hf-vit", "moco-v3-linear", "passl-deit", "libai-vit")),
    *(("mean", to) for to in ("timm", "mmpretrain-cls", "libai-mae-finetune")),
    *(("ResNet", to) for to in ("timm", "deit", "mmpretrain-cls", "passl-linear")),
]


@pytest.mark.parametrize(("kind", "to"), FOLDED)
def test_a_batch_norm_before_the_head_is_folded_where_a_layout_has_none(tmp_path: Path, kind: str, to: str) -> None:
    spec, arrays = PROBES[kind], small.arrays(PROBES[kind])
    files.write(tmp_path / "a.pth", {"model": arrays}, "torch")
    target = tmp_path / {"passl": "b.pd", "libai": "b"}.get(to.partition("-")[0], "b.pth")
    report = convert(tmp_path / "a.pth", target, to=to, heads=8)
    assert report.counts()["folded"] == 4 and sum("folded" in note for note in report.notes) == 1
    found = load_weights(target)
    plain: ModelSpec = replace(spec, objective=replace(spec.objective, head_norm=False))  # type: ignore[arg-type]
    images = {"images": small.inputs(spec)["images"]}
    wanted, got = (forward(s, a, images)["logits"] for s, a in ((spec, arrays), (plain, found)))
    assert np.abs(wanted - got).max() <= 1e-6 * np.abs(wanted).max()


SAVED = [
    ("class token", "mae-finetune"),
    ("class token", "mmpretrain-cls"),
    ("mean", "passl-mae"),
    ("ResNet", "triport"),
]


@pytest.mark.parametrize(("kind", "to"), SAVED)
def test_a_batch_norm_stays_where_a_layout_has_a_place_for_it(tmp_path: Path, kind: str, to: str) -> None:
    arrays = small.arrays(PROBES[kind])
    files.write(tmp_path / "a.pth", {"model": arrays}, "torch")
    target = tmp_path / ("b.pd" if to.startswith("passl") else "b.pth")
    assert convert(tmp_path / "a.pth", target, to=to).counts()["folded"] == 0
    assert all(np.array_equal(load_weights(target)[name], a) for name, a in arrays.items() if "tracked" not in name)


@pytest.mark.parametrize("to", ["moco-v3-linear", "deit", "passl-deit", "passl-linear", "hf-vit", "libai-vit"])
def test_averaged_patches_are_refused_where_a_layout_has_the_class_token(tmp_path: Path, to: str) -> None:
    files.write(tmp_path / "a.pth", {"model": small.arrays(MEAN)}, "torch")
    with pytest.raises(UserError, match=f"{to} has no place for features that are averaged patches.*timm.*--to"):
        convert(tmp_path / "a.pth", tmp_path / ("b.pd" if "passl" in to else "b" if "libai" in to else "b.pth"), to=to)
    encoder: dict[str, Any] = {"only": "encoder", "heads": 8}
    if to not in ("moco-v3-linear", "passl-linear"):
        with pytest.raises(UserError, match="has no place for features that are averaged patches"):
            convert(tmp_path / "a.pth", tmp_path / "c.pth", to=to, **encoder)
    assert convert(tmp_path / "a.pth", tmp_path / "c.pth", **encoder).to_layout == "timm"


def test_the_class_token_is_refused_where_a_layout_averages(tmp_path: Path) -> None:
    files.write(tmp_path / "a.pth", {"model": small.arrays(TOKEN)}, "torch")
    with pytest.raises(UserError, match="has no place for features that are the class token"):
        convert(tmp_path / "a.pth", tmp_path / "b", to="libai-mae-finetune", heads=8)


@pytest.mark.parametrize("to", ["moco-v3-bare", "hf-vit-mae", "libai-moco"])
def test_a_classifier_does_not_lose_its_head_unasked(tmp_path: Path, to: str) -> None:
    files.write(tmp_path / "a.pth", {"model": small.arrays(TOKEN)}, "torch")
    target = tmp_path / ("b" if "libai" in to else "b.pth")
    with pytest.raises(UserError, match=r"no place for a classifier's head.*--only encoder"):
        convert(tmp_path / "a.pth", target, to=to, heads=8)
    convert(tmp_path / "a.pth", target, to=to, heads=8, only="encoder")


# ---------------------------------------------------------------- epsilon of the norms
def hugging_face(folder: Path, spec: ModelSpec = TOKEN, **words: Any) -> Path:
    """A folder of Hugging Face without anything that this project would note."""
    folder.mkdir()
    convert_to = folder / "model.safetensors"
    files.write(folder / "a.pth", {"model": small.arrays(spec)}, "torch")
    convert(folder / "a.pth", convert_to, to="hf-vit")
    state = {name: array.read() for name, array in files.read(convert_to).tree.items()}
    files.write(convert_to, state, force=True)
    (folder / "a.pth").unlink()
    config = {"model_type": "vit", "num_attention_heads": 8, "num_hidden_layers": 3, "hidden_size": 32, **words}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize(("words", "eps"), [({}, 1e-12), ({"layer_norm_eps": 1e-5}, 1e-5)])
def test_the_epsilon_of_a_config_travels(tmp_path: Path, words: dict[str, Any], eps: float) -> None:
    folder = hugging_face(tmp_path / "hf", **words)
    assert inspect(folder).norm_eps == eps and ("norm epsilon", str(eps)) in inspect(folder).lines()
    report = convert(folder, tmp_path / "b.safetensors")
    assert report.norm_eps == report.provenance["norm_eps"] == eps
    assert convert(tmp_path / "b.safetensors", tmp_path / "c.pd").norm_eps == eps
    assert inspect(tmp_path / "c.pd").norm_eps == eps
    with pytest.raises(UserError, match=r"with .* as norm epsilon.*model\.encoder\.norm_eps=1e-"):
        load_encoder(folder, SQUARE)
    load_encoder(folder, replace(SQUARE, norm_eps=eps))


def test_an_epsilon_that_is_not_given_may_be_given(tmp_path: Path) -> None:
    folder = hugging_face(tmp_path / "hf")
    (folder / "config.json").unlink()
    assert inspect(folder).norm_eps is None and ("norm epsilon", "not stated") in inspect(folder).lines()
    assert convert(folder, tmp_path / "b.npz", norm_eps=1e-5).norm_eps == 1e-5
    with pytest.raises(UserError, match="cannot be the epsilon"):
        convert(folder, tmp_path / "c.npz", norm_eps=2)
    files.write(tmp_path / "d.pth", {"model": small.arrays(TOKEN)}, "torch")
    assert inspect(tmp_path / "d.pth").norm_eps == 1e-6  # of timm, DeiT, MAE and moco-v3


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ({"num_hidden_layers": 12}, "has 3 blocks, but its own words say 12"),
        ({"image_size": 224, "patch_size": 8}, "5 rows, but its config.json says 28 x 28 patches"),
    ],
)
def test_a_config_of_another_model_is_refused(tmp_path: Path, words: dict[str, Any], line: str) -> None:
    folder = hugging_face(tmp_path / "hf", **words)
    with pytest.raises(UserError, match=line):
        convert(folder, tmp_path / "b.npz")
