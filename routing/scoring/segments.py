"""Requests as segments of tokens that hang below one another, so that what is shared is computed once.

A request is a line of segments: the beginning that many prompts share, then the rest of its own prompt together
with all texts that may follow it (the choices, or the answers to expect) as a token tree, then tokens that
decoding added. A token sees its ancestors and itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import NamedTuple

import torch


class Segment:
    """Tokens that are computed together, behind those of the segments above.

    Args:
        tokens: [n] token ids, n >= 1.
        parents: [n] for each token the one before it, as an index into (tokens of the line above, these tokens);
            -1 for the first token of a text.
        above: the segment that this one continues, or None.
        asked: the first token whose state behind the last layer of a path matters; `len(tokens)`: none does.

    Attributes:
        start: number of tokens in all segments above, C.
        line: the segments from the first one to this.
        states: what is stored of this segment, by path prefix; managed by `PrefixStore`.
    """

    def __init__(self, tokens: Sequence[int], parents: Sequence[int], above: Segment | None = None, asked: int = 0):
        self.tokens, self.parents, self.above, self.asked = list(tokens), list(parents), above, asked
        self.start = 0 if above is None else above.start + len(above.tokens)
        self.line: tuple[Segment, ...] = (*(() if above is None else above.line), self)
        self.states: dict[tuple[int, ...], object] = {}

    def __len__(self) -> int:
        return len(self.tokens)

    @cached_property
    def positions(self) -> list[int]:
        """[C + n] position in its text of each token of the line."""
        positions = [] if self.above is None else list(self.above.positions)
        for parent in self.parents:
            positions.append(0 if parent < 0 else positions[parent] + 1)
        return positions

    @cached_property
    def visible(self) -> torch.BoolTensor:
        """[n, C + n] which tokens of the line each token sees."""
        visible = torch.zeros(len(self), self.start + len(self), dtype=torch.bool)
        for at, parent in enumerate(self.parents):
            if parent >= 0:
                row = self._seen_by(parent, visible)
                visible[at, : len(row)] = row
            visible[at, self.start + at] = True
        return visible

    def _seen_by(self, index: int, own: torch.BoolTensor) -> torch.BoolTensor:
        if index >= self.start:
            return own[index - self.start]
        owner = next(segment for segment in self.line if index < segment.start + len(segment))
        return owner.visible[index - owner.start]


def chain(tokens: Sequence[int]) -> Segment:
    """The beginning that prompts share; what a path makes of it in the end does not matter."""
    return Segment(tokens, range(-1, len(tokens) - 1), asked=len(tokens))


class Node(NamedTuple):
    """One token of a tree: its segment, and its place in it."""

    segment: Segment
    offset: int


class TokenTree:
    """The prompt of one request and the texts behind it.

    Args:
        prompt: token ids, at least one.
        continuations: texts that are computed along with the prompt, as token ids; beginnings that they share are
            computed once.
        shared: a segment that holds the beginning of the prompt, shorter than it, or None.

    Attributes:
        segment: the rest of the prompt, and the continuations.
        root: the last token of the prompt.
    """

    def __init__(self, prompt: Sequence[int], continuations: Sequence[Sequence[int]], shared: Segment | None = None):
        start = 0 if shared is None else shared.start + len(shared)
        tokens, parents = list(prompt[start:]), list(range(start - 1, len(prompt) - 1))
        children: dict[tuple[int, int], int] = {}
        for continuation in continuations:
            index = len(prompt) - 1
            for token in continuation:
                if (index, token) not in children:
                    children[index, token] = start + len(tokens)
                    parents.append(index)
                    tokens.append(token)
                index = children[index, token]
        asked = len(prompt) - 1 - start
        self.segment = Segment(tokens, parents, shared, asked)
        self.root = Node(self.segment, asked)
        self._children = {
            (Node(self.segment, index - start), token): Node(self.segment, child - start)
            for (index, token), child in children.items()
        }

    def child(self, node: Node, token: int) -> Node:
        """The token behind a node; added to the tree, as a segment of its own, if it is new."""
        if (node, token) not in self._children:
            segment = Segment([token], [node.segment.start + node.offset], node.segment)
            self._children[node, token] = Node(segment, 0)
        return self._children[node, token]

    def segments(self) -> list[Segment]:
        """All segments that belong to this request alone."""
        return [self.segment, *{n.segment: None for n in self._children.values() if n.segment is not self.segment}]
