"""Cache of the hybrid model: keys and values of softmax mixers, convolution and recurrent states of Gated DeltaNets.

Its layers extend transformers' own; a routed block has one that holds all of these. transformers' DynamicCache lacks
what is added here: a length where no block has keys, operations on the rows of recurrent states, and room to grow. It
copies all keys and values for each new token, which would make a token that attends to nothing pay for the context.
Keys and states are written in place, so no gradient goes through a cache; a forward that would need one is refused.
"""

from __future__ import annotations

import torch
from torch import nn
from transformers import PreTrainedConfig
from transformers.cache_utils import DynamicCache, DynamicLayer, LinearAttentionAndFullAttentionLayer

ROOM = 256  # tokens, and at least a quarter of what is there


class RoomToGrow:
    """Mixin over a layer with keys and values [B, H, T, D_head]: new ones are written behind them, in place.

    Attributes:
        rooms: tensors whose first T columns are the keys and the values; none before the second update.
    """

    rooms: tuple[torch.Tensor, ...] = ()

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args, **kwargs):
        """Keys and values of all tokens, [B, H, T, D_head] each."""
        length = self.get_seq_length()
        if not length:
            return super().update(key_states, value_states, *args, **kwargs)
        total = length + key_states.shape[2]
        if not self._has_room(total):
            more = max(ROOM, total // 4) + total - length
            self.rooms = tuple(nn.functional.pad(old, (0, 0, 0, more)) for old in (self.keys, self.values))
        for room, new in zip(self.rooms, (key_states, value_states), strict=True):
            room[:, :, length:total] = new
        self.keys, self.values = (room[:, :, :total] for room in self.rooms)
        return self.keys, self.values

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        super().reorder_cache(beam_idx)
        self.rooms = ()  # Keys and values no longer lie there.

    def _has_room(self, tokens: int) -> bool:
        """Whether keys and values lie in the rooms, which are long enough."""
        if not self.rooms or self.rooms[0].shape[2] < tokens:
            return False
        return all(old.data_ptr() == room.data_ptr() for old, room in zip((self.keys, self.values), self.rooms))


class SoftmaxLayer(RoomToGrow, DynamicLayer):
    """What a softmax block stores."""


class RoutedLayer(RoomToGrow, LinearAttentionAndFullAttentionLayer):
    """What a routed block stores."""


OWN_LAYERS = {DynamicLayer: SoftmaxLayer, LinearAttentionAndFullAttentionLayer: RoutedLayer}


class GdnHybridCache(DynamicCache):
    """What all tokens that were seen have left, for B rows.

    Per row: K and V `[H, T, D_head]` of each softmax or routed block, growing by one column for each token; in each
    gdn or routed block a convolution state `[3 D, taps]` and a recurrent state `[H, D_head, D_head]` in fp32, which do
    not grow. A padding token has a column, which the attention mask hides, and leaves no trace in the states.

    Attributes:
        seen_tokens: T, padding included.
        row_count: B; None before the first forward.
    """

    is_compileable = False  # Which parts of a routed block run, and on which tokens, changes from step to step.

    def __init__(self, config: PreTrainedConfig):
        super().__init__(config=config)
        self.layers = [OWN_LAYERS[type(layer)]() if type(layer) in OWN_LAYERS else layer for layer in self.layers]
        self.seen_tokens = 0
        self.row_count: int | None = None

    def advance(self, rows: int, tokens: int) -> None:
        """Count the tokens of a finished forward."""
        self.row_count = rows
        self.seen_tokens += tokens

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.seen_tokens

    def memory_bytes(self) -> int:
        """Bytes of all that is stored, room to grow included."""
        return sum(tensor.nbytes for layer in self.layers for tensor in _tensors(layer))

    def reset(self) -> None:
        """Forget all, the number of rows too."""
        self.layers = [type(layer)() for layer in self.layers]
        self.seen_tokens, self.row_count = 0, None

    def crop(self, tokens_to_remove: int) -> None:
        """Refused: a recurrent state does not remember what it was."""
        raise ValueError(
            "the states of a Gated DeltaNet cannot go back by some tokens. Keep a copy (copy.deepcopy) of the cache "
            "to come back to."
        )

    @property
    def batch_size(self) -> int:
        return -1 if self.row_count is None else self.row_count

    # Batch operations are all one: new row i continues old row index[i].

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        super().reorder_cache(beam_idx)
        self.row_count = len(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        if self.row_count is not None:
            self.reorder_cache(torch.arange(self.row_count).repeat_interleave(repeats))

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        if self.row_count is not None:
            self.reorder_cache(torch.arange(self.row_count)[indices.cpu()])


def _tensors(layer) -> list[torch.Tensor]:
    states = [*getattr(layer, "conv_states", {}).values(), *getattr(layer, "recurrent_states", {}).values()]
    columns = getattr(layer, "rooms", ()) or (getattr(layer, "keys", None), getattr(layer, "values", None))
    return [tensor for tensor in (*columns, *states) if tensor is not None]


def checked_cache(cache, config: PreTrainedConfig, rows: int, use_cache: bool) -> GdnHybridCache | None:
    """The cache a forward shall use: the one given, a new one, or none.

    Raises:
        TypeError: for any cache that is no GdnHybridCache, by its name.
        ValueError: for a cache of another number of rows.
    """
    if cache is None:
        return GdnHybridCache(config) if use_cache else None
    if not isinstance(cache, GdnHybridCache):
        raise TypeError(
            f"past_key_values is a {type(cache).__name__}, which does not hold all that this model stores. Leave "
            "past_key_values out, or pass a GdnHybridCache, such as the one that an earlier forward returned."
        )
    if cache.row_count not in (None, rows):
        raise ValueError(
            f"the cache holds {cache.row_count} rows, the input has {rows}. Give as many rows, or select or repeat "
            "those of the cache first (batch_select_indices, batch_repeat_interleave)."
        )
    return cache
