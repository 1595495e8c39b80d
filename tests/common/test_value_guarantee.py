"""The test behind a guarantee against sums over all outcomes, the sequence by hand, and the simulation in small."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
from guarantee import betting_p_value, judged, normal_p_value, simulate, synthetic
from scipy.stats import multinomial

from routing.common.paired_bounds import (
    NUISANCE_LEVEL,
    Pairs,
    difference_lower_bound,
    fixed_sequence,
    loss_p_value,
    needed_questions,
    pairs_of,
)


def outcomes(n: int) -> list[Pairs]:
    return [Pairs(lost, gained, n) for lost, gained in product(range(n + 1), repeat=2) if lost + gained <= n]


@pytest.mark.parametrize(("n", "max_loss"), [(7, 0.05), (12, 0.1), (12, -0.1), (12, 0.0)])
def test_the_level_holds_in_every_world_of_few_questions(n, max_loss):
    """All outcomes, summed: in no world on the boundary or beyond is a small p-value more probable than it says."""
    found = {pairs: loss_p_value(pairs, max_loss) for pairs in outcomes(n)}
    for discordance in np.linspace(max(max_loss, 0.01), 1, 17):
        for loss in np.linspace(max_loss, 1, 5):
            if abs(loss) > discordance:
                continue
            chances = [(discordance + loss) / 2, (discordance - loss) / 2, 1 - discordance]
            law = multinomial(n, np.clip(chances, 0, 1))
            weights = {pairs: law.pmf([pairs.lost, pairs.gained, n - pairs.lost - pairs.gained]) for pairs in found}
            for level in (0.01, 0.05, 0.1, 0.3):
                assert sum(weight for pairs, weight in weights.items() if found[pairs] <= level) <= level + 1e-9


def test_the_p_value_is_the_worst_sum_over_outcomes():
    """A slow p-value: every outcome that is at least as extreme, in many worlds of the interval of discordance."""
    n, max_loss, pairs = 15, 0.2, Pairs(1, 3, 15)

    def statistic(lost, gained):
        variance = max(lost + gained, n * max_loss) - n * max_loss**2 + 1e-9
        return (lost - gained - n * max_loss) / math.sqrt(variance)

    extreme = [o for o in outcomes(n) if statistic(o.lost, o.gained) <= statistic(1, 3) + 1e-9]
    worst = 0.0
    for discordance in np.linspace(max_loss, 0.8, 500):  # The interval of 4 of 15 ends below 0.8.
        law = multinomial(n, [(discordance + max_loss) / 2, (discordance - max_loss) / 2, 1 - discordance])
        worst = max(worst, sum(law.pmf([o.lost, o.gained, n - o.lost - o.gained]) for o in extreme))
    assert loss_p_value(pairs, max_loss) == pytest.approx(worst + NUISANCE_LEVEL, rel=0.02)


def test_with_many_questions_it_is_nearly_the_normal_approximation():
    for pairs in (Pairs(75, 75, 1500), Pairs(90, 80, 1500), Pairs(300, 310, 3000)):
        assert normal_p_value(pairs, 0.02) <= loss_p_value(pairs, 0.02) <= 1.2 * normal_p_value(pairs, 0.02) + 0.003


def test_p_values_at_the_edges():
    assert loss_p_value(Pairs(0, 0, 5), 0.02) > 0.3  # Five questions show nothing.
    assert loss_p_value(Pairs(0, 0, 3000), 0.02) == NUISANCE_LEVEL
    assert loss_p_value(Pairs(20, 0, 20), 0.02) == 1.0
    for pairs, max_loss in ((Pairs(3, 3, 5), 0.02), (Pairs(0, 0, 0), 0.02), (Pairs(1, 1, 5), 1.0)):
        with pytest.raises(ValueError):
            loss_p_value(pairs, max_loss)


@pytest.mark.parametrize("pairs", [(75, 75, 1500), (0, 20, 20), (3, 4, 20), (100, 20, 283), (0, 0, 20), (1, 0, 1)])
def test_the_lower_bound_is_where_the_test_turns(pairs):
    pairs = Pairs(*pairs)
    bound = difference_lower_bound(pairs, 0.95)
    assert -1 <= bound <= (pairs.gained - pairs.lost) / pairs.n
    if bound > -1:
        assert loss_p_value(pairs, -bound + 0.002) <= 0.051 and loss_p_value(pairs, -bound - 0.002) >= 0.049


def test_pairs_of_verdicts():
    assert pairs_of([1, 1, 0, 0, 1], [1, 0, 1, 0, 0]) == Pairs(2, 1, 5)
    with pytest.raises(ValueError, match="5 and 4 verdicts"):
        pairs_of([1] * 5, [1] * 4)


def test_the_sequence_by_hand():
    """It stops at the first failure: the third is never asked for, though it would pass."""
    counts = {"safe": Pairs(0, 5, 1000), "bold": Pairs(60, 20, 1000), "lucky": Pairs(0, 50, 1000)}
    asked = []

    def verdicts(setting):
        asked.append(setting)
        return counts[setting]

    tested, kept = fixed_sequence(list(counts), verdicts, 0.02, 0.95)
    assert asked == ["safe", "bold"] and kept == 1
    assert [t.setting for t in tested] == asked and tested[0].p <= 0.05 < tested[1].p
    assert fixed_sequence(["bold", "safe"], verdicts, 0.02, 0.95)[1] == 0
    assert fixed_sequence(["safe", "lucky"], verdicts, 0.02, 0.95)[1] == 2
    assert fixed_sequence([], verdicts, 0.02, 0.95) == ([], 0)


def test_how_many_questions_are_needed():
    """For a loss of 0 where 0.02 is allowed, at three shares of differing verdicts; and that so many do."""
    for discordance, about in ((0.1, 1550), (0.15, 2320), (0.2, 3090)):
        half = round(10_000 * discordance / 2)
        needed = needed_questions(Pairs(half, half, 10_000), 0.02, 0.95)
        assert needed == pytest.approx(about, rel=0.01)
    assert needed_questions(Pairs(50, 10, 1000), 0.02, 0.95) is None
    assert needed_questions(Pairs(0, 0, 10), 0.02, 0.95) > 100
    rng = np.random.default_rng(0)
    draws = [Pairs(int(a), int(b), 1600) for a, b, _ in rng.multinomial(1600, [0.05, 0.05, 0.9], size=150)]
    assert np.mean([loss_p_value(pairs, 0.02) <= 0.05 for pairs in draws]) > 0.7


def test_the_simulation_in_small():
    """The hardest synthetic worlds; `benchmarks/guarantee.py` has 1,000 draws of all."""
    for name in ("every setting just too lossy", "safe but for the last"):
        found = judged(name, simulate(synthetic(0.05)[name], 200, 150, 0.05, 0.95, seed=1), 200, 0.95)
        assert found["holds"] and found["broken"] <= 0.1
    # It must be able to fail: the same draws, judged as if they were to hold in all cases.
    always = judged(name, [(True, 1)] * 150, 200, 0.95)
    assert not always["holds"]


def test_the_betting_martingale_by_hand():
    """The first bet is 0, since nothing was seen; then all questions are answered alike."""
    assert betting_p_value(np.zeros(1), 0.02) == 1.0
    few, many = (betting_p_value(np.zeros(n), 0.1) for n in (50, 500))
    assert many < few < 1
    assert betting_p_value(np.ones(100), 0.1) == 1.0
