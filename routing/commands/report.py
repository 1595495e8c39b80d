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

from pathlib import Path

from routing.common.errors import UserError, raise_all, run_command
from routing.common.files import unwritable
from routing.common.parser import Parser
from routing.report.runs import find_runs, read_object


def main(argv: list[str] | None = None) -> None:
    parser = Parser(prog="dlr report", description=__doc__)
    parser.add_argument("runs", nargs="+", metavar="RUN", type=Path, help="folder of a run, or of a sweep")
    parser.add_argument("--output", required=True, type=Path, help="folder of the report")
    arguments = parser.parse_args(argv)
    raise_all(unwritable("--output", arguments.output))
    folders, empty = find_runs(arguments.runs)
    hybrid = {read_object(folder / "arguments.json", ("objective",))["objective"] == "lm" for folder in folders}
    if len(hybrid) > 1:
        raise UserError("some runs are of --objective lm and others are not; give each kind a report of its own.")
    from routing.commands.work.report import run  # Takes seconds to import.

    run(folders, empty, hybrid == {True}, arguments.output)


if __name__ == "__main__":
    run_command(main)
