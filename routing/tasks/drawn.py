"""Examples drawn for a search, kept on disk: memory stays small however many there are."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator
from pathlib import Path

from routing.common.files import streamed
from routing.tasks import expand_names, sampled
from routing.tasks.examples import Example, distinct, from_line, to_line

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
    for stale in path.parent.glob(f".{path.name}.*"):  # of a killed drawing
        stale.unlink(missing_ok=True)
    several = len(expand_names(names)) > 1
    with streamed(path) as chosen:
        drawn = (example for name in expand_names(names) for example in sampled(name, split, num_samples, seed, path))
        # Of one data set each question comes once anyway.
        for example in distinct(drawn) if several else drawn:
            example = example if change is None else change(example)
            if keep is None or keep(example):
                chosen.write(to_line(example))


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
        return self.part(range(index, index + 1))[0]

    def part(self, indices: range) -> list[Example]:
        """Examples that follow one another."""
        with self.path.open("rb") as file:
            file.seek(self._offsets[indices.start])
            return [from_line(file.readline()) for _ in indices]

    def __iter__(self) -> Iterator[Example]:
        with self.path.open("rb") as file:
            yield from map(from_line, file)
