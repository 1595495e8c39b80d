"""Stage 1: layer paths and their verdicts, as labels: by a tree search, an exploration of sets of layers to prune, or
along the same menu of paths for every question.

    python data_generation.py --model M --dataset arc,dart --output_dir data/mcts_paths --num_simulations 50 --budget 2
    python data_generation.py --model M --search dfs --dataset dart --output_dir data/explored
    python data_generation.py --search menu --menu influence:0,2,4,6,9,12 --dataset procedural --output_dir data/menu

Without hub access: --dataset arithmetic (or piqa, openbookqa, …), and the default model. A run that was
interrupted continues when it is started again with the same arguments.
"""

from routing.commands.generate import main
from routing.common.errors import run_command

if __name__ == "__main__":
    run_command(main)
