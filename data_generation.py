"""Stage 1: layer paths and their verdicts, as labels.

    python data_generation.py --dataset arithmetic --output_dir data/mcts_paths

routing/commands/generate.py has the rest, `python data_generation.py --help` all options.
"""

from routing.commands.generate import main
from routing.common.errors import run_command

if __name__ == "__main__":
    run_command(main)
