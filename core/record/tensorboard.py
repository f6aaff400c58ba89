"""Scalars as TensorBoard events, without TensorBoard or protobuf: a few bytes per value, written by hand.

The file is a TFRecord: length (8 bytes), masked CRC-32C of the length, payload, masked CRC-32C of the payload. The
payload is the protobuf message `Event` (tensorflow/core/util/event.proto) with the few fields that scalars need.
"""

from __future__ import annotations

import os
import socket
import struct
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np


def _table() -> list[int]:
    table = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
        table.append(value)
    return table


TABLE = _table()


def masked_crc(data: bytes) -> int:
    """Return the CRC-32C of `data`, rotated and shifted as TFRecord wants it."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = TABLE[(crc ^ byte) & 0xFF] ^ crc >> 8
    crc ^= 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def varint(value: int) -> bytes:
    """Return a protobuf varint."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _bytes(field: int, data: bytes) -> bytes:
    return varint(field << 3 | 2) + varint(len(data)) + data


def event(step: int, body: bytes) -> bytes:
    """Return an `Event`: wall time (field 1), step (field 2) and what it says."""
    return b"\x09" + struct.pack("<d", time.time()) + b"\x10" + varint(step) + body


def scalar(tag: str, value: float) -> bytes:
    """Return one `Summary.Value`: tag (field 1) and simple_value (field 2)."""
    with np.errstate(over="ignore"):  # what is too large for the format is infinite
        number = np.float32(value).tobytes()
    return _bytes(1, _bytes(1, tag.encode()) + b"\x15" + number)


class Events:
    """An event file in a run folder. After a resume a new file begins and tells readers to drop later steps."""

    def __init__(self, folder: Path, step: int = 0) -> None:
        name = f"events.out.tfevents.{time.time():.0f}.{socket.gethostname()}.{os.getpid()}"
        self._file = (folder / name).open("ab")
        self._record(event(0, _bytes(3, b"brain.Event:2")))
        if step:
            # SessionLog (field 7) with status START: whatever older files hold from this step on was undone.
            self._record(event(step + 1, _bytes(7, b"\x08\x01")))
        self._file.flush()

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Write values at a step; each becomes a curve of its name."""
        self._record(event(step, _bytes(5, b"".join(scalar(tag, value) for tag, value in values.items()))))

    def _record(self, payload: bytes) -> None:
        length = struct.pack("<Q", len(payload))
        crcs = (struct.pack("<I", masked_crc(part)) for part in (length, payload))
        self._file.write(length + next(crcs) + payload + next(crcs))

    def flush(self) -> None:
        """Hand what was written to the system."""
        self._file.flush()

    def close(self) -> None:
        """Write the rest and close the file."""
        self._file.close()
