"""A study as its stages leave it, with verdicts that are given."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from routing.common.files import write_json
from routing.study.plan import FREE, Plan
from routing.study.stages import Place

TASK = {"dataset": "procedural", "adapters": 4, "table": 4, "searched": 2, "explored": 2, "validation": 3, "test": 40}
METHODS = ("full", "static", "value", "dlr_token", "oracle")
DEPTH, N = 10, 40


def fake_plan(tasks=("sums", "words"), seeds=(0, 1), **parts) -> Plan:
    return Plan(
        {
            "models": {"m": {"model": "smollm2-135m-instruct"}}, "tasks": dict.fromkeys(tasks, TASK),
            "seeds": list(seeds), "budgets": [0.2], "methods": dict.fromkeys(METHODS, {}),
            "hypotheses": [
                {"says": "value is near the full model", "method": "value", "budget": 0.2, "task": "all",
                 "against": "full", "above": -0.1},
                {"says": "value is far above a static path", "method": "value", "budget": 0.2, "task": "all",
                 "against": "static", "above": 0.9},
            ],
        } | parts
    )  # fmt: skip


def fake_answers(place: Place, task: str, right: dict, times: bool = True) -> None:
    """Files of the stages of one task: verdicts by method [N], and their times."""
    instances = []
    for method, own in right.items():
        budget = FREE if method in ("full", "oracle") else 0.2
        layers = DEPTH if method == "full" else 8.0
        one = {
            "method": method, "budget": budget, "weights": method if method in ("value", "dlr_token") else "",
            "skip_action": "adapter", "fields": {}, "route": [1] * DEPTH if method in ("full", "static") else None,
            "right": list(map(int, own)), "layers": [layers] * N, "run_shares": [layers / DEPTH] * DEPTH,
            "flops": 1e9 * layers, "routes": {"distinct": [_route(method), (1,) * DEPTH], "taken": [0] * (N - 1) + [1]},
        }  # fmt: skip
        if method == "value":
            one["fields"] = {"cost": 0.02}
        if method in ("full", "static"):
            one["validation"] = {"rewards": [1, int(method == "full")], "layers": layers}
        instances.append(one)
    folder = place.folder
    ids = [f"{task}/{number}" for number in range(N)]
    questions = [f"What is {number} + 1? </script>" for number in range(N)]
    own = {"ids": ids, "questions": questions, "instances": instances}
    write_json(folder / f"answers-{task}" / "answers.json", own)
    if times:
        seconds = [
            {"method": one["method"], "budget": one["budget"], "seconds": None if one["method"] == "oracle" else
             [[0.1 * np.mean(one["layers"]), 9.0, 0.1 * np.mean(one["layers"])]] * 2} for one in instances
        ]  # fmt: skip
        own = {"instances": seconds, "added_parameters": list(range(len(instances)))}
        write_json(folder / f"times-{task}" / "times.json", own)


def _route(method: str) -> tuple:
    if method == "full":
        return (1,) * DEPTH
    return (1, 0.63, *(1,) * (DEPTH - 3), 0) if method == "dlr_token" else (1, 0, *(1,) * (DEPTH - 3), 0)


def fake_study(output: Path, plan: Plan, **options) -> None:
    """All tasks and seeds; value is as good as the full model, static answers every other of its questions."""
    gains = [{"policy": "text", "layers": 8.0, "gain": 0.5}, {"policy": "data set", "layers": 8.0, "gain": 0.9}]
    for seed in plan.seeds:
        for task in plan.tasks:
            full = np.arange(N) % 4 > 0
            right = {
                "full": full, "static": full & (np.arange(N) % 2 > 0), "value": full, "dlr_token": np.zeros(N, bool),
                "oracle": np.ones(N, bool),
            }  # fmt: skip
            place = Place(plan, Path("plan.yaml"), False, output, "m", seed)
            fake_answers(place, task, right, **options)
            write_json(place.folder / f"headroom-{task}" / "headroom.json", {"gains": gains})
