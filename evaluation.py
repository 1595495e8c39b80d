"""Stage 3: evaluate a routed checkpoint and its base side by side with lm-eval.

    python evaluation.py --checkpoint checkpoints/my-run --tasks routed_arithmetic

Routing sees prompts only, never the tokens that are scored. Prints a table and writes JSON.
"""

from __future__ import annotations

import json
from pathlib import Path

from transformers import AutoModelForCausalLM, AutoTokenizer

from routing.arguments import DTYPES, EvaluationArguments, parse, pick_device
from routing.errors import UserError, run_command
from routing.evaluation import PromptRoutedLM, check_tasks, evaluate_model, mcnemar, members, route_share, summary
from routing.families import locate_model
from routing.files import write_json
from routing.report import print_table
from routing.run_info import git_commit, hardware, today, versions


def load_pair(arguments: EvaluationArguments) -> tuple[PromptRoutedLM, PromptRoutedLM, str]:
    """The base and the routed model, ready for lm-eval, and the base's name."""
    folder = Path(arguments.checkpoint)
    information = folder / "training.json"
    if not information.is_file():
        raise UserError(
            f"--checkpoint {arguments.checkpoint!r} holds no training.json, so it is no checkpoint of train.py."
        )
    try:
        base = json.loads(information.read_text())["arguments"]["model_id"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{information} is damaged ({error!r}); make the checkpoint again with train.py.") from error
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    models = []
    for place, trusted in ((locate_model(base), False), (str(folder), True)):
        model = AutoModelForCausalLM.from_pretrained(place, trust_remote_code=trusted, dtype=DTYPES[arguments.dtype])
        model.to(pick_device(arguments.device)).eval()
        models.append(PromptRoutedLM(pretrained=model, tokenizer=tokenizer, batch_size=arguments.batch_size))
    return *models, base


def main() -> None:
    arguments = parse(EvaluationArguments)
    names = arguments.task_names()
    manager = check_tasks(names)
    tasks = members(names, manager)
    base_model, routed_model, base_name = load_pair(arguments)
    depth = routed_model.model.config.num_hidden_layers
    output = Path(arguments.output or Path(arguments.checkpoint) / "evaluation.json")
    results = []
    for task in tasks:
        base = evaluate_model(base_model, task, manager, arguments.limit)
        routed = evaluate_model(routed_model, task, manager, arguments.limit)
        results.append(
            {
                "task": task,
                "n": len(base.correct),
                "base": summary(base, depth),
                "routed": summary(routed, depth),
                "paired": mcnemar(base.correct, routed.correct),
                "route_share": route_share(routed.routes),
                "routes": routed.routes,
                "model": base_name,
                "dtype": arguments.dtype,
                "hardware": hardware(),
                "date": today(),
                "versions": versions(),
                "git_commit": git_commit(),
            }
        )
        write_json(output, results)  # After every task: a later one may fail.
    print_table(results)
    print(f"written to {output}")


if __name__ == "__main__":
    run_command(main)
