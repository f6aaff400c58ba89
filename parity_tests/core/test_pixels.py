"""Pixels of every step: against torchvision's goldens, and against Pillow on random images, with and without C."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import PIL
import pytest
from PIL import Image, ImageEnhance, ImageFilter, ImageOps
from safetensors import safe_open

from triport.core.augment import augment, geometry, native, pixels, steps
from triport.core.errors import UserError
from triport.core.rng import generator
from triport.core.spec import IMAGENET_MEAN, IMAGENET_STD, AugmentSpec, ColorJitter, RandomResizedCrop
from triport.parity_tests.tool.augment_golden import replay_augment

ROOT = Path(__file__).parents[2]
GOLDEN = Path(__file__).parents[1] / "goldens" / "augment.safetensors"
WAYS = ["compiled", "pillow"] if native.available() else ["pillow"]
FILL = (124, 116, 104)


@pytest.fixture(params=WAYS)
def way(request, monkeypatch):
    """Each test runs with the compiled kernels and without."""
    if request.param == "pillow":
        monkeypatch.setattr(native, "available", lambda: False)
    return request.param


def golden() -> tuple[dict[str, np.ndarray], dict]:
    with safe_open(GOLDEN, "np") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, json.loads(file.metadata()["meta"])  # noqa: SIM118


def noise(height: int, width: int, channels: int = 3, key: int = 0) -> np.ndarray:
    return generator(key, height, width).integers(0, 256, (height, width, channels), dtype=np.uint8)


def picture(image: np.ndarray) -> Image.Image:
    return Image.fromarray(image[..., 0] if image.shape[2] == 1 else image)


def same(plan: steps.Plan, image: np.ndarray, expected: Image.Image) -> None:
    want = np.asarray(expected)
    np.testing.assert_array_equal(pixels.apply(plan, image), want[..., None] if want.ndim == 2 else want)


def test_the_kernels_are_compiled_where_there_is_a_compiler():
    assert native.available() == bool(shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")), (
        native.state()
    )


@pytest.mark.parametrize(
    ("variables", "built", "state"),
    [
        ({"CC": "false"}, "false could not build the kernels", "not compiled"),
        ({"CC": "no-such-compiler"}, "no-such-compiler could not build the kernels", "not compiled"),
        ({"CC": "", "PATH": ""}, "there is no C compiler; install gcc or clang", "not compiled"),
        ({"TRIPORT_NATIVE": "0"}, "turned off by TRIPORT_NATIVE=0", "turned off by TRIPORT_NATIVE=0"),
        ({}, native.state(), native.state()),  # in an empty cache
    ],
)
def test_without_a_compiler_pillow_does_the_work(tmp_path, variables, built, state):
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path), "PYTHONPATH": str(ROOT), **variables}

    def python(*words: str) -> str:
        return subprocess.run(
            [sys.executable, *words], env=environment, capture_output=True, text=True, check=True
        ).stdout

    code = (
        "import numpy as np; from triport.core.augment import native, pixels, steps\n"
        "made = pixels.apply((steps.Blur(1.0),), np.arange(48, dtype=np.uint8).reshape(4, 4, 3))\n"
        "print(native.state(), made.sum())"
    )
    expected = pixels.apply((steps.Blur(1.0),), np.arange(48, dtype=np.uint8).reshape(4, 4, 3)).sum()
    before = python("-c", code)
    assert before.startswith(("not compiled for this machine; remedy: triport setup kernels", "turned off"))
    assert not list(tmp_path.rglob("*.so"))  # a run compiles nothing
    assert python("-m", "triport.core.augment.native").startswith(built)
    after = python("-c", code)
    assert after.startswith(state)
    assert before.split()[-1] == after.split()[-1] == str(expected)


# ---------------------------------------------------------------- goldens
def test_every_golden_record_is_replayed_to_the_bit(way):
    arrays, meta = golden()
    differences = replay_augment(arrays, meta)
    assert len(differences) == 16 and set(arrays) - {"image"} == set(differences)
    assert max(differences.values()) == 0, differences


def test_the_replay_measures_and_names_what_it_does_not_know():
    arrays, meta = golden()
    arrays["brightness"] = np.clip(arrays["brightness"].astype(int) + 3, 0, 255).astype(np.uint8)
    assert replay_augment(arrays, meta)["brightness"] == 3
    with pytest.raises(UserError, match=r"'brightnes'.*Did you mean 'brightness'"):
        replay_augment(arrays, {**meta, "brightness": {"op": "brightnes", "factor": 1.0}})
    with pytest.raises(UserError, match="lacks its number"):
        replay_augment(arrays, {"brightness": {"op": "brightness"}})


def test_other_golden_operations_can_be_replayed():
    image = noise(40, 60)
    source = picture(image)
    affine, bicubic = Image.Transform.AFFINE, Image.Resampling.BICUBIC
    meta = {
        "posterize": {"op": "posterize", "bits": 3},
        "sharpness": {"op": "sharpness", "factor": 1.7},
        "autocontrast": {"op": "autocontrast"},
        "equalize": {"op": "equalize"},
        "invert": {"op": "invert"},
        "rotate": {"op": "rotate", "degrees": 20, "fill": list(FILL)},
        "shear": {"op": "shear_x", "factor": 0.2, "fill": list(FILL)},
        "translate": {"op": "translate_y_rel", "pct": -0.2},
        "chain": {"op": "sequence", "steps": "invert, gaussian_blur sigma 1.5, solarize 100, grayscale, hflip"},
        "crop": {"op": "resize shorter side 32, centre crop 24", "interpolation": "bicubic"},
    }
    arrays = {
        "image": image,
        "posterize": ImageOps.posterize(source, 3),
        "sharpness": ImageEnhance.Sharpness(source).enhance(1.7),
        "autocontrast": ImageOps.autocontrast(source),
        "equalize": ImageOps.equalize(source),
        "invert": ImageOps.invert(source),
        "rotate": source.rotate(20, bicubic, fillcolor=FILL),
        "shear": source.transform(source.size, affine, (1, 0.2, 0, 0, 1, 0), bicubic, fillcolor=FILL),
        "translate": source.transform(source.size, affine, (1, 0, 0, 0, 1, -8), bicubic, fillcolor=0),
        "chain": ImageOps.mirror(
            ImageOps.solarize(ImageOps.invert(source).filter(ImageFilter.GaussianBlur(1.5)), 100)
            .convert("L")
            .convert("RGB")
        ),
        "crop": source.resize((48, 32), bicubic).crop((12, 4, 36, 28)),
    }
    differences = replay_augment({name: np.asarray(value) for name, value in arrays.items()}, meta)
    assert differences == dict.fromkeys(meta, 0.0)


# ---------------------------------------------------------------- against Pillow
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(
    ("box", "size"),
    [
        ((0, 0, 75, 100), (64, 64)),
        ((3, 5, 33, 91), (224, 224)),
        ((10, 0, 1, 1), (5, 7)),
        ((0, 7, 75, 2), (30, 64)),
        ((1, 1, 70, 60), (20, 61)),  # the height shrinks much more than the width: columns first
        ((1, 1, 70, 60), (69, 20)),
        ((1, 1, 70, 60), (40, 40)),  # more, but not twice as much: rows first
        ((1, 1, 70, 60), (40, 45)),  # exactly twice as much: rows first
        ((4, 4, 64, 64), (64, 64)),
    ],
)
def test_resized_crops(way, box, size, interpolation):
    image = noise(75, 100)
    top, left, height, width = box
    plan = (steps.Crop(top, left, height, width, size, interpolation),)
    down_first = height > size[0] and height - size[0] > 2 * (width - size[1])
    half = (width, size[0]) if down_first else (size[1], height)
    kind = geometry.FILTERS[interpolation]
    expected = picture(image).crop((left, top, left + width, top + height)).resize(half, kind).resize(size[::-1], kind)
    same(plan, image, expected)
    np.testing.assert_array_equal(pixels.apply(plan, picture(image)), np.asarray(expected))
    if int(PIL.__version__.split(".")[0]) >= 13:  # older ones always take the rows first
        same(plan, image, picture(image).crop((left, top, left + width, top + height)).resize(size[::-1], kind))


@pytest.mark.parametrize("sigma", [0.1, 0.37, 0.9, 1.3, 1.4143, 2.0, 5.3])
@pytest.mark.parametrize("shape", [(41, 30, 3), (1, 1, 3), (2, 9, 3), (16, 3, 1)])
def test_blur(way, sigma, shape):
    image = noise(*shape)
    same((steps.Blur(sigma),), image, picture(image).filter(ImageFilter.GaussianBlur(sigma)))


@pytest.mark.parametrize("factor", [0.0, 0.19, 0.6, 1.0, 1.17, 1.4, 1.9])
@pytest.mark.parametrize("channels", [1, 3])
def test_blends(way, factor, channels):
    image = noise(37, 29, channels)
    for step, kind in (
        (steps.Brightness, ImageEnhance.Brightness),
        (steps.Contrast, ImageEnhance.Contrast),
        (steps.Saturation, ImageEnhance.Color),
        (steps.Sharpness, ImageEnhance.Sharpness),
    ):
        same((step(factor),), image, kind(picture(image)).enhance(factor))


@pytest.mark.parametrize("factor", [-0.5, -0.1, -0.0039, 0.0, 0.083, 0.1, 0.5])
def test_hue_on_many_colours(way, factor):
    steps_of_7 = np.arange(0, 256, 5, dtype=np.uint8)
    image = np.stack(np.meshgrid(steps_of_7, steps_of_7, steps_of_7), -1).reshape(52 * 4, 52 * 13, 3)
    hue, saturation, value = picture(image).convert("HSV").split()
    moved = Image.fromarray(np.asarray(hue) + np.uint8(int(factor * 255) & 255))
    same((steps.Hue(factor),), image, Image.merge("HSV", (moved, saturation, value)).convert("RGB"))


def test_tables_and_mirror(way):
    image = noise(20, 30)
    source = picture(image)
    same((steps.Gray(),), image, source.convert("L").convert("RGB"))
    same((steps.Mirror(),), image, ImageOps.mirror(source))
    same((steps.Invert(128),), image, ImageOps.solarize(source, 128))
    same((steps.Invert(0),), image, ImageOps.invert(source))
    same((steps.Invert(256),), image, source)
    same((steps.AutoContrast(),), image // 2 + 30, ImageOps.autocontrast(picture(image // 2 + 30)))
    same((steps.Equalize(),), image // 3, ImageOps.equalize(picture(image // 3)))
    for bits in (1, 4, 8):
        same((steps.Posterize(bits),), image, ImageOps.posterize(source, bits))
    assert not pixels.apply((steps.Posterize(0),), image).any()
    added = pixels.apply((steps.Add(99, 128),), image)
    np.testing.assert_array_equal(added, np.where(image < 128, np.minimum(image.astype(int) + 99, 255), image))


# ---------------------------------------------------------------- shapes and kinds of images
@pytest.mark.parametrize("channels", [1, 2, 4, 5])
def test_geometry_works_for_any_number_of_channels_one_by_one(way, channels):
    image = noise(40, 50, channels)
    plan = (
        steps.Crop(2, 3, 30, 41, (24, 20), "bicubic"),
        steps.Blur(1.2),
        steps.Rotate(11.0, FILL),
        steps.Shear(0.1, 0.0, FILL),
        steps.Translate(0.0, 3.2, FILL),
        steps.Mirror(),
        steps.Resize((30, 32), "bilinear"),
        steps.Window(-2, 4, 34, 24),
    )
    together = pixels.apply(plan, image)
    assert together.shape == (34, 24, channels) and together.dtype == np.uint8
    for channel in range(channels):
        alone = pixels.apply(plan, image[..., channel])
        np.testing.assert_array_equal(together[..., channel], alone[..., 0])


def test_colour_steps_need_1_or_3_channels():
    image = noise(8, 8, 4)
    for step in (
        steps.Brightness(1.1),
        steps.Contrast(1.1),
        steps.Hue(0.1),
        steps.Gray(),
        steps.Invert(128),
        steps.Equalize(),
    ):
        with pytest.raises(UserError, match=f"{type(step).__name__} is a colour operation .* has 4"):
            pixels.apply((step,), image)


def test_one_channel_keeps_its_colour(way):
    image = noise(9, 7, 1)
    for step in (steps.Saturation(0.3), steps.Hue(0.2), steps.Gray()):
        np.testing.assert_array_equal(pixels.apply((step,), image), image)
    plan = augment.plan(
        AugmentSpec(
            views=(
                (
                    RandomResizedCrop(min_area=0.2, interpolation="bilinear", size=(12, 10)),
                    ColorJitter(p=1, brightness=0.4, contrast=0.4, saturation=0.2, hue=0.1),
                ),
            ),
            mean=(0.5,),
            std=(0.25,),
        ),
        0,
        generator(1),
        (9, 7),
    )
    assert pixels.apply(plan, image[..., 0]).shape == (12, 10, 1)


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P", "CMYK", "1", "LA"])
def test_pillow_images_of_any_mode(mode):
    image = picture(noise(20, 30)).convert(mode)
    channels = {"L": 1, "RGBA": 4}.get(mode, 3)
    assert pixels.apply((), image).shape == (20, 30, channels)
    assert pixels.apply((steps.Crop(0, 0, 20, 30, (8, 8), "bilinear"),), image).shape == (8, 8, channels)


def test_given_arrays_are_never_changed_or_shared(way):
    image = noise(16, 16)
    before = image.copy()
    every = (
        steps.Brightness(0.5),
        steps.Contrast(0.5),
        steps.Saturation(0.5),
        steps.Hue(0.1),
        steps.Blur(1.0),
        steps.Mirror(),
        steps.Invert(128),
        steps.Window(0, 0, 16, 16),
        steps.Saturation(1.0),
    )
    for plan in ((), *((step,) for step in every), every):
        assert not np.may_share_memory(pixels.apply(plan, image), image)
    np.testing.assert_array_equal(image, before)
    np.testing.assert_array_equal(pixels.apply(every, image[::-1, ::-1]), pixels.apply(every, image[::-1, ::-1].copy()))


def test_wrong_arrays_are_refused():
    wrongs: tuple[np.ndarray, ...] = (np.zeros((4, 4, 3), np.float32), np.zeros((2, 4, 4, 3), np.uint8))
    for wrong in wrongs:
        with pytest.raises(UserError, match="must be uint8"):
            pixels.apply((), wrong)


# ---------------------------------------------------------------- to floats
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_normalise_is_to_tensor_and_normalize(way, channels):
    mean, std = (*IMAGENET_MEAN, 0.3)[:channels], (*IMAGENET_STD, 0.7)[:channels]
    images = np.stack([noise(5, 6, channels, key) for key in range(2)])
    single = np.float32
    expected = (images.astype(single) / single(255) - np.array(mean, single)) / np.array(std, single)
    result = pixels.normalise(images, mean, std)
    assert result.dtype == np.float32
    np.testing.assert_array_equal(result, expected.transpose(0, 3, 1, 2))
    np.testing.assert_array_equal(pixels.normalise(images[1], mean, std), result[1])
    batch = np.zeros((3, channels, 5, 6), np.float32)
    pixels.normalise(images[0], mean, std, out=batch[2])
    assert (batch[2] == result[0]).all() and not batch[:2].any()


def test_one_mean_serves_all_channels_and_a_wrong_number_is_an_error():
    image = noise(3, 4, 4)
    assert pixels.normalise(image, (0.5,), (0.5,)).shape == (4, 3, 4)
    with pytest.raises(UserError, match="normalises 3 channels, but the image has 4"):
        pixels.normalise(image, IMAGENET_MEAN, IMAGENET_STD)
