"""Paths as text: half-open ranges of layers as in mergekit, `0:20,24:30`; a single layer is its index, `0:5,4,5:8`.

Imports nothing, so that search, commands and models read the same notation.
"""

from __future__ import annotations

from collections.abc import Sequence

LONGEST = 10_000  # layers of a range, where the model is not known yet
EXAMPLE = "half-open ranges of layers as in mergekit, such as 0:20,24:30, or single layers, such as 0:5,4,5:8"


def parse_path(text: str, depth: int | None = None) -> list[int]:
    """Layer indices of a path, in the order in which they are written.

    Args:
        depth: L, for `20:` (to the end) and to refuse layers that a model lacks; None: to check the spelling alone, as
            an open end then stands for one layer.

    Raises:
        ValueError: says which part is wrong and what is allowed.
    """
    path: list[int] = []
    for part in text.split(","):
        first, colon, last = (word.strip() for word in part.partition(":"))
        if colon and not first:
            first = "0"
        if colon and not last and _is_number(first):
            last = str(int(first) + 1 if depth is None else depth)
        if not _is_number(first) or (colon and not _is_number(last)):
            raise ValueError(f"the path {text!r} has the part {part.strip()!r}; give {EXAMPLE}")
        layers = range(int(first), int(last) if colon else int(first) + 1)
        if not layers:
            raise ValueError(f"the path {text!r} has the empty range {part.strip()!r}; the end must be above the start")
        if depth is not None and layers[-1] >= depth:
            raise ValueError(
                f"the path {text!r} has layer {layers[-1]} in {part.strip()!r}, and the model has layers 0 to "
                f"{depth - 1}; ranges are half-open, so the last one may end with {depth}"
            )
        if depth is not None or len(layers) <= LONGEST:
            path += layers
        else:  # Only the spelling is asked for, and no model has so many.
            raise ValueError(f"the path {text!r} has {len(layers)} layers in {part.strip()!r}; no model has so many")
    return path


def ranges_of(path: Sequence[int]) -> list[tuple[int, int]]:
    """The longest half-open ranges [start, end) that make up a path."""
    found: list[tuple[int, int]] = []
    for layer in path:
        if found and found[-1][1] == layer:
            found[-1] = (found[-1][0], layer + 1)
        else:
            found.append((layer, layer + 1))
    return found


def write_path(path: Sequence[int]) -> str:
    """A path as `parse_path` reads it."""
    return ",".join(str(start) if end == start + 1 else f"{start}:{end}" for start, end in ranges_of(path))


def _is_number(word: str) -> bool:
    return word.isascii() and word.isdecimal()
