"""What the adapters of a checkpoint are worth on questions of a split: the task score with each layer replaced alone.

    python -m routing adapters checkpoints/adapters --dataset arithmetic --output runs/adapters

Writes layers.json and layers.png; run it again to continue after an interruption.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from routing.common.cli import below
from routing.common.devices import DTYPES
from routing.common.errors import UserError, raise_all, run_command
from routing.common.files import unwritable
from routing.common.parser import Parser
from routing.common.placing import add_place_arguments, place_problems
from routing.models.checkpoint_files import check_adapters
from routing.scoring.prompting import add_flags, flag_problems
from routing.tasks import unknown_names
from routing.tasks.examples import SPLITS
from routing.tasks.problems import files_without_splits


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(prog="dlr adapters", description=__doc__)
    parser.add_argument("checkpoint", type=Path, help="checkpoint with adapters")
    parser.add_argument("--dataset", default="arithmetic", help="comma-separated data sets")
    parser.add_argument("--split", default="test", choices=SPLITS, help="split to draw from")
    parser.add_argument("--num_samples", type=int, default=300, help="questions of each data set, at most")
    add_flags(parser)
    parser.add_argument("--batch_size", type=int, default=64, help="paths evaluated together, at most")
    parser.add_argument("--dtype", default="float32", choices=sorted(DTYPES))
    add_place_arguments(parser)
    parser.add_argument("--output", type=Path, required=True, help="folder of the results")
    arguments = parser.parse_args(argv)
    problems = unknown_names(arguments.dataset)
    problems += files_without_splits("dataset", arguments.dataset) + place_problems(arguments)
    problems += flag_problems(arguments)
    problems += below(arguments, num_samples=1, batch_size=1)
    problems += unwritable("--output", arguments.output)
    try:
        check_adapters(arguments.checkpoint)
    except UserError as error:
        problems.append(str(error))
    raise_all(problems)
    return arguments


def main(argv: list[str] | None = None) -> None:
    arguments = parse_arguments(argv)
    from routing.commands.work.adapters import run  # Takes seconds to import.

    run(arguments)


if __name__ == "__main__":
    run_command(main)
