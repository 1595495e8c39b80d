"""Stage 3: evaluate a routed checkpoint with lm-eval, beside its base and controls.

    python evaluation.py --checkpoint checkpoints/my-run --tasks routed_arithmetic --controls static,random
    python evaluation.py --checkpoint checkpoints/my-run --check

Routing sees prompts only, never the tokens that are scored. Prints a table; writes evaluation.json, evaluation.html
and the model card (README.md) into the checkpoint folder. Run it again to continue after an interruption;
`accelerate launch` spreads the questions over processes.
"""

from __future__ import annotations

from routing.common.cli import parse
from routing.common.errors import run_command
from routing.evaluation.arguments import EvaluationArguments


def main(argv: list[str] | None = None) -> None:
    arguments = parse(EvaluationArguments, argv)
    from routing.commands.work.evaluate import run  # Takes seconds to import.

    run(arguments)


if __name__ == "__main__":
    run_command(main)
