"""Intervals and paired tests."""

from __future__ import annotations

import math


def wilson_interval(correct: int, total: int, z: float = 1.96) -> list[float]:
    """95 % interval of a proportion (Wilson, JASA 22, 1927)."""
    share = correct / total
    centre = (share + z * z / (2 * total)) / (1 + z * z / total)
    half = z / (1 + z * z / total) * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    return [max(centre - half, 0.0), min(centre + half, 1.0)]


def mcnemar(first: dict[int, bool], second: dict[int, bool]) -> dict[str, float]:
    """Exact McNemar test of two models on the same questions (binomial test on the discordant pairs).

    Returns:
        difference of accuracies, second less first; gained and lost, questions that the second alone gets right and
        wrong; p, two-sided.
    """
    gained = sum(second[i] and not first[i] for i in first)
    lost = sum(first[i] and not second[i] for i in first)
    total = gained + lost
    tail = sum(math.comb(total, k) for k in range(min(gained, lost) + 1)) / 2**total
    return {"difference": (gained - lost) / len(first), "gained": gained, "lost": lost, "p": min(1.0, 2 * tail)}
