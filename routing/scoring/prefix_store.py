"""Hidden states, keys and values at the layer boundaries of paths that were evaluated, within a memory limit."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection
from dataclasses import dataclass

import torch

from routing.scoring.segments import Segment

# The first layers of a path: with the tokens, all that a hidden state depends on.
Prefix = tuple[int, ...]


@dataclass(eq=False)
class State:
    """What a segment looks like behind the last layer of a path prefix.

    Attributes:
        hidden: [n, D], or those of the last tokens alone if nothing behind the last layer is asked of the others.
        keys, values: [n, H_kv, D_head] that this last layer attends to; None for the empty prefix.
    """

    segment: Segment
    prefix: Prefix
    hidden: torch.Tensor
    keys: torch.Tensor | None
    values: torch.Tensor | None

    @property
    def whole(self) -> bool:
        """Whether another layer can follow."""
        return len(self.hidden) == len(self.segment)

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in (self.hidden, self.keys, self.values) if tensor is not None)


class PrefixStore:
    """States of segments by path prefix.

    Which one is worth least: the one that was used longest ago, and of one path the deepest first, since it serves
    fewest other paths. So what is stored of a segment along a path has no gaps.

    Args:
        limit: bytes that `trim` leaves at most.
    """

    def __init__(self, limit: int):
        self.limit, self.bytes, self.peak = limit, 0, 0
        self._by_use: OrderedDict[State, None] = OrderedDict()

    def put(self, state: State) -> None:
        """Store a state, in place of one that was not whole."""
        if state.prefix in state.segment.states:
            self._drop(state.segment.states[state.prefix])
        state.segment.states[state.prefix] = state
        self._by_use[state] = None
        self.bytes += state.nbytes
        self.peak = max(self.peak, self.bytes)

    def touch(self, segment: Segment, path: Prefix) -> None:
        """Note the use of all states along a path."""
        for length in range(len(path), -1, -1):
            state = segment.states.get(path[:length])
            if state is not None:
                self._by_use.move_to_end(state)

    def forget(self, segment: Segment) -> None:
        """Drop all states of a segment."""
        for state in list(segment.states.values()):
            self._drop(state)

    def keep(self, segment: Segment, prefixes: Collection[Prefix]) -> None:
        """Drop all states of a segment but those of some prefixes."""
        for prefix, state in list(segment.states.items()):
            if prefix not in prefixes:
                self._drop(state)

    def _drop(self, state: State) -> None:
        del self._by_use[state]
        del state.segment.states[state.prefix]
        self.bytes -= state.nbytes

    def trim(self) -> None:
        """Drop states of least use until the limit is kept."""
        while self.bytes > self.limit and self._by_use:
            self._drop(next(iter(self._by_use)))
