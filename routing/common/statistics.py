"""Intervals, correlations and paired tests."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist, mean, stdev

import numpy as np
from scipy.stats import t as student

from routing.common.paired_bounds import difference_lower_bound, pairs_of

# 0.975 quantiles of Student's t with 1, 2, … degrees of freedom.
T_QUANTILES = (12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281)


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


def lower_bound(first: dict[int, bool], second: dict[int, bool]) -> float:
    """One-sided 95 % lower bound of the difference of accuracies, second less first (`paired_bounds`)."""
    return difference_lower_bound(pairs_of(list(first.values()), [second[question] for question in first]))


def against_mixture(second: dict[int, bool], paths: Sequence[dict[int, bool]], shares: Sequence[float]) -> dict:
    """A model beside static paths mixed by a coin, question by question (Student's t, one-sided).

    Args:
        second: verdicts of the model.
        paths, shares: verdicts of each path, and how often it is taken.

    Returns:
        accuracy of the mixture; difference, the model's less it; lower_bound, one-sided 95 %; p of no gain.
    """
    mixed = {i: sum(share * path[i] for share, path in zip(shares, paths, strict=True)) for i in second}
    gains = [second[i] - mixed[i] for i in second]
    difference = mean(gains)
    error = stdev(gains) / math.sqrt(len(gains)) if len(gains) > 1 else math.inf
    found = {"accuracy": mean(mixed.values()), "difference": difference}
    if not 0 < error < math.inf:
        return found | {"lower_bound": difference if error == 0 else -1.0, "p": 1.0}
    freedom = len(gains) - 1
    bound = difference - student.ppf(0.95, freedom) * error
    return found | {"lower_bound": float(bound), "p": float(student.sf(difference / error, freedom))}


def t_quantile(freedom: int) -> float:
    """0.975 quantile of Student's t; from 11 degrees on by the expansion of Fisher and Cornish (Abramowitz and Stegun,
    26.7.5), off by at most 0.0002."""
    if freedom <= len(T_QUANTILES):
        return T_QUANTILES[freedom - 1]
    z = NormalDist().inv_cdf(0.975)
    first = (z**3 + z) / 4
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / freedom + second / freedom**2 + third / freedom**3


def t_interval(values: Sequence[float]) -> list[float] | None:
    """95 % interval of the mean of independent values (Student's t); None for fewer than two."""
    if len(values) < 2:
        return None
    centre = mean(values)
    half = t_quantile(len(values) - 1) * stdev(values) / math.sqrt(len(values))
    return [centre - half, centre + half]


def pearson(first: Sequence[float], second: Sequence[float]) -> dict:
    """Pearson's r of pairs of independent numbers, with its 95 % interval by Fisher's z transformation.

    Returns:
        r, None where one side does not vary; ci95, None for fewer than four pairs too; n.
    """
    first, second = np.asarray(first, dtype=float), np.asarray(second, dtype=float)
    pairs = len(first)
    if pairs < 2 or np.ptp(first) == 0 or np.ptp(second) == 0:
        return {"r": None, "ci95": None, "n": pairs}
    r = float(np.clip(np.corrcoef(first, second)[0, 1], -1, 1))
    if pairs < 4 or abs(r) == 1:
        return {"r": r, "ci95": None if pairs < 4 else [r, r], "n": pairs}
    half = NormalDist().inv_cdf(0.975) / math.sqrt(pairs - 3)
    return {"r": r, "ci95": [math.tanh(math.atanh(r) - half), math.tanh(math.atanh(r) + half)], "n": pairs}
