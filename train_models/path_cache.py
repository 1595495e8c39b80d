"""Key/value cache for models that skip and repeat layers: one slot for each (layer, visit).

The stock `DynamicCache` has one slot per layer. Given a repeated layer it appends the keys of the second
visit behind those of the first, which silently corrupts attention; given a skipped layer 0 it reports a
sequence length of zero. Here each visit of a layer owns its slot, and the cache itself counts tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers import PreTrainedConfig
from transformers.cache_utils import (
    Cache,
    DynamicLayer,
    DynamicSlidingWindowLayer,
    get_layer_types_and_kwargs,
)

SLOT_CLASSES = {"full_attention": DynamicLayer, "sliding_attention": DynamicSlidingWindowLayer}


@dataclass(frozen=True)
class Step:
    """One execution of one layer.

    Attributes:
        layer: index of the layer, 0 <= layer < L.
        visit: how often this layer was already run for the same rows (0 for the first time).
        rows: sorted batch rows that take part, or None for all of them.
    """

    layer: int
    visit: int
    rows: tuple[int, ...] | None = None


class PathCache(Cache):
    """K/V of the steps that were really executed, for rows of a batch that may each have their own path.

    A slot holds tensors `[n, H_kv, T, D_head]`, where n is the number of rows of its step: rows that skip
    a layer store nothing for it. The steps are fixed by the first forward (the prefill) and replayed by all
    later ones. `routes` ([B, L] counts) is set by models that choose a route per row. `row_indices` keeps the rows of
    steps as tensors. Models that choose a route per token store the K/V of all tokens in every layer; `executed`
    ([B, L + 1]) counts the tokens that ran each layer, and all tokens in its last column.

    Args:
        config: configuration of the model, read for `layer_types` and `sliding_window`.

    Raises:
        ValueError: if the model has layers that are neither full nor sliding-window attention.
    """

    def __init__(self, config: PreTrainedConfig):
        super().__init__(layers=[])
        layer_types, slot_arguments = get_layer_types_and_kwargs(config.get_text_config(decoder=True))
        if unknown := sorted(set(layer_types) - set(SLOT_CLASSES)):
            raise ValueError(
                f"layers of type {', '.join(unknown)} cannot be routed; allowed are {', '.join(SLOT_CLASSES)}."
            )
        self._layer_types, self._slot_arguments = layer_types, slot_arguments
        self._records_past = False
        self._clear()

    def _clear(self) -> None:
        self.slots: dict[Step, DynamicLayer] = {}
        self.routes: torch.LongTensor | None = None
        self.plans: list | None = None
        self.executed: torch.LongTensor | None = None
        self.row_indices: dict[tuple, torch.LongTensor] = {}
        self.row_count: int | None = None
        self.seen_tokens = 0

    @property
    def layers(self) -> list[DynamicLayer]:
        """The filled slots in order of execution; what the methods inherited from `Cache` loop over."""
        return list(self.slots.values())

    @layers.setter
    def layers(self, _):
        """`Cache.__init__` assigns this; slots are made by `open_slot` alone."""

    @property
    def steps(self) -> list[Step]:
        """The program that the prefill executed, in order."""
        return list(self.slots)

    @property
    def is_empty(self) -> bool:
        return self.seen_tokens == 0

    def start(self, row_count: int) -> None:
        """Forget what was stored (after a crop to nothing, say) and get ready for a prefill of B rows."""
        self._clear()
        self.row_count = row_count

    def slot(self, step: Step) -> DynamicLayer:
        """The slot of a step; made empty if the step is new."""
        if step not in self.slots:
            slot = SLOT_CLASSES[self._layer_types[step.layer]](**self._slot_arguments[step.layer])
            if self._records_past and hasattr(slot, "activate_past_recording"):
                slot.activate_past_recording()
            self.slots[step] = slot
        return self.slots[step]

    def advance(self, tokens: int) -> None:
        """Count the tokens of a finished forward. Layers do not count: any of them may be skipped."""
        self.seen_tokens += tokens

    def memory_bytes(self) -> int:
        """Bytes of all stored keys and values."""
        return sum(t.nbytes for slot in self.layers if slot.is_initialized for t in (slot.keys, slot.values))

    # What mask preparation and generate() ask for.

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.seen_tokens

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        """(kv_length, kv_offset) that attention sees in layers of the type of `layer_idx`."""
        window = self._slot_arguments[layer_idx].get("sliding_window")
        if window is None:
            return self.seen_tokens + query_length, 0
        return min(self.seen_tokens, window - 1) + query_length, max(self.seen_tokens - window + 1, 0)

    def get_max_length(self, layer_idx: int | None = None) -> int:
        return -1

    @property
    def is_sliding(self) -> list[bool]:
        return [kind == "sliding_attention" for kind in self._layer_types]

    @property
    def is_linear(self) -> list[bool]:
        return [False] * len(self._layer_types)

    is_dummy = is_linear

    @property
    def batch_size(self) -> int:
        return -1 if self.row_count is None else self.row_count

    def update(self, key_states, value_states, layer_idx, *args, **kwargs):
        raise TypeError(
            "PathCache is filled through its slots, one for each visit of a layer; it serves the models of "
            "train_models and data_models, and no stock transformers model."
        )

    def activate_past_recording(self) -> None:
        self._records_past = True
        super().activate_past_recording()

    def reset(self) -> None:
        self._clear()

    def crop(self, tokens_to_remove: int) -> None:
        """Remove the last `-tokens_to_remove` tokens (a number <= 0, as in transformers)."""
        if tokens_to_remove > 0:
            raise ValueError(f"crop takes minus the number of tokens to remove, got {tokens_to_remove}.")
        for slot in self.layers:
            if slot.is_sliding and not slot.record_past and slot.get_seq_length() >= slot.sliding_window:
                raise RuntimeError("crop beyond a sliding window needs activate_past_recording before the prefill.")
        super().crop(tokens_to_remove)
        self.seen_tokens = max(self.seen_tokens + tokens_to_remove, 0)

    # Batch operations are all one: new row i continues old row index[i].

    def _select_rows(self, index: torch.Tensor) -> None:
        if all(step.rows is None for step in self.slots):
            # One route for all rows, and the host need not know which row goes where.
            for slot in self.layers:
                if slot.is_initialized:
                    slot.reorder_cache(index)
            self.row_count = len(index)
            if self.routes is not None:
                self.routes = self.routes[:1].expand(len(index), -1).contiguous()
            if self.executed is not None:
                self.executed = self.executed.index_select(0, index.to(self.executed.device))
            return
        index = index.tolist()
        old_slots, self.slots, self.row_indices = self.slots, {}, {}
        for step, slot in old_slots.items():
            old_rows = range(self.row_count) if step.rows is None else step.rows
            position = {row: at for at, row in enumerate(old_rows)}
            rows = tuple(new for new, old in enumerate(index) if old in position)
            if not rows:
                continue
            if slot.is_initialized:
                slot.reorder_cache(torch.tensor([position[index[row]] for row in rows]))
            kept = None if len(rows) == len(index) else rows
            self.slots[Step(step.layer, step.visit, kept)] = slot
        if self.routes is not None:
            self.routes = self.routes[index]
        self.plans = None
        self.row_count = len(index)

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        self._select_rows(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        if self.row_count is None:
            return
        self._select_rows(torch.arange(self.row_count).repeat_interleave(repeats))

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        if self.row_count is None:
            return
        self._select_rows(torch.arange(self.row_count)[indices.cpu()])


def checked_cache(cache, config: PreTrainedConfig, use_cache: bool) -> PathCache | None:
    """The cache a forward shall use: the one given, a new one, or none.

    Raises:
        TypeError: for any cache that is no `PathCache`, by its name.
    """
    if cache is None:
        return PathCache(config) if use_cache else None
    if not isinstance(cache, PathCache):
        raise TypeError(
            f"past_key_values is a {type(cache).__name__}, which has one slot per layer and would mix up the "
            "visits of a repeated layer. Leave past_key_values out, or pass a PathCache, such as the one "
            "that an earlier forward or generate() of this model returned."
        )
    return cache
