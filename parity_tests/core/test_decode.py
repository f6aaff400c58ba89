"""core.data.sample.decode: an image gives the same pixels with every library, at true scale, or is refused."""

from __future__ import annotations

import io
import pickle
import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from triport.core.data.sample import decode as decoding_module
from triport.core.data.sample import values
from triport.core.data.sample.decode import BrokenImage, Decoding, LargeImage, quiet_pillow
from triport.core.errors import UserError
from triport.parity_tests.fixtures.pictures import png, read, saved, tiff

RAMP = np.tile(np.arange(0, 256, 5, dtype=np.uint8), (7, 1))  # 7 x 52, dark left
DEEP = RAMP.astype(np.uint16) * 257
ODD = np.random.default_rng(0).integers(0, 65536, (9, 11), np.uint16)


# ---------------------------------------------------------------- 16 bits and more
@given(st.integers(0, 65535))
def test_sixteen_bits_are_divided_by_257_and_rounded_to_the_nearest(value):
    made = values.to_bytes(np.array([value], np.uint16), None, "x")
    assert made[0] == round(value / 257) and made.dtype == np.uint8


def pgm(array: np.ndarray) -> bytes:
    return b"P5\n%d %d\n65535\n" % array.shape[::-1] + array.astype(">u2").tobytes()


DEEP_KINDS = {
    "png": lambda array: saved(array, "PNG"),
    "tiff": lambda array: saved(array, "TIFF"),
    "tiff, big-endian": lambda array: tiff(array, byteorder=">"),
    "pgm": pgm,
}


@pytest.mark.parametrize("kind", DEEP_KINDS)
def test_grey_pictures_of_16_bits_keep_their_scale(kind):
    for array in (DEEP, ODD):
        expected = np.rint(array / 257).astype(np.uint8)
        data = DEEP_KINDS[kind](array)
        assert np.array_equal(read(data), np.repeat(expected[..., None], 3, 2))
        assert np.array_equal(read(data, 1)[..., 0], expected)


@pytest.mark.parametrize("channels", [3, 4])
def test_colour_png_of_16_bits_keep_their_scale(channels):
    array = np.random.default_rng(1).integers(0, 65536, (6, 5, channels), np.uint16)
    assert np.array_equal(read(png(array), channels), np.rint(array / 257).astype(np.uint8))


def test_colour_tiff_of_16_bits_keep_their_scale():
    array = np.random.default_rng(2).integers(0, 65536, (6, 5, 3), np.uint16)
    assert np.array_equal(read(tiff(array, photometric="rgb")), np.rint(array / 257).astype(np.uint8))


@pytest.mark.parametrize("kind", [np.int32, np.uint32, np.float32, np.float64])
def test_values_without_a_scale_are_refused_and_scaled_on_request(kind):
    data = tiff(RAMP.astype(kind) * 4)
    with pytest.raises(BrokenImage, match=r"x: .* no scale of their own \(here 0 to 1020\); --value-range LO HI"):
        read(data)
    assert np.array_equal(read(data, 1, value_range=(0, 1020))[..., 0], RAMP)
    assert read(data, 1, value_range=(0, 510)).max() == 255  # cut, not wrapped around
    assert np.array_equal(read(saved(DEEP, "PNG"), 1, value_range=(0, 65535))[..., 0], RAMP)
    assert np.array_equal(read(saved(RAMP, "PNG"), 1, value_range=(0, 1)), RAMP)  # 8 bits have a scale


def test_a_value_range_rounds_to_the_nearest_and_nan_is_refused():
    made = values.to_bytes(np.array([0.0, 0.5, 0.5 / 255, 1.5 / 255, -9, 9, np.inf], np.float64), (0.0, 1.0), "x")
    assert made.tolist() == [0, 128, 0, 2, 0, 255, 255]
    with pytest.raises(UserError, match="NaN"):
        values.to_bytes(np.array([np.nan]), (0, 1), "x")


# ---------------------------------------------------------------- channels
@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("channels", [2, 4, 5, 13])
def test_bands_and_pages_of_a_tiff_are_channels(kind, first, channels):
    array = np.random.default_rng(channels).integers(0, 256, (16, 17, channels)).astype(np.uint8)
    stored = (array.astype(np.uint16) * 257 if kind == np.uint16 else array).astype(kind)
    data = tiff(np.moveaxis(stored, 2, 0) if first else stored, photometric="minisblack")
    assert np.array_equal(read(data, channels, value_range=(0, 255) if kind == np.float32 else None), array)
    with pytest.raises(BrokenImage, match=r"the model has 7; set model\.encoder\.channels="):
        read(data, 7)


def test_pages_that_are_not_the_channels_are_refused():
    data = saved(Image.fromarray(RAMP), "TIFF", save_all=True, append_images=[Image.fromarray(RAMP)] * 4)
    assert read(data, 5).shape == (7, 52, 5)
    with pytest.raises(BrokenImage, match="5 channels, the model has 3"):
        read(data, 3)


def test_four_channels_of_a_picture_are_taken_as_they_are():
    array = np.random.default_rng(3).integers(0, 256, (6, 5, 4), np.uint8)
    assert np.array_equal(read(saved(array, "PNG"), 4), array)
    with pytest.raises(BrokenImage, match="3 channels, the model has 4"):
        read(saved(array[..., :3], "PNG"), 4)


def test_the_axis_of_the_channels_is_found_by_the_model_and_never_guessed():
    for shape, channels, axis in [
        ((8, 9, 3), 3, 2),
        ((3, 8, 9), 3, 0),
        ((3, 8, 4), 4, 2),
        ((4, 8, 3), 4, 0),
        ((8, 9, 1), 3, 2),
        ((1, 8, 9), 3, 0),
        ((8, 9), 3, None),
        ((3, 8, 9), 1, 0),
        ((3, 8, 1), 1, 2),
    ]:
        assert values.channel_axis(shape, channels, "x") == axis
    for shape, channels, words in [
        ((3, 8, 3), 3, "can be its first axis or its last"),
        ((1, 8, 3), 5, "1 channel, the model has 5"),
        ((8, 9), 4, "1 channel, the model has 4"),
    ]:
        with pytest.raises(UserError, match=words):
            values.channel_axis(shape, channels, "x")


# ---------------------------------------------------------------- arrays
@pytest.mark.parametrize("kind", ["uint8", "uint16", "<f4", ">f8", "bool"])
@pytest.mark.parametrize("first", [True, False])
def test_npy_images(kind, first):
    array = np.random.default_rng(0).integers(0, 256, (6, 8, 4), np.uint8)
    if kind == "bool":
        array = (array > 127).astype(np.uint8) * np.uint8(255)
    stored = {"uint16": array.astype(np.uint16) * 257, "bool": array > 0}.get(kind, array.astype(kind))
    file = io.BytesIO()
    np.save(file, np.moveaxis(stored, 2, 0) if first else stored)
    assert np.array_equal(read(file.getvalue(), 4, value_range=(0, 255) if "f" in kind else None), array)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda data: data[:-1], "cut short"),
        (lambda data: data.replace(b"(6, 8)", b"(9**9, 8)"), "not a .npy file"),
        (lambda data: data.replace(b"(6, 8),", b"(10**9,"), "not a .npy file"),
        (lambda data: data.replace(b"(6, 8), }        ", b"(90000000, 800), }"), "cut short"),
        (lambda data: data.replace(b"|u1", b"|O1"), ""),
        (lambda data: data[:8] + b"\xff\xff" + data[10:], "header"),
    ],
)
def test_damaged_npy_images(change, words):
    file = io.BytesIO()
    np.save(file, RAMP[:6, :8])
    with pytest.raises(BrokenImage, match=words):
        read(change(file.getvalue()), 1)


# ---------------------------------------------------------------- JPEG
JPEGS = [*("444", "422", "420", "440", "411"), "Gray"]


@pytest.mark.parametrize("subsampling", JPEGS)
@pytest.mark.parametrize("size", [(64, 48), (33, 17), (1, 7), (8, 1)])
@pytest.mark.parametrize("channels", [1, 3])
def test_simplejpeg_gives_the_bits_of_pillow(subsampling, size, channels):
    array = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    array = np.asarray(Image.fromarray(array).resize((size[1], size[0])).rotate(3))
    grey = subsampling == "Gray"
    data = simplejpeg.encode_jpeg(
        np.ascontiguousarray(array[..., :1] if grey else array),
        quality=83,
        colorspace="GRAY" if grey else "RGB",
        colorsubsampling=subsampling,
    )
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("L" if channels == 1 else "RGB"))
    made = read(data, channels)
    assert decoding_module._jpeg(data, "x", Decoding(channels)) is not None  # it was simplejpeg
    assert np.array_equal(made.reshape(expected.shape), expected)


@pytest.mark.parametrize(
    "more", [{"progressive": True}, {"optimize": True, "quality": 100}, {"restart_marker_rows": 1}]
)
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_other_jpegs_have_the_bits_of_pillow(mode, more, monkeypatch):
    picture = Image.fromarray(np.random.default_rng(1).integers(0, 256, (40, 30, 3), np.uint8)).convert(mode)
    data = saved(picture, "JPEG", **more)
    made = read(data)
    assert np.array_equal(
        made.reshape(40, 30, -1)[..., :3] + np.zeros(3, np.uint8),
        np.asarray(Image.open(io.BytesIO(data)).convert("RGB")),
    )
    monkeypatch.setattr(decoding_module, "simplejpeg", lambda: None)
    assert np.array_equal(read(data), np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_damaged_jpegs_are_read_alike_with_and_without_simplejpeg(given_data):
    data = bytearray(saved(np.random.default_rng(2).integers(0, 256, (24, 24, 3), np.uint8), "JPEG"))
    for _ in range(given_data.draw(st.integers(1, 3))):
        data[given_data.draw(st.integers(2, len(data) - 1))] = given_data.draw(st.integers(0, 255))
    data = data[: given_data.draw(st.integers(100, len(data)))]
    found = []
    for module in (simplejpeg, None):
        with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            patch.setattr(decoding_module, "simplejpeg", lambda module=module: module)
            try:
                found.append(read(bytes(data)).tobytes())
            except BrokenImage as error:
                found.append(str(error).encode())
    assert found[0] == found[1]


# ---------------------------------------------------------------- orientation, size, warnings
def transposed(array: np.ndarray, orientation: int, kind: str) -> bytes:
    exif = Image.Exif()
    exif[274] = orientation
    return saved(array, kind, exif=exif)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_ignored_as_in_torchvision_and_honoured_on_request(orientation):
    array = np.random.default_rng(0).integers(0, 256, (4, 6, 3), np.uint8)
    data = transposed(array, orientation, "PNG")
    assert np.array_equal(read(data), array)
    swap = array.transpose(1, 0, 2)
    expected = [
        array,
        array[:, ::-1],
        array[::-1, ::-1],
        array[::-1],
        swap,
        swap[:, ::-1],
        swap[::-1, ::-1],
        swap[::-1],
    ]
    assert np.array_equal(read(data, exif=True), expected[orientation - 1])
    deep = transposed(array[..., 0].astype(np.uint16) * 257, orientation, "PNG")
    assert np.array_equal(read(deep, exif=True), np.repeat(expected[orientation - 1][..., :1], 3, 2))
    photo = transposed(array, orientation, "JPEG")
    assert read(photo).shape == (4, 6, 3)
    assert read(photo, exif=True).shape == expected[orientation - 1].shape


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "BMP"])
def test_pictures_of_too_many_pixels_are_distinguished_and_let_in_on_request(kind):
    data = saved(np.zeros((30, 40, 3), np.uint8), kind)
    with pytest.raises(LargeImage, match=r"x: 40 x 30 pixels are more than 1199; --max-pixels") as error:
        read(data, max_pixels=1199)
    assert error.value.pixels == 1200 and pickle.loads(pickle.dumps(error.value)).pixels == 1200
    assert read(data, max_pixels=1200).shape == (30, 40, 3)


def test_a_picture_above_pillows_limit_can_be_let_in():
    data = saved(Image.new("1", (9500, 9500)), "PNG")
    with pytest.raises(LargeImage):
        read(data)
    assert read(data, 1, max_pixels=200_000_000).shape == (9500, 9500)


def test_pillows_limit_is_put_back_by_the_last_of_several_threads():
    limit, data = Image.MAX_IMAGE_PIXELS, saved(Image.new("RGB", (300, 200)), "PNG")
    assert limit is not None
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: read(data), range(400)))
    assert limit == Image.MAX_IMAGE_PIXELS
    first, second = decoding_module._opened(data), decoding_module._opened(data)
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)  # out of turn, as threads go
    assert Image.MAX_IMAGE_PIXELS is None
    second.__exit__(None, None, None)
    assert limit == Image.MAX_IMAGE_PIXELS


@pytest.mark.parametrize("mode", ["P", "1", "L", "RGB"])
def test_transparency_changes_no_pixel_and_gives_no_warning(mode):
    picture = Image.fromarray(np.repeat(RAMP[..., None], 3, 2))
    picture = picture.quantize(64) if mode == "P" else picture.convert(mode)
    clear = {"P": bytes([0] * 10 + [255] * 54), "1": 0, "L": 3, "RGB": (5, 5, 5)}[mode]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made = read(saved(picture, "PNG", transparency=clear))
    assert np.array_equal(made, np.asarray(picture.convert("RGB")))


def test_pillows_warnings_stay_out():
    data = bytearray(transposed(np.zeros((8, 8, 3), np.uint8), 6, "JPEG"))
    place = data.find(b"Exif\0\0")
    data[place + 6 : place + 14] = b"\xff" * 8
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        quiet_pillow()
        read(bytes(data), exif=True)
    assert seen == []


def test_a_picture_of_the_right_mode_is_not_copied():
    data = saved(np.zeros((8, 8, 3), np.uint8), "PNG")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Image.Image, "convert", lambda *rest: pytest.fail("converted"))
        patch.setattr(Image.Image, "copy", lambda *rest: pytest.fail("copied"))
        assert read(data).shape == (8, 8, 3)


# ---------------------------------------------------------------- without the extras
MISSING = """
import sys
for name in ("tifffile", "simplejpeg", "pyarrow", "scipy"): sys.modules[name] = None
import numpy as np
from pathlib import Path
from triport.core.data.datasets import open_dataset
from triport.core.data.sample.decode import BrokenImage, Decoding, decode
from triport.core.errors import UserError
from triport.core.spec import DataSpec
folder = Path(sys.argv[1])
print(np.asarray(decode((folder / "x.jpg").read_bytes(), "x.jpg", Decoding(3))).shape)
for name in ("x.tif", "x.parquet"):
    try:
        if name == "x.tif": decode((folder / name).read_bytes(), name, Decoding(5))
        else: open_dataset(str(folder / name), "train", DataSpec(name="x"), 3)
    except (UserError, BrokenImage) as error: print(error)
"""


def test_without_the_extras_core_works_and_names_them(tmp_path: Path):
    (tmp_path / "x.jpg").write_bytes(saved(np.zeros((8, 9, 3), np.uint8), "JPEG"))
    (tmp_path / "x.tif").write_bytes(tiff(np.zeros((5, 8, 9), np.uint8)))
    (tmp_path / "x.parquet").write_bytes(b"PAR1")
    made = subprocess.run([sys.executable, "-c", MISSING, str(tmp_path)], capture_output=True, text=True, check=True)
    shape, pages, table = made.stdout.splitlines()
    assert shape == "(8, 9, 3)"
    assert 'pip install "triport[tiff]"' in pages and 'pip install "triport[parquet]"' in table
