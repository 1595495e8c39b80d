"""Keys that were seen, in little memory: some 35 bytes a key, where a set of Python's takes 130."""

from __future__ import annotations

SIZE = 16  # bytes of a key that are compared: two of 10^9 random keys are alike with a chance of 10^-21
EMPTY = bytes(SIZE)
FULL = 2 / 3  # share of the places that may be taken


class Seen:
    """A set of hashes.

    An open table in one block of bytes: a key stands at the place that its first bytes name, or at the next free one.
    """

    def __init__(self):
        self._count, self._places = 0, 1 << 10
        self._table = bytearray(SIZE * self._places)

    def __len__(self) -> int:
        return self._count

    def add(self, digest: bytes) -> bool:
        """Whether a key is new; then it is one that was seen.

        Args:
            digest: of at least SIZE bytes, as random as SHA-256's.
        """
        key = digest[:SIZE]
        if (at := self._free_place(key)) is None:
            return False
        self._table[at : at + SIZE] = key
        self._count += 1
        if self._count > FULL * self._places:
            self._grow()
        return True

    def _free_place(self, key: bytes) -> int | None:
        """Where a key belongs in the table; None where it is there."""
        table, place = self._table, int.from_bytes(key[:8], "little") & (self._places - 1)
        while True:
            at = SIZE * place
            found = table[at : at + SIZE]
            if found == EMPTY:
                return at
            if found == key:
                return None
            place = (place + 1) & (self._places - 1)

    def _grow(self) -> None:
        old, self._places = self._table, 2 * self._places
        self._table = bytearray(SIZE * self._places)
        for at in range(0, len(old), SIZE):
            key = bytes(old[at : at + SIZE])
            if key != EMPTY:
                place = self._free_place(key)
                self._table[place : place + SIZE] = key
