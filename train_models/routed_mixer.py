"""A block's mixer of tokens: Gated DeltaNet, softmax attention, or for each token the one of both that it takes.

Each of the two is cut into a part that writes and a part that reads:

- softmax attention writes keys and values and reads with a query, its output gate and its output projection;
- Gated DeltaNet writes its recurrent state S (the projections of q, k, v, the short convolution over them, the decay g
  and the strength beta of the delta rule) and reads with the gated norm (projection z) and its output projection. The
  product S q is on the writing side: the kernels that advance S compute it on the way.

In a routed block **all tokens write into both memories**; each token reads one. So

- a token that takes either mechanism reads what all tokens before it left, whatever these took: no choice of one
  token changes what another reads in this block, and the gradient of a gate holds the whole effect of the choice there;
- training, which computes both branches for all tokens and blends them, g0 GDN(x) + g1 softmax(x), gives with gates
  of 0 and 1 exactly what inference computes, where each token gets one branch: no gap between the two;
- the caches do not depend on the choices, so decoding by steps equals the forward of the whole.

What this saves: for tokens that take Gated DeltaNet, the query and gate projections, the attention over all tokens
before them (while decoding: reading the K/V cache, the part that grows with the context) and the output projection;
for tokens that take softmax, z, the gated norm and the output projection. Of the 10 D^2 weights of both mixers a
token uses 5 for writing and 2 or 3 for reading. What it does not save: keys and values of tokens that take Gated
DeltaNet, the delta rule of tokens that take softmax, and no memory: a routed block's K/V cache is that of a softmax
block. Letting only its own tokens write into each memory would save that too, but each memory would then lack the
others' tokens and depend on hard choices, of which the blended training has no exact counterpart.

Sources: Gated DeltaNet, Yang et al., arXiv 2412.06464; both mixers are transformers' of Qwen3-Next, Gated DeltaNet in
the form of Qwen3.5, which is the same with projections that stand apart (so z can be left out). Deviation: padding
takes no part in the convolution and the state wherever it stands; transformers takes it to be on the left.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn
from transformers.integrations.accelerate import force_accelerate_hooks
from transformers.models.qwen3_5.modeling_qwen3_5 import (
    Qwen3_5GatedDeltaNet,
    causal_conv1d_fn,
    causal_conv1d_update,
    torch_chunk_gated_delta_rule,
    torch_recurrent_gated_delta_rule,
)
from transformers.models.qwen3_next.modeling_qwen3_next import (
    ALL_ATTENTION_FUNCTIONS,
    Qwen3NextAttention,
    eager_attention_forward,
)

from .attention_shapes import changing_shapes
from .decoder_parts import rotated
from .gdn_hybrid_cache import GdnHybridCache
from .token_layers import Gathering, gatherings, pick, query_masks

QUERIES = 256  # of a row, which attend together


class Packing(NamedTuple):
    """How the rows of a padded batch [B, T] are moved to have their real tokens first, in their order.

    Attributes:
        order: [B, T], the place that each packed token comes from.
        inverse: [B, T], the place that each token goes to.
        real: [B, T], of packed tokens: is it real?
        lengths: [B], real tokens.
    """

    order: torch.LongTensor
    inverse: torch.LongTensor
    real: torch.BoolTensor
    lengths: torch.LongTensor


def packing(mask: torch.BoolTensor | None) -> Packing | None:
    """The Packing of a mask [B, T] of real tokens; None where no token is padding."""
    if mask is None or bool(mask.all()):
        return None
    order = (~mask).to(torch.uint8).argsort(dim=1, stable=True)
    return Packing(order, order.argsort(dim=1), mask.gather(1, order), mask.sum(1))


class Shared(NamedTuple):
    """What all blocks of one forward share.

    Attributes:
        rotary: (cos, sin), each [1 or B, T, D_head].
        mask: [1 or B, 1, T, T_kv], for attention; None: causal and nothing else.
        query_mask: the same for some tokens of a row alone, which need it spelled out; None for a single token that
            attends to all.
        packing: of padded rows, or None.
        cache: or None.
    """

    rotary: tuple[torch.Tensor, torch.Tensor]
    mask: torch.Tensor | None
    query_mask: torch.Tensor | None
    packing: Packing | None
    cache: GdnHybridCache | None


class Split(NamedTuple):
    """Which tokens of a routed block take which mechanism, [B, T] in all.

    Attributes:
        softmax: the Gathering of those that take softmax; None: all do.
        linear: [n], places of those that take Gated DeltaNet in [B * T].
        inverse: [B * T], for each token its place where those of Gated DeltaNet come first and the others behind.
    """

    softmax: Gathering | None
    linear: torch.LongTensor
    inverse: torch.LongTensor


def splits(mechanisms: torch.LongTensor) -> list[Split]:
    """One Split for each routed block, of mechanisms [B, T, R]."""
    found = []
    for block, some in enumerate(gatherings(mechanisms == 1)):
        order = mechanisms[..., block].flatten().argsort(stable=True)
        count = 0 if some is None else len(order) - some.count
        found.append(Split(some, order[:count], order.argsort()))
    return found


class GatedDeltaNet(Qwen3_5GatedDeltaNet):
    """Gated DeltaNet that writes and reads apart."""

    def forward(self, hidden: torch.Tensor, shared: Shared, read: bool = True) -> torch.Tensor:
        """States [B, T, D] of states [B, T, D]; or without `read` what `write` gives, for which a caller goes through
        here, since this is where accelerate brings offloaded weights (A_log, dt_bias) to the device."""
        core = self.write(hidden, shared)
        return self.read(hidden, core) if read else core

    @force_accelerate_hooks("conv1d")
    def write(self, hidden: torch.Tensor, shared: Shared) -> torch.Tensor:
        """Advance the state by the real tokens of [B, T, D]; gives S q of each token, [B, T, H, D_head]."""
        packed = shared.packing
        if packed is not None:
            hidden = hidden.gather(1, packed.order[..., None].expand_as(hidden))
        mixed = self._convolved(self.in_proj_qkv(hidden).transpose(1, 2), shared).transpose(1, 2)
        query, key, value = mixed.unflatten(2, (3, -1, self.head_k_dim)).unbind(2)
        beta = self.in_proj_b(hidden).sigmoid()
        decay = -self.A_log.float().exp() * nn.functional.softplus(self.in_proj_a(hidden).float() + self.dt_bias)
        if packed is not None:
            # A step of no decay and no strength leaves the state as it is.
            beta, decay = (torch.where(packed.real[..., None], part, 0.0) for part in (beta, decay))
        cache = shared.cache
        state = None if cache is None else cache.get_recurrent_state(self.layer_idx)
        single = state is not None and hidden.shape[1] == 1
        rule = torch_recurrent_gated_delta_rule if single else torch_chunk_gated_delta_rule
        core, state = rule(
            query,
            key,
            value,
            g=decay,
            beta=beta,
            initial_state=state,
            output_final_state=cache is not None,
            use_qk_l2norm_in_kernel=True,
        )
        if cache is not None:
            cache.update_recurrent_state(state, self.layer_idx)
        return core if packed is None else core.gather(1, packed.inverse[..., None, None].expand_as(core))

    def _convolved(self, mixed: torch.Tensor, shared: Shared) -> torch.Tensor:
        """The short convolution over q, k, v [B, 3 D, T], which goes on from the cached state."""
        cache, packed, tokens, taps = shared.cache, shared.packing, mixed.shape[2], self.conv_kernel_size
        weights = self.conv1d.weight.squeeze(1), self.conv1d.bias
        past = None if cache is None else cache.get_conv_state(self.layer_idx)
        if past is not None and tokens == 1 and packed is None:
            return causal_conv1d_update(mixed, past, *weights, self.activation)
        if cache is not None:
            mixed = cache.update_conv_state(mixed, self.layer_idx, conv_kernel_size=taps)
            if packed is not None:
                # Rows end at different places: each keeps the last inputs of its own.
                last = mixed.shape[2] - tokens + packed.lengths[:, None] + torch.arange(taps, device=mixed.device)
                window = nn.functional.pad(mixed, (taps, 0)).gather(2, last[:, None].expand(-1, mixed.shape[1], -1))
                cache.get_conv_state(self.layer_idx).copy_(window)
        return causal_conv1d_fn(mixed, *weights, activation=self.activation)[:, :, -tokens:]

    def read(self, hidden: torch.Tensor, core: torch.Tensor) -> torch.Tensor:
        """States [..., D] of tokens with states [..., D] and S q [..., H, D_head]."""
        gate = self.in_proj_z(hidden).view(-1, self.head_v_dim)
        normed = self.norm(core.reshape(-1, self.head_v_dim), gate)
        return self.out_proj(normed.view(*hidden.shape[:-1], -1))


class SoftmaxAttention(Qwen3NextAttention):
    """Qwen3-Next's gated softmax attention that can also write for all tokens and read for some."""

    def write(self, hidden: torch.Tensor, shared: Shared) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values [B, H, T_kv, D_head] of the tokens [B, T, D] and those that the cache holds."""
        key = self.k_norm(self.k_proj(hidden).unflatten(-1, (-1, self.head_dim))).transpose(1, 2)
        value = self.v_proj(hidden).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
        key = rotated(key, *shared.rotary)
        return (key, value) if shared.cache is None else shared.cache.update(key, value, self.layer_idx)

    def read(self, hidden: torch.Tensor, key, value, shared: Shared, some: Gathering) -> torch.Tensor:
        """States [count, D] of the tokens of [B, T, D] that a Gathering picks, which attend to keys and values."""
        query, gate = self.q_proj(pick(hidden, some)).unflatten(-1, (-1, 2 * self.head_dim)).chunk(2, dim=-1)
        cos, sin = (pick(part, some) for part in shared.rotary)
        query = rotated(self.q_norm(query).transpose(1, 2), cos, sin)
        mask = query_masks(shared.query_mask, some)
        columns = some.order + key.shape[2] - hidden.shape[1]
        if some.rows is None:
            attended = self._attended(query, key, value, mask, columns)
        else:
            # Mostly while decoding. Row by row, since keys and values of some rows together would have to be copied.
            masks = [None] * len(query) if mask is None else mask.split(1)
            rows = zip(some.running, query.split(1), masks, columns.split(1), strict=True)
            parts = [self._attended(own, key[at][None], value[at][None], *others) for at, own, *others in rows]
            attended = torch.cat(parts)
        attended = (attended.flatten(2) * gate.flatten(2).sigmoid()).flatten(0, 1)
        return self.o_proj(attended if some.chosen is None else attended.index_select(0, some.chosen))

    def _attended(self, query, key, value, mask, columns: torch.LongTensor) -> torch.Tensor:
        """[b, n, H, D_head] of queries [b, H, n, D_head] under a mask [b, 1, n, T_kv].

        Args:
            columns: [b, n], of the keys of the queries' own tokens.
        """
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        dropout = self.attention_dropout if self.training else 0.0
        parts = [(query, key, value, mask)]
        if query.shape[2] > QUERIES:
            # Causal attention over the whole leaves out the keys behind each token; so do some queries at a time.
            ends = torch.stack([part.amax() for part in columns.split(QUERIES, 1)]) + 1
            parts = [
                (own, key[:, :, :end], value[:, :, :end], own_mask[..., :end])
                for own, own_mask, end in zip(query.split(QUERIES, 2), mask.split(QUERIES, 2), ends.tolist())
            ]
        with changing_shapes(query):
            return torch.cat([attend(self, *part, dropout=dropout, scaling=self.scaling)[0] for part in parts], 1)

    def whole(self, hidden: torch.Tensor, shared: Shared) -> torch.Tensor:
        """States [B, T, D] where all tokens write and read: the stock forward."""
        arguments = {"attention_mask": shared.mask, "past_key_values": shared.cache}
        return self(hidden, position_embeddings=shared.rotary, **arguments)[0]


def blend(linear: GatedDeltaNet, softmax: SoftmaxAttention, hidden, shared: Shared, gates) -> torch.Tensor:
    """g0 GDN(x) + g1 softmax(x) of states x [B, T, D], with gates [B, T, 2] that may have gradients."""
    gates = gates.to(hidden.dtype)
    return gates[..., :1] * linear(hidden, shared) + gates[..., 1:] * softmax.whole(hidden, shared)


def mix_split(linear: GatedDeltaNet, softmax: SoftmaxAttention, hidden, shared: Shared, split: Split) -> torch.Tensor:
    """States [B, T, D] where each token reads the one memory that a Split says.

    A memory that nobody reads, now or later, is not written.
    """
    flat = hidden.flatten(0, 1)
    count = len(split.linear)
    core = linear(hidden, shared, read=False) if count or shared.cache is not None else None
    if split.softmax is None:
        return softmax.whole(hidden, shared)
    reads_softmax = count < len(flat)
    memory = softmax.write(hidden, shared) if reads_softmax or shared.cache is not None else None
    if not reads_softmax:
        return linear.read(hidden, core)
    read = softmax.read(hidden, *memory, shared, split.softmax)
    if count:
        own = linear.read(flat.index_select(0, split.linear), core.flatten(0, 1).index_select(0, split.linear))
        read = torch.cat([own, read])
    return read.index_select(0, split.inverse).view_as(hidden)
