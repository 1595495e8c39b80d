"""Training runs as tables, pictures and one page: losses, layers, speed and controls, seeds taken together.

    python -m routing report runs/dense runs/gumbel --output report
    python -m routing report sweeps/token-routing --output sweeps/token-routing/report
    python -m routing report sweeps/hybrid --output sweeps/hybrid/report

Each RUN is the folder of a run of train.py (metrics.csv, arguments.json; controls.csv, layers.csv and analysis.json
where there are any), or of a sweep, whose runs/ are all taken. Writes report.csv, a PNG for each picture and
report.html, which needs nothing beside it. Hybrid language models (--objective lm) have a report of their own
kind, with paired.csv: differences of test loss by seed.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from routing.common.errors import UserError, raise_all, run_command
from routing.common.files import unwritable
from routing.common.parser import Parser
from routing.report.groups import group_runs
from routing.report.hybrid_page import write_hybrid_report
from routing.report.hybrid_runs import read_hybrid_run
from routing.report.run_page import write_report
from routing.report.runs import find_runs, read_object, read_run


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


def main() -> None:
    parser = Parser(prog="dlr report", description=__doc__)
    parser.add_argument("runs", nargs="+", metavar="RUN", type=Path, help="folder of a run, or of a sweep")
    parser.add_argument("--output", required=True, type=Path, help="folder of the report")
    arguments = parser.parse_args()
    raise_all(unwritable("--output", arguments.output))
    folders, empty = find_runs(arguments.runs)
    hybrid = {read_object(folder / "arguments.json", ("objective",))["objective"] == "lm" for folder in folders}
    if len(hybrid) > 1:
        raise UserError("some runs are of --objective lm and others are not; give each kind a report of its own.")
    is_hybrid = hybrid == {True}
    runs, broken = readable_runs(folders, read_hybrid_run if is_hybrid else read_run)
    notes = (
        write_hybrid_report(runs, arguments.output) if is_hybrid else write_report(group_runs(runs), arguments.output)
    )
    notes += [f"left out: {problem}" for problem in broken]
    if empty:
        notes.append(f"left out, without metrics.csv yet: {', '.join(empty)}")
    for note in notes:
        print(f"note: {note}", file=sys.stderr)
    print(f"written to {arguments.output / 'report.html'}")


if __name__ == "__main__":
    run_command(main)
