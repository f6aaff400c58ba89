"""core.data.sample.signatures: a file that is no image is told by what it is, with the way on."""

from __future__ import annotations

import pytest

from triport.core.data.sample.decode import BrokenImage
from triport.parity_tests.fixtures.pictures import read


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "it is HEIC; convert"),
        (b"\0\0\0\x20ftypisom\0\0\x02\0isom", "it is a video"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n", "git lfs pull"),
        (bytes(128) + b"DICM\2\0", "it is DICOM"),
        (b"\n <!DOCTYPE html><html>404</html>", "it is a web page"),
        (b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"/>', "it is SVG"),
        (b"\xff\x0a" + bytes(40), "it is JPEG XL"),
        (b"hello", "not an image$"),
        (bytes(1000), "not an image$"),
    ],
)
def test_what_is_no_image_is_told_by_what_it_is(data: bytes, told: str):
    with pytest.raises(BrokenImage, match=told):
        read(data)
