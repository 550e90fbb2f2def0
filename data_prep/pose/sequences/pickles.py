"""A machine that follows pickles of arrays, dictionaries, lists, texts and numbers, and knows nothing else.

A pickle is a program. What it names is never looked up: NumPy's own words (`_reconstruct`, `dtype`, ...) are taken down
for `objects.py`, all others end the reading. Every length is compared with what is there before memory is taken.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from typing import Any

_NUMPY = r"numpy\.(?:core|_core)\.(?:multiarray|numeric)"
_WORDS = {
    rf"{_NUMPY} _reconstruct": "array",
    rf"{_NUMPY} _frombuffer": "buffer",
    rf"{_NUMPY} scalar": "scalar",
    r"numpy ndarray": "type",
    r"numpy dtype": "dtype",
    r"_codecs encode": "bytes",
}
_MARK = object()


class DamageError(Exception):
    """The pickle is damaged, or unsafe."""

    def __init__(self, reason: str, *, unsafe: bool = False) -> None:
        self.unsafe = unsafe
        super().__init__(reason)


class Word(str):
    """One of the values of `_WORDS`, told from texts of the file."""


class Made:
    """Something that NumPy would have made: its parts, until all of the pickle is read."""

    def __init__(self, kind: str, parts: tuple[Any, ...]) -> None:
        self.kind, self.parts = kind, parts
        self.state: Any = None


class Machine:
    """Follows a pickle; every instruction is a method of few lines.

    Args:
        data: the pickle.
    """

    def __init__(self, data: memoryview) -> None:
        self.data, self.place = data, 0
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def run(self) -> Any:
        """The object on the stack at the end."""
        while True:
            code = bytes(self.take(1))
            if code == b".":
                return self.stack.pop()
            if code in _STRINGS:
                width, kind = _STRINGS[code]
                data = self.take(int.from_bytes(self.take(width), "little"))
                self.stack.append(bytes(data) if kind == "bytes" else str(bytes(data), kind))
            elif code in _NUMBERS:
                self.stack.append(struct.unpack(_NUMBERS[code], self.take(struct.calcsize(_NUMBERS[code])))[0])
            elif code in _ACTIONS:
                _ACTIONS[code](self)
            else:
                raise DamageError(f"has the instruction {code!r} in a pickle")

    def take(self, count: int) -> memoryview:
        """The next bytes."""
        if count > len(self.data) - self.place:
            raise DamageError("ends too early")
        self.place += count
        return self.data[self.place - count : self.place]

    def number(self, width: int) -> int:
        """An unsigned number of so many bytes."""
        return int.from_bytes(self.take(width), "little")

    def line(self) -> str:
        """A text up to the end of its line."""
        end = bytes(self.data[self.place : self.place + 256]).find(b"\n")
        if end < 0:
            raise DamageError("has a name without end")
        return bytes(self.take(end + 1))[:-1].decode("latin-1")

    def since_mark(self) -> list[Any]:
        """What was put on the stack behind the last mark."""
        for place in range(len(self.stack) - 1, -1, -1):
            if self.stack[place] is _MARK:
                found = self.stack[place + 1 :]
                del self.stack[place:]
                return found
        raise DamageError("has an end of a list without its beginning")

    def name(self, module: Any, name: Any) -> None:
        """A function or class: one of the known words, or the end."""
        text = f"{module} {name}"
        for pattern, word in _WORDS.items():
            if re.fullmatch(pattern, text):
                self.stack.append(Word(word))
                return
        raise DamageError(f"{module}.{name}"[:80], unsafe=True)

    def call(self) -> None:
        """Take down what NumPy would be asked to make."""
        parts, word = self.stack.pop(), self.stack.pop()
        if not isinstance(word, Word) or not isinstance(parts, tuple):
            raise DamageError("calls something that is no function")
        sizes = {"array": (3,), "buffer": (4,), "scalar": (2,), "dtype": (3,), "bytes": (2,)}
        if len(parts) not in sizes.get(word, ()) or (word == "bytes" and not isinstance(parts[0], str)):
            raise DamageError("makes an array of the wrong parts")
        self.stack.append(Made(str(word), parts))

    def build(self) -> None:
        """Give an array or a type its content."""
        state = self.stack.pop()
        made = self.stack[-1]
        if not isinstance(made, Made) or made.kind not in ("array", "dtype"):
            raise DamageError("fills something that is no array")
        made.state = state

    def extend(self, items: list[Any]) -> None:
        """Add to the list on the stack."""
        if not isinstance(self.stack[-1], list):
            raise DamageError("adds to something that is no list")
        self.stack[-1].extend(items)

    def update(self, items: list[Any]) -> None:
        """Add to the dictionary on the stack."""
        if not isinstance(self.stack[-1], dict) or len(items) % 2:
            raise DamageError("adds to something that is no dictionary")
        for key, value in zip(items[::2], items[1::2], strict=True):
            if type(key) not in (str, int, bytes):
                raise DamageError("has a key that is no text")
            self.stack[-1][key] = value

    def push(self, value: Any) -> None:
        """Put a value on the stack."""
        self.stack.append(value)

    def pop(self, count: int) -> list[Any]:
        """Take values from the stack, in the order they were put."""
        if len(self.stack) < count:
            raise DamageError("takes more than it has")
        found = self.stack[len(self.stack) - count :]
        del self.stack[len(self.stack) - count :]
        return found

    def store(self, place: int) -> None:
        """Remember the top of the stack."""
        self.memo[place] = self.stack[-1]


# instructions, with the names of Python's pickletools
_STRINGS = {
    b"T": (4, "latin-1"),  # BINSTRING
    b"U": (1, "latin-1"),  # SHORT_BINSTRING
    b"X": (4, "utf-8"),  # BINUNICODE
    b"\x8c": (1, "utf-8"),  # SHORT_BINUNICODE
    b"\x8d": (8, "utf-8"),  # BINUNICODE8
    b"B": (4, "bytes"),  # BINBYTES
    b"C": (1, "bytes"),  # SHORT_BINBYTES
    b"\x8e": (8, "bytes"),  # BINBYTES8
    b"\x96": (8, "bytes"),  # BYTEARRAY8
}
_NUMBERS = {b"J": "<i", b"K": "<B", b"M": "<H", b"G": ">d"}  # BININT, BININT1, BININT2, BINFLOAT
_ACTIONS: dict[bytes, Callable[[Machine], Any]] = {
    b"\x80": lambda m: m.take(1),  # PROTO
    b"\x95": lambda m: m.take(8),  # FRAME
    b"(": lambda m: m.push(_MARK),
    b"0": lambda m: m.pop(1),  # POP
    b"N": lambda m: m.push(None),
    b"\x88": lambda m: m.push(True),
    b"\x89": lambda m: m.push(False),
    b"\x8a": lambda m: m.push(int.from_bytes(m.take(m.number(1)), "little", signed=True)),  # LONG1
    b"c": lambda m: m.name(m.line(), m.line()),  # GLOBAL
    b"\x93": lambda m: m.name(*m.pop(2)),  # STACK_GLOBAL
    b"]": lambda m: m.push([]),
    b"a": lambda m: m.extend(m.pop(1)),  # APPEND
    b"e": lambda m: m.extend(m.since_mark()),  # APPENDS
    b"l": lambda m: m.push(m.since_mark()),  # LIST
    b")": lambda m: m.push(()),
    b"t": lambda m: m.push(tuple(m.since_mark())),  # TUPLE
    b"\x85": lambda m: m.push(tuple(m.pop(1))),
    b"\x86": lambda m: m.push(tuple(m.pop(2))),
    b"\x87": lambda m: m.push(tuple(m.pop(3))),
    b"}": lambda m: m.push({}),
    b"s": lambda m: m.update(m.pop(2)),  # SETITEM
    b"u": lambda m: m.update(m.since_mark()),  # SETITEMS
    b"q": lambda m: m.store(m.number(1)),  # BINPUT
    b"r": lambda m: m.store(m.number(4)),  # LONG_BINPUT
    b"\x94": lambda m: m.store(len(m.memo)),  # MEMOIZE
    b"h": lambda m: m.push(m.memo[m.number(1)]),  # BINGET
    b"j": lambda m: m.push(m.memo[m.number(4)]),  # LONG_BINGET
    b"R": lambda m: m.call(),  # REDUCE
    b"b": lambda m: m.build(),  # BUILD
}
