"""How much a compressed file may grow, so that a small file cannot fill the memory."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path

from triport.core.errors import UserError

ALWAYS = 256 << 20  # bytes that any file may unpack to
GROWTH = 100  # times its size beyond that; deflate reaches 1,030 on constant bytes


def check_unpacked(what: str, size: int, packed: int) -> None:
    """Raise UserError where `packed` bytes claim to unpack to `size` that no real data set has."""
    if size > max(ALWAYS, GROWTH * packed):
        raise UserError(
            f"{what} unpacks from {packed:,} to {size:,} bytes, which looks like a decompression bomb; "
            "if it is right, store it uncompressed (.npy)"
        )


def unzipped(path: Path, size: int | None = None) -> bytes:
    """Return the content of a .gz file, or of a plain one; `size` bytes and one more at most where that is given."""
    if path.suffix != ".gz":
        with path.open("rb") as file:
            return file.read(-1 if size is None else size + 1)
    packed = path.stat().st_size
    limit = max(ALWAYS, GROWTH * packed) if size is None else size
    try:
        with gzip.open(path) as file:
            data = file.read(limit + 1)
    except (EOFError, zlib.error, gzip.BadGzipFile):
        raise UserError(f"'{path}' is damaged; fetch it again") from None
    if size is None:
        check_unpacked(f"'{path}'", len(data), packed)
    return data
