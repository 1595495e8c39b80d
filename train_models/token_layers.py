"""A decoder layer over some tokens of each row: those that skip it keep their state and still give keys and values.

Keys and values of all tokens are computed, so what the others attend to does not change; the query, the attention
output and the MLP are computed for the tokens that run alone: gathered, run, scattered. The obvious form, which
computes the layer for all tokens and keeps it for some, is `blend`; training needs it, since its gates have gradients,
and the tests compare with it. How layers of each family are built is in `decoder_parts.py`.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from .attention_shapes import changing_shapes
from .decoder_parts import LayerParts, attend, heads, turned
from .offloading import device_of
from .path_cache import Step

ATTENTION = ("sdpa", "eager")  # What takes a mask for each query.


class Gathering(NamedTuple):
    """Which tokens of a layer run, [B, T] in all.

    Attributes:
        count: tokens that run, in all rows together.
        running: rows with a token that runs, on the host; None for all.
        rows: [b], the same on the device; None for all.
        order: [b, n], for each of these rows the places of its tokens that run, filled up with others.
        chosen: [count], which of these [b * n] run; None for all.
        flat: [count], places of the tokens that run in [B * T].
    """

    count: int
    running: tuple[int, ...] | None
    rows: torch.LongTensor | None
    order: torch.LongTensor
    chosen: torch.LongTensor | None
    flat: torch.LongTensor


def gatherings(gates: torch.BoolTensor) -> list[Gathering | None]:
    """One Gathering for each layer, of gates [B, T, R]; None where all tokens run.

    The host learns how many tokens of each row run in each layer, once for all layers. All else is computed on the
    device, with sizes that the host knows, so that it need not wait again.
    """
    batch, tokens, layers = gates.shape
    counts = gates.sum(1)  # [B, R]
    on_host = counts.T.tolist()  # The one transfer.
    order = torch.argsort((~gates).transpose(1, 2).to(torch.uint8), dim=2, stable=True) if tokens > 1 else None
    found = []
    for layer, own in enumerate(on_host):
        if min(own) == tokens:
            found.append(None)
            continue
        running = tuple(row for row, count in enumerate(own) if count)
        total, widest = sum(own), max(own)
        rows = None
        if len(running) < batch:  # Those that run first, in their order.
            rows = torch.argsort((counts[:, layer] == 0).to(torch.uint8), stable=True)[: len(running)]
        places = gates.new_zeros(batch, 1, dtype=torch.long) if order is None else order[:, layer, :widest]
        start = torch.arange(batch, device=gates.device) * tokens
        if rows is not None:
            places, start = places.index_select(0, rows), start.index_select(0, rows)
        flat, chosen = (places + start[:, None]).flatten(), None
        if len({own[row] for row in running}) > 1:
            sizes = counts[:, layer] if rows is None else counts[:, layer].index_select(0, rows)
            # The first ones of each row: token i of all that run, moved by what the rows before it are filled up with.
            filled = torch.arange(len(running), device=gates.device) * widest - (sizes.cumsum(0) - sizes)
            chosen = torch.arange(total, device=gates.device)
            chosen = chosen + filled.repeat_interleave(sizes, output_size=total)
            flat = flat.index_select(0, chosen)
        found.append(Gathering(total, None if rows is None else running, rows, places, chosen, flat))
    return found


def run_tokens(runner, hidden: torch.Tensor, layer: int, some: Gathering | None) -> torch.Tensor:
    """States [B, T, D] after a layer that some tokens run; the others keep theirs.

    Args:
        runner: a LayerRunner.
        some: from `gatherings`; None for all tokens.
    """
    step = Step(layer, 0)
    if some is None:
        return runner.run(hidden, step)
    block = runner.layers[layer]
    attention, parts = block.self_attn, LayerParts.of(block)
    place = block.post_attention_layernorm.weight.device
    hidden = hidden.to(device_of(block) if place.type == "meta" else place)
    some = _on(some, hidden.device)
    cos, sin = (t.to(hidden.device) for t in runner.rotary(layer))
    normed = parts.before_attention(hidden)
    key, value = heads(attention, "kv", normed)
    key = turned(attention, key, cos, sin)
    if runner.cache is not None:
        key, value = runner.cache.slot(step).update(key, value)
    others = runner.stand_in(hidden, layer)  # Of all tokens: an adapter is cheaper than picking those that skip.
    if not some.count:
        return others
    (query,) = heads(attention, "q", pick(normed, some))
    query = turned(attention, query, pick(cos, some), pick(sin, some))
    if some.rows is not None:
        key, value = key.index_select(0, some.rows), value.index_select(0, some.rows)
    mask = query_masks(runner.query_mask(layer, hidden, key.shape[2]), some)
    with changing_shapes(query):
        attended = attend(attention, query, key, value, mask)
    attended = attended.flatten(2).flatten(0, 1)
    attended = attended if some.chosen is None else attended.index_select(0, some.chosen)
    # From here on one row of all tokens that run: no place is filled up.
    states = hidden.flatten(0, 1)
    own = parts.with_attention(states.index_select(0, some.flat), attention.o_proj(attended))
    own = parts.with_mlp(own, block.mlp(parts.before_mlp(own)[None])[0])
    return others.flatten(0, 1).to(own.device).index_copy(0, some.flat, own).view_as(hidden)


def blend(runner, hidden: torch.Tensor, layer: int, gate: torch.Tensor) -> torch.Tensor:
    """g F(h) + (1 - g) A(h), with a gate [B] or [B, T] that may have a gradient; the layer runs for all tokens.

    A is the layer's adapter, or the identity.
    """
    ran = runner.run(hidden, Step(layer, 0))
    gate = gate.to(ran).reshape(*gate.shape, *[1] * (3 - gate.ndim))  # The layer may compute on another device.
    return gate * ran + (1 - gate) * runner.stand_in(hidden, layer).to(ran.device)


def _on(some: Gathering, device: torch.device) -> Gathering:
    """The same on the device of a layer, where a model lies on several."""
    if some.order.device == device:
        return some
    return Gathering(some.count, some.running, *(None if part is None else part.to(device) for part in some[2:]))


def pick(tensor: torch.Tensor, some: Gathering) -> torch.Tensor:
    """[b, n, D], the gathered tokens of a tensor [1 or B, T, D]."""
    if some.rows is not None and tensor.shape[0] > 1:
        tensor = tensor.index_select(0, some.rows)
    tensor = tensor.expand(len(some.order), -1, -1)
    return tensor.gather(1, some.order[..., None].expand(-1, -1, tensor.shape[2]))


def query_masks(mask: torch.Tensor | None, some: Gathering) -> torch.Tensor | None:
    """[b, 1, n, T_kv], the mask of the gathered queries, of one [1 or B, 1, T, T_kv]."""
    if mask is None:
        return None
    mask = mask.to(some.order.device)[:, 0]
    return pick(mask, some)[:, None]
