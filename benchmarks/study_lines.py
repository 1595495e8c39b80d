"""Routing by value against a static path of the same study that validation did not have to find: not in its plan.

    python benchmarks/study_lines.py STUDY --output benchmarks/results/study/lines.json

A study compares a router with the best static path by validation, mixed so that it runs as many layers. Where
validation questions are few, that mixture can be worse than the study's own row of the static path at the same budget.
Here the router is compared, task by task, with that row mixed by a coin with the full model, so that both run as many
layers; where the row runs more layers than the router, with the row itself. Of each seed, and of all that are there.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from routing.common.errors import UserError, run_command
from routing.common.files import write_json
from routing.common.run_info import made_with
from routing.study.comparing import paired
from routing.study.plan import ALL, FREE, Plan, read_plan
from routing.study.results import Answers, all_answers

ROUTER, STATIC = "value", "static"


def line(answers: Answers, budget: float) -> tuple[np.ndarray, float]:
    """[N] verdicts of the static row at a budget mixed with the full model, and the full model's share."""
    router, static, full = (
        float(np.mean(answers.instances[key]["layers"])) for key in ((ROUTER, budget), (STATIC, budget), ("full", FREE))
    )
    share = min(max((router - static) / (full - static), 0.0), 1.0) if full > static else 0.0
    return share * answers.right(("full", FREE)) + (1 - share) * answers.right((STATIC, budget)), share


def compared(plan: Plan, answers: list[Answers]) -> list[dict]:
    """Rows for each model, budget and task, of each seed that has all tasks, and of all such seeds together."""
    found = []
    for model in plan.models:
        by_seed = {
            seed: [own for own in answers if (own.place.model, own.place.seed) == (model, seed)]  # one for each task
            for seed in plan.seeds
        }
        by_seed = {seed: own for seed, own in by_seed.items() if len(own) == len(plan.tasks)}
        for budget in plan.budgets if by_seed else ():
            groups = {seed: [own] for seed, own in by_seed.items()} | {ALL: list(by_seed.values())}
            for seed, parts in groups.items():
                about = {"model": model, "budget": budget, "seed": seed}
                found += [about | row for row in _rows(plan, budget, parts)]
    return found


def _rows(plan: Plan, budget: float, seeds: list[list[Answers]]) -> list[dict]:
    """A row for each task, and one for all of them, of seeds together."""
    found = []
    routers = [[one.right((ROUTER, budget)) for one in own] for own in seeds]
    lines = [[line(one, budget) for one in own] for own in seeds]
    for task, part in [*((task, slice(at, at + 1)) for at, task in enumerate(plan.tasks)), (ALL, slice(None))]:
        of_router = np.stack([np.concatenate(own[part]) for own in routers])
        of_line = np.stack([np.concatenate([verdicts for verdicts, _ in own[part]]) for own in lines])
        shares = [[share for _, share in own[part]] for own in lines]
        about = {"task": task, "seeds": len(seeds), "n": of_router.size, "share_of_full": shares}
        found.append(about | paired(of_router, of_line, plan.apart))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path, help="folder of a study")
    parser.add_argument("--plan", type=Path, default=Path("experiments/study.yaml"))
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    plan = read_plan(arguments.plan)
    rows = compared(plan, all_answers(plan, arguments.plan, False, arguments.study))
    if not rows:
        raise UserError(
            f"{arguments.study} has no model and seed whose test questions of all tasks are answered; give the folder "
            f"of a study of {arguments.plan} (archives of finished seeds lie in benchmarks/results/study)."
        )
    write_json(arguments.output, {"rows": rows} | made_with())
    for row in rows:
        low, high = row["ci95"]
        about = f"{row['model']}, seed {row['seed']}, {row['budget']:.0%}, {row['task']}"
        print(f"{about}: {row['difference']:+.3f} ({low:+.3f} to {high:+.3f})")


if __name__ == "__main__":
    run_command(main)
