"""Where decoders of different families differ: scale of the embeddings, rotary embeddings, and the parts of a layer."""

from __future__ import annotations

import sys
from typing import NamedTuple

import torch
from torch import nn
from transformers.models.llama.modeling_llama import ALL_ATTENTION_FUNCTIONS, rotate_half

# What stands in front of and behind attention and MLP, by the names of a layer's norms.
_NORMS = {
    # Llama, Mistral, Qwen, SmolLM3, Granite, Phi-3, OLMoE.
    ("input_layernorm", "post_attention_layernorm"): ("input_layernorm", None, "post_attention_layernorm", None),
    # OLMo 2 and 3: behind both.
    ("post_attention_layernorm", "post_feedforward_layernorm"): (
        None, "post_attention_layernorm", None, "post_feedforward_layernorm",
    ),
    # Gemma 2 and 3: on both sides of both.
    ("input_layernorm", "post_attention_layernorm", "post_feedforward_layernorm", "pre_feedforward_layernorm"): (
        "input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm",
    ),
}  # fmt: skip


def scaled(decoder: nn.Module, embeddings: torch.Tensor) -> torch.Tensor:
    """What enters the first layer of a decoder, [B, T, D], of what its `embed_tokens` gives: Granite multiplies it.

    Gemma's `embed_tokens` multiplies by itself.
    """
    factor = getattr(decoder, "embedding_multiplier", None)
    return embeddings if factor is None else embeddings * factor


def embedding_scale(decoder: nn.Module) -> float:
    """What rows of the embedding table are multiplied by before the first layer gets them, in the table's dtype."""
    table = decoder.embed_tokens
    factor = getattr(table, "embed_scale", getattr(decoder, "embedding_multiplier", 1.0))
    return float(torch.as_tensor(factor).to(table.weight.dtype))


def rotary_embeddings(decoder: nn.Module, hidden: torch.Tensor, position_ids: torch.LongTensor):
    """(cos, sin) of positions, each [1 or B, T, D_head]; where layers of each type have their own, a dict of these."""
    kinds = getattr(decoder.rotary_emb, "layer_types", None)
    if kinds is None:
        return decoder.rotary_emb(hidden, position_ids)
    return {kind: decoder.rotary_emb(hidden, position_ids, kind) for kind in kinds}


def of_type(found, layer_types, layer: int):
    """What a layer has of its own type, where there is a dict by type; else what all layers share."""
    return found[layer_types[layer]] if isinstance(found, dict) else found


class LayerParts(NamedTuple):
    """A decoder layer taken apart: h + s n2(attention(n1(h))), then h + s n4(mlp(n3(h))); a norm may be None.

    Attributes:
        norms: n1 to n4.
        multiplier: s, other than 1 in Granite.
    """

    norms: tuple[nn.Module | None, ...]
    multiplier: float

    @classmethod
    def of(cls, layer: nn.Module) -> LayerParts:
        """The parts of a layer.

        Raises:
            ValueError: for a layer of unknown build.
        """
        own = tuple(sorted(name for name, _ in layer.named_children() if name.endswith("layernorm")))
        if own not in _NORMS:
            raise ValueError(
                f"a {type(layer).__name__} cannot be taken apart: its norms are {', '.join(own) or 'none'}. Say in "
                "decoder_parts.py where they stand (docs/add_a_family.md)."
            )
        norms = tuple(None if name is None else getattr(layer, name) for name in _NORMS[own])
        return cls(norms, getattr(layer, "residual_multiplier", 1.0))

    @property
    def is_plain(self) -> bool:
        """Whether attention and MLP are added to the state as they are."""
        return self.norms[1] is self.norms[3] is None and self.multiplier == 1

    def before_attention(self, hidden: torch.Tensor) -> torch.Tensor:
        return _normed(self.norms[0], hidden)

    def with_attention(self, hidden: torch.Tensor, attended: torch.Tensor) -> torch.Tensor:
        return self._added(hidden, _normed(self.norms[1], attended))

    def before_mlp(self, hidden: torch.Tensor) -> torch.Tensor:
        return _normed(self.norms[2], hidden)

    def with_mlp(self, hidden: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        return self._added(hidden, _normed(self.norms[3], output))

    def _added(self, hidden: torch.Tensor, change: torch.Tensor) -> torch.Tensor:
        return hidden + (change if self.multiplier == 1 else change * self.multiplier)


def _normed(norm: nn.Module | None, states: torch.Tensor) -> torch.Tensor:
    return states if norm is None else norm(states)


def heads(attention: nn.Module, names: str, states: torch.Tensor) -> list[torch.Tensor]:
    """Some of queries (q), keys (k) and values (v) by head, [B, H, T, D_head] each, of normed states [B, T, D].

    Phi's one map makes all three, whichever are asked for.
    """
    fused = getattr(attention, "qkv_proj", None)
    if fused is None:
        parts = {name: getattr(attention, f"{name}_proj")(states) for name in names}
    else:
        config, size = attention.config, attention.head_dim
        sizes = (
            config.num_attention_heads * size,
            config.num_key_value_heads * size,
            config.num_key_value_heads * size,
        )
        parts = dict(zip("qkv", fused(states).split(sizes, dim=-1), strict=True))
    return [_by_head(attention, name, parts[name]) for name in names]


def _by_head(attention: nn.Module, name: str, states: torch.Tensor) -> torch.Tensor:
    norm = getattr(attention, f"{name}_norm", None)
    # OLMo's norm is one of all heads together, that of Qwen3 and Gemma 3 one of each head.
    whole = norm is not None and norm.weight.shape[0] != attention.head_dim
    states = norm(states) if whole else states
    clip = getattr(attention.config, "clip_qkv", None)  # OLMoE
    states = states if clip is None else states.clamp(-clip, clip)
    split = states.unflatten(-1, (-1, attention.head_dim))
    return (split if norm is None or whole else norm(split)).transpose(1, 2)


def turned(attention: nn.Module, split: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Heads with their rotary embedding, which some layers of SmolLM3 have not."""
    return rotated(split, cos, sin) if getattr(attention, "use_rope", True) else split


def rotated(split: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Heads [B, H, T, D_head] turned by (cos, sin) [B, T, R], in their dtype: the first R numbers, which are all but in
    Phi."""
    size = cos.shape[-1]
    first = split[..., :size]
    first = (first * cos[:, None] + rotate_half(first) * sin[:, None]).to(split.dtype)
    return first if size == split.shape[-1] else torch.cat([first, split[..., size:]], dim=-1)


def attend(attention: nn.Module, query, key, value, mask) -> torch.Tensor:
    """[B, T, H, D_head], as a layer's own attention module attends; its softcap too, where it has one (Gemma 2)."""
    # Eager attention is the family's own: that of Llama knows no softcap.
    eager = sys.modules[type(attention).__module__].eager_attention_forward
    function = ALL_ATTENTION_FUNCTIONS.get_interface(attention.config._attn_implementation, eager)
    # Gemma 3 has the field too, and does not use it.
    capped = type(attention).__name__ == "Gemma2Attention"
    return function(
        attention,
        query,
        key,
        value,
        mask,
        dropout=attention.attention_dropout if attention.training else 0.0,
        scaling=attention.scaling,
        sliding_window=getattr(attention, "sliding_window", None),
        **({"softcap": attention.attn_logit_softcapping} if capped else {}),
    )[0]
