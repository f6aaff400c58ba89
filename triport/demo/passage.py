"""A checkpoint's way through the frameworks' files: PyTorch, Paddle, OneFlow and PyTorch again, to the same bits."""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import dataclass
from pathlib import Path

from triport import convert, load_weights

# the file of each framework, as its users know it, and the layout that it holds
FILES = (
    ("PyTorch", "encoder.pth", "mae"),
    ("Paddle", "encoder.pdparams", "passl"),
    ("OneFlow", "encoder_oneflow", "libai"),
    ("PyTorch", "encoder_again.pth", "mae"),
)


@dataclass(frozen=True)
class Stop:
    """A file on the way: its framework, its name and layout, and the digest of what it holds, canonically named."""

    framework: str
    file: str
    layout: str
    digest: str


def prove(source: Path, folder: Path) -> list[Stop]:
    """Convert an encoder from each framework's file to the next one's; UserError where one cannot hold it."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    stops, at = [], source
    for framework, name, layout in FILES:
        convert(at, folder / name, to=layout)
        at = folder / name
        stops.append(Stop(framework, name, layout, digest(at)))
        print(f"  {framework:<9}{name:<20}{layout:<9}{stops[-1].digest[:16]}…", flush=True)
    print("  equal to the bit" if equal(stops) else "  NOT EQUAL", flush=True)
    return stops


def equal(stops: list[Stop]) -> bool:
    """Whether all files hold the same bits."""
    return len({stop.digest for stop in stops}) == 1


def digest(path: Path) -> str:
    """SHA-256 of a file's arrays under canonical names: names, types, shapes and bytes."""
    total = hashlib.sha256()
    for name, array in sorted(load_weights(path).items()):
        total.update(f"{name.removeprefix('base_encoder.')} {array.dtype} {array.shape}\n".encode())
        total.update(array.tobytes())
    return total.hexdigest()
