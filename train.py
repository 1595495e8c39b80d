"""Stage 2: train routers on the frozen base and write a checkpoint that loads with trust_remote_code.

    python train.py --data data/mcts_paths --run_name my-run

routing/commands/train.py has the rest, `python train.py --help` all options.
"""

from routing.commands.train import main
from routing.common.errors import run_command

if __name__ == "__main__":
    run_command(main)
