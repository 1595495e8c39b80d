"""What a forward asks a router: how its rows, or its tokens, run each layer.

A decider makes a decision from (routers, prompt, config). The model asks it layer by layer, in order, and lets it note
what was executed. Which decider a kind of router has, says `routers_by_kind.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from .float32 import exact_math
from .layer_path import run_counts


@dataclass
class Prompt:
    """What a decision may depend on, for B rows of T tokens.

    Attributes:
        input_ids: [B, T]; None where embeddings were given.
        mask: [B, T], tokens that routers see, and that count.
        attention_mask: as the model was given it.
        position_ids: [1 or B, T].
        padding_ids: tokens that are padding, whatever the masks say.
        draw_gates: see `RoutedModel.forward`.
    """

    input_ids: torch.LongTensor | None
    mask: torch.BoolTensor
    attention_mask: torch.Tensor | None
    position_ids: torch.LongTensor
    padding_ids: tuple[int, ...]
    draw_gates: Callable | None = None


class RowDecision:
    """A count for each row and layer.

    Args:
        counts: function (layer, hidden [B, T, D]) -> how often each row runs the layer.
    """

    def __init__(self, counts: Callable[[int, torch.Tensor], list[int]]):
        self.counts, self.taken = counts, []

    def run(self, runner, hidden: torch.Tensor, layer: int) -> torch.Tensor:
        """Hidden states [B, T, D] after a layer."""
        with exact_math(hidden.device):
            counts = self.counts(layer, hidden)
        self.taken.append(counts)
        return run_counts(runner, hidden, layer, counts)

    def record(self, model, cache) -> None:
        """Tell model and cache the routes, when all layers have run."""
        model.record_routes(torch.tensor(self.taken, dtype=torch.long).T.contiguous(), cache)


def along(routes: list[list[int]]) -> RowDecision:
    """The decision for routes that are known, one a row."""
    return RowDecision(lambda layer, hidden: [route[layer] for route in routes])
