"""Statistics of a study against figures worked by hand."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from routing.study.comparing import drawn_means, holm, interval, one_sided, paired, static_mixture


def test_holm_by_hand():
    # Sorted: 0.01 × 4, 0.02 × 3 = 0.06, 0.03 × 2 = 0.06, 0.5 × 1.
    assert holm([0.03, 0.01, 0.5, 0.02]) == pytest.approx([0.06, 0.04, 0.5, 0.06])
    # 0.02 × 2 is above 0.03 × 1, and none may be below the one before.
    assert holm([0.03, 0.02]) == pytest.approx([0.04, 0.04])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_one_seed_of_verdicts_is_tested_by_mcnemar():
    first = np.zeros((1, 20))
    second = first.copy()
    second[0, :7], first[0, 19] = 1, 1  # gained 7, lost 1
    found = paired(second, first)
    assert found["difference"] == pytest.approx(6 / 20)
    assert found["p"] == pytest.approx(stats.binomtest(7, 8).pvalue)
    assert paired(first, first)["p"] == 1.0
    low, high = found["ci95"]
    assert low < found["lower_bound"] < 0.3 < high


def test_intervals_are_those_of_a_mean():
    values = np.random.default_rng(1).normal(0.1, 1.0, (1, 400))
    low, high = interval(values)
    half = 1.96 * values.std() / 20
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.01)


def test_questions_and_seeds_are_both_drawn():
    """Two seeds that disagree wholly: the interval spans what either of them alone says."""
    values = np.stack([np.zeros(50), np.ones(50)])
    assert interval(values) == [0.0, 1.0]
    assert paired(values, np.zeros((2, 50)))["p"] > 0.2


def test_questions_of_seeds_that_share_none_are_drawn_for_each():
    """Two seeds of one mean: where questions are shared, what one of them knows is what the other one knows."""
    rng = np.random.default_rng(3)
    own = (rng.random(300) < 0.5).astype(float)
    values = np.stack([own, rng.permutation(own)])
    shared = drawn_means(np.stack([values[0], values[0]]))
    apart = drawn_means(values, apart=True)
    assert shared.std() == pytest.approx(0.5 / 300**0.5, rel=0.1)
    assert apart.std() == pytest.approx(0.5 / 600**0.5, rel=0.1)
    low, high = interval(values, apart=True)
    assert low < values.mean() < high
    assert paired(values, np.zeros_like(values), apart=True)["p"] == pytest.approx(2 / 10_001)
    assert one_sided(values, np.zeros_like(values), 0.4, None, apart=True) < 0.01
    one = values[:1]
    assert interval(one, apart=True) == interval(one), "one seed has nothing to share"


def test_one_sided_bounds():
    values = np.random.default_rng(2).normal(0.0, 0.3, (1, 500))
    none = np.zeros_like(values)
    assert one_sided(values, none, above=-0.1, below=None) < 0.001
    assert one_sided(values, none, above=0.1, below=None) > 0.99
    assert one_sided(values, none, above=None, below=0.1) < 0.001


def test_a_static_mixture_runs_at_most_so_many_layers():
    rewards, layers = np.array([0.5, 0.4, 0.2]), np.array([10, 8, 6])
    assert static_mixture(rewards, layers, 9).tolist() == [0.5, 0.5, 0.0]
    assert static_mixture(rewards, layers, 12).tolist() == [1.0, 0.0, 0.0]
    # A shorter path that is better is taken alone.
    assert static_mixture(np.array([0.5, 0.4, 0.6]), layers, 9).tolist() == [0.0, 0.0, 1.0]
    with pytest.raises(ValueError, match="no path has 5 layers"):
        static_mixture(rewards, layers, 5)
