"""Where the groups of a label folder begin: large ones, and small ones at the end, so that no process waits long.

A process claims a group at a time. With groups of one size, the last to finish keeps all others waiting for a whole
group; so towards the end each group is a quarter of what is left. The boundaries hang on the number of questions and
the group size alone: whoever claims them, and when, they are the same.
"""

from __future__ import annotations

SHARE = 4  # Two processes still have two groups each when the end begins.
SMALLEST = 4  # Smaller ones gain little, and each group begins with an evaluation of full paths of its own.


def group_starts(total: int, size: int, shrink: bool = True) -> list[int]:
    """Index of the first question of each group, and the number of questions behind them.

    Args:
        total: questions.
        size: of a group, at most.
        shrink: whether groups get smaller towards the end; False: all have the size, but for the last.
    """
    starts = [0]
    while (left := total - starts[-1]) > 0:
        wanted = size
        if shrink and left <= 2 * size:
            wanted = min(size, max(-(-left // SHARE), SMALLEST))
        starts.append(starts[-1] + min(wanted, left))
    return starts
