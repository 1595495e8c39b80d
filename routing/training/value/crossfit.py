"""Estimates of rewards for questions that their estimator has not seen, and the choice of its settings by them.

What matters to a router is by how much a path differs from the full one; how hard a question is moves all paths alike
and is much easier to tell. So an estimator is judged on parts: the reward of the full path, and the difference of each
other path to it, each with a setting (a strength of shrinkage, a number of epochs) of its own kind.

A question is in one of F folds by its hash. The settings that its estimates are made with are chosen on the other
folds, so no figure rests on settings that were chosen by it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

# (training features [N, F], training rewards [N, K], other features [M, F]) -> estimated rewards [S, M, K], one for
# each of S settings.
Estimator = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]


def fold_of(key: str, folds: int) -> int:
    """Fold of a question, by the hash that `routing.tasks.examples.held_out_key` gives."""
    return int(hashlib.sha256(f"fold/{key}".encode()).hexdigest()[:8], 16) % folds


def to_parts(rewards: np.ndarray) -> np.ndarray:
    """[..., K]: the first reward, and the differences of the others to it."""
    return np.concatenate([rewards[..., :1], rewards[..., 1:] - rewards[..., :1]], axis=-1)


def from_parts(parts: np.ndarray) -> np.ndarray:
    """[..., K] rewards of `to_parts`."""
    return np.concatenate([parts[..., :1], parts[..., 1:] + parts[..., :1]], axis=-1)


@dataclass(frozen=True)
class CrossFit:
    """Estimates of N questions along K paths.

    Attributes:
        estimates: [N, K], by estimators that have not seen the question, with settings chosen on the other folds.
        setting: (of the full path's reward, of the differences), indices of the settings that all folds choose.
        errors: [S, K] mean squared error of each part with each setting.
    """

    estimates: np.ndarray
    setting: tuple[int, int]
    errors: np.ndarray


def chosen_setting(errors: np.ndarray, spread: np.ndarray, joint: bool = False) -> tuple[int, int]:
    """Settings of least error for the full path's reward, and for all differences together.

    Each difference counts by the share of its spread that is left (1 - R^2): those of short paths spread most and are
    easiest to tell, and would decide alone.

    Args:
        errors: [S, K] of parts.
        spread: [K], variance of parts.
        joint: both are to be the same, that of the differences.
    """
    left = errors[:, 1:] / np.where(spread[1:] > 0, spread[1:], np.inf)
    of_differences = int(left.sum(1).argmin())
    return of_differences if joint else int(errors[:, 0].argmin()), of_differences


def with_setting(estimates: np.ndarray, setting: tuple[int, int]) -> np.ndarray:
    """Rewards [M, K] of estimates [S, M, K], each part by its own setting."""
    parts = to_parts(estimates)
    return from_parts(np.concatenate([parts[setting[0], :, :1], parts[setting[1], :, 1:]], axis=-1))


def crossfit(
    estimator: Estimator,
    features: np.ndarray,
    rewards: np.ndarray,
    folds: Sequence[int],
    shuffle: np.random.Generator | None = None,
    joint: bool = False,
) -> CrossFit:
    """Estimate each fold from the others.

    Args:
        features: [N, F].
        rewards: [N, K].
        folds: [N].
        shuffle: of a control: each estimator learns from the features of other questions than the rewards are of.
        joint: see `chosen_setting`.
    """
    folds, numbers = np.asarray(folds), sorted(set(folds))
    found: dict[int, np.ndarray] = {}
    squared: dict[int, np.ndarray] = {}
    for number in numbers:
        own, others = folds == number, folds != number
        learned = features[others]
        if shuffle is not None:
            learned = learned[shuffle.permutation(len(learned))]
        found[number] = estimator(learned, rewards[others], features[own])
        squared[number] = ((to_parts(found[number]) - to_parts(rewards[own])) ** 2).sum(1)
    total, parts = sum(squared.values()), to_parts(rewards)
    estimates = np.empty_like(rewards)
    for number in numbers:
        setting = chosen_setting(total - squared[number], parts[folds != number].var(0), joint)
        estimates[folds == number] = with_setting(found[number], setting)
    return CrossFit(estimates, chosen_setting(total, parts.var(0), joint), total / len(rewards))


def explained(rewards: np.ndarray, estimates: np.ndarray) -> tuple[list[float], list[float | None]]:
    """R^2 of each path's reward [K], and of its difference to the full path (None for that itself); 0 is what the
    mean would reach, and what a path whose rewards are all the same gets."""

    def share(actual: np.ndarray, expected: np.ndarray) -> float:
        spread = ((actual - actual.mean()) ** 2).sum()
        return float(1 - ((actual - expected) ** 2).sum() / spread) if spread else 0.0

    paths, parts = range(rewards.shape[1]), (to_parts(rewards), to_parts(estimates))
    of_reward = [share(rewards[:, path], estimates[:, path]) for path in paths]
    return of_reward, [None, *(share(parts[0][:, path], parts[1][:, path]) for path in paths[1:])]
