"""The forward of a model with one router for all layers: a route for each row, or for each token."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from .global_routers import LEARNED, TOKEN_ROUTERS, GlobalRouter, hidden_sizes, masked_mean, random_gates
from .layer_path import run_counts
from .menu_router import MenuRouter
from .path_cache import Step
from .query_router import QueryRouter
from .routers import RouterBlock
from .token_layers import ATTENTION, blend, gatherings, run_tokens


def _per_layer(config) -> nn.ModuleList:
    blocks = (RouterBlock(config.hidden_size, config.router_hidden_size) for _ in range(config.num_hidden_layers))
    return nn.ModuleList(blocks)


def _global(config) -> GlobalRouter:
    sizes = config.router_sizes or hidden_sizes(config.router, config.hidden_size)
    routable = config.num_hidden_layers - config.kept_layers
    return GlobalRouter(config.router, config.hidden_size, sizes, routable, config.router_bias_init)


# `config.router` -> what makes it; those that have no weights are not here.
MAKERS = {"per_layer": _per_layer, "query": QueryRouter, "menu": MenuRouter.of, **dict.fromkeys(LEARNED, _global)}


def make_routers(config) -> nn.Module:
    """The routers that a config asks for."""
    return MAKERS[config.router](config) if config.router in MAKERS else nn.ModuleList()


class GlobalRouting:
    """Mixin over a decoder with `routers`, `config` and `layers`, see `RoutedModel`."""

    def _run_globally(self, hidden, runner, states, input_ids, mask, real, draw_gates) -> torch.Tensor:
        """Last states [B, T, D] where one router decides for all layers behind the first K.

        Args:
            mask: [B, T], tokens that a router of rows sees, and that count.
            real: [B, T], tokens that the attention mask does not hide.
        """
        config, depth = self.config, len(self.layers)
        logits = self.routers(masked_mean(hidden, mask)) if config.router == "embedding" else None
        for layer in range(config.kept_layers):
            if states is not None:
                states.append(hidden)
            hidden = runner.run(hidden, Step(layer, 0))
        if config.router == "random_token":
            chance = (depth - config.kept_layers, config.run_probability, config.random_seed)
            gates = random_gates(input_ids, runner.position_ids, tuple(mask.shape), *chance)
        else:
            if logits is None:
                logits = self.routers(hidden if config.router in TOKEN_ROUTERS else masked_mean(hidden, mask))
            gates = logits + config.route_bias > 0 if draw_gates is None else draw_gates(logits)
        gates = gates.to(hidden.device)
        if config.sink_tokens and gates.ndim == 3:
            sinks = runner.position_ids.expand(mask.shape) < config.sink_tokens
            gates = torch.where(sinks[..., None].to(gates.device), gates.new_ones(()), gates)
        if gates.dtype == torch.bool and gates.ndim == 2:
            gates = gates | ~mask.any(1, keepdim=True).to(gates.device)  # A row without a prompt runs all.
        run = self._layer_function(gates, runner, real)
        for layer in range(config.kept_layers, depth):
            if states is not None:
                states.append(hidden)
            hidden = run(hidden, layer)
        if gates.ndim == 3:
            if runner.cache is not None and not runner.cache.is_empty and input_ids is not None:
                # Rows that have ended are fed padding while others go on.
                mask = mask & ~torch.isin(input_ids, torch.tensor(self.padding_ids(), device=input_ids.device))
            self._record_tokens(gates.detach() > 0, mask, runner.cache)
        else:
            routes = nn.functional.pad((gates.detach() > 0).long().cpu(), (config.kept_layers, 0), value=1)
            self._record(routes, runner.cache)
        return hidden

    def _layer_function(self, gates: torch.Tensor, runner, real: torch.BoolTensor) -> Callable:
        """Function (states [B, T, D], layer) -> states, for gates [B, R] or [B, T, R]."""
        kept = self.config.kept_layers
        if gates.is_floating_point():
            return lambda hidden, layer: blend(runner, hidden, layer, gates[..., layer - kept])
        if gates.ndim == 2:
            counts = gates.T.int().tolist()
            return lambda hidden, layer: run_counts(runner, hidden, layer, counts[layer - kept])
        self._check_attention()
        parts = gatherings(gates & real.to(gates.device)[..., None])
        return lambda hidden, layer: run_tokens(runner, hidden, layer, parts[layer - kept])

    def _check_attention(self) -> None:
        if self.config._attn_implementation not in ATTENTION:
            raise ValueError(
                f"attn_implementation={self.config._attn_implementation!r}: tokens that each have a route need a "
                f"mask for each query. Load the model with "
                f"attn_implementation='sdpa' (allowed: {', '.join(ATTENTION)})."
            )

    def _record_tokens(self, gates: torch.BoolTensor, mask: torch.BoolTensor, cache) -> None:
        """Note who ran what: gates [B, T, R], of tokens that count [B, T]."""
        self.last_gates, mask = gates, mask.to(gates.device)
        tokens = mask.sum(1, keepdim=True)
        ran = (gates & mask[..., None]).sum(1)
        executed = torch.cat([tokens.expand(-1, self.config.kept_layers), ran, tokens], 1)
        if self.totals is not None:
            self.totals.add_tokens(executed)
        if cache is not None:
            cache.executed = executed = executed if cache.executed is None else cache.executed + executed
        self.last_routes = executed[:, :-1] / executed[:, -1:].clamp(min=1)
