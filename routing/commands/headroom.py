"""What could routing gain? Of a dense table of labels, before any router is trained.

    python -m routing headroom data/menu --output runs/headroom
    python -m routing headroom data/menu --again data/menu-other-words

LABELS are folders of `data_generation.py --search menu`, of one data set or many, all of one menu. --again takes the
same questions in other words, made by the same command with --wording 1 and another --output_dir; then what a path
does to a question is parted from luck. Prints tables and one sentence: route, or take which static path. Writes
headroom.json, headroom.png and headroom_datasets.png.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

from routing.common.errors import raise_all, run_command
from routing.common.files import unwritable
from routing.common.parser import Parser
from routing.labels.table import read_table


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(prog="dlr headroom", description=__doc__)
    parser.add_argument("labels", metavar="LABELS", type=Path, nargs="+", help="label folders of a menu")
    parser.add_argument("--again", type=Path, nargs="+", default=[], help="label folders, made with --wording 1")
    parser.add_argument(
        "--costs", default="", help="reward a layer, with commas between; default several from 0 to 0.05"
    )
    parser.add_argument("--folds", type=int, default=10, help="parts for cross-fitting, 2 or more")
    parser.add_argument("--max_loss", type=float, default=0.02, help="reward that a static path may lose, 0 to 1")
    parser.add_argument("--seed", type=int, default=0, help="of the bootstrap")
    parser.add_argument("--output", type=Path, help="folder for JSON and pictures, default the first of LABELS")
    arguments = parser.parse_args(argv)
    problems = []
    try:
        arguments.costs = sorted({float(word) for word in arguments.costs.split(",")}) if arguments.costs else None
        if not all(0 <= cost < math.inf for cost in arguments.costs or ()):
            problems.append(f"--costs {arguments.costs} must be at least 0")
    except ValueError:
        problems.append(f"--costs {arguments.costs!r} must be numbers with commas between, such as 0,0.005,0.01")
    if arguments.folds < 2:
        problems.append(f"--folds {arguments.folds} must be at least 2")
    if not 0 <= arguments.max_loss < 1:
        problems.append(f"--max_loss {arguments.max_loss} must be at least 0 and below 1")
    if arguments.seed < 0:
        problems.append(f"--seed {arguments.seed} must be at least 0")
    raise_all(problems + unwritable("--output", arguments.output or arguments.labels[0]))
    return arguments


def main(argv: list[str] | None = None) -> None:
    arguments = parse_arguments(argv)
    table = read_table(arguments.labels)
    again = read_table(arguments.again) if arguments.again else None
    from routing.commands.work.headroom import run  # Takes seconds to import.

    run(arguments, table, again)


if __name__ == "__main__":
    run_command(main)
