"""The best fixed set of layers for text: what a router with the same number of layers has to beat."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from tqdm import tqdm

from routing.tasks.sequences import TextBatch
from routing.training.end_to_end.validation import validate


def same_routes(route: Sequence[int], batch: TextBatch) -> torch.LongTensor:
    return torch.tensor([list(route)] * len(batch.ids))


def costs_of_layers(model, batches: Sequence[TextBatch], kept_layers: int) -> dict[int, float]:
    """Loss on some text with each routable layer left out alone, by layer."""
    depth = model.config.num_hidden_layers
    found = {}
    for layer in tqdm(range(kept_layers, depth), desc="cost of each layer", leave=False):
        route = [int(other != layer) for other in range(depth)]
        found[layer] = validate(model, batches, lambda n, route=route: same_routes(route, batches[n])).loss
    return found


def static_route(costs: dict[int, float], depth: int, skipped: int) -> list[int]:
    """The route that leaves out the layers whose removal alone costs least. One pass, no search."""
    out = sorted(costs, key=costs.get)[:skipped]
    return [int(layer not in out) for layer in range(depth)]
