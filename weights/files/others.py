"""Recognises files that do not hold weights by their first bytes, and names the remedy."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path

ADDRESS = re.compile(r"(https?|ftp|s3|gs|hf|hf-hub|timm|file):/", re.IGNORECASE)
SPACE = b"\xef\xbb\xbf \t\r\n"  # what may stand before a page: a byte order mark, blanks, line feeds
PAGE = (b"<!doctype", b"<html", b"<head", b"<body", b"<!--", b"<script")
MAX_QUOTED = 80  # letters of an error message that are repeated

STARTS = {
    b"version https://git-lfs": "is a pointer of Git LFS, not the file itself; fetch it with: git lfs pull",
    b"\x1f\x8b": "is compressed with gzip; unpack it first, with: gunzip",
    b"BZh": "is compressed with bzip2; unpack it first, with: bunzip2",
    b"\xfd7zXZ\x00": "is compressed with xz; unpack it first, with: unxz",
    b"\x28\xb5\x2f\xfd": "is compressed with zstd; unpack it first, with: unzstd",
    b"\x04\x22\x4d\x18": "is compressed with lz4; unpack it first, with: unlz4",
    b"7z\xbc\xaf\x27\x1c": "is a 7z archive; unpack it first, with: 7z x",
    b"Rar!\x1a\x07": "is a rar archive; unpack it first, with: unrar x",
    b"\x89HDF": "is an HDF5 file, a form that is not read",
    b"\x93NUMPY": "is a single .npy array; put it into an .npz under its name",
}
OBJECT = (
    "is an .npy file of a Python object, which only Python's own unpickler reads; if you trust it, load it with "
    "numpy's allow_pickle and save its arrays with numpy.savez('file.npz', **arrays)"
)
PADDLE_MODEL = (
    "is part of a model that Paddle saved for inference, without the names of its parameters; load it with "
    "paddle.jit.load and save its state_dict() with paddle.save"
)
EXPORTED = "is a program of torch.export, not a file of weights; load it with torch.export.load and save its state_dict"
TAR = "is a tar archive (PyTorch's form from before 0.2, or an archive of files); unpack it, or save it again"
NOTHING = "is not a known file of weights: PyTorch, Paddle, OneFlow, safetensors or npz"


def address(path: str | Path) -> str:
    """Why a path that is an address on a network cannot be read; "" for other paths."""
    return "is an address, and nothing is downloaded here; fetch the file first" if ADDRESS.match(str(path)) else ""


def describe(head: bytes, name: str) -> str:
    """What a file is whose first bytes (up to 4096) fit no format of weights: a line that follows its name."""
    text = head.lstrip(SPACE)
    if text[:10].lower().startswith(PAGE):
        return "is a web page, not a file of weights; download it again, by the address of the file itself"
    if text.startswith((b"<?xml", b"<Error")):
        quoted = _quoted(_between(text))
        return f"is a web page in XML, the answer of a server{quoted}, not a file of weights; download it again"
    if text.startswith((b"{", b"[")):
        quoted = _quoted(_message(text))
        return f"is JSON{quoted}, not a file of weights; download it again, or name the weights beside it"
    if head.startswith(b"\x93NUMPY") and b"'|O'" in head[:128]:
        return OBJECT
    for start, remedy in STARTS.items():
        if head.startswith(start):
            return remedy
    if name.lower().endswith((".pdmodel", ".pdiparams")):
        return PADDLE_MODEL
    return TAR if head[257:262] == b"ustar" else NOTHING


def archive(members: Iterable[str], name: str) -> str:
    """What a zip archive is that holds neither a PyTorch file nor arrays of numpy."""
    exported = any(m.split("/")[-1] in ("archive_format", "serialized_exported_program.json") for m in members)
    if exported or name.lower().endswith(".pt2"):
        return EXPORTED
    return "is a zip archive, but of neither PyTorch nor numpy; unpack it, and name the file of weights in it"


def _quoted(message: str) -> str:
    """An error message in brackets, as far as it is text that a terminal can show."""
    clean = " ".join("".join(c if c.isprintable() else " " for c in message).split())[:MAX_QUOTED]
    return f" ({clean})" if clean else ""


def _between(text: bytes) -> str:
    found = [re.search(rb"<%s>([^<]{1,200})</" % tag, text) for tag in (b"Code", b"Message")]
    return ": ".join(match[1].decode("utf-8", "replace") for match in found if match)


def _message(text: bytes) -> str:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return ""
    while isinstance(found, dict):
        found = next((found[word] for word in ("error", "message", "detail", "errors") if word in found), "")
    return found if isinstance(found, str) else ""
