"""`make demo`: the three stages on the default model and offline questions, with table, pictures and page.

Every stage is the command a user would type; what is finished is not done again. `make clean` starts over.
"""

from __future__ import annotations

import json
from pathlib import Path

from routing.files import write_json
from routing.report.plots import plot_layer_rates, plot_routes
from routing.report.words import print_table
from routing.stages import done, run_stage

DEMO = Path("demo")
TASK = "routed_arithmetic"
SEARCH = ("--dataset", "arithmetic", "--num_samples", "150", "--num_simulations", "50")
TRAINING = ("--num_epochs", "25", "--learning_rate", "1e-3", "--eval_fraction", "0.2", "--class_weighting", "none")


def main() -> None:
    labels, checkpoint = DEMO / "labels", DEMO / "checkpoint"
    evaluation = checkpoint / "evaluation.json"
    run_stage("1/4", "search layer paths", "data_generation.py", *SEARCH, "--output_dir", str(labels))
    if done(checkpoint / "training.json", labels / "labels.jsonl"):
        print(f"\n[2/4] routers are trained: {checkpoint}")
    else:
        train = ("--data", str(labels), "--run_name", "checkpoint", "--output_dir", str(DEMO))
        run_stage("2/4", "train routers", "train.py", *train, "--work_dir", str(DEMO / "runs"), *TRAINING)
    if done(evaluation, checkpoint / "training.json"):
        print(f"\n[3/4] checkpoint is evaluated: {evaluation}")
    else:
        run_stage(
            "3/4", "evaluate base, routed model and controls", "evaluation.py", "--checkpoint", str(checkpoint),
            "--tasks", TASK, "--batch_size", "32", "--controls", "static,random", "--control_samples", "50",
        )  # fmt: skip
    print("\n[4/4] table and pictures")
    result = json.loads(evaluation.read_text())[0]
    routes = result.pop("routes")
    write_json(DEMO / "results.json", result)
    title = f"{result['model']} on {result['task']}, {result['n']} held-out questions"
    plot_routes(routes, DEMO / "routes.png", title)
    plot_layer_rates(routes, DEMO / "layer_rates.png", title)
    print_table([result])
    print(f"{result['hardware']}, {result['date']}")
    for path in (
        labels / "labels.jsonl",
        checkpoint,
        DEMO / "results.json",
        DEMO / "routes.png",
        DEMO / "layer_rates.png",
        checkpoint / "evaluation.html",
        checkpoint / "README.md",
    ):
        print(f"  {path}")


if __name__ == "__main__":
    main()
