"""What a file is that is no image here, by its first bytes, with what makes an image of it."""

from __future__ import annotations

_AT = (
    (4, b"ftyphei", "HEIC; convert it to JPEG or PNG"),
    (4, b"ftyphev", "HEIC; convert it to JPEG or PNG"),
    (4, b"ftypmif1", "HEIF; convert it to JPEG or PNG"),
    (4, b"ftypavif", "AVIF, which this Pillow does not read; convert it to JPEG or PNG"),
    (4, b"ftyp", "a video; store its frames as images"),
    (0, b"\xff\x0a", "JPEG XL; convert it to JPEG or PNG"),
    (4, b"JXL \r\n", "JPEG XL; convert it to JPEG or PNG"),
    (0, b"version https://git-lfs", "a pointer of Git LFS; 'git lfs pull' fetches the image"),
    (128, b"DICM", "DICOM; convert it to PNG or .npy"),
    (0, b"\x89HDF", "HDF5; store its arrays as .npy or .npz"),
    (0, b"v/1\x01", "OpenEXR; convert it to TIFF or .npy"),
    (0, b"%PDF", "PDF; store its pages as images"),
    (0, b"PK\x03\x04", "a zip archive; unpack it"),
    (0, b"\x1f\x8b", "gzip; unpack it"),
)
_WITHIN = (
    (b"<svg", "SVG; convert it to PNG"),
    (b"<!doctype html", "a web page, as a failed download leaves it; fetch the image again"),
    (b"<html", "a web page, as a failed download leaves it; fetch the image again"),
)


def what_it_is(data: bytes) -> str:
    """Return what the bytes of a file are and the way on, "" where that is not known."""
    for at, mark, words in _AT:
        if data[at : at + len(mark)] == mark:
            return words
    start = data[:1024].lstrip().lower()
    return next((words for mark, words in _WITHIN if start[:1] == b"<" and mark in start), "")
