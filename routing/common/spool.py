"""Sequences that are kept on disk while a process needs them: of each item eight bytes stay in memory."""

from __future__ import annotations

import os
import tempfile
from array import array
from collections.abc import Iterator
from pathlib import Path


class Spool:
    """Byte strings in a file without a name, which is gone with the process, however it ends.

    Args:
        beside: a place on the disk that has room: a folder, a file or one that may yet be made; default the system's
            folder for temporary files, which may be memory.
    """

    def __init__(self, beside: Path | None = None):
        place = None if beside is None else existing_folder(beside)
        self._file = tempfile.TemporaryFile(dir=place)  # noqa: SIM115 - open as long as the spool is
        self._ends = array("Q")  # of the items, in the file
        self._written = True

    def __len__(self) -> int:
        return len(self._ends)

    def append(self, item: bytes) -> None:
        self._file.write(item)
        self._ends.append(len(item) + (self._ends[-1] if self._ends else 0))
        self._written = False

    def __getitem__(self, index: int) -> bytes:
        index = range(len(self._ends))[index]
        if not self._written:
            self._file.flush()
            self._written = True
        start = self._ends[index - 1] if index else 0
        # Read at a place of its own: processes that were forked share the file's.
        return os.pread(self._file.fileno(), self._ends[index] - start, start)

    def __iter__(self) -> Iterator[bytes]:
        return (self[index] for index in range(len(self)))


def existing_folder(path: Path) -> Path:
    """The folder of a path that is there, itself or the nearest above it."""
    return next(folder for folder in (path.absolute(), *path.absolute().parents) if folder.is_dir())
