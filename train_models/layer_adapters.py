"""Adapters that stand in for skipped layers: small networks that learned what a layer does to each token's state.

x + W2 ReLU(W1 x + b1) + b2, with a bottleneck of 64 and W1 ~ N(0, 1/D), the rest zero: a fresh adapter is the identity.
It sees one token and no other, so a skipped layer still costs no attention and no keys and values.
"""

from __future__ import annotations

import torch
from torch import nn
from transformers import initialization as init

from .float32 import StaysFloat32, exact_math


class LayerAdapter(StaysFloat32, nn.Module):
    """In the place of one skipped layer; always fp32, as routers are."""

    def __init__(self, hidden_size: int, size: int):
        super().__init__()
        self.down = nn.Linear(hidden_size, size, dtype=torch.float32)
        self.up = nn.Linear(size, hidden_size, dtype=torch.float32)

    def reset_parameters(self) -> None:
        """W1 ~ N(0, 1/D), the rest zero."""
        init.normal_(self.down.weight, std=self.down.in_features**-0.5)
        for tensor in (self.down.bias, self.up.weight, self.up.bias):
            init.zeros_(tensor)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """States [..., D] behind the layer, of those in front of it."""
        with exact_math(states.device):
            inner = torch.relu(self.down(states.to(self.down.weight)))
            return states + self.up(inner).to(states)


def make_adapters(config) -> nn.ModuleList:
    """One adapter for each layer, or none, as the config asks."""
    if config.skip_action == "identity":
        return nn.ModuleList()
    sizes = (config.hidden_size, config.adapter_size)
    return nn.ModuleList(LayerAdapter(*sizes) for _ in range(config.num_hidden_layers))
