"""Labelling a folder by workers of a cluster: this process claims the groups and writes, the workers search.

Only this process needs the folder. A group that a lost worker had is searched again by another one; what was finished
lies in the folder, so after a lost driver the same command goes on. The labels are the same byte for byte as those of
one process, since the boundaries of the groups are.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import NamedTuple

from tqdm import tqdm

from routing.common.ray_workers import Workers
from routing.labels.labelling import Counts
from routing.labels.writing import Group, LabelFolder


class Found(NamedTuple):
    """What a worker found: the lines of a group, in order, and counts of its searches."""

    lines: list[str]
    counts: Counts


def label_on(folder: LabelFolder, workers: Workers) -> Counts:
    """Label what the folder lacks, beside other processes that do the same.

    Args:
        workers: of tasks `examples -> Found`.
    """
    counts, held = Counts(), {}
    progress = tqdm(total=len(folder), initial=folder.finished(), desc="searching", unit="example", mininterval=1)

    def claim():
        with ExitStack() as stack:
            if (group := folder.claim(stack, held)) is None:
                return None
            group.drop_journal()  # Its rounds are those of a process; workers begin it anew.
            held[group.index] = (group, stack.pop_all())
            return group.index, f"group {group.index}", (group.examples,)

    def finish(group: Group, found: Found) -> None:
        folder.finish(group, found.lines)
        counts.merge(found.counts)
        rate = counts.evaluations / max(progress.format_dict["elapsed"], 1e-9)
        progress.set_postfix_str(f"{workers.count} workers, {rate:.1f} paths/s", refresh=False)
        progress.update(folder.finished() - progress.n)

    with progress, ExitStack() as every:
        every.callback(lambda: [stack.close() for _, stack in held.values()])
        for index, found in workers.results(claim, folder.complete):
            group, stack = held.pop(index)
            with stack:
                finish(group, found)
    return counts
