"""Gated DeltaNet by PyTorch's own operations, also where fused kernels are installed."""

from __future__ import annotations

from collections.abc import Callable
from unittest.mock import patch

RULES = ("torch_chunk_gated_delta_rule", "torch_recurrent_gated_delta_rule")


def unwrapped(function: Callable) -> Callable:
    """The reference that transformers put a fused kernel in front of."""
    while hasattr(function, "__wrapped__"):
        function = function.__wrapped__
    return function


def plain_rules():
    """Context in which the hybrid model takes them."""
    from transformers.models.qwen3_5 import modeling_qwen3_5 as stock

    import train_models.routed_mixer as mixer

    return patch.multiple(mixer, **{name: unwrapped(getattr(stock, name)) for name in RULES})
