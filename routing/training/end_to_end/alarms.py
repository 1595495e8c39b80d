"""Signs that a router is collapsing: it decides alike for everything, or switches a layer off for good."""

from __future__ import annotations

import math
from collections.abc import Sequence

RARE = 0.01  # share of tokens below which a layer counts as dead
LOW = 0.05  # nats; a layer that 1 % of the tokens skip has an entropy of 0.056


def entropy(share: float) -> float:
    """Of a decision that is taken with this probability, in nats, at most ln 2."""
    return -sum(p * math.log(p) for p in (share, 1 - share) if p > 0)


def alarms(shares: Sequence[float], first_layer: int = 0) -> list[str]:
    """What is wrong with shares of tokens that run each routable layer, as sentences; nothing if all is well.

    Args:
        first_layer: index of the first of these layers.
    """
    if not shares:
        return []
    dead = [layer for layer, share in enumerate(shares, first_layer) if share < RARE]
    saturated = [layer for layer, share in enumerate(shares, first_layer) if share > 1 - RARE]
    mean = sum(map(entropy, shares)) / len(shares)
    found = []
    if dead:
        found.append(f"dead layers (run by less than {RARE:.0%} of the tokens): {_listed(dead)}")
    if saturated:
        found.append(f"saturated gates (run by more than {1 - RARE:.0%} of the tokens): {_listed(saturated)}")
    if mean < LOW:
        found.append(
            f"low entropy: {mean:.3f} nats a layer, so nearly all tokens have the same route; lower the router's "
            "learning rate, or raise --entropy_weight where the objective has one"
        )
    return found


def _listed(layers: list[int]) -> str:
    return ", ".join(map(str, layers))
