"""What stock lm-eval's routing gains or loses by reading the scored choices: the same checkpoint, both ways.

    .venv/bin/python benchmarks/stock_lm_eval.py demo/checkpoint --json benchmarks/results/stock_lm_eval.json

`stock` is lm-eval's own model, which sends prompt and choice in one sequence; `prompt_only` is that of evaluation.py.
`split_questions` is the share of questions whose choices were routed differently.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from lm_eval import simple_evaluate
from lm_eval.models.huggingface import HFLM

from routing.common.errors import run_command
from routing.common.files import write_json
from routing.common.run_info import git_commit, hardware, today, versions
from routing.common.statistics import mcnemar, wilson_interval
from routing.evaluation.lm import PromptRoutedLM
from routing.evaluation.methods import Settings, evaluate
from routing.evaluation.tasks import accuracy_of, check_tasks
from routing.models.checkpoint import load_checkpoint


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", help="folder of a routed checkpoint")
    parser.add_argument("--task", default="routed_openbookqa", help="a task of choices")
    parser.add_argument("--limit", type=int, help="questions, default all")
    parser.add_argument("--batch_size", type=int, default=16, help="sequences a forward")
    parser.add_argument("--json", help="file for the results")
    return parser.parse_args()


class NotingLM(HFLM):
    """Stock, but for a note of the routes of each question: prompt (as text) -> set of routes."""

    def _loglikelihood_tokens(self, requests, **kwargs):
        self.routes: dict[str, set] = {}
        answers = []
        for request in requests:  # One by one, so that the last routes are those of the request.
            answers += super()._loglikelihood_tokens([request], disable_tqdm=True)
            self.routes.setdefault(request[0][0], set()).add(tuple(self.model.last_routes[0].tolist()))
        return answers


def main() -> None:
    arguments = parsed()
    model, tokenizer = load_checkpoint(Path(arguments.checkpoint), torch.float32, torch.device("cpu"))
    manager, task = check_tasks([arguments.task]), arguments.task
    ours = evaluate(PromptRoutedLM(model, tokenizer, arguments.batch_size), task, manager, Settings(arguments.limit))
    lm = NotingLM(pretrained=model, tokenizer=tokenizer, batch_size=arguments.batch_size)
    output = simple_evaluate(
        model=lm, tasks=[task], limit=arguments.limit, task_manager=manager, bootstrap_iters=0, log_samples=True
    )
    stock = {sample["doc_id"]: accuracy_of(task, sample) for sample in output["samples"][task]}
    result = {"task": task, "n": len(stock)}
    for name, correct in (("stock", stock), ("prompt_only", ours.correct)):
        right = sum(correct.values())
        result[name] = {"accuracy": right / len(correct), "ci95": wilson_interval(right, len(correct))}
    result |= {
        "paired": mcnemar(ours.correct, stock),
        "split_questions": sum(len(routes) > 1 for routes in lm.routes.values()) / len(lm.routes),
        "hardware": hardware(),
        "date": today(),
        "versions": versions(),
        "git_commit": git_commit(),
    }
    print(result)
    if arguments.json:
        write_json(Path(arguments.json), result)


if __name__ == "__main__":
    run_command(main)
