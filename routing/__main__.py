"""`python -m routing COMMAND …`, or `dlr COMMAND …`: every command of the toolkit by one name.

A command is imported when it is asked for, so the list of them, and a wrong name, need neither torch nor a second.
"""

from __future__ import annotations

import sys
from importlib import import_module

# name -> what it does; the module routing.commands.NAME has the rest.
COMMANDS = {
    "demo": "routing by value on the default model and offline questions, in half an hour",
    "generate": "stage 1: label questions with layer paths and verdicts (data_generation.py)",
    "labels": "look at labels, export, import, their card",
    "headroom": "what routing could gain over the best static path, before a router is trained",
    "train": "stage 2: train routers, adapters or hybrids (train.py)",
    "sweep": "a grid of training runs, and their evaluation",
    "adapters": "what each adapter of a checkpoint is worth",
    "calibrate": "set the budget of a checkpoint, with a guarantee",
    "frontier": "accuracy against layers for a range of budgets",
    "evaluate": "stage 3: lm-eval beside base and controls (evaluation.py)",
    "text_evaluation": "perplexity of routers that were trained on text",
    "prune": "query-level pruning from data to comparison",
    "compare_pruning": "query-level pruning beside its baselines",
    "study": "all methods on the same questions and clock, by a plan",
    "recommend": "which method of a study to take for a wanted loss",
    "export": "a path as a stock model, a mergekit recipe or a PEFT folder",
    "report": "pages and pictures of training runs",
    "analysis": "which tokens run which layers",
    "show": "the route of a prompt, or of each of its tokens, beside the full model",
    "app": "a page on which prompts are typed: routed and full model side by side (needs gradio)",
    "card": "write the card of a checkpoint, upload it",
    "fetch": "fetch a model that comes without a hub",
}


def overview() -> str:
    width = max(map(len, COMMANDS))
    lines = "\n".join(f"  {name:<{width}}  {what}" for name, what in COMMANDS.items())
    return f"usage: dlr COMMAND [ARGUMENTS]\n\n{lines}\n\ndlr COMMAND --help tells the arguments of a command."


def main(argv: list[str] | None = None) -> None:
    from routing.common.errors import run_command

    run_command(lambda: named(sys.argv[1:] if argv is None else argv))


def named(words: list[str]) -> None:
    """Run the command that the first word names."""
    if not words or words[0] in ("-h", "--help", "help"):
        print(overview())
        return
    name, *rest = words
    if name not in COMMANDS:
        print(f"error: there is no command {name!r}.\n\n{overview()}", file=sys.stderr)
        sys.exit(2)
    sys.argv = [f"dlr {name}", *rest]
    import_module(f"routing.commands.{name}").main()


if __name__ == "__main__":
    main()
