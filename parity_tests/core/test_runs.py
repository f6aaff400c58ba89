"""Runs of steps that the kernels do in one call: to the bit what Pillow and numpy do step by step, for any plan."""

from __future__ import annotations

import platform
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from triport.core.augment import augment, native, pixels, runs, steps
from triport.core.errors import UserError
from triport.core.rng import generator
from triport.core.spec import IMAGENET_MEAN, IMAGENET_STD
from triport.core.spec.recipe import load

needs_kernels = pytest.mark.skipif(not native.available(), reason=native.state())
FACTOR = st.floats(0.0, 2.0, width=32)
SIDE = st.integers(1, 70)
KIND = st.sampled_from(["bilinear", "bicubic"])


# ---------------------------------------------------------------- any plan
@st.composite
def plans(draw, channels: int, size: tuple[int, int]) -> steps.Plan:
    """Up to eight steps of all kinds that an image of this size can go through."""
    drawn: list[steps.Step] = []
    for _ in range(draw(st.integers(0, 8))):
        step = draw(st.sampled_from(COLOURS if channels in (1, 3) and draw(st.booleans()) else GEOMETRY))(draw, size)
        drawn.append(step)
        size = augment.output_size((step,), size)
    return tuple(drawn)


def crop(draw, size: tuple[int, int]) -> steps.Crop:
    height, width = draw(st.integers(1, size[0])), draw(st.integers(1, size[1]))
    rim = draw(st.sampled_from([0, 0, 0, 3]))  # seldom beyond the image
    top, left = (draw(st.integers(-rim, whole - part + rim)) for whole, part in zip(size, (height, width)))
    return steps.Crop(top, left, height, width, (draw(SIDE), draw(SIDE)), draw(KIND))


GEOMETRY = (
    crop,
    lambda draw, size: steps.Resize((draw(SIDE), draw(SIDE)), draw(KIND)),
    lambda draw, size: steps.Window(draw(st.integers(-3, 9)), draw(st.integers(-3, 9)), draw(SIDE), draw(SIDE)),
    lambda draw, size: steps.Mirror(),
    lambda draw, size: steps.Mirror(),
    lambda draw, size: steps.Blur(draw(st.floats(0.0, 6.0))),
    lambda draw, size: steps.Rotate(draw(st.floats(-30, 30)), (10, 20, 30)),
)
COLOURS = (
    lambda draw, size: steps.Brightness(draw(FACTOR)),
    lambda draw, size: steps.Contrast(draw(FACTOR)),
    lambda draw, size: steps.Saturation(draw(FACTOR)),
    lambda draw, size: steps.Hue(draw(st.floats(-0.5, 0.5))),
    lambda draw, size: steps.Gray(),
    lambda draw, size: steps.Invert(draw(st.integers(0, 256))),
    lambda draw, size: steps.Add(draw(st.integers(0, 128))),
    lambda draw, size: steps.Posterize(draw(st.integers(0, 8))),
    lambda draw, size: steps.Equalize(),
)


def picture(size: tuple[int, int], channels: int, key: int) -> np.ndarray:
    """Noise, or noise in a few colours, or one colour alone."""
    noise = generator("picture", key).integers(0, 256, (*size, channels), dtype=np.uint8)
    return (noise, noise // 64 * 64, np.full_like(noise, noise[0, 0]))[key % 3]


def views(plan: steps.Plan, image: pixels.Source, channels: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What `apply` returns, and what `view` writes as bytes and as floats."""
    size, _ = pixels.shape(image)
    shape = augment.output_size(plan, size)
    as_bytes, as_floats = np.empty((*shape, channels), np.uint8), np.empty((channels, *shape), np.float32)
    pixels.view(plan, image, as_bytes)
    pixels.view(plan, image, as_floats, pixels.table(IMAGENET_MEAN[:1], IMAGENET_STD[:1], channels))
    return pixels.apply(plan, image), as_bytes, as_floats


def equal_with_and_without_kernels(plan: steps.Plan, image: pixels.Source, channels: int) -> None:
    """Compare all results; the fallback is Pillow's and numpy's, step by step."""
    fast = views(plan, image, channels)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native, "available", lambda: False)
        slow = views(plan, image, channels)
    for mine, theirs in zip(fast, slow, strict=True):
        np.testing.assert_array_equal(mine, theirs)


@needs_kernels
@settings(max_examples=400, deadline=None, derandomize=True, database=None)
@given(st.data())
def test_any_plan_gives_the_same_bits_with_and_without_kernels(data):
    channels = data.draw(st.sampled_from([1, 2, 3, 3, 3, 4, 5]))
    size = data.draw(SIDE), data.draw(SIDE)
    image = picture(size, channels, data.draw(st.integers(0, 1 << 16)))
    if data.draw(st.booleans()):
        image = image[::-1, :, :] if data.draw(st.booleans()) else image[:, ::-1]
    equal_with_and_without_kernels(data.draw(plans(channels, size)), image, channels)


RECIPES = (
    "moco_v3/vit_small_300ep",
    "mae/vit_base_1600ep",
    "moco_v3/resnet50_100ep",
    "transfer/mae_vit_base_finetune",
    "transfer/moco_vit_base_cifar10",
)


@needs_kernels
@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("part", ["train", "evaluate"])
def test_the_views_of_recipes_are_the_same_bits_with_and_without_kernels(name, part):
    spec = getattr(load(name), part)
    for key in range(6):
        rng = generator("size", key)
        size = int(rng.integers(30, 400)), int(rng.integers(30, 400))
        image = picture(size, 3, key)
        for view in range(len(spec.views)):
            plan = augment.plan(spec, view, generator(key, view), size)
            equal_with_and_without_kernels(plan, Image.fromarray(image) if key % 2 else image, 3)


@needs_kernels
@pytest.mark.parametrize("shift", [0, 25, 231])
def test_the_hue_of_every_colour_is_pillows(shift):
    colours = np.arange(1 << 24, dtype=np.uint32)
    image = np.stack([colours >> 16, colours >> 8 & 255, colours & 255], -1).astype(np.uint8).reshape(4096, 4096, 3)
    hsv = np.array(Image.fromarray(image).convert("HSV"))
    hsv[..., 0] += np.uint8(shift)
    expected = np.asarray(Image.frombytes("HSV", (4096, 4096), hsv.tobytes()).convert("RGB"))
    factor = (shift - 256 if shift > 128 else shift) / 255
    np.testing.assert_array_equal(pixels.apply((steps.Hue(factor),), image), expected)


VARIANTS = [("-O0",), ("-O2", "-ffp-contract=off")]
if platform.machine() in ("x86_64", "AMD64"):
    native_flags = ("-O3", "-march=native", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math")
    VARIANTS += [(*native_flags, more) for more in ("-mno-avx512f", "-mno-avx2", "-DTRY_SHUFFLE")]  # GCC 11's


@needs_kernels
@pytest.mark.parametrize("flags", VARIANTS, ids=" ".join)
def test_what_the_compiler_makes_of_them_changes_no_bit(flags, tmp_path, monkeypatch):
    image = picture((130, 170), 3, 3)
    jittered = (
        steps.Crop(3, 5, 120, 150, (97, 111), "bicubic"),
        steps.Brightness(1.21),
        steps.Contrast(0.7),
        steps.Saturation(1.3),
        steps.Hue(-0.07),
        steps.Invert(128),
        steps.Blur(1.3),
        steps.Mirror(),
    )
    blurred = (steps.Crop(0, 0, 130, 40, (20, 64), "bilinear"), steps.Blur(0.2), steps.Blur(5.0), steps.Contrast(1.4))
    before = [views(plan, image, 3) for plan in (jittered, blurred)]
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(native, "FLAGS", (*flags, "-fPIC", "-shared"))
    try:
        assert native.build() == ""
        assert list(tmp_path.rglob("*.so")) and native.available()
        after = [views(plan, image, 3) for plan in (jittered, blurred)]
    finally:
        monkeypatch.undo()
        native._loaded.cache_clear()
    for mine, theirs in zip(before, after, strict=True):
        for result, expected in zip(mine, theirs, strict=True):
            np.testing.assert_array_equal(result, expected)


# ---------------------------------------------------------------- which steps are a run
def parts(plan: steps.Plan, size: tuple[int, int] = (40, 60), channels: int = 3) -> list[runs.Part]:
    return list(runs.divided(plan, size, channels))


def test_the_views_of_moco_and_mae_are_one_run_each():
    for name in ("moco_v3/vit_small_300ep", "mae/vit_base_1600ep"):
        spec = load(name).train
        for key in range(20):
            for view in range(len(spec.views)):
                plan = augment.plan(spec, view, generator(key, view), (375, 500))
                (run,) = parts(plan, (375, 500))
                assert isinstance(run, runs.Run) and run.size == (224, 224)
                assert run.mirrored == (steps.Mirror() in plan)
                assert len(run.operations) == len([s for s in plan if not isinstance(s, (steps.Crop, steps.Mirror))])


def test_other_pixels_begin_a_run_and_what_the_kernels_lack_ends_it():
    crop, resize = steps.Crop(1, 2, 30, 20, (10, 11), "bilinear"), steps.Resize((7, 9), "bicubic")
    first, second = parts((crop, steps.Mirror(), steps.Invert(3), resize, steps.Mirror(), steps.Mirror()))
    assert isinstance(first, runs.Run) and isinstance(second, runs.Run)
    assert (first.box, first.size, first.bicubic, first.mirrored) == ((1, 2, 30, 20), (10, 11), False, True)
    assert (second.box, second.size, second.bicubic, second.mirrored) == ((0, 0, 10, 11), (7, 9), True, False)
    window, posterize = steps.Window(0, 0, 5, 5), steps.Posterize(4)
    begun, middle, end, last = parts((steps.Blur(1.0), posterize, window, steps.Blur(1.0), steps.Erase(0, 0, 1, 1, 7)))
    assert (middle, end) == (posterize, window)
    assert isinstance(begun, runs.Run) and isinstance(last, runs.Run)
    assert (begun.size, last.size) == ((40, 60), (5, 5))
    assert parts(()) == parts((steps.Erase(0, 0, 1, 1, 7),)) == []


def test_steps_without_effect_are_left_out_and_colours_are_refused_where_there_are_none():
    (run,) = parts((steps.Blur(0.0), steps.Hue(0.1), steps.Gray(), steps.Saturation(0.5)), channels=1)
    assert isinstance(run, runs.Run) and run.operations == []
    with pytest.raises(UserError, match=r"Hue is a colour operation .* has 4"):
        parts((steps.Hue(0.1),), channels=4)


# ---------------------------------------------------------------- where the result goes
PLAN = (steps.Crop(0, 0, 30, 40, (24, 26), "bicubic"), steps.Contrast(1.3), steps.Mirror())


def test_views_are_written_into_any_place():
    image, table = picture((30, 40), 3, 0), pixels.table(IMAGENET_MEAN, IMAGENET_STD, 3)
    wide, turned = np.zeros((2, 3, 24, 26), np.float32), np.zeros((26, 24, 3), np.float32)
    pixels.view(PLAN, image, wide[1], table)
    pixels.view(PLAN, image, turned.T, table)
    expected = pixels.normalise(pixels.apply(PLAN, image), IMAGENET_MEAN, IMAGENET_STD)
    np.testing.assert_array_equal(wide[1], expected)
    np.testing.assert_array_equal(turned.T, expected)
    assert not wide[0].any()
    as_bytes = np.zeros((24, 52, 3), np.uint8)
    pixels.view(PLAN, image, as_bytes[:, ::2])
    np.testing.assert_array_equal(as_bytes[:, ::2], pixels.apply(PLAN, image))
    assert not as_bytes[:, 1::2].any()


@needs_kernels
def test_places_of_another_shape_or_kind_are_refused():
    image, table = picture((30, 40), 3, 0), pixels.table(IMAGENET_MEAN, IMAGENET_STD, 3)
    for shape in ((24, 25, 3), (24, 26, 4), (26, 24, 3)):
        with pytest.raises(ValueError, match="cannot be written to"):
            pixels.view(PLAN, image, np.zeros(shape, np.uint8))
        with pytest.raises(ValueError, match="cannot be written to"):
            pixels.view(PLAN, image, np.zeros((shape[2], *shape[:2]), np.float32), table)
    with pytest.raises(ValueError, match=r"looked up in \(3, 256\) values, not in \(1, 256\)"):
        pixels.view(PLAN, image, np.zeros((3, 24, 26), np.float32), table[:1])
    with pytest.raises(ValueError, match="cannot be written to float64"):
        pixels.view(PLAN, image, np.zeros((3, 24, 26)), table)


@needs_kernels
@pytest.mark.parametrize(("size", "made"), [((0, 5), (7, 7)), ((5, 0), (7, 7)), ((5, 5), (0, 7)), ((5, 5), (7, 0))])
def test_an_image_or_a_view_without_pixels_is_refused(size, made):
    with pytest.raises(ValueError, match="cannot be written to"):
        native.view(np.zeros((*size, 3), np.uint8), False, (), False, np.zeros((*made, 3), np.uint8))


def test_normalised_images_are_never_resized_or_read_as_other_numbers():
    image = picture((30, 40), 3, 0)
    for shape in ((3, 40, 30), (3, 15, 20)):
        with pytest.raises(ValueError, match="output array does not match"):
            pixels.normalise(image, IMAGENET_MEAN, IMAGENET_STD, np.zeros(shape, np.float32))
    if native.available():
        with pytest.raises(ValueError, match="a view of uint16"):
            native.view(image.astype(np.uint16), False, (), False, np.zeros((30, 40, 3), np.uint8))


def test_a_view_is_erased_after_it_is_normalised():
    image, table = picture((30, 40), 3, 0), pixels.table(IMAGENET_MEAN, IMAGENET_STD, 3)
    plan = (*PLAN, steps.Erase(2, 3, 10, 11, 99))
    out = np.zeros((3, 24, 26), np.float32)
    pixels.view(plan, image, out, table)
    plain = pixels.normalise(pixels.apply(PLAN, image), IMAGENET_MEAN, IMAGENET_STD)
    np.testing.assert_array_equal(out, pixels.erase(plain.copy(), plan))
    assert (out != plain).any()


@needs_kernels
def test_memory_grows_for_large_images_and_each_thread_has_its_own(monkeypatch):
    monkeypatch.setattr(native, "_lent", threading.local())
    monkeypatch.setattr(native, "FIRST_SCRATCH", 1 << 12)
    image = picture((700, 900), 3, 0)
    plan = (steps.Resize((300, 320), "bicubic"), steps.Contrast(0.6), steps.Blur(4.0), steps.Mirror())
    expected = pixels.apply(plan, image)
    before = native._lent.scratch
    results: list[np.ndarray] = []
    threads = [
        threading.Thread(target=lambda: results.extend(pixels.apply(plan, image) for _ in range(5))) for _ in "ab"
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert native._lent.scratch is before and before.size > 1 << 12 and len(results) == 10
    for result in results:
        np.testing.assert_array_equal(result, expected)
    monkeypatch.setattr(native, "MOST_SCRATCH", 1 << 12)
    monkeypatch.setattr(native, "_lent", threading.local())
    np.testing.assert_array_equal(pixels.apply(plan, image), expected)
    assert not hasattr(native._lent, "scratch")  # too much to keep
