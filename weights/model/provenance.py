"""Where converted weights come from: in the metadata of safetensors files, in `<target>.json` beside others."""

from __future__ import annotations

import hashlib
import json
import os
import struct
import zlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

from triport.core.source import Source, reading
from triport.weights.files.oneflow_file import DATA, LAST
from triport.weights.files.safetensors_file import INDEX
from triport.weights.files.torch_shards import INDEX as BIN_INDEX
from triport.weights.layouts.layout import Layout
from triport.weights.model import facts
from triport.weights.writing import SMALL, Digest, whole_file

CHUNK = 1 << 20
POLYNOMIAL = 0xEDB88320  # of CRC-32, its bits in reverse
UNKNOWN_DIGEST = "?" * 64
ORIGIN = "origin.json"  # in a run folder that was made of a checkpoint
OWN = "Trained by a run of triport that began with random weights: no licence of other weights is on it."
UNKNOWN = (
    "Licence of the source weights unknown. Those released by facebookresearch (moco-v3, mae) are under CC BY-NC 4.0: "
    "no commercial use."
)


def digest(path: Path) -> str:
    """SHA-256 of a file; of a folder, or an index with its shards, of the names and SHA-256 of the files in order."""
    with reading(path):
        if path.name.endswith((INDEX, BIN_INDEX)):
            shards = json.loads(path.read_text(encoding="utf-8"))["weight_map"].values()
            inside = [path, *sorted(path.with_name(name) for name in set(shards))]
            path = path.parent
        elif path.is_dir():
            inside = sorted(p for p in path.rglob("*") if p.is_file())
        else:
            return _of_file(path)
        with ThreadPoolExecutor(2) as threads:
            halves = threads.map(lambda half: {p: _of_file(p) for p in half}, (inside[::2], inside[1::2]))
            found = {p: own for half in halves for p, own in half.items()}
        parts = (f"{p.relative_to(path).as_posix()} {found[p]}\n" for p in inside)
        return hashlib.sha256("".join(parts).encode("utf-8", "surrogateescape")).hexdigest()


def _of_file(path: Path) -> str:
    return _fed(path, hashlib.sha256())


def _fed(path: Path, whole: Digest) -> str:
    """What a digest says of a file's bytes, read through the map of it: nothing is copied."""
    source = Source(path)
    for begin in range(0, source.size, CHUNK):
        whole.update(source.array(begin, min(CHUNK, source.size - begin)).data)
    return whole.hexdigest()


class Checksum:
    """CRC-32, fed the way hashlib's digests are: three times as fast, and it tells files apart that nobody forged.

    known: the CRC-32 of a stretch of memory where somebody has computed it already; it is not computed again.
    """

    def __init__(self, known: Callable[[memoryview], int | None] | None = None) -> None:
        self._value, self._known = 0, known

    def update(self, data: Any, /) -> None:
        """Take more bytes."""
        own = self._known(data) if self._known and len(data) >= SMALL else None
        if own is None:
            self._value = zlib.crc32(data, self._value)
        else:
            self._value = joined(self._value, own, len(data))

    def hexdigest(self) -> str:
        """Eight hexadecimal digits."""
        return f"{self._value:08x}"


def joined(first: int, second: int, length: int) -> int:
    """The CRC-32 of two stretches of bytes in a row, from that of each and the length of the second (as zlib's own)."""
    return _product(_power(8 * length), first) ^ second


@cache
def _power(bits: int) -> int:
    """x to the power `bits` modulo CRC-32's polynomial, the highest bit for x to the power 0."""
    found, square = 1 << 31, 1 << 30
    while bits:
        found = _product(square, found) if bits & 1 else found
        square, bits = _product(square, square), bits >> 1
    return found


def _product(one: int, other: int) -> int:
    """The product of two polynomials modulo CRC-32's."""
    found = 0
    for place in range(31, -1, -1):
        found ^= other if one >> place & 1 else 0
        other = other >> 1 ^ (POLYNOMIAL if other & 1 else 0)
    return found


def checksum(path: Path, known: Mapping[Path, int] = MappingProxyType({})) -> str:
    """CRC-32 of a file, or of a folder: of the names and CRC-32 of its files in order.

    known: the CRC-32 of arrays in a folder of OneFlow, by their own folders.
    """
    if not path.is_dir():
        return _fed(path, Checksum())
    whole = Checksum()
    for inside in sorted(p for p in path.rglob("*") if p.is_file()):
        array = known.get(inside.parent) if inside.name == DATA else None
        own = f"{array:08x}" if array is not None else _fed(inside, Checksum())
        whole.update(f"{inside.relative_to(path).as_posix()} {own}\n".encode("utf-8", "surrogateescape"))
    return whole.hexdigest()


def notice(layout: Layout, found: facts.Facts, path: Path) -> str:
    """The licence notice of source weights: what an earlier conversion noted, what their project says, or unknown.

    found: the file's own words; path: the file. A run of this project that began with random weights has none.
    """
    known = found.provenance.get("licence")
    if isinstance(known, str):
        return known
    if found.made_by is None:
        return layout.notice or UNKNOWN
    folders = path.absolute().parents[:3]
    for folder in folders:
        if origin := facts.read_json(folder / ORIGIN):  # the run went on from a file of another project
            return str(origin.get("licence", UNKNOWN))
    return OWN if found.made_by.task == "pretrain" or _from_scratch(folders) else UNKNOWN


def _from_scratch(folders: Sequence[Path]) -> bool:
    """Whether the run that a file lies in was begun with --from-scratch."""
    for folder in folders:
        starts = facts.read_json(folder / "environment.json").get("starts")
        if isinstance(starts, list) and starts and isinstance(starts[0], dict):
            command = starts[0].get("command")
            return isinstance(command, list) and "--from-scratch" in command
    return False


def earlier(found: dict[str, Any], conversions: int = 20) -> dict[str, Any] | None:
    """What earlier conversions noted, the last ones of a long row; None where there were none."""
    before = found.get("earlier") if conversions > 1 else None
    rest = {key: value for key, value in found.items() if key != "earlier"}
    return {**rest, "earlier": earlier(before, conversions - 1)} if isinstance(before, dict) else rest or None


def path_beside(target: Path) -> Path:
    """Where the provenance of a file without metadata stands."""
    whole = target.absolute()  # `.` has no name
    return whole.parent / f"{whole.name}.json"


def write_note(path: Path, provenance: dict[str, Any], target: Path, own_checksum: str) -> None:
    """Write provenance to a new file, with the target's size and CRC-32, so that a reader can tell whose it is."""
    own = {**provenance, "bytes": _size(target), "crc32": own_checksum}
    with whole_file(path) as file:
        file.write(json.dumps({facts.KEY: own}, indent=1).encode())


def text(provenance: dict[str, Any]) -> str:
    """Provenance as the one line that safetensors metadata takes."""
    return json.dumps(provenance)


def fill_in(path: Path, source: str) -> None:
    """Put a digest in the place of `UNKNOWN_DIGEST` in the header of a safetensors file, which has the same length."""
    with open(path, "r+b") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        at = file.read(length).index(UNKNOWN_DIGEST.encode())
        file.seek(8 + at)
        file.write(source.encode())
        file.flush()
        os.fsync(file.fileno())


def beside(path: Path, quick: bool = False) -> dict[str, Any]:
    """Provenance beside a file, if it was written for exactly these bytes, or (quick) for as many; else empty.

    A checkpoint inside a folder of LiBai has that of the folder.
    """
    found = _beside(path, quick)
    outer = next((p for p in path.absolute().parents[:2] if (p / LAST).is_file()), None)
    if outer and not found:
        found = _beside(outer, quick)
    return found


def _beside(path: Path, quick: bool) -> dict[str, Any]:
    found = facts.read_json(path_beside(path)).get(facts.KEY)
    if not isinstance(found, dict) or found.get("bytes") != _size(path):
        return {}
    return found if quick or found.get("crc32") == checksum(path) else {}


def _size(path: Path) -> int:
    if path.is_dir():
        return sum(p.stat().st_size for p in path.rglob("*") if p.is_file())
    return path.stat().st_size
