"""A pickle read without running it: every opcode that is needed, and no other.

Python's own unpickler imports and calls whatever a file names. This one looks every name up in a table of harmless
stand-ins; what is in no table becomes an inert record of its name, and its arguments and state are dropped. Long byte
strings and texts are not copied out: they stay a stretch of the mapped file (`Span`), so a pickle of several GB costs
a few KB until its arrays are read.
"""

from __future__ import annotations

import codecs
import struct
from collections.abc import Callable
from typing import Any

from triport.core.pickle.machine import MAX_STEPS, MAX_TEXT, Allowed, Machine, inert
from triport.core.source import Damaged, Source


def load(
    source: Source,
    allowed: Allowed,
    start: int = 0,
    end: int | None = None,
    persistent: Callable[[Any], Any] | None = None,
    *,
    unknown: Callable[[str], Callable[..., Any]] = inert,
    steps: int = MAX_STEPS,
    python_2: bool = False,
) -> tuple[Any, int]:
    """Read one pickle of protocol 2 to 5; return its value, of raw parts, and where it ends.

    allowed: "module.name" -> what is called instead; persistent: gets the ids of torch's storages; unknown: gives
    what is called for a name that is not allowed, or raises; steps: what the pickle may cost; python_2: also
    read protocols 0 and 1, and take bytes for what Python 2's `str` was: short ones become text, whoever wrote them.
    Raises Damaged for everything that is not a well-formed pickle within the limits.
    """
    machine = Machine(source, allowed, start, source.size if end is None else end, persistent, unknown, steps)
    table = STEPS | PYTHON_2 if python_2 else STEPS
    if python_2 and source.data[start : start + 1] != b"\x80":
        pass  # protocols 0 and 1 say no number
    elif machine.take(1) != b"\x80" or not 2 <= machine.take(1)[0] <= 5:
        raise Damaged("is not a pickle of protocol 2 to 5")
    while True:
        machine.spend(1)
        code = machine.take(1)
        if code == b".":
            return machine.result(), machine.position
        step = table.get(code)
        if step is None:
            raise Damaged(f"holds a pickle with the operation {code!r}, which no checkpoint needs")
        step(machine)


def _text_of_python_2(machine: Machine, length: int) -> None:
    """A `str` of Python 2: text and bytes alike; Latin-1 keeps both."""
    span = machine.span("bytes", length)
    machine.push(machine.data[span.offset : machine.position].decode("latin-1") if length <= MAX_TEXT else span)


def _parsed(machine: Machine, parse: Callable[[bytes], Any], limit: int = MAX_TEXT) -> Any:
    """Return what a line of protocol 0 says."""
    try:
        return parse(machine.raw_line(limit))
    except ValueError:
        raise Damaged("holds a pickle with a line that does not say what it should") from None


def _flag_or_number(line: bytes) -> int:
    """A number of protocol 0, in which 00 and 01 are the bools."""
    return line == b"01" if line in (b"00", b"01") else int(line)


def _index(line: bytes) -> int:
    """A number of the memo."""
    number = int(line)
    if not 0 <= number < 1 << 32:
        raise ValueError(number)
    return number


def _quoted(line: bytes) -> str:
    """A `str` of Python 2 as its repr."""
    if len(line) < 2 or line[:1] not in (b"'", b'"') or line[-1:] != line[:1]:
        raise ValueError(line[:80])
    return codecs.escape_decode(line[1:-1])[0].decode("latin-1")


STEPS: dict[bytes, Callable[[Machine], Any]] = {
    b"(": lambda m: m.marks.append(len(m.stack)),
    b"0": lambda m: m.pop() if len(m.stack) > (m.marks[-1] if m.marks else 0) else m.since_mark(),
    b"1": lambda m: m.since_mark(),
    b"2": lambda m: m.push(m.top(object)),
    b"N": lambda m: m.push(None),
    b"\x88": lambda m: m.push(True),
    b"\x89": lambda m: m.push(False),
    b"G": lambda m: m.push(struct.unpack(">d", m.take(8))[0]),
    b"J": lambda m: m.push(m.number("<i", 4)),
    b"K": lambda m: m.push(m.number("<B", 1)),
    b"M": lambda m: m.push(m.number("<H", 2)),
    b"\x8a": lambda m: m.whole(m.number("<B", 1)),
    b"\x8b": lambda m: m.whole(m.number("<I", 4)),
    b"T": lambda m: _text_of_python_2(m, m.number("<I", 4)),
    b"U": lambda m: _text_of_python_2(m, m.number("<B", 1)),
    b"B": lambda m: m.push(m.span("bytes", m.number("<I", 4))),
    b"C": lambda m: m.push(m.span("bytes", m.number("<B", 1))),
    b"\x8e": lambda m: m.push(m.span("bytes", m.number("<Q", 8))),
    b"\x96": lambda m: m.push(m.span("bytes", m.number("<Q", 8))),
    b"X": lambda m: m.push(m.text(m.number("<I", 4))),
    b"\x8c": lambda m: m.push(m.text(m.number("<B", 1))),
    b"\x8d": lambda m: m.push(m.text(m.number("<Q", 8))),
    b"]": lambda m: m.push([]),
    b"l": lambda m: m.push(m.since_mark()),
    b"a": lambda m: m.append(m.last(1)),
    b"e": lambda m: m.append(m.since_mark()),
    b"\x8f": lambda m: m.push([]),  # a set becomes a list
    b"\x90": lambda m: m.append(m.since_mark()),
    b"\x91": lambda m: m.push(m.since_mark()),
    b")": lambda m: m.push(()),
    b"t": lambda m: m.push(tuple(m.since_mark())),
    b"\x85": lambda m: m.push(tuple(m.last(1))),
    b"\x86": lambda m: m.push(tuple(m.last(2))),
    b"\x87": lambda m: m.push(tuple(m.last(3))),
    b"}": lambda m: m.push({}),
    b"d": lambda m: m.push(m.dict_of(m.since_mark())),
    b"s": lambda m: m.set_items(m.last(2)),
    b"u": lambda m: m.set_items(m.since_mark()),
    b"c": lambda m: m.name(m.line(), m.line()),
    b"\x93": lambda m: m.name(*m.last(2)),
    b"R": lambda m: m.call(),
    b"\x81": lambda m: m.call(),
    b"\x92": lambda m: m.call(named=True),
    b"b": lambda m: m.build(),
    b"q": lambda m: m.remember(m.number("<B", 1)),
    b"r": lambda m: m.remember(m.number("<I", 4)),
    b"\x94": lambda m: m.remember(len(m.memo)),
    b"h": lambda m: m.recall(m.number("<B", 1)),
    b"j": lambda m: m.recall(m.number("<I", 4)),
    b"Q": lambda m: m.storage(),
    b"\x80": lambda m: m.take(1),
    b"\x95": lambda m: m.take(8),  # a frame's length: only a hint for readers of streams
}

# What Python 2's pickles have besides, and bytes taken for its `str`.
PYTHON_2: dict[bytes, Callable[[Machine], Any]] = {
    b"I": lambda m: m.push(_parsed(m, _flag_or_number)),
    b"L": lambda m: m.push(_parsed(m, lambda line: int(line.removesuffix(b"L")))),
    b"F": lambda m: m.push(_parsed(m, float)),
    b"S": lambda m: m.push(_parsed(m, _quoted, m.end)),
    b"V": lambda m: m.push(_parsed(m, lambda line: line.decode("raw-unicode-escape"), m.end)),
    b"p": lambda m: m.remember(_parsed(m, _index)),
    b"g": lambda m: m.recall(_parsed(m, _index)),
    b"B": lambda m: _text_of_python_2(m, m.number("<I", 4)),
    b"C": lambda m: _text_of_python_2(m, m.number("<B", 1)),
    b"\x8e": lambda m: _text_of_python_2(m, m.number("<Q", 8)),
}
