"""Which rows to decode together: those whose routes share most layers.

A step of decoding reads the weights of every layer that some row of the batch runs, so what a batch costs is the union
of its rows' routes, not their mean.
"""

from __future__ import annotations

from collections.abc import Sequence

Route = tuple[int, ...]


def union(routes: Sequence[Route]) -> Route:
    """How often each layer is read for all of some rows."""
    return tuple(map(max, zip(*routes, strict=True)))


def grouped(routes: Sequence[Route], size: int) -> list[list[int]]:
    """Indices of the routes in groups of at most `size`, each index once.

    Rows of one route fill groups of their own. What is left over of each route is joined greedily: a group begins with
    the longest route that is left, and takes the row that adds fewest executions to its union, of equals the longest.

    Raises:
        ValueError: if `size` is below one.
    """
    if size < 1:
        raise ValueError(f"groups of {size} rows hold nothing; give at least 1")
    alike: dict[Route, list[int]] = {}
    for index, route in enumerate(routes):
        alike.setdefault(tuple(route), []).append(index)
    groups, left = [], []
    for indices in alike.values():
        full = len(indices) - len(indices) % size
        groups += [indices[start : start + size] for start in range(0, full, size)]
        left += indices[full:]
    left.sort(key=lambda index: (-sum(routes[index]), index))
    while left:
        group = [left.pop(0)]
        read = routes[group[0]]
        while left and len(group) < size:
            # `left` is sorted, and min takes the first of equals: the longest.
            best = min(left, key=lambda index: sum(union((read, routes[index]))) - sum(read))
            left.remove(best)
            group.append(best)
            read = union((read, routes[best]))
        groups.append(group)
    return groups
