"""Statistics of a study: paired differences over questions and seeds, static mixtures, Holm's correction."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from scipy import stats

DRAWS = 10_000


def holm(p_values: Sequence[float]) -> list[float]:
    """p values corrected for their number (Holm, Scandinavian Journal of Statistics 6, 1979), in the given order.

    The smallest is multiplied by their number m, the next one by m - 1, and so on; none may be below the one before.
    """
    order = sorted(range(len(p_values)), key=lambda at: p_values[at])
    found, highest = [0.0] * len(p_values), 0.0
    for place, at in enumerate(order):
        highest = max(highest, min((len(p_values) - place) * p_values[at], 1.0))
        found[at] = highest
    return found


@lru_cache(maxsize=5)
def _draws(seeds: int, questions: int, apart: bool) -> tuple[np.ndarray, np.ndarray]:
    """DRAWS draws with replacement: shares of questions [S or 1, DRAWS, N], and which seeds [DRAWS, S]."""
    rng = np.random.default_rng(0)
    of_questions = np.stack([
        [np.bincount(rng.integers(0, questions, questions), minlength=questions) for _ in range(DRAWS)]
        for _ in range(seeds if apart else 1)
    ]).astype(np.float32)  # fmt: skip
    return of_questions / questions, rng.integers(0, seeds, (DRAWS, seeds))


def drawn_means(values: np.ndarray, apart: bool = False) -> np.ndarray:
    """Means of values [S, N] where questions and seeds are both drawn anew, [DRAWS]; always with the same draws.

    Args:
        apart: whether each seed has N questions of its own. Then they are drawn within a seed; else a draw of questions
            is the same for all seeds.
    """
    of_questions, taken = _draws(*values.shape, apart)
    means = of_questions @ values.T.astype(np.float32)  # [S or 1, DRAWS, S]
    return np.mean([means[slot % len(means), range(DRAWS), taken[:, slot]] for slot in range(len(values))], axis=0)


def interval(values: np.ndarray, apart: bool = False) -> list[float]:
    """95 % interval of the mean of values [S, N]: percentiles of `drawn_means`."""
    return [float(end) for end in np.quantile(drawn_means(values, apart), (0.025, 0.975))]


def paired(values: np.ndarray, others: np.ndarray, apart: bool = False) -> dict:
    """Of [S, N] values the difference to others on the same questions: mean, 95 % interval, one-sided 95 % lower bound,
    two-sided p of no difference (bootstrap; exact McNemar for one seed of verdicts)."""
    gains = values - others
    means = drawn_means(gains, apart)
    low, high, bound = np.quantile(means, (0.025, 0.975, 0.05))
    if not gains.any():
        p = 1.0
    elif len(gains) == 1 and set(np.unique(gains)) <= {-1.0, 0.0, 1.0}:
        gained, lost = int((gains > 0).sum()), int((gains < 0).sum())
        p = float(stats.binomtest(gained, gained + lost).pvalue)
    else:
        below, above = (1 + (means <= 0).sum()) / (1 + DRAWS), (1 + (means >= 0).sum()) / (1 + DRAWS)
        p = float(min(1.0, 2 * min(below, above)))
    return {"difference": float(gains.mean()), "ci95": [float(low), float(high)], "lower_bound": float(bound), "p": p}


def one_sided(
    values: np.ndarray, others: np.ndarray, above: float | None, below: float | None, apart: bool = False
) -> float:
    """p of the mean difference [S, N] not being above, or below, a bound (bootstrap)."""
    means = drawn_means(values - others, apart)
    against = (means <= above).sum() if above is not None else (means >= below).sum()
    return float((1 + against) / (1 + DRAWS))


def static_mixture(rewards: np.ndarray, layers: np.ndarray, target: float) -> np.ndarray:
    """[K]: a path, or two of them mixed by a coin, of most mean reward [K] at a mean number of layers, or at fewer.

    Raises:
        ValueError: if all paths have more layers.
    """
    paths, best, found = np.eye(len(layers)), -np.inf, None
    for low in range(len(layers)):
        for high in range(len(layers)):
            if layers[low] > target:
                continue
            spread = layers[high] - layers[low]
            share = min((target - layers[low]) / spread, 1.0) if spread > 0 else 0.0
            value = share * rewards[high] + (1 - share) * rewards[low]
            if value > best:
                best, found = value, share * paths[high] + (1 - share) * paths[low]
    if found is None:
        raise ValueError(f"no path has {target:g} layers or fewer")
    return found
