"""Augmentation plans: draws against the originals' distributions, corner cases, mixing and targets."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from triport.core.augment import augment, pixels, rand_augment, steps
from triport.core.errors import UserError
from triport.core.rng import generator
from triport.core.spec import (
    AugmentSpec,
    CenterCrop,
    ColorJitter,
    GaussianBlur,
    Grayscale,
    HorizontalFlip,
    MixSpec,
    RandAugment,
    RandomErasing,
    RandomResizedCrop,
    Resize,
    Solarize,
)

SIZE = (375, 500)
DRAWS = 3000
FILL = (124, 116, 104)


def moco_view(blur: float, solarize: float) -> tuple:
    return (
        RandomResizedCrop(min_area=0.08, interpolation="bilinear"),
        ColorJitter(p=0.8, brightness=0.4, contrast=0.4, saturation=0.2, hue=0.1),
        Grayscale(p=0.2),
        GaussianBlur(p=blur),
        Solarize(p=solarize),
        HorizontalFlip(),
    )


MOCO = AugmentSpec(views=(moco_view(1.0, 0.0), moco_view(0.1, 0.2)))


def draw(spec: AugmentSpec, view: int = 0, count: int = DRAWS, size: tuple[int, int] = SIZE) -> list[steps.Plan]:
    return [augment.plan(spec, view, generator(0, "test", i, view), size) for i in range(count)]


def one(*operations: object) -> AugmentSpec:
    return AugmentSpec(views=(operations,))  # type: ignore[arg-type]


def share(plans: list[steps.Plan], kind: type) -> float:
    return sum(any(isinstance(step, kind) for step in plan) for plan in plans) / len(plans)


def of(plans: list[steps.Plan], kind: type) -> list:
    return [step for plan in plans for step in plan if isinstance(step, kind)]


# ---------------------------------------------------------------- draws
def test_a_plan_depends_on_its_key_alone():
    first = augment.plan(MOCO, 0, generator(3, "a", 7), SIZE)
    assert first == augment.plan(MOCO, 0, generator(3, "a", 7), SIZE)
    assert first != augment.plan(MOCO, 0, generator(3, "a", 8), SIZE)
    assert first != augment.plan(MOCO, 1, generator(4, "a", 7), SIZE)


@pytest.mark.parametrize(("view", "blur", "solarize"), [(0, 1.0, 0.0), (1, 0.1, 0.2)])
def test_the_two_views_of_moco_v3_differ_in_blur_and_solarize(view, blur, solarize):
    plans = draw(MOCO, view)
    expected = {steps.Crop: 1.0, steps.Brightness: 0.8, steps.Gray: 0.2, steps.Blur: blur, steps.Invert: solarize}
    for kind, p in {**expected, steps.Mirror: 0.5}.items():
        error = 4.5 * math.sqrt(p * (1 - p) / DRAWS)
        assert abs(share(plans, kind) - p) <= error, kind
    names = [type(step).__name__ for step in max(plans, key=len)]
    assert names[0] == "Crop" and names[-1] == "Mirror" and names[-2] in ("Blur", "Invert")


def test_jitter_factors_and_orders():
    plans = draw(one(ColorJitter(p=1.0, brightness=0.4, contrast=0.4, saturation=0.2, hue=0.1)))
    for kind, low, high in (
        (steps.Brightness, 0.6, 1.4),
        (steps.Contrast, 0.6, 1.4),
        (steps.Saturation, 0.8, 1.2),
        (steps.Hue, -0.1, 0.1),
    ):
        factors = np.array([step.factor for step in of(plans, kind)])
        assert len(factors) == DRAWS and low <= factors.min() and factors.max() <= high
        assert factors.min() < low + 0.01 * (high - low) and factors.max() > high - 0.01 * (high - low)
        assert abs(factors.mean() - (low + high) / 2) < 4.5 * (high - low) / math.sqrt(12 * DRAWS)
    orders = Counter(tuple(type(step).__name__ for step in plan) for plan in plans)
    assert len(orders) == 24 and min(orders.values()) > DRAWS / 24 * 0.6


def test_a_jitter_of_strength_0_is_left_out():
    (plan,) = draw(one(ColorJitter(p=1.0, brightness=0.4, contrast=0, saturation=0, hue=0)), count=1)
    assert [type(step) for step in plan] == [steps.Brightness]


def test_a_jitter_beyond_1_does_not_go_below_0():
    factors = [
        s.factor
        for s in of(draw(one(ColorJitter(p=1, brightness=1.5, contrast=0, saturation=0, hue=0))), steps.Brightness)
    ]
    assert 0 <= min(factors) < 0.01 and 2.49 < max(factors) <= 2.5


def test_blur_sigma_is_uniform():
    sigmas = np.array([step.sigma for step in of(draw(one(GaussianBlur(p=1.0))), steps.Blur)])
    assert 0.1 <= sigmas.min() < 0.11 and 1.99 < sigmas.max() <= 2.0
    assert abs(sigmas.mean() - 1.05) < 4.5 * 1.9 / math.sqrt(12 * DRAWS)


# ---------------------------------------------------------------- crops
def test_random_crops_cover_the_specified_areas_and_ratios():
    crops = of(draw(one(RandomResizedCrop(min_area=0.08, interpolation="bicubic"))), steps.Crop)
    area = np.array([c.height * c.width for c in crops]) / (SIZE[0] * SIZE[1])
    ratio = np.array([c.width / c.height for c in crops])
    assert all(c.top >= 0 and c.left >= 0 and c.top + c.height <= 375 and c.left + c.width <= 500 for c in crops)
    assert all(c.size == (224, 224) and c.interpolation == "bicubic" for c in crops)
    assert 0.075 < area.min() < 0.09 and 0.95 < area.max() <= 1
    assert 0.74 < ratio.min() < 0.76 and 1.32 < ratio.max() < 1.35
    # log-uniform before large wide boxes are thrown away: as many wide as tall among small boxes
    small = ratio[area < 0.4]
    assert abs((small > 1).mean() - 0.5) < 4.5 * 0.5 / math.sqrt(len(small))
    assert {0} < {c.top for c in crops} and max(c.top + c.height for c in crops) == 375


def test_the_area_of_square_crops_is_uniform():
    spec = one(RandomResizedCrop(min_area=0.2, interpolation="bilinear", ratio=(1.0, 1.0)))
    area = np.array([c.height * c.width for c in of(draw(spec, size=(500, 500)), steps.Crop)]) / 500**2
    assert abs(area.mean() - 0.6) < 4 * 0.8 / math.sqrt(12 * DRAWS) and abs(area.std() - 0.8 / math.sqrt(12)) < 0.006


@pytest.mark.parametrize(
    ("size", "box"),
    [
        ((10, 1000), (0, 493, 10, 13)),
        ((1000, 10), (493, 0, 13, 10)),
        ((1, 1000), (0, 499, 1, 1)),
        ((1, 1), (0, 0, 1, 1)),
    ],
)
def test_extreme_images_fall_back_to_the_middle(size, box):
    crop = RandomResizedCrop(min_area=0.9, interpolation="bilinear")
    assert augment.crop_box(crop, generator(0), size) == box


def test_one_draw_is_clipped_to_the_image():
    crop = RandomResizedCrop(min_area=0.9, interpolation="bicubic", style="once")
    boxes = [augment.crop_box(crop, generator(i), (10, 100)) for i in range(200)]
    assert all(height == 10 and top == 0 for top, _, height, _ in boxes)
    assert {27, 28} & {width for *_, width in boxes} and max(width for *_, width in boxes) <= 37
    wide = [
        augment.crop_box(RandomResizedCrop(min_area=0.08, interpolation="bicubic", style="once"), generator(i), SIZE)
        for i in range(500)
    ]
    assert all(0 <= t <= 375 - h and 0 <= left <= 500 - w for t, left, h, w in wide)


@pytest.mark.parametrize(
    ("size", "resized", "window"),
    [
        ((375, 500), (256, 341), (16, 58)),  # 58.5 is rounded to the even 58
        ((500, 375), (341, 256), (58, 16)),
        ((333, 500), (256, 384), (16, 80)),
        ((300, 500), (256, 426), (16, 101)),  # 426.67 is cut
        ((256, 259), (256, 259), (16, 18)),  # 17.5 to 18
        ((1, 3), (256, 768), (16, 272)),
    ],
)
def test_evaluation_resizes_and_crops_as_torchvision(size, resized, window):
    plan = augment.plan(one(Resize(size=256, interpolation="bilinear"), CenterCrop()), 0, generator(0), size)
    assert plan == (steps.Resize(resized, "bilinear"), steps.Window(window[0], window[1], 224, 224))
    assert augment.output_size(plan, size) == (224, 224)


def test_a_centre_crop_larger_than_the_image_is_padded_with_zeros():
    (window,) = augment.plan(one(CenterCrop(size=(7, 4))), 0, generator(0), (4, 5))
    image = np.full((4, 5, 2), 9, np.uint8)
    padded = pixels.apply((window,), image)
    assert padded.shape == (7, 4, 2)
    assert (padded[1:5] == 9).all() and not padded[0].any() and not padded[5:].any()


# ---------------------------------------------------------------- RandAugment, erasing
@pytest.mark.parametrize(
    ("operation", "magnitude", "expected"),
    [
        ("auto_contrast", 9, steps.AutoContrast()),
        ("equalize", 9, steps.Equalize()),
        ("invert", 9, steps.Invert(0)),
        ("posterize", 9, steps.Posterize(1)),
        ("posterize", 10, steps.Posterize(0)),
        ("posterize", 0, steps.Posterize(4)),
        ("solarize", 9, steps.Invert(26)),
        ("solarize", 10, steps.Invert(0)),
        ("solarize_add", 9, steps.Add(99, 128)),
        ("rotate", 9, steps.Rotate(-27.0, FILL)),
        ("colour", 9, steps.Saturation(1 - 0.81)),
        ("contrast", 10, steps.Contrast(1 - 0.9)),
        ("brightness", 5, steps.Brightness(1 - 0.45)),
        ("sharpness", 0, steps.Sharpness(1.0)),
        ("shear_x", 10, steps.Shear(-0.3, 0.0, FILL)),
        ("shear_y", 10, steps.Shear(0.0, -0.3, FILL)),
        ("translate_x", 10, steps.Translate(-0.45 * 200, 0.0, FILL)),
        ("translate_y", 10, steps.Translate(0.0, -0.45 * 100, FILL)),
    ],
)
def test_randaugment_arguments(operation, magnitude, expected):
    assert rand_augment.step(operation, magnitude, -1, (100, 200), FILL) == expected
    assert operation in rand_augment.OPERATIONS


def test_randaugment_draws_two_of_fifteen_with_replacement():
    plans = draw(one(RandAugment()))
    lengths = Counter(len(plan) for plan in plans)
    for count, p in ((0, 0.25), (1, 0.5), (2, 0.25)):
        assert abs(lengths[count] / DRAWS - p) < 4.5 * math.sqrt(p * (1 - p) / DRAWS)
    kinds = Counter(type(step).__name__ for plan in plans for step in plan)
    total = sum(kinds.values())
    weights = {"Invert": 2, "Shear": 2, "Translate": 2}  # solarize and invert, and two axes, share a step
    plain = "AutoContrast Equalize Invert Rotate Posterize Add Saturation Contrast Brightness Sharpness"
    for name in (*plain.split(), "Shear", "Translate"):
        p = weights.get(name, 1) / 15
        assert abs(kinds[name] / total - p) < 4.5 * math.sqrt(p * (1 - p) / total), name
    degrees = np.array([step.degrees for step in of(plans, steps.Rotate)])
    assert abs(np.abs(degrees).mean() - 27) < 0.6 and 0.35 < (degrees > 0).mean() < 0.65
    assert np.abs(degrees).max() <= 30 and 1.0 < np.abs(degrees).std() < 1.9
    assert {step.fill for step in of(plans, steps.Rotate)} == {FILL}


def test_erasing_draws_a_box_of_the_right_area_and_ratio():
    plans = draw(one(RandomResizedCrop(min_area=0.08, interpolation="bicubic"), RandomErasing()))
    boxes = of(plans, steps.Erase)
    assert abs(len(boxes) / DRAWS - 0.25) < 4.5 * math.sqrt(0.25 * 0.75 / DRAWS)
    area = np.array([b.height * b.width for b in boxes]) / 224**2
    ratio = np.array([b.height / b.width for b in boxes])
    assert 0.018 < area.min() < 0.03 and 0.3 < area.max() < 0.34
    assert 0.28 < ratio.min() < 0.4 and 2.5 < ratio.max() < 3.5
    assert all(b.top + b.height <= 224 and b.left + b.width <= 224 for b in boxes)
    assert len({b.key for b in boxes}) == len(boxes)


def test_an_erased_box_is_strictly_smaller_than_the_image():
    whole = RandomErasing(p=1.0, min_area=1.0, max_area=1.0, ratio=1.0)
    assert augment.plan(one(whole), 0, generator(0), (5, 5)) == ()
    assert len(augment.plan(one(whole), 0, generator(0), (6, 4))) == 0
    (box,) = augment.plan(one(RandomErasing(p=1.0, min_area=0.16, max_area=0.16, ratio=1.0)), 0, generator(0), (5, 5))
    assert isinstance(box, steps.Erase) and (box.height, box.width) == (2, 2)


def test_boxes_reach_every_row_and_column_of_the_image():
    erase = of(
        draw(
            one(
                Resize(size=6, interpolation="bilinear"),
                CenterCrop(size=(6, 6)),
                RandomErasing(p=1.0, min_area=0.2, max_area=0.4),
            ),
            count=600,
            size=(6, 6),
        ),
        steps.Erase,
    )
    crop = of(draw(one(RandomResizedCrop(min_area=0.2, interpolation="bilinear")), count=600, size=(6, 6)), steps.Crop)
    for boxes in (erase, crop):
        assert {box.top for box in boxes} >= {0, 1, 2} and {box.left for box in boxes} >= {0, 1, 2}
        for height in {box.height for box in boxes}:  # the last place that a box of this height can have is drawn too
            tops = {box.top for box in boxes if box.height == height}
            assert len(tops) == 1 + 6 - height or len([b for b in boxes if b.height == height]) < 60, height
            assert max(tops) <= 6 - height
        assert max(box.top + box.height for box in boxes) == 6 and max(box.left + box.width for box in boxes) == 6


def test_erasing_fills_with_noise_of_its_key_after_normalisation():
    plan = (steps.Mirror(), steps.Erase(2, 3, 40, 50, key=11))
    image = np.full((60, 70, 3), 100, np.uint8)
    assert (pixels.apply(plan, image) == image).all()
    floats = pixels.normalise(image, (0.0,), (1.0,))
    erased = pixels.erase(floats.copy(), plan)
    inside = erased[:, 2:42, 3:53]
    assert abs(inside.mean()) < 0.05 and abs(inside.std() - 1) < 0.05 and len(np.unique(inside)) > 5000
    erased[:, 2:42, 3:53] = floats[:, 2:42, 3:53]
    assert (erased == floats).all()
    again, other = (pixels.erase(floats.copy(), (steps.Erase(2, 3, 40, 50, key=k),)) for k in (11, 12))
    assert not (again == other).all() and (again == pixels.erase(floats.copy(), plan)).all()


# ---------------------------------------------------------------- mixing
def test_mixing_is_off_without_alphas():
    assert augment.mix_plan(MixSpec(), generator(0), (224, 224)) == augment.Mix("none", 1.0)
    images = np.ones((3, 1, 4, 4), np.float32)
    assert pixels.mix(images, augment.Mix()) is images


def test_mix_plans_follow_probability_switch_and_beta():
    both = [augment.mix_plan(MixSpec(mixup=0.8, cutmix=1.0), generator(i), (224, 224)) for i in range(DRAWS)]
    uses = Counter(plan.use for plan in both)
    assert uses["none"] == 0 and abs(uses["cutmix"] / DRAWS - 0.5) < 4.5 * 0.5 / math.sqrt(DRAWS)
    rare = MixSpec(mixup=0.8, cutmix=1.0, switch=0.2)
    seldom = [augment.mix_plan(rare, generator(i), (224, 224)).use for i in range(DRAWS)]
    assert abs(seldom.count("cutmix") / DRAWS - 0.2) < 0.04
    lam = np.array([plan.lam for plan in both if plan.use == "mixup"])
    assert abs(lam.mean() - 0.5) < 0.04 and abs(lam.var() - 1 / (4 * 2.6)) < 0.01  # beta(0.8, 0.8): 1 / (4 (2a + 1))
    half = [augment.mix_plan(MixSpec(cutmix=1.0, probability=0.3), generator(i), (8, 8)).use for i in range(DRAWS)]
    assert set(half) == {"none", "cutmix"} and abs(half.count("cutmix") / DRAWS - 0.3) < 0.04
    assert augment.mix_plan(MixSpec(mixup=1.0), generator(0), (8, 8)).use == "mixup"


@given(st.integers(0, 10**6), st.integers(1, 50), st.integers(1, 50))
def test_cutmix_boxes_lie_inside_and_lam_is_the_area_that_stays(key, height, width):
    plan = augment.mix_plan(MixSpec(cutmix=1.0), generator(key), (height, width))
    top, left, box_height, box_width = plan.box
    assert top >= 0 and top + box_height <= height and left >= 0 and left + box_width <= width
    assert plan.lam == 1 - box_height * box_width / (height * width)


def test_cutmix_draws_its_box_as_timm():
    for key in range(50):
        plan, rng = augment.mix_plan(MixSpec(cutmix=1.0), generator(key), (224, 192)), generator(key)
        rng.random()
        lam = rng.beta(1.0, 1.0)
        for side, low, length in ((224, plan.box[0], plan.box[2]), (192, plan.box[1], plan.box[3])):
            half, centre = int(side * np.sqrt(1 - lam)) // 2, rng.integers(side)
            assert (low, low + length) == (max(0, centre - half), min(side, centre + half))


def test_mixup_and_cutmix_use_the_reversed_batch():
    images = np.arange(4 * 2 * 3 * 3, dtype=np.float32).reshape(4, 2, 3, 3)
    mixed = pixels.mix(images, augment.Mix("mixup", 0.3))
    for i in range(4):
        np.testing.assert_allclose(mixed[i], 0.3 * images[i] + 0.7 * images[3 - i], rtol=1e-6)
    cut = pixels.mix(images, augment.Mix("cutmix", 1 - 4 / 9, (1, 0, 2, 2)))
    assert (cut[1, :, 1:, :2] == images[2, :, 1:, :2]).all() and (cut[1, :, 0] == images[1, :, 0]).all()
    assert (cut[1, :, :, 2] == images[1, :, :, 2]).all() and (images[0, 0, 0] == [0, 1, 2]).all()
    with pytest.raises(UserError, match="batch of 3"):
        pixels.mix(images[:3], augment.Mix("mixup", 0.3))


def test_soft_targets():
    labels = np.array([1, 0, 3, 1])
    targets = pixels.soft_targets(labels, 5, augment.Mix("mixup", 0.25), smoothing=0.1)
    np.testing.assert_allclose(targets.sum(1), 1, rtol=1e-6)
    np.testing.assert_allclose(
        targets[1], [0.25 * 0.92 + 0.75 * 0.02, 0.02, 0.02, 0.25 * 0.02 + 0.75 * 0.92, 0.02], rtol=1e-6
    )
    plain = pixels.soft_targets(labels, 5)
    assert plain.dtype == np.float32 and (plain == np.eye(5)[labels]).all()
    smooth = pixels.soft_targets(labels, 5, None, 0.1)
    np.testing.assert_allclose(smooth[0], [0.02, 0.92, 0.02, 0.02, 0.02], rtol=1e-6)
    with pytest.raises(UserError, match="has 4 classes"):
        pixels.soft_targets(np.array([5]), 4)


# ---------------------------------------------------------------- errors
def test_errors_name_the_thing():
    with pytest.raises(UserError, match="2 views; view 2"):
        augment.plan(MOCO, 2, generator(0), SIZE)
    with pytest.raises(UserError, match="0 x 5"):
        augment.plan(MOCO, 0, generator(0), (0, 5))
