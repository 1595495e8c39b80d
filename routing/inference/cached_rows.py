"""Keys and values of single rows: taken out of the cache of one batch, and joined to the cache of another.

Works on the `PathCache` that a model brings itself, whichever copy of the class that is: a checkpoint that was loaded
with trust_remote_code has its own.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass

import torch


@dataclass
class CachedRow:
    """What a row's prompt left behind, without its last token.

    Attributes:
        route: counts of its layers.
        states: keys and values [H_kv, tokens, D_head] of each (layer, visit) that it executed.
        tokens: of the prompt that are cached: all but the last.
    """

    route: tuple[int, ...]
    states: dict[tuple[int, int], tuple[torch.Tensor, torch.Tensor]]
    tokens: int

    @property
    def bytes(self) -> int:
        return sum(tensor.nbytes for pair in self.states.values() for tensor in pair)


def cache_class(model) -> type | None:
    """The class of caches that hold a route a row, or None for a model that has none."""
    for kind in type(model).__mro__:
        if found := getattr(sys.modules[kind.__module__], "PathCache", None):
            return found
    return None


def taken_out(cache, lengths: Sequence[int]) -> list[CachedRow]:
    """The rows of a cache that a prefill of left-padded prompts filled, the last token of each cut off.

    Args:
        cache: a PathCache that records the past, so that sliding windows were not cut either.
        lengths: real tokens of each row.
    """
    rows = [
        CachedRow(tuple(route), {}, length - 1) for route, length in zip(cache.routes.tolist(), lengths, strict=True)
    ]
    for step, slot in cache.slots.items():
        members = range(len(rows)) if step.rows is None else step.rows
        width = slot.keys.shape[2]
        for at, index in enumerate(members):
            own = slice(width - lengths[index], width - 1)
            # Copies: a view would keep the padded batch in memory for as long as one of its rows waits.
            pair = slot.keys[at, :, own].clone(), slot.values[at, :, own].clone()
            rows[index].states[step.layer, step.visit] = pair
    return rows


def joined(rows: Sequence[CachedRow], kind: type, config):
    """A cache of the given class that holds some rows, padded on the left; what their prefill as one batch would leave.

    At least one row must have a cached token.
    """
    cache = kind(config)
    cache.start(len(rows))
    width = max(row.tokens for row in rows)
    for layer in range(len(rows[0].route)):
        for visit in range(max(row.route[layer] for row in rows)):
            members = tuple(index for index, row in enumerate(rows) if row.route[layer] > visit)
            pairs = [rows[index].states[layer, visit] for index in members]
            step = _step(kind, layer, visit, None if len(members) == len(rows) else members)
            cache.slot(step).update(*(padded(tensors, width) for tensors in zip(*pairs, strict=True)))
    cache.routes = torch.tensor([row.route for row in rows])
    cache.advance(width)
    return cache


def padded(tensors: Sequence[torch.Tensor], width: int) -> torch.Tensor:
    """[n, H, width, D] of n tensors [H, T, D], with zeros on the left."""
    heads, _, size = tensors[0].shape
    result = tensors[0].new_zeros(len(tensors), heads, width, size)
    for index, tensor in enumerate(tensors):
        result[index, :, width - tensor.shape[1] :] = tensor
    return result


def _step(kind: type, layer: int, visit: int, rows: tuple[int, ...] | None):
    return sys.modules[kind.__module__].Step(layer, visit, rows)
