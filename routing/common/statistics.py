"""Intervals, correlations and paired tests."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import mean, stdev

import numpy as np
from scipy import stats

from routing.common.paired_bounds import difference_lower_bound, pairs_of


def wilson_interval(correct: int, total: int) -> list[float]:
    """95 % interval of a proportion (Wilson, JASA 22, 1927)."""
    return [float(end) for end in stats.binomtest(correct, total).proportion_ci(0.95, "wilson")]


def mcnemar(first: dict[int, bool], second: dict[int, bool]) -> dict[str, float]:
    """Exact McNemar test of two models on the same questions (binomial test on the discordant pairs).

    Returns:
        difference of accuracies, second less first; gained and lost, questions that the second alone gets right and
        wrong; p, two-sided.
    """
    gained = sum(second[i] and not first[i] for i in first)
    lost = sum(first[i] and not second[i] for i in first)
    p = float(stats.binomtest(gained, gained + lost).pvalue) if gained + lost else 1.0
    return {"difference": (gained - lost) / len(first), "gained": gained, "lost": lost, "p": p}


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
    found = {"accuracy": mean(mixed.values()), "difference": difference}
    if len(gains) < 2 or not stdev(gains):
        return found | {"lower_bound": -1.0 if len(gains) < 2 else difference, "p": 1.0}
    test = stats.ttest_1samp(gains, 0, alternative="greater")
    return found | {"lower_bound": float(test.confidence_interval(0.95).low), "p": float(test.pvalue)}


def t_interval(values: Sequence[float]) -> list[float] | None:
    """95 % interval of the mean of independent values (Student's t); None for fewer than two."""
    if len(values) < 2:
        return None
    half = float(stats.t.ppf(0.975, len(values) - 1)) * stdev(values) / math.sqrt(len(values))
    return [mean(values) - half, mean(values) + half]


def pearson(first: Sequence[float], second: Sequence[float]) -> dict:
    """Pearson's r of pairs of independent numbers, with its 95 % interval by Fisher's z transformation.

    Returns:
        r, None where one side does not vary; ci95, None for fewer than four pairs too; n.
    """
    pairs = len(first)
    if pairs < 2 or np.ptp(first) == 0 or np.ptp(second) == 0:
        return {"r": None, "ci95": None, "n": pairs}
    found = stats.pearsonr(first, second)
    interval = [float(end) for end in found.confidence_interval(0.95)] if pairs > 3 else None
    return {"r": float(found.statistic), "ci95": interval, "n": pairs}
