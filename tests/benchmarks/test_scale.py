"""The simulation of many workers: what can be said by hand of small cases, and list scheduling as the oracle."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest
import scale

FREE = scale.Rates(start=0.0, group=0.0, round=0.0, path=1.0, driver=0.0)


def test_one_worker_takes_the_sum():
    rates = replace(FREE, start=5.0, driver=0.5)
    found = scale.simulate([3.0, 2.0, 4.0], 1, rates)
    # The driver hands out three groups; when it takes one in, it hands out the next one with it.
    assert found.seconds == pytest.approx(5 + 9 + 4 * 0.5)
    assert found.lost == 0 and found.searching == pytest.approx(9 / found.seconds)


@pytest.mark.parametrize("workers", [2, 3, 7])
def test_it_is_list_scheduling_where_nothing_goes_wrong(workers):
    groups = [Random(1).uniform(1, 9) for _ in range(40)]
    loads = [0.0] * workers
    for group in groups:
        at = loads.index(min(loads))
        loads[at] += group
    found = scale.simulate(groups, workers, FREE)
    assert found.seconds == pytest.approx(max(loads))
    assert found.tail == pytest.approx((max(loads) - min(loads)) / max(loads))


def test_a_slow_driver_is_the_limit():
    found = scale.simulate([0.01] * 400, 64, replace(FREE, driver=1.0))
    assert found.seconds == pytest.approx(400, rel=0.2)
    assert found.driver > 0.95


def test_lost_groups_are_done_again():
    trouble = scale.Trouble(between_losses=30.0, repair=5.0)
    groups = [4.0] * 100
    found = scale.simulate(groups, 4, FREE, trouble)
    assert found.lost > 0.02
    assert found.searching * 4 * found.seconds == pytest.approx(sum(groups))
    assert found.seconds > scale.simulate(groups, 4, FREE).seconds


def test_stragglers_take_longer():
    found = scale.simulate([1.0] * 400, 8, FREE, scale.Trouble(slow=0.1, factor=5.0))
    assert 1.2 < found.seconds / 50 < 1.6


def test_a_group_costs_its_rounds_and_paths():
    rates = scale.Rates(start=0, group=1, round=0.5, path=0.1, driver=0)
    assert rates.seconds([3, 7, 2]) == pytest.approx(1 + 3.5 + 1.2)


def test_drawn_numbers_of_paths_have_the_mean():
    paths = scale.drawn([6, 20, 50, 50], 20_000, 240.25)
    assert sum(paths) / len(paths) == pytest.approx(240.25, rel=0.02)
