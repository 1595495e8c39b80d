"""Running totals of what routes executed."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from .routers import REPEAT, RUN


@dataclass
class RouteTotals:
    """Running totals of what the routes executed.

    Attributes:
        inputs: rows for which a route was decided or forced; of a router that decides for each token, tokens.
        layers: layer executions, summed over these inputs.
        choices: [L, 3], how many inputs skipped, ran and repeated each layer.
    """

    inputs: int = 0
    layers: int = 0
    choices: torch.LongTensor | None = None

    def add(self, routes: torch.LongTensor) -> None:
        """Rows with routes [B, L]."""
        self._add(nn.functional.one_hot(routes, REPEAT + 1).sum(0), len(routes))

    def add_tokens(self, executed: torch.LongTensor) -> None:
        """Rows of tokens [B, L + 1], see `PathCache.executed`."""
        *ran, tokens = executed.sum(0).tolist()
        self._add(torch.tensor([[tokens - count, count, 0] for count in ran]), tokens)

    def _add(self, choices: torch.LongTensor, inputs: int) -> None:
        self.choices = choices if self.choices is None else self.choices + choices
        self.inputs += inputs
        self.layers += int(choices[:, RUN].sum() + 2 * choices[:, REPEAT].sum())
