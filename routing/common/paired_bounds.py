"""A promise about a routed model: its accuracy is at most δ below the full path, with a confidence.

`loss_p_value` is a p-value of H0 "the loss E[full - routed] is above δ" from paired verdicts; `fixed_sequence` goes
through settings from the safest to the one that saves most and keeps all before the first that is not shown (Learn
then Test, Angelopoulos et al., arXiv 2110.01052, section 3.2 and appendix on fixed-sequence testing): with the
confidence asked for, all that are kept hold at once, whatever the number of settings.

The test is exact for verdicts (each question lost, gained or answered alike), unconditional, with the discordance as
nuisance parameter: the supremum over a Clopper-Pearson interval of it, plus the level of that interval (Berger and
Boos, JASA 89, 1994). Outcomes are ordered by the score statistic, as in Liu, Hsueh, Hsieh and Chen (Statistics in
Medicine 21, 2002), with the variance on the boundary of H0 at the observed discordance. Deviation: the supremum is
taken over a grid that is finer than a quarter of the standard deviation of the observed discordance.

Power, the share of 1,000 draws in which a true loss of 0 is shown to be at most 0.02 with 95 % confidence (`python
benchmarks/guarantee.py`), of 1,500 questions of which 5, 10 and 20 % are discordant: 0.96, 0.79 and 0.52; of the normal
approximation, which promises nothing for finite samples, 0.96, 0.80 and 0.52; of a betting martingale (Waudby-Smith and
Ramdas, arXiv 2010.09686) 0.75, 0.42 and 0.20. So the martingale, which would let one look at any time, is not used.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache
from typing import NamedTuple

import numpy as np
from scipy.optimize import brentq
from scipy.special import bdtr
from scipy.stats import beta, binom, norm

NUISANCE_LEVEL = 1e-3  # No p-value is smaller.
PER_DEVIATION = 4  # Grid points for each standard deviation of the observed discordance.
NEGLIGIBLE = 1e-9  # Numbers of discordant questions that are left out are less probable, and counted as rejections.


class Pairs(NamedTuple):
    """Two methods on the same n questions: lost, right by the first alone; gained, right by the second alone."""

    lost: int
    gained: int
    n: int


def pairs_of(full: Sequence[bool], routed: Sequence[bool]) -> Pairs:
    """Counts of paired verdicts."""
    full, routed = np.asarray(full, dtype=bool), np.asarray(routed, dtype=bool)
    if full.shape != routed.shape or not full.size:
        raise ValueError(f"{full.size} and {routed.size} verdicts cannot be paired")
    return Pairs(int((full & ~routed).sum()), int((~full & routed).sum()), full.size)


@cache  # A simulation asks for the same counts again and again.
def loss_p_value(pairs: Pairs, max_loss: float) -> float:
    """p-value of H0: P(lost) - P(gained) >= max_loss, valid for any number of independent questions.

    Args:
        max_loss: δ, of -1 < δ < 1; below 0 it asks whether the second method is better by more than -δ.

    Returns:
        at least NUISANCE_LEVEL, at most 1.
    """
    lost, gained, n = pairs
    if not (-1 < max_loss < 1 and min(lost, gained) >= 0 and lost + gained <= n and n > 0):
        raise ValueError(f"no p-value of {pairs} and a loss of {max_loss}")
    seen = lost + gained
    z = (lost - gained - n * max_loss) / _deviation(seen, n, max_loss)
    low, high = _clopper_pearson(seen, n, NUISANCE_LEVEL)
    low = max(low, max_loss)  # With less discordance no loss is so large.
    if low > high:
        return NUISANCE_LEVEL
    angles = np.arcsin(np.sqrt([low, high]))  # Of equal standard deviation everywhere, 1 / (2 sqrt(n)).
    points = 2 + math.ceil((angles[1] - angles[0]) * 2 * math.sqrt(n) * PER_DEVIATION)
    worst = _tails(z, n, max_loss, np.sin(np.linspace(*angles, points)) ** 2).max()
    return min(1.0, float(worst) + NUISANCE_LEVEL)


def _deviation(discordant, n: int, max_loss: float):
    """Standard deviation of lost - gained on the boundary of H0, where so many of n questions are discordant.

    A loss of max_loss needs a share of abs(max_loss) discordant ones at least.
    """
    return np.sqrt(np.maximum(discordant, n * abs(max_loss)) - n * max_loss**2 + 1e-9)


def _tails(z: float, n: int, max_loss: float, discordance: np.ndarray) -> np.ndarray:
    """P(statistic <= z) on the boundary of H0, for each discordance [P].

    The number of discordant questions m is binomial, and so is, given m, the number of lost ones, with probability
    (1 + max_loss / discordance) / 2. Beyond the boundary, at equal discordance, the tail is smaller.
    """
    mean = n * discordance
    reach = 8 * np.sqrt(mean * (1 - discordance)) + 10
    m = np.arange(max(math.floor((mean - reach).min()), 0), min(math.ceil((mean + reach).max()), n) + 1)
    most_lost = np.floor((m + n * max_loss + z * _deviation(m, n, max_loss)) / 2 + 1e-9)
    share = np.clip((1 + max_loss / np.maximum(discordance, 1e-12)) / 2, 0, 1)[:, None]
    none, all_lost = most_lost < 0, most_lost >= m
    inside = bdtr(np.where(none | all_lost, 0, most_lost), m, share)
    given = np.where(none, 0.0, np.where(all_lost, 1.0, inside))  # [P, m]
    return (binom.pmf(m, n, discordance[:, None]) * given).sum(1) + NEGLIGIBLE


def _clopper_pearson(count: int, n: int, level: float) -> tuple[float, float]:
    """Exact interval of a proportion that misses it with a probability of `level` at most."""
    low = beta.ppf(level / 2, count, n - count + 1) if count else 0.0
    high = beta.ppf(1 - level / 2, count + 1, n - count) if count < n else 1.0
    return float(low), float(high)


def difference_lower_bound(pairs: Pairs, confidence: float = 0.95) -> float:
    """One-sided lower bound of the difference in accuracy, second less first, by inverting `loss_p_value`."""
    level, edge = 1 - confidence, 1 - 1e-6

    def excess(loss: float) -> float:
        return loss_p_value(pairs, loss) - level

    if excess(edge) > 0:
        return -1.0
    # A loss as large as the one seen is never refuted; from there on the p-value falls.
    seen = min(max((pairs.lost - pairs.gained) / pairs.n, -edge), edge)
    return -float(brentq(excess, seen, edge, xtol=1e-5))


class Tested(NamedTuple):
    """One setting of the sequence, tested."""

    setting: object
    pairs: Pairs
    p: float


def fixed_sequence(
    settings: Sequence, verdicts: Callable[[object], Pairs], max_loss: float, confidence: float
) -> tuple[list[Tested], int]:
    """Settings tested in order until the first whose loss is not shown to be at most `max_loss`.

    Args:
        settings: from the safest to the one that saves most; chosen without looking at the verdicts.
        verdicts: counts of the full path (first) and a setting (second); asked for what is tested alone.

    Returns:
        what was tested, the failing one last; how many are kept, of the beginning.
    """
    tested: list[Tested] = []
    for setting in settings:
        pairs = verdicts(setting)
        tested.append(Tested(setting, pairs, loss_p_value(pairs, max_loss)))
        if tested[-1].p > 1 - confidence:
            return tested, len(tested) - 1
    return tested, len(tested)


def needed_questions(pairs: Pairs, max_loss: float, confidence: float, power: float = 0.8) -> int | None:
    """Questions with which a loss of at most `max_loss` would be shown with probability `power`, if discordance and
    loss are as seen; None if the loss that was seen is not below `max_loss`.

    The formula of the normal approximation (Nam, Biometrics 53, 1997, without its correction); the exact test needs
    some percent more.
    """
    loss, discordance = (pairs.lost - pairs.gained) / pairs.n, (pairs.lost + pairs.gained) / pairs.n
    if loss >= max_loss:
        return None
    discordance = max(discordance, 1 / pairs.n)  # None seen does not mean that there is none.
    under_null = math.sqrt(max(discordance - max_loss**2, 1e-9))
    as_seen = math.sqrt(max(discordance - loss**2, 1e-9))
    root = (norm.ppf(confidence) * under_null + norm.ppf(power) * as_seen) / (max_loss - loss)
    return math.ceil(root**2)
