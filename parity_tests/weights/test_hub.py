"""Folders for transformers and timm: names of arrays, configuration, preprocessing, model card, what they refuse.

The names and keys are those that transformers 5.24 and timm 1.0.31 loaded without one missing; see docs/weights.md.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from triport.core.errors import UserError
from triport.core.record import checkpoint
from triport.core.record.export import write_encoder
from triport.core.spec import ModelSpec, Recipe
from triport.core.spec import recipe as recipes
from triport.parity_tests.tool import small
from triport.weights.commands.convert import convert
from triport.weights.commands.diff import diff
from triport.weights.commands.inspect import inspect
from triport.weights.commands.load import load_weights
from triport.weights.files import files

SQUARE = {"patch": (8, 8), "image": (32, 32)}
MODELS = {
    kind: replace(spec, encoder=replace(spec.encoder, **({} if "resnet" in kind else SQUARE)))  # type: ignore[arg-type]
    for kind, spec in small.MODELS.items()
    if "conv" not in kind
}
BOTH: dict[str, Any] = {"heads": 8, "decoder_heads": 4}

BLOCK = """attention.attention.query attention.attention.key attention.attention.value attention.output.dense
intermediate.dense output.dense layernorm_before layernorm_after""".split()
EMBEDDINGS = ["embeddings.cls_token", "embeddings.position_embeddings"]


def pairs(*names: str) -> list[str]:
    return [f"{name}.{word}" for name in names for word in ("weight", "bias")]


def encoder_names(depth: int = 3) -> list[str]:
    """The names of transformers' ViTModel without its pooler, as `save_pretrained` writes them."""
    own = [*EMBEDDINGS, *pairs("embeddings.patch_embeddings.projection", "layernorm")]
    return own + [name for i in range(depth) for name in pairs(*(f"encoder.layer.{i}.{word}" for word in BLOCK))]


def save(path: Path, kind: str) -> Path:
    arrays: dict[str, Any] = small.arrays(MODELS[kind])
    moco = {"epoch": 7, "arch": "vit_other", "state_dict": {f"module.{n}": a for n, a in arrays.items()}}
    files.write(path, moco if kind.startswith("moco") else {"model": arrays}, "torch")
    return path


def written(folder: Path) -> tuple[dict[str, Any], set[str]]:
    """The configuration of a folder, and the names of its arrays."""
    return json.loads((folder / "config.json").read_text()), set(files.read(folder / "model.safetensors").tree)


# ---------------------------------------------------------------- transformers
def test_an_encoder_becomes_a_vit_model(tmp_path: Path) -> None:
    report = convert(save(tmp_path / "a.pth", "moco-vit"), tmp_path / "out", to="hf", heads=8)
    config, names = written(tmp_path / "out")
    assert names == {*encoder_names(), *pairs("pooler.dense")}
    wanted = {
        "architectures": ["ViTModel"], "model_type": "vit", "hidden_size": 32, "num_hidden_layers": 3,
        "num_attention_heads": 8, "intermediate_size": 128, "hidden_act": "gelu", "layer_norm_eps": 1e-6,
        "image_size": 32, "patch_size": 8, "num_channels": 3, "qkv_bias": True, "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0, "initializer_range": 0.02, "dtype": "float32", "pooler_act": "linear",
        "pooler_output_size": 32,
    }  # fmt: skip
    assert config == wanted
    pooler = {
        name: files.read(tmp_path / "out" / "model.safetensors").tree[name].read() for name in pairs("pooler.dense")
    }
    assert np.array_equal(pooler["pooler.dense.weight"], np.eye(32)) and not pooler["pooler.dense.bias"].any()
    assert report.load == f"transformers.AutoModel.from_pretrained({str(tmp_path / 'out')!r})"
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "README.md", "config.json", "model.safetensors", "preprocessor_config.json",
    ]  # fmt: skip
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.pth", "out"]


def test_a_classifier_becomes_one_with_its_classes(tmp_path: Path) -> None:
    report = convert(save(tmp_path / "a.pth", "finetune-token"), tmp_path / "out.v1", to="hf-vit", heads=8)
    config, names = written(tmp_path / "out.v1")
    assert names == {*(f"vit.{name}" for name in encoder_names()), *pairs("classifier")}
    assert config["architectures"] == ["ViTForImageClassification"] and len(config["id2label"]) == 7
    assert config["label2id"] == {name: int(key) for key, name in config["id2label"].items()}
    assert report.load.startswith("transformers.AutoModelForImageClassification.from_pretrained(")
    config["id2label"] = {str(k): f"animal {k}" for k in range(7)}
    (tmp_path / "out.v1" / "config.json").write_text(json.dumps(config))
    convert(tmp_path / "out.v1", tmp_path / "timm", to="timm")
    assert written(tmp_path / "timm")[0]["pretrained_cfg"]["label_names"] == [f"animal {k}" for k in range(7)]


def test_mae_becomes_one_for_pretraining(tmp_path: Path) -> None:
    report = convert(save(tmp_path / "a.pth", "mae"), tmp_path / "out", to="hf", **BOTH)
    config, names = written(tmp_path / "out")
    decoder = ["decoder.mask_token", "decoder.decoder_pos_embed"]
    decoder += pairs("decoder.decoder_embed", "decoder.decoder_norm", "decoder.decoder_pred")
    decoder += [name for i in range(2) for name in pairs(*(f"decoder.decoder_layers.{i}.{word}" for word in BLOCK))]
    assert names == {*(f"vit.{name}" for name in encoder_names()), *decoder}
    wanted = {"architectures": ["ViTMAEForPreTraining"], "model_type": "vit_mae", "decoder_hidden_size": 48,
              "decoder_num_hidden_layers": 2, "decoder_num_attention_heads": 4, "decoder_intermediate_size": 192,
              "mask_ratio": 0.75, "norm_pix_loss": False, "layer_norm_eps": 1e-6, "num_attention_heads": 8}  # fmt: skip
    assert wanted.items() <= config.items()
    assert any("norm_pix_loss is false" in note for note in report.notes)
    assert "ViTMAEForPreTraining" in report.load


@pytest.mark.parametrize("kind", ["moco-vit", "mae", "finetune-token"])
def test_folders_are_read_again_with_all_they_say(tmp_path: Path, kind: str) -> None:
    source = save(tmp_path / "a.pth", kind)
    for to in ("hf", "timm"):
        report = convert(source, tmp_path / to, to=to, **BOTH)
        metadata = files.read(tmp_path / to / "model.safetensors")
        files.write(tmp_path / to / "model.safetensors", metadata.tree, force=True)  # without the note of a conversion
        found = inspect(tmp_path / to)
        assert (found.heads, found.norm_eps) == (8, 1e-6) and not found.missing + found.unknown + found.differences
        assert diff(source, tmp_path / to, only="encoder").same()
        assert sum(value for key, value in report.counts().items() if key not in ("made", "missing")) == len(
            report.arrays
        )


# ---------------------------------------------------------------- timm
@pytest.mark.parametrize(
    ("kind", "name", "pooling", "classes"),
    [
        ("finetune-token", "vit_base_patch16_224", "token", 7),
        ("finetune-mean", "vit_base_patch16_224", "avg", 7),
        ("moco-vit", "vit_base_patch16_224", "token", 0),
        ("finetune-resnet50", "resnet50", "avg", 7),
        ("moco-resnet18", "resnet18", "avg", 0),
    ],
)
def test_a_folder_for_timm(tmp_path: Path, kind: str, name: str, pooling: str, classes: int) -> None:
    report = convert(save(tmp_path / "a.pth", kind), tmp_path / "out", to="timm", **BOTH)
    config, _ = written(tmp_path / "out")
    assert (config["architecture"], config["global_pool"], config["num_classes"]) == (name, pooling, classes)
    pretrained = config["pretrained_cfg"]
    assert (pretrained["interpolation"], pretrained["mean"]) == ("bicubic", [0.485, 0.456, 0.406])
    assert abs(pretrained["crop_pct"] - 0.875) < 0.02 and len(pretrained["std"]) == 3
    if "resnet" in kind:
        assert (pretrained["first_conv"], pretrained["classifier"]) == ("conv1", "fc")
    else:
        assert pretrained["input_size"] == [3, 32, 32] and config["model_args"]["num_heads"] == 8
        assert (
            config["model_args"] | {"depth": 3, "embed_dim": 32, "patch_size": 8, "img_size": 32}
            == config["model_args"]
        )
    assert report.load == f"timm.create_model({'local-dir:' + str(tmp_path / 'out')!r}, pretrained=True)"


def test_another_epsilon_is_in_the_line_that_loads_timm(tmp_path: Path) -> None:
    report = convert(save(tmp_path / "a.pth", "mae"), tmp_path / "out", to="timm", norm_eps=1e-12, **BOTH)
    assert "norm_layer=functools.partial(torch.nn.LayerNorm, eps=1e-12)" in report.load
    assert "import functools" in (tmp_path / "out" / "README.md").read_text()


def test_pooling_of_timm_that_names_do_not_tell_is_refused(tmp_path: Path) -> None:
    convert(save(tmp_path / "a.pth", "finetune-token"), tmp_path / "out", to="timm", heads=8)
    state = files.read(tmp_path / "out" / "model.safetensors").tree
    files.write(tmp_path / "out" / "model.safetensors", state, force=True)
    config, _ = written(tmp_path / "out")
    config["model_args"]["global_pool"] = "avg"  # of tokens that `norm` has seen: timm's fc_norm=False
    (tmp_path / "out" / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="global_pool 'avg'"):
        convert(tmp_path / "out", tmp_path / "b.pth")


# ---------------------------------------------------------------- what a run knows
def test_a_run_of_this_project_brings_its_recipe_numbers_and_no_foreign_licence(tmp_path: Path) -> None:
    recipe = recipes.load("tiny/test_moco_vit")
    encoder = replace(recipe.model.encoder, norm_eps=1e-5)  # type: ignore[arg-type]
    recipe = replace(recipe, model=replace(recipe.model, encoder=encoder))
    run = tmp_path / "run"
    run.mkdir()
    write_encoder(run / "encoder.safetensors", recipe, small.arrays(recipe.model))
    lines = [{"kind": "epoch", "step": 4 * e, "epoch": e, "loss": 3.5 / e, "knn": 0.25 * e} for e in (1, 2)]
    (run / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)) + '\n{"kind": "epo')
    report = convert(run / "encoder.safetensors", tmp_path / "out", to="hf")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "CC BY-NC" not in card + report.provenance["licence"] and "license:" not in card
    for word in (
        recipe.title,
        recipe.name,
        recipe.data.name,
        "MoCo v3",
        "| loss | 1.75 |",
        "| knn | 0.5 |",
        report.load,
    ):
        assert word in card, word
    config, _ = written(tmp_path / "out")
    shape = recipe.model.encoder
    assert config["layer_norm_eps"] == 1e-5 and config["num_attention_heads"] == shape.heads  # type: ignore[union-attr]
    images = json.loads((tmp_path / "out" / "preprocessor_config.json").read_text())
    assert images["image_mean"] == list(recipe.evaluate.mean) and images["image_std"] == list(recipe.evaluate.std)
    assert images["crop_size"] == dict(zip(("height", "width"), shape.image))
    assert not any("assumed" in note for note in report.notes)


def finished(folder: Path, recipe: Recipe, **more: Any) -> Path:
    """A run folder whose last checkpoint says its classes and what more is told."""
    count = recipe.model.objective.classes if recipe.task == "linear" else 0  # type: ignore[union-attr]
    state = {"name": recipe.name, "recipe": recipes.to_toml(recipe), "epoch": 2, "closed": 2, "step": 8}
    state |= {"classes": [f"bird {k}" for k in range(count)], **more}
    arrays = small.arrays(recipe.model)
    checkpoint.save(folder / "checkpoints" / "last", {"model": arrays, "optimizer": {"step": np.array(8)}}, state)
    return folder


@pytest.mark.parametrize("named", ["", "checkpoints/last", "checkpoints/last/model.safetensors", "alone.safetensors"])
def test_the_class_names_of_a_run_become_id2label(tmp_path: Path, named: str) -> None:
    recipe = recipes.load("tiny/test_moco_linear")
    run = finished(tmp_path / "run", recipe)
    (run / "alone.safetensors").write_bytes((run / "checkpoints" / "last" / "model.safetensors").read_bytes())
    heads = recipe.model.encoder.heads  # type: ignore[union-attr]
    how: dict[str, Any] = {"heads": heads, "norm_eps": 1e-6} if "alone" in named else {}
    convert(run / named, tmp_path / "hf", to="hf", **how)
    config, _ = written(tmp_path / "hf")
    count = recipe.model.objective.classes  # type: ignore[union-attr]
    assert config["id2label"] == {str(k): f"bird {k}" for k in range(count)}
    assert config["label2id"] == {f"bird {k}": k for k in range(count)}
    convert(run / named, tmp_path / "timm", to="timm", **how)
    assert written(tmp_path / "timm")[0]["pretrained_cfg"]["label_names"] == [f"bird {k}" for k in range(count)]


def test_names_that_are_not_one_for_each_class_are_left_out(tmp_path: Path) -> None:
    run = finished(tmp_path / "run", recipes.load("tiny/test_moco_linear"), classes=["one", "two"])
    convert(run, tmp_path / "hf", to="hf")
    assert all(name.startswith("LABEL_") for name in written(tmp_path / "hf")[0]["id2label"].values())


def test_the_card_says_that_a_run_was_lengthened(tmp_path: Path) -> None:
    recipe = recipes.load("tiny/test_moco_vit")
    record = [{"step": 8, "epochs": [2, 4], "lr": [0.1, 0.2], "momentum": [0.99, 0.98]}]
    run = finished(tmp_path / "run", recipe, lengthened=record)
    write_encoder(tmp_path / "encoder.safetensors", recipe, small.arrays(recipe.model), {"lengthened": record})
    for source in (run, tmp_path / "encoder.safetensors"):
        convert(source, tmp_path / "out", to="hf", only="encoder", force=True)
        wanted = f"- Schedule: {recipe.schedule.epochs} epochs, lengthened from 2 epochs at step 8, batch"
        assert wanted in (tmp_path / "out" / "README.md").read_text()


def test_without_a_recipe_images_are_prepared_as_for_imagenet(tmp_path: Path) -> None:
    convert(save(tmp_path / "a.pth", "moco-vit"), tmp_path / "out", to="hf", heads=8, norm_eps=1e-6)
    images = json.loads((tmp_path / "out" / "preprocessor_config.json").read_text())
    assert images["image_processor_type"] == "BitImageProcessor" and images["resample"] == 3
    assert images["size"] == {"shortest_edge": 37} and images["crop_size"] == {"height": 32, "width": 32}
    assert images["do_normalize"] and images["do_center_crop"] and images["do_rescale"] and images["do_resize"]


def test_weights_of_the_original_keep_their_licence(tmp_path: Path) -> None:
    for kind, word in (("moco-vit", "moco-v3"), ("mae", "mae")):
        report = convert(save(tmp_path / f"{kind}.pth", kind), tmp_path / kind, to="hf", **BOTH)
        card = (tmp_path / kind / "README.md").read_text()
        assert f"facebookresearch/{word}" in card and "license: cc-by-nc-4.0" in card
        assert "CC BY-NC 4.0" in report.provenance["licence"]


@pytest.mark.parametrize(("command", "free"), [(["linear", "--from-scratch"], True), (["linear"], False)])
def test_a_classifiers_run_is_free_only_if_it_began_with_random_weights(
    tmp_path: Path, command: list[str], free: bool
) -> None:
    recipe = recipes.load("tiny/test_moco_linear")
    write_encoder(tmp_path / "encoder.safetensors", recipe, small.arrays(recipe.model))
    (tmp_path / "environment.json").write_text(json.dumps({"starts": [{"command": command}]}))
    assert ("CC BY-NC" not in str(inspect(tmp_path / "encoder.safetensors").licence)) == free


def test_a_run_that_went_on_from_another_projects_file_keeps_its_licence(tmp_path: Path) -> None:
    recipe = recipes.load("tiny/test_moco_vit")
    write_encoder(tmp_path / "encoder.safetensors", recipe, small.arrays(recipe.model))
    for origin, word in (({"licence": "theirs"}, "theirs"), ({"source": "a.pth.tar"}, "CC BY-NC")):
        (tmp_path / "origin.json").write_text(json.dumps(origin))
        assert word in str(inspect(tmp_path / "encoder.safetensors").licence)


# ---------------------------------------------------------------- what is refused
REFUSED: list[tuple[ModelSpec, dict[str, Any], str]] = [
    (MODELS["moco-vit"], {"to": "hf"}, "--heads"),
    (MODELS["mae"], {"to": "hf", "heads": 8}, "--decoder-heads"),
    (MODELS["moco-vit"], {"to": "timm"}, "--heads"),
    (small.MODELS["mae"], {"to": "hf", **BOTH}, "--recipe"),
    (small.MODELS["moco-conv"], {"to": "hf", "heads": 8}, "no place for 'patch_embed"),
    (small.MODELS["moco-conv"], {"to": "timm", "heads": 8, "image": (32, 32)}, "convolutional stem|not a square"),
    (MODELS["moco-resnet18"], {"to": "hf"}, "no ResNets"),
    (MODELS["finetune-mean"], {"to": "hf", "heads": 8}, "averaged patches"),
]


@pytest.mark.parametrize("case", range(len(REFUSED)))
def test_what_a_configuration_cannot_say_is_refused(tmp_path: Path, case: int) -> None:
    spec, options, line = REFUSED[case]
    arrays: dict[str, Any] = small.arrays(spec)
    files.write(
        tmp_path / "a.pth", {"state_dict": arrays} if "moco" in spec.objective.kind else {"model": arrays}, "torch"
    )
    with pytest.raises(UserError, match=line):
        convert(tmp_path / "a.pth", tmp_path / "out", **options)
    assert [path.name for path in tmp_path.iterdir()] == ["a.pth"]


def test_an_epsilon_that_nobody_says_is_asked_for(tmp_path: Path) -> None:
    convert(save(tmp_path / "a.pth", "finetune-token"), tmp_path / "hf.safetensors", to="hf", heads=8)
    state = files.read(tmp_path / "hf.safetensors").tree
    files.write(tmp_path / "bare.safetensors", state)
    with pytest.raises(UserError, match="--norm-eps"):
        convert(tmp_path / "bare.safetensors", tmp_path / "out", to="hf", heads=8)
    convert(tmp_path / "bare.safetensors", tmp_path / "out", to="hf", heads=8, norm_eps=1e-12)
    assert written(tmp_path / "out")[0]["layer_norm_eps"] == 1e-12


def test_a_folder_with_anything_else_in_it_is_not_replaced(tmp_path: Path) -> None:
    source = save(tmp_path / "a.pth", "moco-vit")
    convert(source, tmp_path / "out", to="hf", heads=8)
    with pytest.raises(UserError, match="--force"):
        convert(source, tmp_path / "out", to="hf", heads=8)
    convert(source, tmp_path / "out", to="hf", heads=8, force=True)
    (tmp_path / "out" / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"notes\.txt"):
        convert(source, tmp_path / "out", to="hf", heads=8, force=True)
    assert (tmp_path / "out" / "notes.txt").read_text() == "mine"
    assert load_weights(tmp_path / "out").keys() == set(MODELS_ENCODER)


MODELS_ENCODER = [
    name.removeprefix("base_encoder.") for name in small.arrays(MODELS["moco-vit"])
    if name.startswith("base_encoder.") and "head." not in name
]  # fmt: skip


def test_names_of_files_and_recipes_are_not_markdown_of_the_card(tmp_path: Path) -> None:
    source = save(tmp_path / "a`b|c.pth", "moco-vit")
    convert(source, tmp_path / "out", to="hf", heads=8)
    assert "`a'b/c.pth`" in (tmp_path / "out" / "README.md").read_text()


LINES = [
    ("b.pth", {}, "torch.load({}, weights_only=True)['state_dict']"),
    ("b.pd", {}, "paddle.load({})['state_dict']"),
    ("b.pdparams", {}, "paddle.load({})"),
    ("b.safetensors", {}, "safetensors.torch.load_file({})"),
    ("b.npz", {}, "numpy.load({})"),
    ("b", {"heads": 8}, "triport.load_weights({})"),
]


@pytest.mark.parametrize(("target", "options", "line"), LINES)
def test_every_report_has_a_line_that_loads_the_target(
    tmp_path: Path, target: str, options: dict[str, Any], line: str
) -> None:
    report = convert(save(tmp_path / "a.pth", "moco-vit"), tmp_path / target, **options)
    assert report.load == line.format(repr(str(tmp_path / target)))


FATES = [
    (kind, target) for kind in ("moco-vit", "mae", "probe-mae", "finetune-mean") for target in ("b.pd", "b.npz", "b")
]
FATES += [("moco-resnet18", "b.pd"), ("moco-resnet18", "b.safetensors")]  # LiBai has no ResNets


@pytest.mark.parametrize(("kind", "target"), FATES)
def test_every_array_has_one_fate(tmp_path: Path, kind: str, target: str) -> None:
    report = convert(save(tmp_path / "a.pth", kind), tmp_path / target, **BOTH)
    counts = report.counts()
    assert (
        len(report.arrays)
        == len(small.arrays(MODELS[kind]))
        == sum(counts.values()) - counts["made"] - counts["missing"]
    )
    assert set(report.fates()) == set(report.arrays)
