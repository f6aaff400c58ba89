"""The machine that reads a pickle without running it: its stack, what may lie there, and what may be done with it."""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from triport.core.source import Damaged, Source

MAX_STEPS = 1_000_000  # opcodes in one pickle, and what they cost; a ViT-H with Adam's state takes some 100 000
MAX_ARGUMENTS = 16
CALL = 10  # steps a call costs
MAX_TEXT = 4096  # longer text stays in the file as a Span
MAX_NAME = 200  # of a class with its module
MAX_KEY = 1 << 60  # larger numbers could be chosen to have one hash, and a dict of them would take hours
NAME = re.compile(r"[A-Za-z_][\w.]*\Z", re.ASCII)
MAX_PARTS = 32  # scalars in a tuple that is a key

# Functions of Python that make an object of the class that is their first argument.
REBUILDERS = ("copyreg.__newobj__", "copyreg.__newobj_ex__", "copy_reg.__newobj__", "copy_reg.__newobj_ex__")

Allowed = Mapping[str, Callable[..., Any]]


@dataclass(frozen=True)
class Span:
    """A stretch of the file: kind "bytes", "text" (UTF-8), or "latin1" (bytes as the text of their code points)."""

    kind: str
    offset: int
    length: int


@dataclass(frozen=True)
class Inert:
    """An object in a pickle of a class that is in no table of stand-ins: its class's name is all that is kept of it.

    Nothing of the class was imported, made or called, and what the pickle says of it was dropped.
    """

    name: str


@dataclass(frozen=True)
class Global:
    """A class or function the pickle names, and what is called in its place."""

    name: str
    call: Callable[..., Any]


class Fields(dict[Any, Any]):
    """An object of which only the attributes are kept (argparse.Namespace, a scheduler's class)."""

    def build(self, state: object) -> None:
        """Take the attributes a pickle sets."""
        if not isinstance(state, dict):
            raise Damaged("sets the state of an object to something else than a dict")
        for key, value in state.items():
            put(self, key, value)


def put(target: dict[Any, Any], key: object, value: object) -> None:
    """Set an item as a file may: a new printable name or number as the key, or the text of another harmless key."""
    if not (isinstance(key, str) and len(key) <= MAX_TEXT) and not (type(key) is int and abs(key) < MAX_KEY):
        key = _label(key, len(target))
    if isinstance(key, str) and not key.isprintable():
        raise Damaged(f"has a dict with an unprintable name {key[:80]!r}")
    if key in target:
        raise Damaged(f"names {str(key)[:80]!r} twice in one dict")
    target[key] = value


def _label(key: object, number: int) -> object:
    """What stands for a key that is neither a name nor a number; Damaged where Python's own dict would not take it.

    A tuple becomes its text: hashes of tuples can be chosen to collide. `number` tells unknown objects apart.
    """
    if key is None or isinstance(key, (bool, float)):
        return key
    if isinstance(key, tuple) and len(key) <= MAX_PARTS and all(map(_short, key)):
        return f"({', '.join(map(repr, key))})"
    if isinstance(key, Global):
        return f"<{key.name}>"
    if isinstance(key, Inert):
        return f"<{key.name}, number {number}>"
    if isinstance(key, bytes) or (isinstance(key, Span) and key.kind != "text"):
        return f"<bytes, number {number}>"
    raise Damaged(f"has a dict with a key that is neither a name nor a number ({type(key).__name__})")


def _short(part: object) -> bool:
    """Whether a part of a key is a scalar whose text is short."""
    if isinstance(part, str):
        return len(part) <= MAX_NAME
    return part is None or isinstance(part, (bool, float)) or (type(part) is int and abs(part) < MAX_KEY)


class Machine:
    """One run over one pickle: a stack, its marks, a memo."""

    def __init__(
        self,
        source: Source,
        allowed: Allowed,
        start: int,
        end: int,
        persistent: Callable[[Any], Any] | None,
        unknown: Callable[[str], Callable[..., Any]],
        steps: int,
    ) -> None:
        source.check(start, end - start)
        self.source, self.data, self.position, self.end = source, source.data, start, end
        self.allowed, self.persistent, self.unknown = allowed, persistent, unknown
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}
        self.steps = self.limit = steps

    def result(self) -> Any:
        """Return the one value that is left at the end."""
        if len(self.stack) != 1 or self.marks:
            raise Damaged("holds a pickle that ends in the middle")
        return self.stack[0]

    def spend(self, steps: int) -> None:
        """Count steps; what copies a noted value costs more, or a small file could make it a million times."""
        self.steps -= steps
        if self.steps < 0:
            raise Damaged(f"holds a pickle of more than {self.limit} operations")

    # Reading

    def take(self, count: int) -> bytes:
        """Return the next bytes."""
        begin, self.position = self.position, self.position + count
        if self.position > self.end:
            raise Damaged("ends too early, in the middle of a pickle")
        return self.data[begin : self.position]

    def number(self, form: str, size: int) -> int:
        """Return the next number in struct's form."""
        value: int = struct.unpack(form, self.take(size))[0]
        return value

    def span(self, kind: str, length: int) -> Span:
        """Pass over the next bytes and return where they were."""
        if length > self.end - self.position:
            raise Damaged(f"ends too early: a pickle announces {length} bytes, {self.end - self.position} are left")
        span = Span(kind, self.position, length)
        self.position += length
        return span

    def text(self, length: int) -> str | Span:
        """Return the next text, a Span if it is long."""
        span = self.span("text", length)
        return decode(self.data[span.offset : self.position]) if length <= MAX_TEXT else span

    def line(self) -> str:
        """Return the text up to the next line feed."""
        return decode(self.raw_line(MAX_TEXT))

    def raw_line(self, limit: int) -> bytes:
        """Return the bytes up to the next line feed, which must come within `limit` bytes."""
        found = self.data.find(b"\n", self.position, min(self.end, self.position + limit))
        if found < 0:
            raise Damaged("holds a pickle with an endless line")
        begin, self.position = self.position, found + 1
        return self.data[begin:found]

    # The stack

    def push(self, value: object) -> None:
        """Put a value on the stack."""
        self.stack.append(value)

    def pop(self) -> Any:
        """Take the last value; never one below the last mark."""
        if len(self.stack) <= (self.marks[-1] if self.marks else 0):
            raise Damaged("holds a pickle that takes what it has not put")
        return self.stack.pop()

    def top(self, kind: type | tuple[type, ...]) -> Any:
        """Return the last value, which must be of a type, and leave it."""
        if len(self.stack) <= (self.marks[-1] if self.marks else 0) or not isinstance(self.stack[-1], kind):
            wanted = kind[0] if isinstance(kind, tuple) else kind
            raise Damaged(f"holds a pickle that treats something as a {wanted.__name__} that is none")
        return self.stack[-1]

    def since_mark(self) -> list[Any]:
        """Take all values since the last mark."""
        if not self.marks:
            raise Damaged("holds a pickle with an end but no beginning of a list")
        mark = self.marks.pop()
        values = self.stack[mark:]
        del self.stack[mark:]
        return values

    def name(self, module: object, name: object) -> None:
        """Push the stand-in of a class or function; `unknown` gives that of what is in no table."""
        full = f"{module}.{name}" if isinstance(module, str) and isinstance(name, str) else ""
        if not NAME.match(full) or len(full) > MAX_NAME:
            raise Damaged("holds a pickle that names a class in an impossible way")
        self.push(Global(full, self.allowed.get(full) or self.unknown(full)))

    def call(self, named: bool = False) -> None:
        """Call the stand-in under its arguments; named ones above them are dropped, as no stand-in takes any."""
        if named:
            self.pop()
        arguments, function = self.pop(), self.pop()
        if isinstance(function, Inert) and isinstance(arguments, tuple):
            self.push(function)  # a method or a partial function of an unknown object
            return
        if not isinstance(function, Global) or not isinstance(arguments, tuple):
            raise Damaged("holds a pickle that calls something that is not a function")
        if len(arguments) > MAX_ARGUMENTS:
            raise Damaged(f"holds a pickle that calls {function.name} with {len(arguments)} arguments")
        self.spend(CALL + sum(_cost(argument) for argument in arguments))
        try:
            self.push(function.call(*arguments))
        except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError) as fault:
            raise Damaged(f"calls {function.name} with what it does not take ({str(fault)[:120]})") from fault

    def build(self) -> None:
        """Hand a state to the object below it; a dict's own attributes (a state dict's `_metadata`) are not kept.

        What an inert record should take is dropped.
        """
        state = self.pop()
        target = self.top(object)
        self.spend(CALL + _cost(state))
        if hasattr(target, "build"):
            target.build(state)
        elif not isinstance(target, (dict, Inert)):
            raise Damaged(f"sets the state of a {type(target).__name__}")

    def set_items(self, items: list[Any]) -> None:
        """Put keys and values, in turn, into the dict below them."""
        below = self.top((dict, Inert))
        if isinstance(below, dict):
            self.dict_of(items, below)

    def append(self, values: list[Any]) -> None:
        """Put values at the end of the list below them."""
        below = self.top((list, Inert))
        if isinstance(below, list):
            below.extend(values)

    def dict_of(self, items: list[Any], target: dict[Any, Any] | None = None) -> dict[Any, Any]:
        """Put keys and values, in turn, into a dict."""
        target = {} if target is None else target
        if len(items) % 2:
            raise Damaged("holds a pickle with a key that has no value")
        for key, value in zip(items[::2], items[1::2], strict=True):
            put(target, key, value)
        return target

    def last(self, count: int) -> list[Any]:
        """Take the last values, in order."""
        return [self.pop() for _ in range(count)][::-1]

    def remember(self, index: int) -> None:
        """Note the last value under a number."""
        self.memo[index] = self.top(object)

    def recall(self, index: int) -> None:
        """Push a noted value."""
        if index not in self.memo:
            raise Damaged("holds a pickle that refers to what it has not noted")
        self.push(self.memo[index])

    def whole(self, length: int) -> None:
        """Push an integer of some bytes."""
        if length > 255:
            raise Damaged(f"holds a pickle with an integer of {length} bytes")
        self.push(int.from_bytes(self.take(length), "little", signed=True))

    def storage(self) -> None:
        """Push what a persistent id stands for."""
        if self.persistent is None:
            raise Damaged("holds a pickle that refers to things outside of it")
        self.push(self.persistent(self.pop()))


def inert(name: str) -> Callable[..., Inert]:
    """The stand-in of a class or function that is in no table: it takes anything and keeps nothing but the name."""
    record = Inert(name)

    def made(*arguments: object) -> Inert:
        kind = arguments[0] if name in REBUILDERS and arguments else None
        return Inert(kind.name) if isinstance(kind, Global) else record

    return made


def _cost(value: object) -> int:
    """How many steps it may cost to copy a value."""
    if isinstance(value, (list, tuple, dict)):
        return len(value)
    return len(value) // 64 if isinstance(value, str) else 0


def decode(raw: bytes) -> str:
    """Return UTF-8 text; Damaged if it is none."""
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        raise Damaged("holds text that is not UTF-8") from None
