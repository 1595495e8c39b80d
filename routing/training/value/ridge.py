"""Ridge regression in closed form, for many strengths of shrinkage at once.

Minimises, of features x standardised on the training questions and several targets y at once,

    mean over questions of |y - b - W x|^2  +  s |W|^2

so a strength s means the same for any number of questions (scikit-learn's alpha is s times their number). An infinite
one leaves the mean b alone. Computed in float64 from one eigendecomposition, of the Gram matrix of questions or of
features, whichever is smaller.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

# From hardly any shrinkage, of features of variance 1, to nothing but the mean.
STRENGTHS = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0, 10_000.0, np.inf)


class Standard(NamedTuple):
    """Mean and scale [F] that standardise features; a constant feature has scale 1."""

    mean: np.ndarray
    scale: np.ndarray

    def __call__(self, features: np.ndarray) -> np.ndarray:
        """[N, F] of features [N, F]."""
        return (features - self.mean) / self.scale


def standard(features: np.ndarray) -> Standard:
    """Of features [N, F]: mean and standard deviation (of N, not N - 1)."""
    mean, scale = features.mean(0), features.std(0)
    return Standard(mean, np.where(scale > 1e-8 * np.abs(mean) + 1e-12, scale, 1.0))


def ridge(features: np.ndarray, targets: np.ndarray, strengths: Sequence[float]) -> np.ndarray:
    """Weights W [S, F, K] for standardised features, one for each strength; the offset b is the targets' mean.

    Args:
        features: [N, F] standardised, so their means are 0.
        targets: [N, K].
        strengths: S of them, above 0.
    """
    count, width = features.shape
    centred = targets - targets.mean(0)
    if count <= width:
        values, vectors = np.linalg.eigh(features @ features.T / count)
        projected, back = vectors.T @ centred / count, features.T @ vectors
    else:
        values, vectors = np.linalg.eigh(features.T @ features / count)
        projected, back = vectors.T @ (features.T @ centred) / count, vectors
    values = np.maximum(values, 0)[:, None]
    return np.stack([back @ (projected / (values + strength)) for strength in strengths])
