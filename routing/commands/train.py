"""Stage 2: train routers on the frozen base and write a checkpoint that loads with trust_remote_code.

    python train.py --model_id M --data data/mcts_paths --run_name my-run --num_epochs 25 --learning_rate 1e-3

Or train a router end to end on text, with adapters or on the frozen base; a YAML file can hold the arguments:

    python train.py --objective gumbel --router prefix_token --run_name my-run
    python train.py ARGUMENTS.yaml --run_name my-run --seed 1

Or train adapters that stand in for skipped layers; other commands take them with --adapters checkpoints/my-adapters:

    python train.py --objective adapters --dataset arithmetic --run_name my-adapters

Or train a router that reads the query and prunes layers, on layer sets that data_generation.py explored:

    python train.py --objective orpo --router query --data data/explored --run_name my-run

Or train a router that estimates what each path of a menu is worth, on a dense table of --search menu:

    python train.py --objective value --data data/menu --adapters checkpoints/my-adapters --run_name my-run

Or train a small language model from scratch whose blocks choose linear or softmax attention for each token:

    python train.py --objective lm --config dynamic --run_name my-run

A run that was interrupted continues with the same arguments and --resume. Several GPUs, or processes on a machine
without any (--multi_gpu is what makes accelerate start them there too):

    accelerate launch --multi_gpu --num_processes 2 train.py --batch_size 8 …
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from routing.common.cli import expanded, parse
from routing.common.errors import UserError, run_command
from routing.training.registry import OBJECTIVES, overview


def main() -> None:
    words = sys.argv[1:]
    objective = chosen_objective(words)
    if objective is None and {"-h", "--help"} & {*words}:
        print(
            f"usage: train.py --objective OBJECTIVE [ARGUMENTS]\n\nobjectives:\n{overview()}\n\n"
            "train.py --objective OBJECTIVE --help tells the arguments of one.\n\n"
            f"{__doc__}"
        )
        sys.exit()
    objective = objective or "supervised"
    if objective not in OBJECTIVES:
        raise UserError(f"--objective {objective!r} is unknown; there are\n{overview()}")
    row = OBJECTIVES[objective]
    finished(row.run(parse(row.arguments())))


def finished(checkpoint: Path | None) -> None:
    """Write the card of a new checkpoint; the first process alone has one."""
    if checkpoint is not None:
        from routing.report.card import write_model_card

        write_model_card(checkpoint)


def chosen_objective(argv: list[str]) -> str | None:
    """The value of --objective, which decides about all other arguments; None where it is not given."""
    parser = argparse.ArgumentParser(add_help=False)  # Takes --obj too, as the parser of all arguments does.
    parser.add_argument("--objective")
    return parser.parse_known_args(expanded(argv))[0].objective


if __name__ == "__main__":
    run_command(main)
