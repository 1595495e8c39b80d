"""Running a path through the layers of a decoder: the one place that executes layers, for all families.

A path is a list of layer indices; a route is its equivalent vector of counts in {0 skip, 1 run, 2 repeat}
when the order of layers is kept. Rows of a batch may have different routes: rows that run a layer are
gathered, run and scattered back, and nothing is gathered where all rows run.

The forward mirrors the input preparation of transformers' decoders (embedding and its scale; masks and rotary
embeddings, one for all layers or one for each type of layer; final norm); a parity test against the stock classes
guards it. A layer's type is that of the model it comes from, wherever in a path it runs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.masking_utils import create_masks_for_generate
from transformers.modeling_outputs import MoeModelOutputWithPast
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults

from .attention_shapes import changing_shapes
from .decoder_parts import of_type, rotary_embeddings, scaled
from .offloading import device_of
from .path_cache import PathCache, Step, checked_cache


def path_steps(path: list[int]) -> list[Step]:
    """Steps of a path that all rows of a batch follow; the n-th occurrence of a layer is its visit n."""
    seen: dict[int, int] = {}
    steps = []
    for layer in path:
        steps.append(Step(layer, seen.get(layer, 0)))
        seen[layer] = seen.get(layer, 0) + 1
    return steps


def run_steps(runner: LayerRunner, hidden: torch.Tensor, steps: list[Step]) -> torch.Tensor:
    """Hidden states [B, T, D] after some steps."""
    for step in steps:
        hidden = runner.run(hidden, step)
    return hidden


def layer_steps(layer: int, counts: list[int]) -> list[Step]:
    """Steps of one layer, given how often each row of the batch runs it."""
    steps = []
    for visit in range(max(counts, default=0)):
        rows = tuple(row for row, count in enumerate(counts) if count > visit)
        steps.append(Step(layer, visit, None if len(rows) == len(counts) else rows))
    return steps


class LayerPlan(NamedTuple):
    """What the rows of a batch do at one layer.

    Attributes:
        steps: those of the rows that run it.
        idle: rows that skip it; None for all, empty for none.
    """

    steps: list[Step]
    idle: tuple[int, ...] | None


def layer_plan(layer: int, counts: list[int]) -> LayerPlan:
    """The plan of one layer, given how often each row of the batch runs it."""
    idle = tuple(row for row, count in enumerate(counts) if not count)
    return LayerPlan(layer_steps(layer, counts), None if idle and len(idle) == len(counts) else idle)


def run_plan(runner: LayerRunner, hidden: torch.Tensor, layer: int, plan: LayerPlan) -> torch.Tensor:
    """Hidden states [B, T, D] after one layer."""
    if plan.idle != ():
        hidden = runner.stand_in(hidden, layer, plan.idle)
    return run_steps(runner, hidden, plan.steps)


def run_counts(runner: LayerRunner, hidden: torch.Tensor, layer: int, counts: list[int]) -> torch.Tensor:
    """Hidden states [B, T, D] after one layer, given how often each row of the batch runs it."""
    return run_plan(runner, hidden, layer, layer_plan(layer, counts))


class LayerRunner:
    """Executes steps on the hidden states of one forward; holds what all layers of that forward share.

    Args:
        layers: the decoder layers.
        cache: PathCache to read and extend, or None.
        masks: attention mask for each layer type, or one for all; each has B rows, 1 row, or is None.
        position_ids: [1 or B, T].
        position_embeddings: (cos, sin), each [1 or B, T, D_head], for each layer type, or one for all.
        extra: further keyword arguments of the decoder layers.
        scales: factor of each layer's change to the state, or None.
        adapters: what stands in for each layer where it is skipped; none: the identity.
        in_place: whether the rows that ran may be written into states that this runner made itself; neither a gradient
            nor a list of states holds these then.
    """

    def __init__(
        self, layers, layer_types, cache, masks, position_ids, position_embeddings, extra, scales=None, adapters=(),
        in_place=False,
    ):  # fmt: skip
        self.scales, self.adapters, self.in_place = scales, adapters, in_place
        self.layers, self.layer_types, self.cache, self.extra = layers, layer_types, cache, extra
        self.masks, self.position_ids, self.position_embeddings = masks, position_ids, position_embeddings
        self._gathered: dict[tuple, dict] = {}
        self._rotary: dict[str | None, torch.Tensor] = {}
        self._own: torch.Tensor | None = None
        self._causal: torch.Tensor | None = None
        self._indices: dict[tuple, torch.Tensor] = {} if cache is None else cache.row_indices

    def _mask(self, layer: int):
        return of_type(self.masks, self.layer_types, layer)

    def rotary(self, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        """(cos, sin) of a layer."""
        return of_type(self.position_embeddings, self.layer_types, layer)

    def query_mask(self, layer: int, hidden: torch.Tensor, keys: int) -> torch.Tensor | None:
        """[1 or B, 1, T, T_kv], which keys each token of [B, T, D] attends to; None for one token that attends to all.

        transformers leaves the mask out where attention is causal and nothing else; some tokens of a row alone need it.
        """
        mask, tokens = self._mask(layer), hidden.shape[1]
        if mask is None and tokens > 1:
            if self._causal is None:
                visible = torch.ones(tokens, keys, dtype=torch.bool, device=hidden.device)
                self._causal = visible.tril(keys - tokens)[None, None]
            mask = self._causal
        return mask

    def _index(self, rows: tuple[int, ...], device: torch.device) -> torch.Tensor:
        """The rows as a tensor; a cache keeps it, so that decoding moves nothing from host to device."""
        if (rows, device) not in self._indices:
            self._indices[rows, device] = torch.tensor(rows, device=device)
        return self._indices[rows, device]

    def _row_arguments(self, step: Step, index: torch.Tensor) -> dict:
        """Layer arguments of a step over some rows; made once for each set of rows."""
        key = (step.rows, index.device, self.layer_types and self.layer_types[step.layer])
        if key not in self._gathered:
            self._gathered[key] = {
                "attention_mask": _take(self._mask(step.layer), index),
                "position_ids": _take(self.position_ids, index),
                "position_embeddings": self._row_rotary(index, step.layer),
            }
        return self._gathered[key]

    def _row_rotary(self, index: torch.Tensor, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        """(cos, sin) of some rows, taken together: on a GPU a decoded token costs as much as it has kernels."""
        cos, sin = self.rotary(layer)
        if cos.shape[0] == 1:
            return cos, sin
        kind = self.layer_types[layer] if isinstance(self.position_embeddings, dict) else None
        if kind not in self._rotary:
            self._rotary[kind] = torch.stack([cos, sin])
        return self._rotary[kind].index_select(1, index.to(cos.device)).unbind(0)

    def _put_rows(self, hidden: torch.Tensor, rows: tuple[int, ...], output: torch.Tensor) -> torch.Tensor:
        """Hidden states [B, T, D] with those of some rows replaced."""
        index = self._index(rows, output.device)
        if self.in_place and hidden is self._own and hidden.device == output.device:
            return hidden.index_copy_(0, index, output)
        self._own = hidden.to(output.device).index_copy(0, index, output)
        return self._own

    def run(self, hidden: torch.Tensor, step: Step) -> torch.Tensor:
        """Hidden states [B, T, D] after one step; rows that do not take part pass unchanged."""
        arguments = dict(self.extra)
        if self.cache is not None:
            arguments["past_key_values"] = self.cache.slot(step)
        layer = self.layers[step.layer]
        scale = None if self.scales is None else self.scales[step.layer]
        if step.rows is None:
            output = layer(
                hidden,
                attention_mask=self._mask(step.layer),
                position_ids=self.position_ids,
                position_embeddings=self.rotary(step.layer),
                **arguments,
            )
            return output if scale is None else torch.lerp(hidden.to(output.device), output, scale)
        index = self._index(step.rows, hidden.device)
        own = hidden.index_select(0, index)
        with changing_shapes(own):
            output = layer(own, **self._row_arguments(step, index), **arguments)
        if scale is not None:
            output = torch.lerp(own.to(output.device), output, scale)
        return self._put_rows(hidden, step.rows, output)

    def stand_in(self, hidden: torch.Tensor, layer: int, rows: tuple[int, ...] | None = None) -> torch.Tensor:
        """Hidden states [B, T, D] where some rows (None: all) skip a layer; the others pass unchanged."""
        if not len(self.adapters):
            return hidden
        if rows is None:
            return self.adapters[layer](hidden)
        index = self._index(rows, hidden.device)
        output = self.adapters[layer](hidden.index_select(0, index))
        return self._put_rows(hidden, rows, output)


def _take(tensor: torch.Tensor | None, index: torch.Tensor):
    """Rows of a tensor with B rows; None, and tensors that all rows share, as they are."""
    if tensor is None or tensor.shape[0] == 1:
        return tensor
    return tensor.index_select(0, index.to(tensor.device))


@torch.compiler.disable(reason="compile the layers of a routed model, with model.compile()")
def refuse_compilation():
    """Outside of the compiled code, which would swallow the error and go on uncompiled."""
    raise ValueError(
        "torch.compile cannot take a routed model as a whole: each route would be compiled anew. Compile its layers, "
        "which all routes share: model.compile(), with the arguments of torch.compile."
    )


class LayerPathModel:
    """Mixin over a transformers decoder (`LlamaModel`, ...) whose layers are run by steps of its choice."""

    _supports_flex_attn = False

    def compile(self, *args, **kwargs) -> None:
        """Compile the decoder layers, in place; arguments as in `torch.compile`. No path is compiled into them."""
        for layer in self.layers:
            layer.compile(*args, **kwargs)

    @can_return_tuple
    @merge_with_config_defaults
    def forward_along(
        self,
        execute: Callable[[torch.Tensor, LayerRunner, list | None], torch.Tensor],
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: PathCache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        output_router_logits: bool | None = None,
        **kwargs,
    ) -> MoeModelOutputWithPast:
        """The stock forward, with `execute` in place of the loop over all layers.

        Args:
            execute: maps (embeddings [B, T, D], runner, states) to the last hidden states [B, T, D]. `states`
                is None, or a list that takes the hidden states asked for with `output_hidden_states`.
            others: as in transformers.

        Raises:
            ValueError: for wrong inputs, and when compiled as a whole; attention maps and the logits of experts'
                routers are refused, since a skipped layer has none.
            TypeError: for a cache that is no PathCache.
        """
        if torch.compiler.is_compiling():
            refuse_compilation()
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give exactly one of input_ids and inputs_embeds.")
        if output_attentions or (output_attentions is None and getattr(self.config, "output_attentions", False)):
            raise ValueError("output_attentions is not available along a path: a skipped layer has no attention.")
        if output_router_logits:
            raise ValueError(
                "output_router_logits is not available along a path: a skipped layer has no experts' router. Set "
                "output_router_logits=False, in the config too."
            )
        if inputs_embeds is None:
            inputs_embeds = self.embed_tokens(input_ids)
        inputs_embeds = scaled(self, inputs_embeds)
        cache = checked_cache(past_key_values, self.config, use_cache)
        if position_ids is None:
            start = 0 if cache is None else cache.get_seq_length()
            position_ids = torch.arange(inputs_embeds.shape[1], device=inputs_embeds.device) + start
            position_ids = position_ids.unsqueeze(0)
        masks = attention_mask
        if not isinstance(masks, dict):
            masks = create_masks_for_generate(self.config, inputs_embeds, attention_mask, cache, position_ids)
        if output_hidden_states is None:
            output_hidden_states = getattr(self.config, "output_hidden_states", False)
        states = [] if output_hidden_states else None
        runner = LayerRunner(
            layers=self.layers,
            layer_types=getattr(self.config, "layer_types", None),
            cache=cache,
            masks=masks,
            position_ids=position_ids,
            position_embeddings=rotary_embeddings(self, inputs_embeds, position_ids),
            extra=kwargs | {"use_cache": use_cache},
            # Like dropout, it evens out what training does at random.
            scales=None if self.training else getattr(self.config, "residual_scale", None),
            adapters=getattr(self, "stand_ins", ()),
            in_place=states is None and not torch.is_grad_enabled(),
        )
        if cache is not None and cache.is_empty:
            cache.start(inputs_embeds.shape[0])
        elif cache is not None and cache.row_count != inputs_embeds.shape[0]:
            raise ValueError(
                f"the cache holds {cache.row_count} rows, the input has {inputs_embeds.shape[0]}. Give as many rows, "
                "or select or repeat those of the cache first (batch_select_indices, batch_repeat_interleave)."
            )
        hidden = self.norm(execute(inputs_embeds, runner, states))
        if cache is not None:
            cache.advance(inputs_embeds.shape[1])
        return MoeModelOutputWithPast(  # Stock models of experts ask for its fields; of others it is the same.
            last_hidden_state=hidden,
            past_key_values=cache,
            hidden_states=None if states is None else (*states, hidden),
        )


class LayerPathForCausalLM:
    """Mixin over a `...ForCausalLM`: holds `inner_model_class`, and lets generate() work with a `PathCache`."""

    inner_model_class: type

    @property
    def device(self) -> torch.device:
        """Where inputs go: of an embedding that is offloaded, the device that its weights are brought to."""
        return device_of(self.model.embed_tokens)

    def __init__(self, config):
        # Not the stock __init__, which would build the stock decoder first and throw it away.
        PreTrainedModel.__init__(self, config)
        self.model = self.inner_model_class(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def compile(self, *args, **kwargs) -> None:
        """Compile the decoder layers, see `LayerPathModel.compile`."""
        self.model.compile(*args, **kwargs)

    def init_continuous_batching(self, *args, **kwargs):
        """Refused: it packs the tokens of all requests into one row."""
        raise ValueError(
            "continuous batching (generate_batch, cache_implementation='paged') packs all requests into one row, which "
            "has one path. Use generate() with a padded batch: its rows may have a path each."
        )

    def _prepare_cache_for_generation(self, generation_config, model_kwargs, *args, **kwargs):
        given = checked_cache(model_kwargs.get("past_key_values"), self.config, use_cache=False)
        wanted = generation_config.cache_implementation
        if wanted not in (None, "dynamic"):
            raise ValueError(
                f"cache_implementation={wanted!r}: such a cache has one slot per layer and cannot hold the visits "
                "of a repeated layer. Leave cache_implementation out."
            )
        if generation_config.prefill_chunk_size is not None:
            raise ValueError(
                f"prefill_chunk_size={generation_config.prefill_chunk_size}: the path is decided once, on the "
                "whole prompt, so the prompt cannot be fed in chunks. Leave prefill_chunk_size out."
            )
        if generation_config.assistant_early_exit is not None:
            raise ValueError(
                f"assistant_early_exit={generation_config.assistant_early_exit}: the path says which layers run, so "
                "none can be left early. Give a model that skips layers as assistant_model."
            )
        if given is not None or generation_config.use_cache is False:
            super()._prepare_cache_for_generation(generation_config, model_kwargs, *args, **kwargs)
            return
        model_kwargs["past_key_values"] = cache = PathCache(self.config)
        if generation_config.is_assistant:
            cache.activate_past_recording()
