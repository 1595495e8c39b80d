"""The simulation of many workers: what can be said by hand of small cases, and list scheduling as the oracle."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest
import scale
import scale_rates

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


DRIVER = [
    {"workers": workers, "group_size": size, "seconds_a_group": seconds}
    for workers, size, seconds in [(8, 4, 0.001), (8, 64, 0.007), (512, 4, 0.004), (512, 64, 0.01)]
]


@pytest.mark.parametrize(
    ("workers", "size", "seconds"), [(8, 4, 0.001), (2, 34, 0.004), (9, 34, 0.007), (4000, 124, 0.016), (8, 1, 0.001)]
)
def test_the_driver_takes_what_was_measured_with_as_many_groups_in_flight(workers, size, seconds):
    assert scale_rates.driver_seconds(DRIVER, workers, size) == pytest.approx(seconds)


def test_rates_of_a_card():
    rows = [
        {"scoring": "loglikelihood", "shape": "3B", "naive_per_second": 5, "ours_per_second": 100, "ratio": 20}
        | {"layer_tokens_per_path": 7},
        {"scoring": "loglikelihood", "varied": "batch 4", "ratio": 6},
    ]
    found = scale_rates.card_rates({"card": "H200", "rows": rows})
    assert [row["paths_a_second"] for row in found] == [100, 30] and found[1]["varied"] == "batch 4"


def test_whole_searches_gain_less():
    rows = [{"scoring": "generate", "ratio": 6}, {"scoring": "loglikelihood", "ratio": 14}]
    assert scale_rates.whole_share({"scorings": {"loglikelihood": {"ratio": 35}}}, {"rows": rows}) == pytest.approx(0.4)


def test_labels_are_as_long_as_their_searches_make_them():
    results = scale_rates.searched(6, 20)
    mean = sum(len(result.verdicts) for result in results) / len(results)
    assert 3 < mean < 21
    short, long = (scale_rates.label_bytes(6, paths, 20) for paths in (mean, 2 * mean))
    assert 400 < short < long < 2 * short
    assert scale_rates.label_bytes(28, mean, 20) > short + 22 * 3 * mean


def test_what_cards_ask_of_driver_and_disk():
    (row, *_) = scale.limits(rate=100, mean=50, driver=DRIVER, workers=[8], a_label=1000, an_input=10**6)
    assert (row["workers"], row["group_size"]) == (8, 4)
    # A card has two questions a second, so a group of four takes two seconds.
    assert row["seconds_of_a_group"] == pytest.approx(2) and row["cards_that_one_driver_feeds"] == pytest.approx(2000)
    assert row["label_bytes_a_second"] == pytest.approx(16_000)
    assert row["input_bytes_a_second"] == pytest.approx(16e6)
    assert row["journal_flushes_a_second"] == pytest.approx(8 / 2 * (scale.SIMULATIONS + 1))
