"""Stage 1: layer paths and their verdicts, as labels: by a tree search, an exploration of sets of layers to prune, or
along the same menu of paths for every question.

    python data_generation.py --model M --dataset arc,dart --output_dir data/mcts_paths --num_simulations 50 --budget 2
    python data_generation.py --model M --search dfs --dataset dart --output_dir data/explored
    python data_generation.py --search menu --menu divergence:0,2,4,6,8 --dataset procedural --output_dir data/menu

Without hub access: --dataset arithmetic (or piqa, openbookqa, …), and the default model. A run that was
interrupted continues when it is started again with the same arguments.
"""

from __future__ import annotations

from routing.common.cli import parse
from routing.common.errors import run_command
from routing.labels.arguments import DataGenerationArguments


def main(argv: list[str] | None = None) -> None:
    arguments = parse(DataGenerationArguments, argv)
    from routing.commands.work.generate import run  # Takes seconds to import.

    run(arguments)


if __name__ == "__main__":
    run_command(main)
