"""Examples drawn for a search, kept on disk: memory stays small however many there are."""

from __future__ import annotations

import json
import os
from array import array
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

from routing.common.files import streamed
from routing.tasks import expand_names, iterate, order_of
from routing.tasks.examples import Example, question_hash

QUESTIONS = "questions.jsonl"


def draw(
    names: str,
    split: str,
    num_samples: int | None,
    seed: int,
    path: Path,
    change: Callable[[Example], Example] | None = None,
    keep: Callable[[Example], bool] | None = None,
) -> None:
    """Write up to `num_samples` examples of each data set to a file, as `load_examples` draws them.

    One process at a time may draw to a file.

    Args:
        change: what is done to each example that was drawn: another wording, say.
        keep: whether an example is written; None: all are.

    Raises:
        UserError: if a data set cannot be had, or has no example in the split.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    for stale in path.parent.glob(f".{path.name}.*"):  # of a killed drawing
        stale.unlink(missing_ok=True)
    source = path.with_name(f".{path.name}.{os.getpid()}.all")
    seen: set[bytes] = set()
    try:
        with streamed(path) as chosen:
            for name in expand_names(names):
                offsets = array("Q")
                with source.open("w+b") as everything:
                    for example in iterate(name, split):
                        offsets.append(everything.tell())
                        everything.write(json.dumps(asdict(example), ensure_ascii=False).encode() + b"\n")
                    for index in order_of(name, split, len(offsets), seed)[:num_samples]:
                        everything.seek(offsets[index])
                        line = everything.readline()
                        key = bytes.fromhex(question_hash(_example(line)))
                        if key not in seen:
                            seen.add(key)
                            example = _example(line) if change is None else change(_example(line))
                            if keep is not None and not keep(example):
                                continue
                            chosen.write(json.dumps(asdict(example), ensure_ascii=False) + "\n")
    finally:
        source.unlink(missing_ok=True)


def _example(line: bytes) -> Example:
    record = json.loads(line)
    return Example(**record | {"choices": tuple(record["choices"]), "accepted": tuple(record["accepted"])})


class DrawnExamples:
    """A sequence of examples that are read from a file of `draw` when they are asked for."""

    def __init__(self, path: Path):
        self.path = path
        self._offsets = array("Q")
        with path.open("rb") as file:
            offset = 0
            for line in file:
                self._offsets.append(offset)
                offset += len(line)

    def __len__(self) -> int:
        return len(self._offsets)

    def __getitem__(self, index: int) -> Example:
        with self.path.open("rb") as file:
            file.seek(self._offsets[index])
            return _example(file.readline())

    def __iter__(self) -> Iterator[Example]:
        with self.path.open("rb") as file:
            yield from map(_example, file)
