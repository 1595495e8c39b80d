"""Routes, the canonical form of order-preserving layer paths, and the moves between them."""

from __future__ import annotations

from collections.abc import Sequence

SKIP, RUN, REPEAT = 0, 1, 2

# How often each of L layers is run.
Route = tuple[int, ...]


def full_route(depth: int) -> Route:
    """Every layer once."""
    return (RUN,) * depth


def route_length(route: Route) -> int:
    """Layers executed, |path|."""
    return sum(route)


def to_path(route: Route) -> list[int]:
    """Layer indices in order of execution."""
    return [layer for layer, count in enumerate(route) for _ in range(count)]


def pruned_layers(route: Route) -> list[int]:
    """Layers that a route skips, in order."""
    return [layer for layer, count in enumerate(route) if count == SKIP]


def to_route(path: Sequence[int], depth: int) -> Route:
    """Counts of a path.

    Raises:
        ValueError: if the path leaves 0..depth-1, is not in order, or runs a layer more than twice.
    """
    if any(not 0 <= layer < depth for layer in path):
        raise ValueError(f"the path {list(path)} has a layer outside 0..{depth - 1}")
    if any(later < earlier for earlier, later in zip(path, path[1:])):
        raise ValueError(f"the path {list(path)} does not keep the order of the layers")
    counts = [0] * depth
    for layer in path:
        counts[layer] += 1
    if max(counts, default=0) > REPEAT:
        raise ValueError(f"the path {list(path)} runs layer {counts.index(max(counts))} more than twice")
    return tuple(counts)


def moves(route: Route, max_length: int) -> list[Route]:
    """Routes one action away: skip one or two neighbouring layers that run once, or repeat one.

    Actions of Dr.LLM (arXiv 2510.12773, section 3). Each result has counts in {0, 1, 2}, at least one layer
    and at most `max_length` executions; no action undoes an earlier one, so every sequence of moves ends.

    Args:
        route: where to start.
        max_length: budget * L, in layer executions.
    """
    results = []
    length = route_length(route)
    for first in range(len(route)):
        for width in (1, 2):
            span = range(first, first + width)
            if span.stop > len(route) or any(route[layer] != RUN for layer in span) or length <= width:
                continue
            results.append(route[:first] + (SKIP,) * width + route[first + width :])
        if route[first] == RUN and length < max_length:
            results.append(route[:first] + (REPEAT,) + route[first + 1 :])
    return results
