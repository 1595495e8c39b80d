"""Stage 3: evaluate a routed checkpoint with lm-eval, beside its base and controls.

    python evaluation.py --checkpoint checkpoints/my-run --tasks routed_arithmetic --controls static,random
    python evaluation.py --checkpoint checkpoints/my-run --check

Routing sees prompts only, never the tokens that are scored. Prints a table; writes evaluation.json, evaluation.html
and the model card (README.md) into the checkpoint folder. Run it again to continue after an interruption;
`accelerate launch` spreads the questions over processes.
"""

from routing.commands.evaluate import main
from routing.common.errors import run_command

if __name__ == "__main__":
    run_command(main)
