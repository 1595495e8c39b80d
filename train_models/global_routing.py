"""The decision of one router for all layers behind the first K: gates of rows, or of tokens."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from .decisions import Prompt
from .float32 import exact_math
from .global_routers import masked_mean, random_gates
from .layer_path import run_counts
from .path_cache import Step
from .router_kinds import kind_of
from .routers import is_padding, prompt_mask
from .token_layers import ATTENTION, blend, gatherings, run_tokens


class GateDecision:
    """Gates of all routable layers at once, see `RoutedModel.forward` for gates that are drawn.

    Attributes:
        gates: [B, R] or [B, T, R] once the first K layers have run, else None; True where a layer runs, or numbers.
    """

    def __init__(self, routers, prompt: Prompt, config):
        self.routers, self.prompt, self.config = routers, prompt, config
        self.by_token = kind_of(config).decides_for == "token"
        self.raw_logits: torch.Tensor | None = None
        self.gates: torch.Tensor | None = None

    def run(self, runner, hidden: torch.Tensor, layer: int) -> torch.Tensor:
        """Hidden states [B, T, D] after a layer."""
        if layer == 0 and self.config.router == "embedding":
            self.raw_logits = self._logits(hidden)
        if layer < self.config.kept_layers:
            return runner.run(hidden, Step(layer, 0))
        if self.gates is None:
            self.gates = self._gates(hidden)
            self.run_routable = self._layer_function(runner)
        return self.run_routable(hidden, layer)

    def record(self, model, cache) -> None:
        """Tell model and cache who ran what, when all layers have run."""
        gates, mask = self.gates.detach() > 0, self.prompt.mask
        if gates.ndim == 2:
            routes = nn.functional.pad(gates.long().cpu(), (self.config.kept_layers, 0), value=1)
            return model.record_routes(routes, cache)
        if cache is not None and not cache.is_empty and self.prompt.input_ids is not None:
            # Rows that have ended are fed padding while others go on.
            mask = mask & ~is_padding(self.prompt.input_ids, self.prompt.padding_ids)
        model.record_gates(gates, mask, cache)

    def _logits(self, hidden: torch.Tensor) -> torch.Tensor:
        with exact_math(hidden.device):
            return self.routers(hidden if self.by_token else masked_mean(hidden, self.prompt.mask))

    def _gates(self, hidden: torch.Tensor) -> torch.Tensor:
        config, prompt = self.config, self.prompt
        if not kind_of(config).learned:
            chance = (config.num_hidden_layers - config.kept_layers, config.run_probability, config.random_seed)
            gates = random_gates(prompt.input_ids, prompt.position_ids, tuple(prompt.mask.shape), *chance)
        else:
            logits = self._logits(hidden) if self.raw_logits is None else self.raw_logits
            gates = logits + config.route_bias > 0 if prompt.draw_gates is None else prompt.draw_gates(logits)
        gates = gates.to(hidden.device)
        if config.sink_tokens and gates.ndim == 3:
            sinks = prompt.position_ids.expand(prompt.mask.shape) < config.sink_tokens
            gates = torch.where(sinks[..., None].to(gates.device), gates.new_ones(()), gates)
        if gates.dtype == torch.bool and gates.ndim == 2:
            gates = gates | ~prompt.mask.any(1, keepdim=True).to(gates.device)  # A row without a prompt runs all.
        return gates

    def _layer_function(self, runner) -> Callable:
        """Function (states [B, T, D], layer) -> states."""
        gates, kept = self.gates, self.config.kept_layers
        if gates.is_floating_point():
            return lambda hidden, layer: blend(runner, hidden, layer, gates[..., layer - kept])
        if gates.ndim == 2:
            counts = gates.T.int().tolist()
            return lambda hidden, layer: run_counts(runner, hidden, layer, counts[layer - kept])
        check_attention(self.config)
        real = prompt_mask(None, self.prompt.attention_mask, tuple(gates.shape[:2]), gates.device, ())
        parts = gatherings(gates & real[..., None])
        return lambda hidden, layer: run_tokens(runner, hidden, layer, parts[layer - kept])


def check_attention(config) -> None:
    """Refuse an attention that takes no mask for each query."""
    if config._attn_implementation not in ATTENTION:
        raise ValueError(
            f"attn_implementation={config._attn_implementation!r}: tokens that each have a route need a mask for each "
            f"query. Load the model with attn_implementation='sdpa' (allowed: {', '.join(ATTENTION)})."
        )
