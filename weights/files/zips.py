"""Zip archives: the table read strictly (every member once, inside the file, apart from the others), members added."""

from __future__ import annotations

import struct
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from triport.core.source import Damaged, Source

STORED, DEFLATED = 0, 8
MAX_MEMBERS = 200_000
MAX_NAME = 400
MAX_RATIO = 1040  # deflate cannot do better than 1032 to 1
PIECE = 1 << 22
ALIGNMENT = 64  # of added members; torch.load(mmap=True) wants it, and numpy's headers are a multiple of it


@dataclass(frozen=True)
class Member:
    """One file of the archive: where its packed bytes lie in the archive and how they are packed."""

    name: str
    offset: int
    size: int
    packed: int
    method: int
    crc: int


def members(source: Source) -> dict[str, Member]:
    """Return the members of a zip archive by name, in the order of its table; Damaged where anything is not right."""
    count, start, length = _table(source)
    if count > MAX_MEMBERS:
        raise Damaged(f"has {count} members, more than {MAX_MEMBERS}")
    table = source.bytes(start, length, limit=MAX_MEMBERS * 400)
    found: dict[str, Member] = {}
    position = 0
    for _ in range(count):
        member, position = _entry(source, table, position, start)
        if member.name in found:
            raise Damaged(f"names the member {member.name!r} twice")
        found[member.name] = member
    if position != length:
        raise Damaged("the table of its zip archive has another length than it says")
    end = 0
    for member in sorted(found.values(), key=lambda m: m.offset):
        if member.packed and member.offset < end:
            raise Damaged(f"the member {member.name!r} overlaps another")
        end = max(end, member.offset + member.packed)
    return found


def stored(source: Source, member: Member) -> np.ndarray:
    """Return the bytes of a member that is not compressed, checked against its checksum (0 says it has none)."""
    if member.method != STORED:
        raise Damaged(f"the member {member.name!r} is compressed; unpack and save it again with the framework")
    data = source.array(member.offset, member.size)
    if member.crc and zlib.crc32(data.data) != member.crc:
        raise Damaged(f"the member {member.name!r} does not match its checksum: the file was damaged on its way")
    return data


def inflate(source: Source, member: Member) -> Iterator[bytes]:
    """Yield the bytes of a deflated member piece by piece, never more than it announces; Damaged if less or other."""
    packed, unpack = source.array(member.offset, member.packed), zlib.decompressobj(-15)
    given = crc = 0
    broken = f"the member {member.name!r} does not unpack to what it announces: the file was damaged on its way"
    for begin in range(0, len(packed), 1 << 20):
        piece: bytes = packed[begin : begin + (1 << 20)].tobytes()
        while True:  # until the input is used up and the output was not stopped by its limit
            try:
                out = unpack.decompress(piece, PIECE)
            except zlib.error:
                raise Damaged(broken) from None
            given, crc, piece = given + len(out), zlib.crc32(out, crc), unpack.unconsumed_tail
            if given > member.size:
                raise Damaged(broken)
            yield out
            if not piece and len(out) < PIECE:
                break
    if given != member.size or not unpack.eof or (member.crc and crc != member.crc):
        raise Damaged(broken)


def add(archive: zipfile.ZipFile, name: str, *pieces: memoryview) -> None:
    """Add a member, not compressed, its bytes on a boundary: a field of its header is filled up to it."""
    member = zipfile.ZipInfo(name)
    wide = sum(map(len, pieces)) >= 1 << 31
    assert archive.fp is not None
    begin = archive.fp.tell() + 30 + len(name.encode()) + 4 + (20 if wide else 0)
    padding = -begin % ALIGNMENT
    member.extra = b"FB" + struct.pack("<H", padding) + b"Z" * padding
    with archive.open(member, "w", force_zip64=wide) as file:
        for piece in pieces:
            for start in range(0, len(piece), 1 << 26):
                file.write(piece[start : start + (1 << 26)])


def _table(source: Source) -> tuple[int, int, int]:
    """Return the number of members, and offset and length of the archive's table."""
    tail_start = max(0, source.size - 65557)
    tail = source.bytes(tail_start, source.size - tail_start)
    at = tail.rfind(b"PK\x05\x06")
    if at < 0 or len(tail) - at < 22:
        raise Damaged("is a zip archive without its table: it was cut short")
    disk, first, _, count, length, start, comment = struct.unpack_from("<HHHHIIH", tail, at + 4)
    end = tail_start + at
    if comment != len(tail) - at - 22 or disk or first:
        raise Damaged("is a zip archive with a broken end")
    end, count, length, start = _table64(source, end, count, length, start)
    if start + length != end:
        raise Damaged("is a zip archive whose table is not where it says")
    return count, start, length


def _table64(source: Source, end: int, count: int, length: int, start: int) -> tuple[int, int, int, int]:
    """The same from the 64-bit part, which PyTorch always writes; values as they are where there is none."""
    if end < 20 + 56 or source.bytes(end - 20, 4) != b"PK\x06\x07":
        return end, count, length, start
    where = struct.unpack("<Q", source.bytes(end - 12, 8))[0]
    record = source.bytes(where, 56)
    if record[:4] != b"PK\x06\x06" or where + 56 > end - 20:
        raise Damaged("is a zip archive with a broken 64-bit end")
    count, length, start = struct.unpack_from("<QQQ", record, 32)
    return where, count, length, start


def _entry(source: Source, table: bytes, position: int, limit: int) -> tuple[Member, int]:
    """Read one entry of the table and the member's own header; return it with the position of the next."""
    if table[position : position + 4] != b"PK\x01\x02" or position + 46 > len(table):
        raise Damaged("the table of its zip archive is broken")
    fields = struct.unpack_from("<HHHHIIIHHH", table, position + 8)
    flags, method, _, _, crc, packed, size, name_length, extra_length, comment_length = fields
    header = struct.unpack_from("<I", table, position + 42)[0]
    begin = position + 46
    raw_name = table[begin : begin + name_length]
    extra = table[begin + name_length : begin + name_length + extra_length]
    size, packed, header = _wide(extra, size, packed, header)
    name = checked_name(raw_name)
    if flags & 0x2041:
        raise Damaged(f"the member {name!r} is encrypted")
    if method not in (STORED, DEFLATED) or (method == STORED and size != packed) or size > packed * MAX_RATIO:
        raise Damaged(f"the member {name!r} announces {size} bytes in {packed}, packed by method {method}")
    local = source.bytes(header, 30)
    name_size, extra_size = struct.unpack_from("<HH", local, 26)
    if local[:4] != b"PK\x03\x04" or source.bytes(header + 30, name_size) != raw_name:
        raise Damaged(f"the member {name!r} is not where the table says")
    offset = header + 30 + name_size + extra_size
    if offset + packed > limit:
        raise Damaged(f"the member {name!r} goes beyond the end of the archive's data")
    return Member(name, offset, size, packed, method, crc), begin + name_length + extra_length + comment_length


def _wide(extra: bytes, size: int, packed: int, header: int) -> tuple[int, int, int]:
    """Replace the numbers that say "see the 64-bit part" by those of that part."""
    position = 0
    while position + 4 <= len(extra):
        kind, length = struct.unpack_from("<HH", extra, position)
        if kind == 1:
            numbers = [
                value[0] for value in struct.iter_unpack("<Q", extra[position + 4 : position + 4 + length // 8 * 8])
            ]
            wide = [numbers.pop(0) if old == 0xFFFFFFFF and numbers else old for old in (size, packed, header)]
            return wide[0], wide[1], wide[2]
        position += 4 + length
    return size, packed, header


def checked_name(raw: bytes) -> str:
    """Return a member's name; Damaged where it would lead out of a folder or is not text."""
    try:
        name = raw.decode("utf-8")
    except UnicodeDecodeError:
        raise Damaged("a member of its zip archive has a name that is not UTF-8") from None
    parts = name.split("/")
    if len(name) > MAX_NAME:
        raise Damaged("a member of its zip archive has an endless name")
    if not name or name.startswith("/") or ".." in parts or "\\" in name or not name.isprintable():
        raise Damaged(f"the member {name!r} has a name that leads out of the archive")
    return name
