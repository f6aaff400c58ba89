"""PyTorch files (.pth .pt .bin .pth.tar) read without PyTorch: the zip form, and the legacy form from before 1.6.

Zip form: `<name>/data.pkl` is a pickle whose tensors refer to storages, `<name>/data/<key>` are their bytes.
Legacy form: five pickles in a row (magic number, protocol, system, the object, storage keys), then for each key a
count (int64) and the bytes. Writing is torch_writer's.
"""

from __future__ import annotations

import struct
from pathlib import Path

from triport.core.pickle.reader import load
from triport.core.source import Damaged, Source
from triport.weights.arrays import File
from triport.weights.files import zips
from triport.weights.files.torch_tensors import Storage, Storages
from triport.weights.pickle.plain import plain

MAGIC = bytes.fromhex("8a0a6cfc9c46f920 6aa850192e".replace(" ", ""))  # after the two bytes of the pickle's protocol


def read(path: Path) -> File:
    """Read a file of either form; Damaged where it is neither or broken."""
    source = Source(path)
    if source.data[:2] == b"PK":
        return _read_zip(source)
    if source.data[2 : 2 + len(MAGIC)] == MAGIC:
        return _read_legacy(source)
    raise Damaged("is not a PyTorch file: it begins like neither the zip form nor the legacy form")


def _read_zip(source: Source) -> File:
    """The form since PyTorch 1.6 (and of 1.4 and 1.5 when asked for)."""
    table = zips.members(source)
    pickles = [name for name in table if name == "data.pkl" or (name.count("/") == 1 and name.endswith("/data.pkl"))]
    if len(pickles) != 1:
        raise Damaged("is a zip archive without the one data.pkl of a PyTorch file")
    root = pickles[0][: -len("data.pkl")]
    if root + "constants.pkl" in table:
        raise Damaged("is a TorchScript program, not a file of weights; save its state_dict() instead")
    order = _small(source, table.get(root + "byteorder"), "little")
    if order not in ("little", "big"):
        raise Damaged("says neither little nor big as its byte order")

    def place(storage: Storage) -> None:
        member = table.get(f"{root}data/{storage.key}")
        if member is None:
            raise Damaged(f"lacks the storage {storage.key[:80]!r}")
        if member.method != zips.STORED:
            raise Damaged(f"the storage {storage.key[:80]!r} is compressed; save the file again with PyTorch")
        storage.place(member.offset, member.size, member.crc)

    storages = Storages(source, "<" if order == "little" else ">", place)
    member = table[pickles[0]]
    zips.stored(source, member)
    value, end = load(source, storages.allowed(), member.offset, member.offset + member.size, storages)
    if end != member.offset + member.size:
        raise Damaged("holds more than one pickle in its data.pkl")
    version = _small(source, table.get(root + "version"), "?").encode("unicode_escape").decode()
    return File("torch", source.path, plain(value, source), note=f"PyTorch zip form, version {version}")


def _small(source: Source, member: zips.Member | None, default: str) -> str:
    """Return the text of a member of a few letters."""
    if member is None:
        return default
    if member.method != zips.STORED:
        raise Damaged(f"the member {member.name!r} is compressed; save the file again with PyTorch")
    return source.bytes(member.offset, min(member.packed, 8)).decode("latin-1").strip()


def _read_legacy(source: Source) -> File:
    """The form before PyTorch 1.6."""
    _, position = load(source, {})
    protocol, position = load(source, {}, position)
    if type(protocol) is not int or protocol != 1001:
        raise Damaged("is a PyTorch file of an unknown protocol")
    system, position = load(source, {}, position)
    little = not isinstance(system, dict) or system.get("little_endian", True) is True
    storages = Storages(source, "<" if little else ">", lambda storage: None)
    value, position = load(source, storages.allowed(), position, None, storages)
    keys, position = load(source, {}, position)
    if not isinstance(keys, list) or len(keys) != len(storages.found):
        raise Damaged("does not list the storages its tensors use")
    for key in keys:
        storage = storages.found.pop(key, None) if isinstance(key, str) else None
        if storage is None:
            raise Damaged("lists a storage that no tensor uses, or one twice")
        count = struct.unpack("<q" if little else ">q", source.bytes(position, 8))[0]
        storage.place(position + 8, count * storage.dtype.itemsize)
        position += 8 + storage.nbytes
    return File("torch", source.path, plain(value, source), note="PyTorch legacy form (before 1.6)")
