"""Pickles written opcode by opcode, so that arrays can be streamed and no module's private names are involved."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from typing import Any

import numpy as np

from triport.core.errors import UserError
from triport.weights.arrays import Lazy, Tree, raw


class PickleWriter:
    """Writes plain values; what a tensor becomes, the file's form decides through `tensor`.

    Only opcodes of protocol 2 are used (and BINBYTES where a form writes bytes), which every reader knows.
    """

    def __init__(self, write: Callable[[Any], Any], tensor: Callable[[Lazy], None], protocol: int = 2) -> None:
        self.write, self.tensor = write, tensor
        write(b"\x80" + bytes([protocol]))

    def stop(self) -> None:
        """End the pickle."""
        self.write(b".")

    def value(self, value: Tree, where: str = "") -> None:
        """Write a value of the tree; UserError for anything that is not a plain value, with its place."""
        if isinstance(value, Lazy):
            self.tensor(value)
        elif isinstance(value, dict):
            self.items(value, where)
        elif isinstance(value, list):
            self.write(b"](")
            self.parts(value, where)
            self.write(b"e")
        elif isinstance(value, tuple):
            self.write(b"(")
            self.parts(value, where)
            self.write(b"t")
        else:
            self.write(scalar(value, where))

    def items(self, value: dict[Any, Any], where: str) -> None:
        """Write a dict."""
        self.write(b"}(")
        for key, part in value.items():
            if not isinstance(key, str) and type(key) is not int:
                raise UserError(
                    f"{where or 'the structure'} has the key {key!r}; only names and whole numbers can be written"
                )
            self.write(scalar(key, where))
            self.value(part, f"{where}.{key}" if where else str(key))
        self.write(b"u")

    def parts(self, values: list[Any] | tuple[Any, ...], where: str) -> None:
        """Write the parts of a list or tuple."""
        for index, part in enumerate(values):
            self.value(part, f"{where}.{index}")

    def name(self, module: str, name: str) -> None:
        """Write the name of a class or function."""
        self.write(f"c{module}\n{name}\n".encode())


def scalar(value: object, where: str = "") -> bytes:
    """Return the opcodes of None, a bool, an int, a float or a text."""
    if value is None:
        return b"N"
    if isinstance(value, bool):
        return b"\x88" if value else b"\x89"
    if type(value) is int:
        return whole(value)
    if type(value) is float:
        return b"G" + struct.pack(">d", value)
    if type(value) is str:
        raw = value.encode("utf-8")
        return b"X" + struct.pack("<I", len(raw)) + raw
    raise UserError(f"{where or 'a value'} is a {type(value).__name__}, which cannot be written")


def whole(value: int) -> bytes:
    """Return the opcodes of an int."""
    if 0 <= value < 256:
        return b"K" + bytes([value])
    if -(2**31) <= value < 2**31:
        return b"J" + struct.pack("<i", value)
    length = math.ceil((value.bit_length() + 1) / 8)
    return b"\x8a" + bytes([length]) + value.to_bytes(length, "little", signed=True)


def shape(sizes: tuple[int, ...]) -> bytes:
    """Return the opcodes of a tuple of ints."""
    return b"(" + b"".join(whole(size) for size in sizes) + b"t"


def ndarray(write: Callable[[Any], Any], array: np.ndarray, code: str) -> None:
    """Write an ndarray as numpy pickles it, under its module's old name, which numpy 1 and 2 both know.

    code: of its dtype, such as "f4"; the bytes go to `write` as they are, never joined with anything.
    """
    values = raw(array)
    order = "|" if array.itemsize == 1 else "<"
    write(
        b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n" + shape((0,)) + b"C\x01b\x87R("
        + whole(1) + shape(array.shape) + b"cnumpy\ndtype\n" + scalar(code) + b"\x89\x88\x87R("
        + whole(3) + scalar(order) + b"NNN" + whole(-1) + whole(-1) + whole(0) + b"tb\x89"
    )  # fmt: skip
    length = len(values)
    write(b"B" + struct.pack("<I", length) if length < 1 << 32 else b"\x8e" + struct.pack("<Q", length))
    write(values)
    write(b"tb")
