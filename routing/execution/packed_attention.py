"""Attention over packed tokens: those of many segments in one row, without any padding in the linear layers.

A decoder layer sees one sequence of n tokens. Only attention knows which tokens belong together: it lays queries,
keys and values out as a padded batch of segments, each behind its own context, and packs the result again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from routing.execution.segments import Segment

NAME = "packed_segments"


@dataclass
class Layout:
    """Where the tokens of S segments go in a padded batch. Made on the CPU, then moved with `to`.

    Attributes:
        queries: [S * Q] index of each query in the packed tokens; 0 where it is padding.
        keys: [S * K] index of each key in (stored context, packed tokens); 0 where it is padding.
        mask: [S, 1, Q, K], True where a query sees a key.
        unpad: [n] place of each packed token in the padded queries.
    """

    queries: torch.LongTensor
    keys: torch.LongTensor
    mask: torch.BoolTensor
    unpad: torch.LongTensor

    def to(self, device) -> Layout:
        return Layout(*(tensor.to(device, non_blocking=True) for tensor in vars(self).values()))


def make_layout(segments: Sequence[Segment], sources: Sequence[Sequence[int]], window: int | None) -> Layout:
    """Layout of segments that are computed together.

    Args:
        segments: S segments; their tokens are packed in this order.
        sources: for each segment where the tokens of each segment of its line start in (stored context, packed
            tokens), its own included.
        window: a token sees the `window` last positions only, itself included; None: all of them.
    """
    longest = max(map(len, segments))
    widest = max(segment.start + len(segment) for segment in segments)
    queries = torch.zeros(len(segments), longest, dtype=torch.long)
    keys = torch.zeros(len(segments), widest, dtype=torch.long)
    mask = torch.zeros(len(segments), 1, longest, widest, dtype=torch.bool)
    unpad, packed = [], 0
    for row, (segment, starts) in enumerate(zip(segments, sources)):
        size = len(segment)
        queries[row, :size] = torch.arange(packed, packed + size)
        unpad.append(torch.arange(row * longest, row * longest + size))
        for member, start in zip(segment.line, starts):
            keys[row, member.start : member.start + len(member)] = torch.arange(start, start + len(member))
        seen = segment.visible
        if window is not None:
            positions = torch.tensor(segment.positions)
            seen = seen & (positions[segment.start :, None] - positions < window)
        mask[row, 0, :size, : seen.shape[1]] = seen
        mask[row, 0, size:, 0] = True  # A query that sees nothing would give NaN.
        packed += size
    return Layout(queries.flatten(), keys.flatten(), mask, torch.cat(unpad))


@dataclass
class PackedStep:
    """What attention needs for one step, and what it leaves behind.

    Attributes:
        layout: places of the tokens.
        context: stored (keys, values), each [C, H_kv, D_head], or None.
        keys, values: [n, H_kv, D_head] of the packed tokens; set by `attend`.
    """

    layout: Layout
    context: tuple[torch.Tensor, torch.Tensor] | None
    keys: torch.Tensor | None = None
    values: torch.Tensor | None = None


def attend(module, query, key, value, attention_mask, scaling=None, packed: PackedStep = None, **kwargs):
    """An attention function of transformers for [1, H, n, D_head] packed tokens.

    Query heads that share a key head are laid one behind the other, as further queries of that head.
    """
    layout, heads, groups = packed.layout, key.shape[1], query.shape[1] // key.shape[1]
    size = query.shape[-1]
    packed.keys, packed.values = key[0].transpose(0, 1).contiguous(), value[0].transpose(0, 1).contiguous()
    keys, values = packed.keys, packed.values
    if packed.context is not None:
        keys, values = torch.cat([packed.context[0], keys]), torch.cat([packed.context[1], values])
    rows, _, longest, widest = layout.mask.shape
    query = query[0].transpose(0, 1).index_select(0, layout.queries).view(rows, longest, heads, groups, size)
    query = query.permute(0, 2, 3, 1, 4).reshape(rows, heads, groups * longest, size)
    keys = keys.index_select(0, layout.keys).view(rows, widest, heads, size).transpose(1, 2)
    values = values.index_select(0, layout.keys).view(rows, widest, heads, size).transpose(1, 2)
    mask = layout.mask.expand(rows, groups, longest, widest).reshape(rows, 1, groups * longest, widest)
    output = scaled_dot_product_attention(query, keys, values, attn_mask=mask, scale=scaling)
    output = output.view(rows, heads, groups, longest, size).permute(0, 3, 1, 2, 4)
    output = output.reshape(rows * longest, heads * groups, size).index_select(0, layout.unpad)
    return output.unsqueeze(0), None


AttentionInterface.register(NAME, attend)
