"""What `dlr report` does: reads the runs and writes their page, pictures and tables."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from routing.common.errors import UserError, raise_all
from routing.report.groups import group_runs
from routing.report.hybrid_page import write_hybrid_report
from routing.report.hybrid_runs import read_hybrid_run
from routing.report.run_page import write_report
from routing.report.runs import read_run


def readable_runs(folders: list[Path], read: Callable) -> tuple[list, list[str]]:
    """The runs that can be read, and what is wrong with the others: one that diverged must not cost the whole sweep.

    Raises:
        UserError: if none can be read.
    """
    found, broken = [], []
    for folder in folders:
        try:
            found.append(read(folder))
        except UserError as error:
            broken.append(str(error))
    if not found:
        raise_all(broken)
    return found, broken


def run(folders: list[Path], empty: list[str], is_hybrid: bool, output: Path) -> None:
    """Report runs.

    Args:
        empty: names of runs without metrics, which are left out.
        is_hybrid: whether all are of hybrid language models; else none is.
    """
    runs, broken = readable_runs(folders, read_hybrid_run if is_hybrid else read_run)
    notes = write_hybrid_report(runs, output) if is_hybrid else write_report(group_runs(runs), output)
    notes += [f"left out: {problem}" for problem in broken]
    if empty:
        notes.append(f"left out, without metrics.csv yet: {', '.join(empty)}")
    for note in notes:
        print(f"note: {note}", file=sys.stderr)
    print(f"written to {output / 'report.html'}")
