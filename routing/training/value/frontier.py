"""What a menu router would reach at each price of a layer, beside the best static paths, on rewards that are known."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from routing.common.tables import print_table
from train_models.menu_router import best_paths, path_values

COSTS = (0.0, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05)


def standard_errors(rewards: np.ndarray) -> np.ndarray:
    """[K] of the mean difference of each path's reward to the full path's, over questions [N, K]; 0 for that itself."""
    differences = rewards - rewards[:, :1]
    return differences.std(0, ddof=1) / np.sqrt(len(rewards))


def chosen_paths(
    estimates: np.ndarray, errors: np.ndarray, layers: np.ndarray, cost: float, caution: float
) -> np.ndarray:
    """Index [N] of the path that a menu router takes by its estimates [N, K]; the model's own rule."""
    given = (torch.as_tensor(np.asarray(part, dtype=np.float64)) for part in (estimates, errors, layers))
    return best_paths(path_values(*given, cost, caution)).numpy()


def static_reward(layers: np.ndarray, rewards: np.ndarray, at: float) -> float:
    """Mean reward of the best static use of a menu at a mean number of layers: one path, or two of them mixed by a coin
    (the upper concave hull).

    Args:
        layers, rewards: [K] of each path.
        at: a number of layers; beyond the longest path it is that of the best one, below the shortest that of this.
    """
    at = max(at, layers.min())
    best = rewards[layers <= at].max()
    for low, below in zip(layers, rewards):
        for high, above in zip(layers, rewards):
            if low < at < high:
                share = (at - low) / (high - low)
                best = max(best, (1 - share) * below + share * above)
    return float(best)


def frontier(
    estimates: np.ndarray,
    errors: np.ndarray,
    rewards: np.ndarray,
    layers: np.ndarray,
    caution: float,
    costs: Sequence[float] = COSTS,
) -> list[dict]:
    """Mean reward and layers at each cost, and the best static path's reward at as many layers.

    Args:
        estimates, rewards: [N, K].
        errors, layers: [K].
    """
    found = []
    for cost in costs:
        chosen = chosen_paths(estimates, errors, layers, cost, caution)
        mean = float(layers[chosen].mean())
        found.append(
            {
                "cost": cost,
                "layers": mean,
                "reward": float(rewards[np.arange(len(rewards)), chosen].mean()),
                "static": static_reward(layers, rewards.mean(0), mean),
                "full_share": float((chosen == 0).mean()),
            }
        )
    return found


def print_paths(paths: list[dict]) -> None:
    """The menu, on stderr: what each path is worth, and how much of it the router can tell."""
    columns = ("layers", "reward", "± of the difference to the full path", "R²", "R² of the difference")
    names = ("reward", "difference_error", "r2", "r2_difference")
    rows = [
        [str(path["layers"]), *("" if path[name] is None else f"{path[name]:.3f}" for name in names)] for path in paths
    ]
    title = "paths: mean reward, and the shares of its variance that prompts tell (cross-fitted)"
    print_table(title, columns, rows, stderr=True)


def print_frontier(routed: list[dict], shuffled: list[dict], title: str) -> None:
    """Both, cost by cost, on stderr."""
    columns = ("cost", "layers", "reward", "static at equal layers", "gain", "shuffled: layers", "reward", "gain")
    rows = []
    for own, other in zip(routed, shuffled, strict=True):
        cells = (own["layers"], own["reward"], own["static"], own["reward"] - own["static"])
        others = (other["layers"], other["reward"], other["reward"] - other["static"])
        numbers = [f"{value:.2f}" if at in (0, 4) else f"{value:.3f}" for at, value in enumerate((*cells, *others))]
        rows.append([f"{own['cost']:g}", *numbers])
    print_table(title, columns, rows, stderr=True)
