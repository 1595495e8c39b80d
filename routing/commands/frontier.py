"""Accuracy against executed layers and measured time, with the route bias swept, beside its controls.

    python -m routing frontier checkpoints/my-run --dataset arithmetic --targets 29,28,27,26

For each target the bias is found on validation questions (as `python -m routing calibrate` does); accuracy, layers and
time are those of test questions, which nothing was searched, trained or calibrated on. Controls on the same questions:
- dense: all layers once;
- static: one path for all inputs, the best on validation questions with 1, 2, … layers skipped (greedy);
- random: for each input the counts of its routed route on other layers, at random, several seeds; layers that the
  router always runs stay.

Questions are answered batch by batch by all of them in turn, so that time is measured under the same noise. The
checkpoint is not changed.
"""

from __future__ import annotations

import argparse

from routing.commands.calibrate import add_arguments, problems_of
from routing.common.cli import below
from routing.common.errors import raise_all, run_command
from routing.common.parser import Parser
from routing.tasks.problems import files_without_splits


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(prog="dlr frontier", description=__doc__)
    add_arguments(parser)
    parser.add_argument("--targets", default="", help="numbers of layers with commas between; beside the trained bias")
    parser.add_argument("--seeds", type=int, default=3, help="seeds of random routes")
    parser.add_argument("--max_static", type=int, default=4, help="layers that static paths skip, at most")
    parser.add_argument("--output", default="", help="folder for frontier.json and .png, default the checkpoint")
    arguments = parser.parse_args(argv)
    targets = [text.strip() for text in arguments.targets.split(",") if text.strip()]
    problems = problems_of(arguments, "targets", targets)
    problems += below(arguments, seeds=1, max_static=1)
    raise_all(problems + files_without_splits("dataset", arguments.dataset))
    arguments.targets = [float(text) for text in targets]
    return arguments


def main(argv: list[str] | None = None) -> None:
    arguments = parse_arguments(argv)
    from routing.commands.work.frontier import run  # Takes seconds to import.

    run(arguments)


if __name__ == "__main__":
    run_command(main)
