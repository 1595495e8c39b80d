"""How many layers routers run on given prompts, and the route bias that makes it as many as wanted."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from routing.scoring.finite import check_finite
from routing.search.routes import Route
from routing.tasks.prompts import left_pad

WIDEST = 1024.0  # Logits of routers are of order 1 to 10; a bias beyond this moves nothing any more.


@torch.inference_mode()
def decided_routes(model, tokenizer, prompts: Sequence[Sequence[int]], batch_size: int) -> list[Route]:
    """The routes that a model's routers decide for prompts (token ids); no token is generated."""
    routes: list[Route] = []
    for start in range(0, len(prompts), batch_size):
        ids, mask = left_pad(list(prompts[start : start + batch_size]), tokenizer.pad_token_id)
        device = model.device
        read = {"attention_mask": torch.tensor(mask, device=device), "use_cache": False}
        states = model.model(torch.tensor(ids, device=device), **read).last_hidden_state
        check_finite([float(states[:, -1].float().abs().amax())], model.dtype)
        routes += map(tuple, model.last_routes.tolist())
    return routes


def mean_layers(routes: Sequence[Route]) -> float:
    """Layers executed an input."""
    return sum(map(sum, routes)) / len(routes)


def find_bias(
    layers_at: Callable[[float], float], target: float, tolerance: float, max_halvings: int = 12
) -> tuple[float, dict[float, float]]:
    """The bias at which the mean number of executed layers is nearest to a target.

    More bias runs more layers: for each router exactly, for all of them nearly (what a layer reads depends on those
    below). So the target is bracketed by doubling, then halved in; of all biases tried the best is returned.

    Args:
        layers_at: mean number of executed layers at a bias.
        target: the number wanted.
        tolerance: a difference that is good enough.
        max_halvings: of the interval that holds it.

    Returns:
        the bias, and the layers at each bias that was tried. The best may be further from the target than `tolerance`:
        routers that decide alike for all inputs switch all of them at once.
    """
    tried: dict[float, float] = {}

    def at(bias: float) -> float:
        if bias not in tried:
            tried[bias] = layers_at(bias)
        return tried[bias]

    def best() -> float:
        # Between equals the bias that changes least.
        return min(tried, key=lambda bias: (abs(tried[bias] - target), abs(bias)))

    step = 1.0 if at(0.0) < target else -1.0
    near, far = 0.0, step
    while (at(far) - target) * step < 0:
        if abs(far) > WIDEST:
            return best(), tried
        near, far = far, 2 * far
    for _ in range(max_halvings):
        if abs(tried[best()] - target) <= tolerance:
            break
        middle = (near + far) / 2
        if (at(middle) - target) * step < 0:
            near = middle
        else:
            far = middle
    return best(), tried
