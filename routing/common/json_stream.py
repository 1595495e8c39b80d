"""Reading a JSON file of any size value by value."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TextIO

CHUNK = 1 << 20  # characters


class JsonStream:
    """Reads a JSON text value by value, so that a list of any length needs the memory of one item.

    Args:
        longest: characters of a value that are held, at most.
        decoder: of values.
    """

    def __init__(self, file: TextIO, longest: int | None = None, decoder=json.JSONDecoder()):  # noqa: B008 - has no state
        self.file, self.text, self.at = file, "", 0
        self.longest, self.decoder = longest, decoder
        self._lines, self._counted = 1, 0  # of what was read; characters of the text in which they were counted
        self.item_line = 1  # where the item that `items` gave last begins

    @property
    def line(self) -> int:
        """Where it is being read, from 1."""
        self._count_lines()
        return self._lines

    def _count_lines(self) -> None:
        self._lines += self.text.count("\n", self._counted, self.at)
        self._counted = self.at

    def _more(self) -> bool:
        """Read on: at least as much as is held, so that a long value is not tried too often."""
        self._count_lines()
        rest = self.text[self.at :]
        if self.longest is not None and len(rest) > self.longest:
            raise ValueError(f"a value is longer than {self.longest >> 20} MiB, or does not end")
        new = self.file.read(max(CHUNK, len(rest)))
        self.text, self.at, self._counted = rest + new, 0, 0
        return bool(new)

    def peek(self) -> str:
        """The next character that is no white space; empty at the end."""
        while True:
            while self.at < len(self.text):
                if not self.text[self.at].isspace():
                    return self.text[self.at]
                self.at += 1
            if not self._more():
                return ""

    def take(self, *expected: str) -> str:
        found = self.peek()
        if found not in expected:
            wanted = " or ".join(map(repr, expected))
            raise ValueError(f"{wanted} is missing before {found!r}" if found else f"it ends before {wanted}")
        self.at += 1
        return found

    def value(self):
        if not self.peek():
            raise ValueError("it ends before a value")
        while True:
            try:
                value, end = self.decoder.raw_decode(self.text, self.at)
            except json.JSONDecodeError:
                if self._more():
                    continue
                raise
            # A number at the end of what was read may go on.
            if end == len(self.text) and self._more():
                continue
            self.at = end
            return value

    def items(self) -> Iterator:
        """Items of the list that comes next."""
        self.take("[")
        if self.peek() == "]":
            self.take("]")
            return
        while True:
            self.peek()
            self.item_line = self.line
            yield self.value()
            if self.take(",", "]") == "]":
                return

    def names(self) -> Iterator[str]:
        """Names of the object that comes next; the caller reads each value."""
        self.take("{")
        if self.peek() == "}":
            self.take("}")
            return
        while True:
            name = self.value()
            self.take(":")
            yield name
            if self.take(",", "}") == "}":
                return
