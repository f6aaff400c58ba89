"""The named models: their counts against the published ones, and what the two listing commands print."""

from __future__ import annotations

import pytest

from triport import models, recipes
from triport.core.errors import UserError
from triport.core.model.flops import flops
from triport.core.model.inventory import parameter_count
from triport.core.spec import recipe, zoo

COUNTS = {  # parameters, multiply-adds in G at the model's own image size (None where nobody published them)
    "moco_v3_resnet50": (68_012_160, 4.11),
    "moco_v3_vit_small": (84_266_752, 4.61),
    "moco_v3_vit_base": (215_678_464, 17.58),
    "moco_v3_vit_large": (652_781_568, 61.60),
    "moco_v3_vit_conv_small": (82_170_208, None),
    "moco_v3_vit_conv_base": (208_480_960, None),
    "moco_v3_resnet50_classifier": (25_557_032, 4.11),
    "moco_v3_vit_small_classifier": (22_050_664, 4.61),
    "moco_v3_vit_base_classifier": (86_567_656, 17.58),
    "moco_v3_vit_large_classifier": (304_326_632, 61.60),
    "moco_v3_vit_conv_small_classifier": (21_002_392, None),
    "moco_v3_vit_conv_base_classifier": (82_968_904, None),
    "mae_vit_base": (111_907_840, 17.58),
    "mae_vit_large": (329_541_888, 61.60),
    "mae_vit_huge": (657_074_508, 167.40),
    "mae_vit_base_classifier": (86_567_656, 17.58),
    "mae_vit_huge_classifier": (632_045_800, 167.40),
    "mae_vit_huge_448_classifier": (633_028_840, 732.14),  # mmpretrain: 732.13, it leaves out a layer norm
    "moco_v3_resnet18_classifier": (11_689_512, None),  # the three as torchvision lists them
    "moco_v3_resnet34_classifier": (21_797_672, None),
    "moco_v3_resnet101_classifier": (44_549_160, None),
}


@pytest.mark.parametrize("name", COUNTS)
def test_published_counts(name: str) -> None:
    parameters, giga = COUNTS[name]
    assert parameter_count(zoo.find(name).spec) == parameters
    if giga is not None:
        assert round(flops(zoo.find(name).spec) / 1e9, 2) == giga


@pytest.mark.parametrize("name", zoo.names())
def test_all_recipes_of_a_model_train_one_size(name: str) -> None:
    model = zoo.find(name)
    counts = {parameter_count(recipe.load(one).model) for one in model.recipes}
    assert len(counts) == 1 and model.spec.encoder == zoo.find(name).spec.encoder


def test_every_recipe_belongs_to_a_model_and_every_name_is_used_once() -> None:
    named = sorted(one for model in zoo.models() if not model.changes for one in model.recipes)
    assert named == sorted(name for name in recipe.names() if not name.startswith("tiny/test_"))
    assert len(set(zoo.names())) == len(zoo.names())


def test_an_unknown_model_says_what_is_near() -> None:
    with pytest.raises(UserError, match="Did you mean 'moco_v3_vit_small'"):
        zoo.find("moco_v3_vit_smal")


def test_the_models_command_lists_and_shows(capsys: pytest.CaptureFixture[str]) -> None:
    assert models.main([]) == 0
    listing = capsys.readouterr().out
    assert all(name in listing for name in zoo.names())
    row = next(line for line in listing.splitlines() if line.startswith("moco_v3_vit_small "))
    assert " ".join(row.split()[1:]) == "84.27 M 4.61 G moco_v3/vit_small_300ep linear 73.2, finetune 81.4"
    assert models.main(["mae_vit_base", "moco_v3_resnet18"]) == 0
    shown = capsys.readouterr().out
    assert "111,907,840 (111,655,680 trained)" in shown and "mae_pretrain_vit_base.pth" in shown
    assert "moco_v3/resnet50_100ep with model.encoder.depth=18" in shown


def test_the_recipes_command_lists_and_shows(capsys: pytest.CaptureFixture[str]) -> None:
    assert recipes.main([]) == 0
    listing = capsys.readouterr().out
    assert all(name in listing for name in recipe.names())
    assert recipes.main(["mae"]) == 0
    assert "mae/vit_base_800ep" in (some := capsys.readouterr().out) and "moco_v3/" not in some
    name = "moco_v3/vit_small_300ep"
    assert recipes.main([name]) == 0
    assert capsys.readouterr().out == recipe.find(name).read_text(encoding="utf-8")  # byte for byte, to be copied
    assert recipes.main([name, "image=96", "lr=1e-3"]) == 0
    resolved = capsys.readouterr().out
    assert resolved == recipe.to_toml(recipe.load(name, ["image=96", "lr=1e-3"])) and "lr = 0.001" in resolved
    with pytest.raises(UserError, match="No recipe 'moco_v3/vit_smal'"):
        recipes.main(["moco_v3/vit_smal"])
