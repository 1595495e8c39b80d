"""Writing files so that a crash leaves the old one or the new one, never half of either."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TextIO


@contextmanager
def streamed(path: Path) -> Iterator[TextIO]:
    """A file to write piece by piece under a temporary name; flushed and renamed at the end, removed after an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a whole file."""
    with streamed(path) as file:
        file.write(text)


def write_json(path: Path, value) -> None:
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def append_text(path: Path, text: str) -> None:
    """Append in one write and flush to disk."""
    with path.open("ab") as file:
        file.write(text.encode())
        file.flush()
        os.fsync(file.fileno())


def sha256(path: Path) -> str:
    """Of a file; one that did not change since is not read again."""
    found = path.stat()
    return _sha256(path.resolve(), found.st_size, found.st_mtime_ns)


@lru_cache
def _sha256(path: Path, size: int, changed: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def unwritable(option: str, path: Path) -> list[str]:
    """Why nothing could be written into a folder that is there or would be made, as sentences. Leaves nothing."""
    # Of a folder that may not be looked into, os.path.exists says no and Path.exists raises.
    there = next(folder for folder in (path.absolute(), *path.absolute().parents) if os.path.exists(folder))
    if not there.is_dir():
        return [f"{option} {path}: {there} is a file, so nothing can be written below it; give another folder"]
    try:
        with tempfile.TemporaryFile(dir=there):
            return []
    except OSError as error:
        why = error.strerror or error
        return [f"{option} {path}: nothing can be written in {there} ({why}); give another folder"]


def file_stamps(folder: Path, *patterns: str) -> list[list]:
    """[name, bytes, time of change] of files: a cheap way to notice that they were replaced."""
    paths = sorted({path for pattern in patterns for path in folder.glob(pattern)})
    return [[path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in paths]
