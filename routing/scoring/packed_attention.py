"""Attention over packed tokens: those of many segments in one row, without any padding in the linear layers.

A decoder layer sees one sequence of n tokens. Only attention knows which tokens belong together: it lays queries,
keys and values out as a padded batch of segments, each behind its own context, and packs the result again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from routing.scoring.segments import Segment
from train_models.attention_shapes import changing_shapes

NAME = "packed_segments"


# Segments share a padded batch while the longest has at most this many times the tokens of the shortest, and so have
# the texts that they see.
UNEVEN = 1.5


@dataclass
class Batch:
    """A padded batch of S segments of similar length, of Q tokens at most, that see K tokens at most.

    Attributes:
        queries: [S * Q] index of each query in the packed tokens; 0 where it is padding.
        keys: [S * K] index of each key in (stored context, packed tokens); 0 where it is padding.
        mask: [S, 1, Q, K], True where a query sees a key.
    """

    queries: torch.LongTensor
    keys: torch.LongTensor
    mask: torch.BoolTensor

    def to(self, device) -> Batch:
        return Batch(*(tensor.to(device, non_blocking=True) for tensor in vars(self).values()))


@dataclass
class Layout:
    """Where packed tokens go in padded batches. Made on the CPU, then moved with `to`.

    Attributes:
        batches: of similar segments, so that there is little padding.
        unpad: [n] place of each packed token in the queries of all batches.
    """

    batches: list[Batch]
    unpad: torch.LongTensor

    def to(self, device) -> Layout:
        return Layout([batch.to(device) for batch in self.batches], self.unpad.to(device, non_blocking=True))


def make_layout(segments: Sequence[Segment], sources: Sequence[Sequence[int]], window: int | None) -> Layout:
    """Layout of segments that are computed together.

    Args:
        segments: S segments; their tokens are packed in this order.
        sources: for each segment where the tokens of each segment of its line start in (stored context, packed
            tokens), its own included.
        window: a token sees the `window` last positions only, itself included; None: all of them.
    """
    ends = list(accumulate(map(len, segments)))
    unpad = torch.empty(ends[-1], dtype=torch.long)
    batches, padded = [], 0
    for rows in _similar(segments):
        longest = max(len(segments[row]) for row in rows)
        for at, row in enumerate(rows):
            start = padded + at * longest
            unpad[ends[row] - len(segments[row]) : ends[row]] = torch.arange(start, start + len(segments[row]))
        padded += len(rows) * longest
        batches.append(_make_batch([(segments[row], sources[row], ends[row]) for row in rows], window))
    return Layout(batches, unpad)


def _similar(segments: Sequence[Segment]) -> list[list[int]]:
    """Indices of segments, in batches."""
    batches: list[list[int]] = []
    for row in sorted(range(len(segments)), key=lambda row: _sizes(segments[row])):
        shortest = segments[batches[-1][0]] if batches else None
        if shortest is None or any(
            size > UNEVEN * least for size, least in zip(_sizes(segments[row]), _sizes(shortest))
        ):
            batches.append([])
        batches[-1].append(row)
    return batches


def _sizes(segment: Segment) -> tuple[int, int]:
    """Tokens, and tokens that they see."""
    return len(segment), segment.start + len(segment)


def _make_batch(rows: Sequence[tuple[Segment, Sequence[int], int]], window: int | None) -> Batch:
    """One padded batch of (segment, sources, end of the segment in the packed tokens)."""
    longest, widest = (max(sizes) for sizes in zip(*(_sizes(segment) for segment, _, _ in rows)))
    queries = torch.zeros(len(rows), longest, dtype=torch.long)
    keys = torch.zeros(len(rows), widest, dtype=torch.long)
    mask = torch.zeros(len(rows), 1, longest, widest, dtype=torch.bool)
    for row, (segment, starts, end) in enumerate(rows):
        size = len(segment)
        queries[row, :size] = torch.arange(end - size, end)
        for member, start in zip(segment.line, starts):
            keys[row, member.start : member.start + len(member)] = torch.arange(start, start + len(member))
        seen = segment.visible
        if window is not None:
            positions = torch.tensor(segment.positions)
            seen = seen & (positions[segment.start :, None] - positions < window)
        mask[row, 0, :size, : seen.shape[1]] = seen
        mask[row, 0, size:, 0] = True  # A query that sees nothing would give NaN.
    return Batch(queries.flatten(), keys.flatten(), mask)


@dataclass
class PackedStep:
    """What attention needs for one step, and what it leaves behind.

    Attributes:
        layout: places of the tokens.
        context: stored (keys, values), each [C, H_kv, D_head], or None.
        kept: [m] packed tokens whose state behind the layer is asked for; None: all.
        keys, values: [n, H_kv, D_head] of the packed tokens; set by `attend`.
    """

    layout: Layout
    context: tuple[torch.Tensor, torch.Tensor] | None
    kept: torch.LongTensor | None = None
    keys: torch.Tensor | None = None
    values: torch.Tensor | None = None


def attend(module, query, key, value, attention_mask, scaling=None, packed: PackedStep = None, softcap=None, **kwargs):
    """An attention function of transformers for [1, H, n, D_head] packed tokens.

    Query heads that share a key head are laid one behind the other, as further queries of that head.
    """
    packed.keys, packed.values = key[0].transpose(0, 1).contiguous(), value[0].transpose(0, 1).contiguous()
    keys, values = packed.keys, packed.values
    if packed.context is not None:
        keys, values = torch.cat([packed.context[0], keys]), torch.cat([packed.context[1], values])
    query = query[0].transpose(0, 1)
    outputs = [_attend_batch(batch, query, keys, values, scaling, softcap) for batch in packed.layout.batches]
    return torch.cat(outputs).index_select(0, packed.layout.unpad).unsqueeze(0), None


def _attend_batch(batch: Batch, query, keys, values, scaling, softcap) -> torch.Tensor:
    """[S * Q, H, D_head], for query [n, H, D_head] and keys, values [C + n, H_kv, D_head]."""
    rows, _, longest, widest = batch.mask.shape
    heads, groups, size = keys.shape[1], query.shape[1] // keys.shape[1], query.shape[-1]
    query = query.index_select(0, batch.queries).view(rows, longest, heads, groups, size)
    query = query.permute(0, 2, 3, 1, 4).reshape(rows, heads, groups * longest, size)
    keys = keys.index_select(0, batch.keys).view(rows, widest, heads, size).transpose(1, 2)
    values = values.index_select(0, batch.keys).view(rows, widest, heads, size).transpose(1, 2)
    mask = batch.mask.expand(rows, groups, longest, widest).reshape(rows, 1, groups * longest, widest)
    if softcap is None:
        with changing_shapes(query):
            output = scaled_dot_product_attention(query, keys, values, attn_mask=mask, scale=scaling)
    else:
        output = _capped(query, keys, values, mask, scaling, softcap)
    output = output.view(rows, heads, groups, longest, size).permute(0, 3, 1, 2, 4)
    return output.reshape(rows * longest, heads * groups, size)


def _capped(query, keys, values, mask, scaling, softcap) -> torch.Tensor:
    """Attention whose weights go through c tanh(x / c) in front of the softmax (Gemma 2)."""
    weights = torch.tanh(query @ keys.transpose(2, 3) * scaling / softcap) * softcap
    weights = weights.masked_fill(~mask, -torch.inf).softmax(-1, dtype=torch.float32)
    return weights.to(query.dtype) @ values


AttentionInterface.register(NAME, attend)
