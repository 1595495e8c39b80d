"""A small hybrid language model whose routed blocks choose, for each token, Gated DeltaNet or softmax attention.

See `routed_mixer.py` for what the tokens of a routed block leave to the others and what is saved. One linear map on
the output of block 0 decides for all routed blocks at once. The rest is Qwen3-Next's (transformers) in a dense form:
zero-centred RMSNorm before mixer and MLP, SwiGLU, gated softmax attention with norms of queries and keys.

Deviations from Qwen3-Next: both mixers have equal width; no experts; rotary positions on all of a head's dimensions;
dt_bias is drawn as Gated DeltaNet's authors do (as Mamba-2: the inverse softplus of a time step of log-uniform size
between 0.001 and 0.1), where transformers, which expects pretrained weights, sets it to one: a state would then
forget nearly all with each token.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from transformers import GenerationMixin
from transformers import initialization as init
from transformers.masking_utils import create_causal_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.modeling_utils import slice_logits_to_keep
from transformers.models.qwen3_next.modeling_qwen3_next import (
    Qwen3NextMLP,
    Qwen3NextPreTrainedModel,
    Qwen3NextRMSNorm,
    Qwen3NextRotaryEmbedding,
)
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .configuration_gdn_hybrid import GdnHybridConfig
from .gdn_hybrid_cache import GdnHybridCache, checked_cache
from .global_routers import random_gates
from .routed_mixer import GatedDeltaNet, Shared, SoftmaxAttention, Split, blend, mix_split, packing, splits

TIME_STEPS = (0.001, 0.1)


@dataclass
class GdnHybridOutput(BaseModelOutputWithPast):
    """Plus `router_logits` and `mechanisms`, see `GdnHybridCausalLMOutput`."""

    router_logits: torch.Tensor | None = None
    mechanisms: torch.LongTensor | None = None


@dataclass
class GdnHybridCausalLMOutput(CausalLMOutputWithPast):
    """`CausalLMOutputWithPast`, whose `loss` is the language model's alone, plus what routed blocks did.

    Attributes:
        router_logits: [B, T, R, 2] in fp32, without noise; None for a random router and without routed blocks.
        mechanisms: [B, T, R], what each token took: 0 Gated DeltaNet, 1 softmax; None without routed blocks.
    """

    router_logits: torch.Tensor | None = None
    mechanisms: torch.LongTensor | None = None


class HybridBlock(GradientCheckpointingLayer):
    """Mixer and MLP, each with its norm before and a residual connection."""

    def __init__(self, config: GdnHybridConfig, layer_idx: int):
        super().__init__()
        kind = config.pattern[layer_idx]
        self.linear_attn = None if kind == "softmax" else GatedDeltaNet(config, layer_idx)
        self.self_attn = None if kind == "gdn" else SoftmaxAttention(config, layer_idx)
        self.mlp = Qwen3NextMLP(config)
        self.input_layernorm = Qwen3NextRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.post_attention_layernorm = Qwen3NextRMSNorm(config.hidden_size, eps=config.rms_norm_eps)

    def forward(self, hidden: torch.Tensor, shared: Shared, choice: torch.Tensor | Split | None = None):
        """States [B, T, D] of states [B, T, D].

        Args:
            choice: of a routed block, gates [B, T, 2] to blend with, or a Split.
        """
        hidden = hidden + self._mix(self.input_layernorm(hidden), shared, choice)
        return hidden + self.mlp(self.post_attention_layernorm(hidden))

    def _mix(self, hidden: torch.Tensor, shared: Shared, choice) -> torch.Tensor:
        if self.self_attn is None:
            return self.linear_attn(hidden, shared)
        if self.linear_attn is None:
            return self.self_attn.whole(hidden, shared)
        mix = mix_split if isinstance(choice, Split) else blend
        return mix(self.linear_attn, self.self_attn, hidden, shared, choice)


class GdnHybridPreTrainedModel(Qwen3NextPreTrainedModel):
    """How the weights are drawn, and what transformers may do with the model."""

    config: GdnHybridConfig
    config_class = GdnHybridConfig
    _no_split_modules = ["HybridBlock"]
    _supports_flash_attn = False  # Routed blocks need a mask for each query.
    _supports_flex_attn = False
    _can_compile_fullgraph = False
    _can_record_outputs = {"hidden_states": HybridBlock}
    _keys_to_ignore_on_load_unexpected = None

    @torch.no_grad()
    def _init_weights(self, module):
        super()._init_weights(module)
        if isinstance(module, GatedDeltaNet):
            # Lower bound as in transformers: a head with A = 0 would never forget.
            init.copy_(module.A_log, torch.empty_like(module.A_log).uniform_(0.01, 16).log_())
            step = torch.empty_like(module.dt_bias).uniform_(*map(math.log, TIME_STEPS)).exp_()
            init.copy_(module.dt_bias, step + torch.log(-torch.expm1(-step)))


class GdnHybridModel(GdnHybridPreTrainedModel):
    """The decoder."""

    def __init__(self, config: GdnHybridConfig):
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, config.pad_token_id)
        self.layers = nn.ModuleList(HybridBlock(config, index) for index in range(config.num_hidden_layers))
        self.norm = Qwen3NextRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.rotary_emb = Qwen3NextRotaryEmbedding(config)
        routed = len(config.routed_blocks)
        self.router = nn.Linear(config.hidden_size, 2 * routed) if routed and config.router == "learned" else None
        self.gradient_checkpointing = False
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: GdnHybridCache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        use_cache: bool | None = None,
        draw_mechanisms: Callable[[torch.Tensor], torch.Tensor] | None = None,
        **kwargs,
    ) -> GdnHybridOutput:
        """Last states [B, T, D] and what routed blocks did.

        Without `draw_mechanisms` each token takes the mechanism of the larger logit, and the branches run on their
        own tokens alone; the router gets no gradient then. While training no cache is made.

        Args:
            attention_mask: [B, T_kv], tokens that are no padding, those in the cache included.
            position_ids: [1 or B, T]; default: each row's real tokens, counted.
            draw_mechanisms: for training, maps router logits [B, T, R, 2] to gates of that shape; both branches run
                on all tokens and are blended. Not called where there are no router logits.

        Raises:
            TypeError, ValueError: for wrong inputs or caches.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give exactly one of input_ids and inputs_embeds.")
        if kwargs.get("output_attentions", self.config.output_attentions):
            raise ValueError("output_attentions is not available: Gated DeltaNet has no attention. Leave it out.")
        hidden = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        rows, tokens = hidden.shape[:2]
        cache = checked_cache(past_key_values, self.config, rows, use_cache and not self.training)
        seen = 0 if cache is None else cache.seen_tokens
        if seen and torch.is_grad_enabled() and any(parameter.requires_grad for parameter in self.parameters()):
            raise ValueError(
                "gradients cannot go through a cache, which is written in place. Compute under torch.no_grad(), or "
                "leave past_key_values out."
            )
        if attention_mask is not None and attention_mask.shape != (rows, seen + tokens):
            raise ValueError(
                f"attention_mask must be of shape {(rows, seen + tokens)}, rows and tokens with those cached, got "
                f"{tuple(attention_mask.shape)}."
            )
        if position_ids is None:
            position_ids = self._positions(attention_mask, seen, hidden)
        shared = self._shared(hidden, attention_mask, position_ids, cache)
        logits = mechanisms = choices = None
        for index, block in enumerate(self.layers):
            routed = self.config.pattern[index] == "routed"
            hidden = block(hidden, shared, choices.pop(0)) if routed else block(hidden, shared)
            if index == 0 and self.config.routed_blocks:
                logits, mechanisms, choices = self._decide(hidden, input_ids, position_ids, draw_mechanisms)
        if cache is not None:
            cache.advance(rows, tokens)
        return GdnHybridOutput(
            last_hidden_state=self.norm(hidden),
            past_key_values=cache,
            router_logits=logits,
            mechanisms=mechanisms,
        )

    def _positions(self, attention_mask, seen: int, hidden: torch.Tensor) -> torch.LongTensor:
        """[1 or B, T], places of the tokens among the real ones of their rows."""
        tokens = hidden.shape[1]
        if attention_mask is None:
            return torch.arange(seen, seen + tokens, device=hidden.device)[None]
        return (attention_mask.long().cumsum(1) - 1).clamp(min=0)[:, -tokens:].to(hidden.device)

    def _shared(self, hidden: torch.Tensor, attention_mask, position_ids, cache) -> Shared:
        tokens, kinds = hidden.shape[1], set(self.config.pattern)
        mask = query_mask = packed = None
        if kinds != {"gdn"}:
            # Without positions: transformers would look there for several texts in one row, which states cannot part.
            mask = query_mask = create_causal_mask(self.config, hidden, attention_mask, cache)
        if mask is None and tokens > 1 and "routed" in kinds:
            # transformers leaves the mask out where attention is causal and nothing else.
            query_mask = torch.ones(tokens, tokens, dtype=torch.bool, device=hidden.device).tril()[None, None]
        if kinds != {"softmax"} and attention_mask is not None:
            packed = packing(attention_mask[:, -tokens:].bool().to(hidden.device))
        return Shared(self.rotary_emb(hidden, position_ids), mask, query_mask, packed, cache)

    def _decide(self, hidden: torch.Tensor, input_ids, position_ids, draw_mechanisms):
        """(router logits, mechanisms [B, T, R], what each routed block is given), from the output of block 0."""
        config = self.config
        routed = len(config.routed_blocks)
        if self.router is None:
            share = torch.tensor(config.random_share, dtype=torch.double, device=hidden.device)
            chance = routed, share, config.random_seed
            mechanisms = random_gates(input_ids, position_ids, tuple(hidden.shape[:2]), *chance).long()
            return None, mechanisms, splits(mechanisms)
        logits = self.router(hidden).float().unflatten(-1, (routed, 2))
        if draw_mechanisms is None:
            mechanisms = logits.argmax(-1)
            return logits, mechanisms, splits(mechanisms)
        gates = draw_mechanisms(logits)
        if gates.shape != logits.shape or not gates.is_floating_point():
            raise ValueError(
                f"draw_mechanisms must give floating-point gates of shape {tuple(logits.shape)}, got {gates.dtype} "
                f"{tuple(gates.shape)}."
            )
        return logits, gates.detach().argmax(-1), list(gates.unbind(2))


class GdnHybridForCausalLM(GdnHybridPreTrainedModel, GenerationMixin):
    """The language model."""

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}

    def __init__(self, config: GdnHybridConfig):
        super().__init__(config)
        self.model = GdnHybridModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: GdnHybridCache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        labels: torch.LongTensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        draw_mechanisms: Callable[[torch.Tensor], torch.Tensor] | None = None,
        **kwargs,
    ) -> GdnHybridCausalLMOutput:
        """Logits and loss; `draw_mechanisms` as in `GdnHybridModel.forward`, the others as in transformers."""
        output = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            draw_mechanisms=draw_mechanisms,
            **kwargs,
        )
        logits = self.lm_head(slice_logits_to_keep(output.last_hidden_state, logits_to_keep))
        loss = None if labels is None else self.loss_function(logits, labels, self.vocab_size, **kwargs)
        return GdnHybridCausalLMOutput(
            loss=loss,
            logits=logits,
            past_key_values=output.past_key_values,
            hidden_states=output.hidden_states,
            router_logits=output.router_logits,
            mechanisms=output.mechanisms,
        )

    def _prepare_cache_for_generation(self, generation_config, model_kwargs, *args, **kwargs):
        if generation_config.cache_implementation not in (None, "dynamic"):
            raise ValueError(
                f"cache_implementation={generation_config.cache_implementation!r}: such a cache does not hold all that "
                "this model stores. Leave cache_implementation out."
            )
        if model_kwargs.get("past_key_values") is None and generation_config.use_cache is not False:
            model_kwargs["past_key_values"] = GdnHybridCache(self.config)
        else:
            super()._prepare_cache_for_generation(generation_config, model_kwargs, *args, **kwargs)


GdnHybridForCausalLM.register_for_auto_class("AutoModelForCausalLM")
