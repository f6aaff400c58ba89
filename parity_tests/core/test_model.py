"""Inventory, initial values, position tables, masks, schedules and groups against the originals' numbers."""

from __future__ import annotations

import json
import math
import struct
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest

from triport.core.errors import UserError
from triport.core.model import masking, position
from triport.core.model.flops import encoder_flops
from triport.core.model.groups import groups
from triport.core.model.init import initial_values
from triport.core.model.inventory import encoder_inventory, inventory, parameter_count
from triport.core.model.schedule import at, compounded_at, lr_at, momentum_at, peak_lr
from triport.core.spec import MAE, Classifier, MoCo, ModelSpec, OptimizerSpec, ResNet, ScheduleSpec, ViT
from triport.core.spec import recipe as recipes
from triport.parity_tests.tool import small

GOLDENS = Path(__file__).parents[1] / "goldens"


def vit(width, depth, heads, **more):
    return ViT(**{"width": width, "depth": depth, "heads": heads, "position": "moco", "initial_values": "moco", **more})


SMALL, BASE, LARGE = (vit(*s, frozen_patch=True) for s in ((384, 12, 12), (768, 12, 12), (1024, 24, 16)))
HUGE = vit(1280, 32, 16, patch=(14, 14))
CONV_SMALL, CONV_BASE = vit(384, 11, 12, stem="conv"), vit(768, 11, 12, stem="conv")
R50 = ResNet(depth=50, zero_init_residual=True)
MOCO, PIXELS = MoCo(temperature=0.2, momentum=0.99), MAE(normalised_pixels=True)
PROBE = Classifier(classes=1000, pooling="token", head_std=0.01)


@pytest.mark.parametrize(
    ("encoder", "objective", "total", "trainable"),
    [
        (R50, MOCO, 68_012_160, 35_058_752),
        (SMALL, MOCO, 84_266_752, 42_815_104),
        (BASE, MOCO, 215_678_464, 108_150_016),
        (LARGE, MOCO, 652_781_568, None),
        (CONV_SMALL, MOCO, 82_170_208, 42_062_128),
        (CONV_BASE, MOCO, 208_480_960, 105_141_856),
        (R50, PROBE, 25_557_032, 25_557_032),
        (SMALL, PROBE, 22_050_664, None),
        (BASE, PROBE, 86_567_656, None),
        (LARGE, PROBE, 304_326_632, None),
        (HUGE, PROBE, 632_045_800, None),
        (CONV_SMALL, PROBE, 21_002_392, 20_926_744),
        (replace(BASE, frozen_patch=False), PIXELS, 111_907_840, 111_655_680),
        (replace(LARGE, frozen_patch=False), PIXELS, 329_541_888, 329_239_296),
        (HUGE, PIXELS, 657_074_508, 656_613_964),
    ],
)
def test_parameter_counts_are_the_published_ones(encoder, objective, total, trainable):
    spec = ModelSpec(encoder=encoder, objective=objective)
    assert parameter_count(spec) == total
    if trainable is not None:
        assert parameter_count(spec, trainable=True) == trainable


@pytest.mark.parametrize(
    ("encoder", "expected"),
    [
        (R50, 4_109_464_576),
        (SMALL, 4_607_954_304),
        (BASE, 17_581_972_224),
        (LARGE, 61_603_111_936),
        (HUGE, 167_400_741_120),
        # the zoo counts the mean-pooled model, which has one norm less
        (replace(HUGE, image=(448, 448)), 732_131_983_360 + 5 * 1025 * 1280),
    ],
)
def test_flops_are_the_published_ones(encoder, expected):
    assert encoder_flops(encoder) == expected


@pytest.mark.parametrize("name", sorted(small.MODELS))
def test_biases_start_at_zero_and_norms_at_one(name):
    spec = small.MODELS[name]
    drawn = initial_values(spec, 0)
    for p in inventory(spec):
        value = drawn[p.name]
        if (
            p.name.endswith(("running_mean", ".bias", "num_batches_tracked"))
            and value.ndim <= 1
            and "patch_embed" not in p.name
        ):
            assert not value.any(), p.name
        elif p.name.endswith("running_var"):
            assert (value == 1).all(), p.name
        elif p.role == "norm":  # all ones, or all zeros where a residual branch begins at nothing
            assert np.unique(value).tolist() in ([1.0], [0.0]), p.name


def convolved(sides, kernel, stride, padding):
    """Sizes after a convolution or pooling, as the frameworks compute them."""
    return tuple((side + 2 * padding - kernel) // stride + 1 for side in sides)


def test_flops_of_odd_sizes_follow_the_sizes_that_convolutions_give():
    # a basic ResNet-18 at 45 x 59, layer by layer: multiply-adds of a convolution, 2 per element of its batch norm
    total, sides, into = 0, convolved((45, 59), 7, 2, 3), 64
    total += math.prod(sides) * 64 * (49 * 3 + 2)
    sides = convolved(sides, 3, 2, 1)
    for out, stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
        for block in range(2):
            if block == 0:
                sides = convolved(sides, 3, stride, 1)
                total += math.prod(sides) * out * (into + 2) if stride == 2 else 0
            total += math.prod(sides) * out * (9 * (into if block == 0 else out) + 2)
            total += math.prod(sides) * out * (9 * out + 2)
        into = out
    assert encoder_flops(ResNet(depth=18, zero_init_residual=False, image=(45, 59))) == total + math.prod(sides) * 512


def test_equal_noise_keeps_the_patches_in_their_order():
    noise = np.zeros((1, 40), np.float32)
    noise[0, ::2] = 0.5  # two groups of equal values: the even patches come after the odd ones, each group in order
    mask = masking.mask(noise, 0.25)
    assert mask.visible[0].tolist() == [*range(1, 40, 2), *range(0, 20, 2)]
    assert mask.restore[0, :4].tolist() == [20, 0, 21, 1]


@pytest.mark.parametrize(
    ("case", "spec"),
    [
        ("moco-vit_small", ModelSpec(encoder=SMALL, objective=MOCO)),
        ("mae-mae_vit_base_patch16", ModelSpec(encoder=BASE, objective=PIXELS)),
        ("lincls-vit_small", ModelSpec(encoder=SMALL, objective=PROBE)),
        ("finetune-vit_base_patch16", ModelSpec(encoder=BASE, objective=replace(PROBE, pooling="mean"))),
    ],
)
def test_names_shapes_and_order_are_the_originals(case, spec):
    with open(GOLDENS / f"{case}.safetensors", "rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        keys = json.loads(json.loads(file.read(length))["__metadata__"]["meta"])["keys"]
    assert [(p.name, list(p.shape)) for p in inventory(spec)] == list(keys.items())


def test_first_values_follow_the_specification():
    arrays = initial_values(ModelSpec(encoder=vit(96, 2, 3, image=(32, 32), patch=(8, 8)), objective=MOCO), seed=3)
    qkv = arrays["base_encoder.blocks.0.attn.qkv.weight"]
    assert 0.95 < np.abs(qkv).max() / math.sqrt(3 / 96) <= 1
    assert np.abs(arrays["base_encoder.cls_token"]).max() < 1e-5
    assert 0.9 < np.abs(arrays["predictor.0.weight"]).max() * math.sqrt(256) <= 1
    assert not arrays["base_encoder.patch_embed.proj.bias"].any()
    for name, array in arrays.items():
        if name.startswith("momentum_encoder."):
            assert np.array_equal(array, arrays[name.replace("momentum_encoder", "base_encoder")])
    mae = initial_values(
        ModelSpec(encoder=vit(96, 1, 3, initial_values="mae", position="mae"), objective=PIXELS), seed=3
    )
    assert 0.95 < np.abs(mae["blocks.0.attn.qkv.weight"]).max() / math.sqrt(6 / (4 * 96)) <= 1
    assert 0.9 < np.abs(mae["patch_embed.proj.bias"]).max() * math.sqrt(768) <= 1
    assert abs(float(mae["mask_token"].std()) - 0.02) < 0.003


def test_first_values_depend_on_seed_and_name_alone():
    spec = ModelSpec(encoder=vit(32, 2, 2, image=(16, 16), patch=(8, 8)), objective=replace(MOCO, hidden=32, dim=8))
    deeper = replace(spec, encoder=vit(32, 3, 2, image=(16, 16), patch=(8, 8)))
    one, two, other = initial_values(spec, 1), initial_values(deeper, 1), initial_values(spec, 2)
    assert all(np.array_equal(one[name], two[name]) for name in one)
    name = "base_encoder.blocks.1.mlp.fc1.weight"
    assert not np.array_equal(one[name], other[name])
    assert not np.array_equal(one[name], one[name.replace("blocks.1", "blocks.0")])


def test_resnet_residual_branches_start_at_zero():
    arrays = initial_values(ModelSpec(encoder=R50, objective=MOCO), 0)
    assert not arrays["base_encoder.layer3.4.bn3.weight"].any() and arrays["base_encoder.layer3.4.bn2.weight"].all()
    assert len(encoder_inventory(ResNet(depth=18, zero_init_residual=False))) == 120


def test_position_tables():
    cases: tuple[tuple[Literal["moco", "mae"], int, int, float], ...]
    cases = (("moco", 768, 14, 69594.494), ("mae", 1280, 16, 149578.4058))
    for kind, width, side, total in cases:
        table = position.table(kind, width, (side, side)).astype(float)
        assert abs(table.sum() - total) < 1e-2
        assert abs((table**2).sum() - side * side * width / 2) < 1e-3
        assert not table[0, 0].any()
    moco, mae = (position.table(kind, 768, (14, 14))[0] for kind in ("moco", "mae"))
    for token, channel, one, two in (
        (1 + 14 * 3 + 5, 0, 0.141120, -0.958924),
        (1 + 14 * 3 + 5, 191, 0.000315, 0.000525),
        (1 + 14 * 3 + 5, 577, 0.053395, -0.960471),
        (1 + 14 * 7 + 2, 10, -0.9288025, 0.9451102),
    ):
        assert abs(moco[token, channel] - one) < 1e-6 and abs(mae[token, channel] - two) < 1e-6
    assert np.abs(np.roll(moco, 384, axis=1) - mae).max() < 1e-6


def test_position_tables_of_grids_that_are_not_square():
    table = position.table("mae", 64, (2, 5))[0]
    assert table.shape == (11, 64)
    assert abs(table[1 + 5 * 1 + 3, 0] - math.sin(3)) < 1e-6  # MAE: column first
    with pytest.raises(UserError, match="divisible by 4"):
        position.table("mae", 30, (2, 2))


def test_masks():
    noise = np.array([[0.9, 0.1, 0.5, 0.3]], np.float32)
    mask = masking.mask(noise, 0.75)
    assert mask.restore.tolist() == [[3, 0, 2, 1]] and mask.visible.tolist() == [[1]]
    assert mask.mask.tolist() == [[1, 0, 1, 1]]
    table = {
        0.4: (117, 153),
        0.5: (98, 128),
        0.6: (78, 102),
        0.75: (49, 64),
        0.8: (39, 51),
        0.85: (29, 38),
        0.9: (19, 25),
    }
    assert {r: tuple(masking.visible_patches(n, r) for n in (196, 256)) for r in table} == table
    rows = masking.noise(0, 2, [5, 9], 16)
    assert np.array_equal(rows[1], masking.noise(0, 2, [9], 16)[0]) and not np.array_equal(rows[0], rows[1])
    assert not np.array_equal(rows, masking.noise(0, 3, [5, 9], 16))  # another epoch
    assert not np.array_equal(rows, masking.noise(1, 2, [5, 9], 16))  # another seed


def test_schedules():
    moco = ScheduleSpec(epochs=300, warmup_epochs=40)
    for now, lr in ((1 / 312, 1.923e-7), (20, 0.0012), (40, 0.0024), (100, 0.0020982), (170, 0.0012), (299, 8.76e-8)):
        assert math.isclose(lr_at(moco, 2.4e-3, now), lr, rel_tol=1e-3)
    assert math.isclose(lr_at(ScheduleSpec(epochs=100, warmup_epochs=10), 9.6, 99), 0.002924, rel_tol=1e-3)
    probe = ScheduleSpec(epochs=90, warmup_epochs=0, per="epoch")
    assert [round(lr_at(probe, 12, e + 0.9), 6) for e in (0, 45, 89)] == [12, 6, 0.003655]
    tune = ScheduleSpec(epochs=100, warmup_epochs=5, min_lr=1e-6)
    for now, lr in ((2.5, 0.001), (52.5, 0.0010005), (99, 1.5465e-6)):
        # MAE's warm-up starts at 0 and its cosine ends at min_lr
        assert math.isclose(lr_at(tune, 2e-3, now), lr, rel_tol=1e-3)
    deit = ScheduleSpec(epochs=150, warmup_epochs=5, min_lr=1e-5, warmup_lr=1e-6, per="epoch", cosine="whole", lag=1)
    expected = {0: 1e-6, 1: 1e-6, 2: 2.008e-4, 3: 4.006e-4, 4: 6.004e-4, 5: 8.002e-4, 6: 9.972883e-4, 149: 1.043e-5}
    for epoch, lr in expected.items():
        assert math.isclose(lr_at(deit, 1e-3, epoch + 0.5), lr, rel_tol=1e-3)
    for epoch, momentum in {0: 0.99, 75: 0.991464, 150: 0.995, 225: 0.998536, 299: 0.99999973}.items():
        assert abs(momentum_at(0.99, epoch, 300, True) - momentum) < 1e-6


def test_libais_cosine_begins_with_the_run_and_rises_again():
    early = ScheduleSpec(epochs=100, warmup_epochs=20, min_lr=0.1, warmup_lr=0.02, cosine="early", warmup_end="cosine")
    at_20 = 0.1 + 1.9 * 0.5 * (1 + math.cos(math.pi / 4))
    risen = 0.1 + 1.9 * 0.5 * (1 + math.cos(math.pi * 1.25))
    for now, lr in ((0, 0.02), (10, (0.02 + at_20) / 2), (20, at_20), (80, 0.1), (100, risen)):
        assert lr_at(early, 2.0, now) == pytest.approx(lr, rel=1e-12)
    whole = replace(early, cosine="whole")
    assert lr_at(whole, 2.0, 20) == pytest.approx(0.1 + 1.9 * 0.5 * (1 + math.cos(math.pi / 5)))
    assert lr_at(replace(whole, warmup_end="peak"), 2.0, 19.999999) == pytest.approx(2.0, rel=1e-6)


def test_a_momentum_that_compounds_multiplies_what_is_left_to_1():
    left = 0.01
    for step in range(40):
        left *= 0.5 * (1 + math.cos(math.pi * step / 40))
        assert compounded_at(0.99, step, 40) == pytest.approx(1 - left, rel=1e-15)
    assert compounded_at(0.99, 0, 40) == 0.99 and compounded_at(0.9, 399_999, 400_000) == 1.0
    assert compounded_at(0.99, 30, 40) > momentum_at(0.99, 30, 40, True) + 0.001  # the paper's is far from 1 still
    with pytest.raises(UserError, match="momentum_compounds: there is no cosine"):
        recipes.load(
            "tiny/test_moco_vit",
            ["model.objective.momentum_compounds=true", "model.objective.momentum_cosine=false"],
        )


def test_values_of_a_step_are_those_of_its_fraction_of_an_epoch():
    moco, per_epoch = recipes.load("moco_v3/vit_small_300ep"), 1251
    values, now = at(moco, 5 * per_epoch + 417, per_epoch), 5 + 1 / 3
    assert peak_lr(moco) == moco.optimizer.lr * 16
    assert values.lr == pytest.approx(peak_lr(moco) * now / 40, rel=1e-12)
    assert values.momentum == pytest.approx(1 - 0.5 * (1 + math.cos(math.pi * now / 300)) * 0.01, rel=1e-12)


def test_groups_of_each_rule():
    tuned = replace(BASE, frozen_patch=False, trainable_position=True, drop_path=0.1)
    spec = ModelSpec(encoder=tuned, objective=replace(PROBE, pooling="mean"))
    rule = OptimizerSpec(kind="adamw", lr=1e-3, weight_decay=0.05, decays="matrices_but_tokens", layer_decay=0.65)
    chosen = groups(inventory(spec), rule)
    assert [*chosen["pos_embed"]] == pytest.approx([0.65**13, 0])
    assert [*chosen["blocks.11.attn.qkv.weight"]] == pytest.approx([0.65, 0.05])
    assert chosen["fc_norm.weight"] == (1, 0) and chosen["head.weight"] == (1, 0.05)
    mae = inventory(ModelSpec(encoder=replace(BASE, frozen_patch=False), objective=PIXELS))
    decayed = groups(mae, replace(rule, decays="matrices", layer_decay=None))
    assert sum(g.weight_decay > 0 for g in decayed.values()) == 85 and len(decayed) == 167 + 85
    assert decayed["cls_token"].weight_decay and decayed["mask_token"].weight_decay
    moco = groups(inventory(ModelSpec(encoder=SMALL, objective=MOCO)), replace(rule, decays="all", layer_decay=None))
    assert len(moco) == 158 and all(g == (1, 0.05) for g in moco.values())


def test_resampling_keeps_the_class_row_and_constants():
    table = np.random.default_rng(0).standard_normal((1, 1 + 14 * 14, 8)).astype(np.float32)
    larger = position.resample(table, (14, 14), (16, 20))
    assert larger.shape == (1, 1 + 16 * 20, 8) and np.array_equal(larger[0, 0], table[0, 0])
    flat = position.resample(np.full((1, 5, 4), 0.5, np.float32), (2, 2), (3, 7))
    assert np.abs(flat - 0.5).max() < 1e-6
    with pytest.raises(UserError, match="grid"):
        position.resample(table, (13, 14), (16, 16))
