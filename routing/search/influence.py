"""Layers in the order of their block influence (ShortGPT, arXiv 2403.03853, section 3.2)."""

from __future__ import annotations

import math
from collections.abc import Sequence


def influence_order(influences: Sequence[Sequence[float]]) -> list[int]:
    """Layers by how little they change the prompt's states on average, least first (block influence, ShortGPT)."""
    depth = len(influences[0])
    mean = [math.fsum(own[layer] for own in influences) / len(influences) for layer in range(depth)]
    return sorted(range(depth), key=lambda layer: mean[layer])
