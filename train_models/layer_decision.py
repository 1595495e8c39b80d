"""How routers of layers decide: each for its layer, from the states that enter it."""

from __future__ import annotations

import torch

from .decisions import Prompt, RowDecision
from .routers import pool_windows, window_shares, window_weights


def decide_by_layer(routers, prompt: Prompt, config) -> RowDecision:
    """Rows without prompt run all layers once."""
    mask = prompt.mask
    weights, windows = window_weights(mask, config.num_windows)
    *empty, padded = torch.cat([~windows.any(1), ~mask.all()[None]]).tolist()
    shares, bias, blocks = window_shares(windows), config.route_bias - config.cost, list(routers)

    def counts(layer: int, hidden: torch.Tensor) -> list[int]:
        # Few and small operations: on a GPU they are what a decision costs, until prompts are long.
        logits = blocks[layer](pool_windows(hidden, weights, padded), windows, shares.to(hidden.device))
        return [1 if blank else best_count(row, bias) for blank, row in zip(empty, logits.tolist(), strict=True)]

    return RowDecision(counts)


def best_count(logits: list[float], bias: float) -> int:
    """How often a layer runs, of the logits of a router; of equals the lowest."""
    values = [logit + bias * count for count, logit in enumerate(logits)] if bias else logits
    return values.index(max(values))
