"""Accuracy of a base model on the offline questions, by scoring: which task can a demonstration use?

    .venv/bin/python benchmarks/base_accuracy.py --json benchmarks/results/base_accuracy.json

Uses validation questions, which are neither searched on nor tested on. Prints accuracy, its 95 % interval and
the accuracy of guessing.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from tqdm import tqdm

from routing.default_model import DEFAULT_MODEL
from routing.errors import run_command
from routing.evaluation.statistics import wilson_interval
from routing.families import load_base_config, load_tokenizer, locate_model, routed_class
from routing.files import write_json
from routing.run_info import git_commit, hardware, today, versions
from routing.scoring import Evaluator, request_of
from routing.search.routes import full_route
from routing.tasks import load_examples

# data set, scoring, chat template
CASES = (
    ("piqa", "generate", True),
    ("openbookqa", "generate", True),
    ("openbookqa", "generate", False),
    ("piqa", "loglikelihood", False),
    ("openbookqa", "loglikelihood_norm", False),
    ("arithmetic", "generate", False),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=DEFAULT_MODEL, help="base model: hub id, folder or the default")
    parser.add_argument("--limit", type=int, default=100, help="questions a case, at most")
    parser.add_argument("--json", help="file for the results")
    arguments = parser.parse_args()
    config, tokenizer = load_base_config(arguments.model), load_tokenizer(arguments.model)
    model = routed_class(config.model_type).from_pretrained(locate_model(arguments.model)).eval()
    evaluator = Evaluator(model, tokenizer, batch_size=16)
    rows = []
    for dataset, scoring, chat in tqdm(CASES, desc="cases"):
        examples = load_examples(dataset, "validation", arguments.limit, seed=0)
        requests = [request_of(example, scoring, tokenizer, chat) for example in examples]
        routes = [full_route(config.num_hidden_layers)] * len(requests)
        right = sum(verdict.correct for verdict in evaluator.verdicts(requests, routes))
        guessing = sum(1 / len(e.choices) if e.choices else 0 for e in examples) / len(examples)
        low, high = wilson_interval(right, len(examples))
        rows.append(
            {
                "dataset": dataset,
                "scoring": scoring,
                "chat": chat,
                "n": len(examples),
                "accuracy": right / len(examples),
                "ci95": [low, high],
                "guessing": guessing,
            }
        )
        print(
            f"{dataset:12} {scoring:20} chat={chat!s:5} n={len(examples):3} accuracy {right / len(examples):.3f} "
            f"({low:.3f} – {high:.3f}), guessing {guessing:.3f}"
        )
    if arguments.json:
        about = {"model": arguments.model, "hardware": hardware(), "date": today()}
        write_json(Path(arguments.json), about | {"versions": versions(), "git_commit": git_commit(), "rows": rows})


if __name__ == "__main__":
    run_command(main)
