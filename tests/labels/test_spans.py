"""Boundaries of groups: all questions once, in order, and little left for the last."""

from __future__ import annotations

import pytest

from routing.labels.spans import SMALLEST, group_starts


@pytest.mark.parametrize("total", [0, 1, 3, 4, 13, 64, 96, 127, 1000])
@pytest.mark.parametrize("size", [1, 2, 5, 32, 64, 2000])
def test_every_question_is_in_one_group_of_at_most_the_size(total, size):
    starts = group_starts(total, size)
    assert starts[0] == 0 and starts[-1] == total
    assert all(1 <= end - start <= size for start, end in zip(starts, starts[1:]))


def test_groups_are_large_until_the_end_and_small_there():
    starts = group_starts(10 * 64, 64)
    sizes = [end - start for start, end in zip(starts, starts[1:])]
    assert sizes[:8] == [64] * 8 and sizes[8:12] == [32, 24, 18, 14]
    assert sizes[-1] <= SMALLEST and sizes == sorted(sizes, reverse=True)


def test_without_shrinking_all_have_the_size():
    assert group_starts(13, 5, shrink=False) == [0, 5, 10, 13]


@pytest.mark.parametrize("size", [32, 64])
def test_two_processes_that_take_turns_end_together(size):
    """96 questions of equal work: who is free claims the next group."""
    starts, busy = group_starts(96, size), [0, 0]
    for start, end in zip(starts, starts[1:]):
        busy[busy.index(min(busy))] += end - start
    assert 96 / max(busy) >= 1.85
    fixed, busy = group_starts(96, size, shrink=False), [0, 0]
    for start, end in zip(fixed, fixed[1:]):
        busy[busy.index(min(busy))] += end - start
    assert 96 / max(busy) <= 1.5
