"""Stage 3: evaluate a routed checkpoint with lm-eval, beside its base and controls.

    python evaluation.py --checkpoint checkpoints/my-run --tasks routed_arithmetic --controls static,random

routing/commands/evaluate.py has the rest, `python evaluation.py --help` all options.
"""

from routing.commands.evaluate import main
from routing.common.errors import run_command

if __name__ == "__main__":
    run_command(main)
