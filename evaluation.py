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
from routing.evaluation import PromptRoutedLM, check_tasks, evaluate_model, mcnemar, route_share, summary
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
    base = json.loads(information.read_text())["arguments"]["model_id"]
    tokenizer = AutoTokenizer.from_pretrained(folder)
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
    base_model, routed_model, base_name = load_pair(arguments)
    depth = routed_model.model.config.num_hidden_layers
    base = evaluate_model(base_model, names, manager, arguments.limit)
    routed = evaluate_model(routed_model, names, manager, arguments.limit)
    results = [
        {
            "task": task,
            "n": len(base[task].correct),
            "base": summary(base[task], depth),
            "routed": summary(routed[task], depth),
            "paired": mcnemar(base[task].correct, routed[task].correct),
            "route_share": route_share(routed[task].routes),
            "routes": routed[task].routes,
            "model": base_name,
            "dtype": arguments.dtype,
            "hardware": hardware(),
            "date": today(),
            "versions": versions(),
            "git_commit": git_commit(),
        }
        for task in base
    ]
    output = Path(arguments.output or Path(arguments.checkpoint) / "evaluation.json")
    write_json(output, results)
    print_table(results)
    print(f"written to {output}")


if __name__ == "__main__":
    run_command(main)
