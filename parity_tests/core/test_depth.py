"""core.data.sample.depth: every depth of Pillow's formats keeps its own scale, with a value range and without."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from PIL import Image

from triport.core.data.sample.decode import BrokenImage
from triport.parity_tests.fixtures.pictures import png, read, saved, tiff

RAMP = np.tile(np.arange(0, 256, 5, dtype=np.uint8), (7, 1))  # 7 x 52, dark left
COLOURS = np.dstack([RAMP, RAMP[:, ::-1], RAMP // 2])
TWELVE = np.rint(COLOURS * (4095 / 255)).astype(np.uint16)
CLEAR = np.where(np.arange(52) < 20, 0, 65535).astype(np.uint16)[None, :, None].repeat(7, 0)


def netpbm(array: np.ndarray, top: int, plain: bool = False) -> bytes:
    """A PGM or PPM of 16-bit values."""
    letter = {(2, False): 5, (3, False): 6, (2, True): 2, (3, True): 3}[array.ndim, plain]
    head = b"P%d\n# made by hand\n%d %d\n%d\n" % (letter, array.shape[1], array.shape[0], top)
    return head + (" ".join(map(str, array.ravel())).encode() if plain else array.astype(">u2").tobytes())


@pytest.mark.parametrize(
    "data",
    [
        png(np.concatenate([TWELVE, CLEAR], 2)),
        netpbm(TWELVE, 4095),
        netpbm(TWELVE, 65535),
        netpbm(TWELVE, 4095, plain=True),
        tiff(TWELVE, photometric="rgb"),
        tiff(TWELVE, photometric="rgb", compression="zlib", predictor=True),
        tiff(TWELVE, photometric="rgb", byteorder=">"),
        tiff(np.concatenate([TWELVE, CLEAR], 2), photometric="rgb", extrasamples=["unassalpha"]),
    ],
    ids=["png alpha", "ppm 4095", "ppm 65535", "ppm plain", "tiff", "tiff zlib", "tiff big", "tiff alpha"],
)
def test_a_value_range_is_of_the_numbers_in_the_file(data):
    assert np.array_equal(read(data, 3, value_range=(0, 4095)), COLOURS)


@pytest.mark.parametrize("plain", [False, True])
def test_grey_netpbm_have_the_scale_that_they_state_or_the_one_asked_for(plain):
    data = netpbm(TWELVE[..., 0], 4095, plain)
    assert np.array_equal(read(data, 1)[..., 0], RAMP)
    assert np.array_equal(read(data, 1, value_range=(0, 4095))[..., 0], RAMP)


@pytest.mark.parametrize("value_range", [None, (0, 65535)])
def test_transparency_of_16_bits_is_dropped_as_that_of_8(value_range):
    deep = COLOURS.astype(np.uint16) * 257
    clear = {"photometric": "rgb", "extrasamples": ["unassalpha"]}
    both = np.concatenate([deep, CLEAR], 2)
    planes = tiff(both.transpose(2, 0, 1).copy(), planarconfig="separate", **clear)
    for data in (png(both), tiff(both, **clear), planes):
        assert np.array_equal(read(data, 3, value_range=value_range), COLOURS)
    grey = np.concatenate([deep[..., :1], CLEAR], 2)
    for data in (png(grey), tiff(grey, photometric="minisblack", extrasamples=["unassalpha"])):
        assert np.array_equal(read(data, 1, value_range=value_range)[..., 0], RAMP)


def test_inks_of_16_bits_are_those_of_8():
    inks = np.asarray(Image.fromarray(COLOURS).convert("CMYK"))
    deep = tiff(inks.astype(np.uint16) * 257, photometric="separated")
    assert np.array_equal(read(deep), read(saved(Image.fromarray(COLOURS).convert("CMYK"), "TIFF")))


@pytest.mark.parametrize("bits", [8, 16])
def test_white_may_be_zero(bits):
    values = (RAMP.astype(np.uint16) * 257) if bits == 16 else RAMP
    data = tiff(np.iinfo(values.dtype).max - values, photometric="miniswhite")
    assert np.array_equal(np.asarray(read(data, 1)).reshape(RAMP.shape), RAMP)


def test_twelve_packed_bits_have_their_own_scale():
    rows = RAMP.astype(np.uint32) * 4095 // 255
    pairs = rows.reshape(-1, 2)
    packed = np.stack([pairs[:, 0] >> 4, (pairs[:, 0] & 15) << 4 | pairs[:, 1] >> 8, pairs[:, 1] & 255], 1)
    tags = [(256, 52), (257, 7), (258, 12), (259, 1), (262, 1), (273, 8 + 2 + 9 * 12 + 4), (277, 1), (278, 7)]
    tags.append((279, packed.size))
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    data = b"II*\0\x08\0\0\0" + struct.pack("<H", len(tags)) + entries + bytes(4) + packed.astype(np.uint8).tobytes()
    assert np.abs(read(data, 1)[..., 0].astype(int) - RAMP).max() <= 1
    assert np.abs(read(data, 1, value_range=(0, 4095))[..., 0].astype(int) - RAMP).max() <= 1


def test_signed_and_unsigned_integers_keep_their_sign():
    data = tiff(RAMP.astype(np.uint32) * 0x01010101)
    with pytest.raises(BrokenImage, match=r"uint32 values .* to 4.29497e\+09"):
        read(data, 1)
    assert np.array_equal(read(data, 1, value_range=(0, 2**32 - 1))[..., 0], RAMP)
    with pytest.raises(BrokenImage, match=r"int8 values .*here -128 to 127"):
        read(tiff((RAMP.astype(int) - 128).astype(np.int8)), 1)


def test_floats_of_a_netpbm_are_never_cut_to_whole_numbers():
    data = b"Pf\n52 7\n-1.0\n" + (RAMP[::-1] / 255).astype("<f4").tobytes()
    with pytest.raises(BrokenImage, match="float32 values have no scale of their own"):
        read(data)
    assert np.array_equal(read(data, 1, value_range=(0, 1))[..., 0], RAMP)


def test_gaps_do_not_hide_the_values_found():
    array = (RAMP / 255).astype(np.float32)
    array[0, 0] = np.nan
    with pytest.raises(BrokenImage, match="here 0 to 1, and NaN"):
        read(tiff(array))
