"""Accuracy of a base model on the offline questions, by scoring: which task can a demonstration use?

    .venv/bin/python benchmarks/base_accuracy.py --json benchmarks/results/base_accuracy.json
    .venv/bin/python benchmarks/base_accuracy.py --datasets tool_calls,bfcl_simple \\
        --json benchmarks/results/base_accuracy_calls.json
    .venv/bin/python benchmarks/base_accuracy.py --datasets procedural --limit 1000 \\
        --json benchmarks/results/value/base_accuracy_procedural.json
    .venv/bin/python benchmarks/base_accuracy.py --model gemma3-270m --datasets piqa,openbookqa,arithmetic,procedural \\
        --json benchmarks/results/base_accuracy_gemma3_270m.json

Uses validation questions, which are neither searched on nor tested on. Prints accuracy, its 95 % interval and
the accuracy of guessing; for function calls, the mean of each of their scores too, and for the procedural task the
accuracy of each kind.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from pathlib import Path

from tqdm import tqdm

from routing.common.errors import UserError, run_command
from routing.common.files import write_json
from routing.common.run_info import git_commit, hardware, today, versions
from routing.common.statistics import wilson_interval
from routing.models.base_files import locate_model
from routing.models.default_model import DEFAULT_MODEL
from routing.models.families import load_base_config, load_tokenizer, routed_class
from routing.scoring.plain import Evaluator
from routing.scoring.requests import request_of
from routing.search.routes import full_route
from routing.tasks import load_examples
from routing.tasks.calls import CALL_SCORES
from routing.tasks.procedural import kind_of

# data set, scoring, chat template
CASES = (
    ("piqa", "generate", True),
    ("openbookqa", "generate", True),
    ("openbookqa", "generate", False),
    ("piqa", "loglikelihood", False),
    ("openbookqa", "loglikelihood_norm", False),
    ("arithmetic", "generate", False),
    ("procedural", "generate", False),
    ("tool_calls", "generate", False),
    ("bfcl_simple", "generate", False),
    ("bfcl_simple", "generate", True),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=DEFAULT_MODEL, help="base model: hub id, folder or the default")
    parser.add_argument("--limit", type=int, default=100, help="questions a case, at most")
    parser.add_argument("--datasets", help="data sets to measure, comma-separated; all by default")
    parser.add_argument("--json", help="file for the results")
    arguments = parser.parse_args()
    known = list(dict.fromkeys(dataset for dataset, _, _ in CASES))
    chosen = arguments.datasets.split(",") if arguments.datasets else known
    if unknown := [name for name in chosen if name not in known]:
        raise UserError(f"--datasets {','.join(unknown)}: no case for it; there are {', '.join(known)}")
    config, tokenizer = load_base_config(arguments.model), load_tokenizer(arguments.model)
    # A model that was only pretrained has no chat template, so it is not asked in one.
    cases = [case for case in CASES if case[0] in chosen and not (case[2] and not tokenizer.chat_template)]
    model = routed_class(config.model_type).from_pretrained(locate_model(arguments.model)).eval()
    # With a score, verdicts come with the answers, of which the scores of function calls are computed.
    evaluator = Evaluator(model, tokenizer, batch_size=16, score="accuracy")
    rows = []
    for dataset, scoring, chat in tqdm(cases, desc="cases"):
        examples = load_examples(dataset, "validation", arguments.limit, seed=0)
        requests = [request_of(example, scoring, tokenizer, chat) for example in examples]
        routes = [full_route(config.num_hidden_layers)] * len(requests)
        verdicts = evaluator.verdicts(requests, routes)
        right = sum(verdict.correct for verdict in verdicts)
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
        if examples[0].checker == "calls":
            pairs = [(verdict.output, example) for verdict, example in zip(verdicts, examples, strict=True)]
            means = {name: sum(score(*pair) for pair in pairs) / len(pairs) for name, score in CALL_SCORES.items()}
            rows[-1]["scores"] = means
        if dataset == "procedural":
            kinds = defaultdict(list)
            for verdict, example in zip(verdicts, examples, strict=True):
                kinds[kind_of(example.question)].append(verdict.correct)
            rows[-1]["kinds"] = {kind: {"n": len(own), "accuracy": sum(own) / len(own)} for kind, own in kinds.items()}
        print(
            f"{dataset:12} {scoring:20} chat={chat!s:5} n={len(examples):3} accuracy {right / len(examples):.3f} "
            f"({low:.3f} – {high:.3f}), guessing {guessing:.3f}"
        )
        if scores := rows[-1].get("scores"):
            print("    " + ", ".join(f"{name} {mean:.3f}" for name, mean in scores.items()))
        for kind, row in rows[-1].get("kinds", {}).items():
            print(f"    {kind:12} n={row['n']:3} accuracy {row['accuracy']:.3f}")
    if arguments.json:
        about = {"model": arguments.model, "hardware": hardware(), "date": today()}
        write_json(Path(arguments.json), about | {"versions": versions(), "git_commit": git_commit(), "rows": rows})


if __name__ == "__main__":
    run_command(main)
