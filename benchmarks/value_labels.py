"""What of the published loss comes from hindsight labels? Dr.LLM's routers trained on the same searches in two ways.

    .venv/bin/python benchmarks/value_labels.py --labels data/mcts_paths --data arithmetic \\
        --json benchmarks/results/value/labels.json

hindsight: on the one path that turned out right for each question, as published (train.py without --objective).
value: on the verdicts of all tried paths (train.py --objective value --router per_layer).

Both are executed on validation questions, which nothing was searched or trained on: as trained, and with the route bias
that makes each run the same mean numbers of layers (found on the prompts alone). Paired against the full path, and
value against hindsight at equal layers. Trained checkpoints are kept below --work_dir, so a rerun continues.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from tqdm import tqdm

from routing.common.devices import pick_device
from routing.common.errors import raise_all, run_command
from routing.common.files import write_json
from routing.common.run_info import git_commit, hardware, today, versions
from routing.common.stages import done, run_stage
from routing.common.statistics import mcnemar, wilson_interval
from routing.evaluation.budget import decided_routes, find_bias, mean_layers
from routing.labels.problems import label_problems
from routing.labels.reading import LABELS, label_hashes
from routing.models.checkpoint import load_checkpoint
from routing.models.default_model import DEFAULT_MODEL
from routing.scoring.plain import Evaluator
from routing.scoring.prompting import Prompting
from routing.scoring.requests import Request, draw_requests
from routing.search.routes import full_route
from routing.tasks import unknown_names
from routing.tasks.examples import SPLITS

WAYS = {"hindsight": (), "value": ("--objective", "value", "--router", "per_layer")}
TOLERANCE = 0.1  # layers


def train_one(arguments: argparse.Namespace, way: str, seed: int, step: str) -> Path:
    """The checkpoint of one way and seed, trained if it is not there yet."""
    work = Path(arguments.work_dir)
    folder = work / "checkpoints" / f"{way}-{seed}"
    labels = [Path(name.strip()) / LABELS for name in arguments.labels.split(",")]
    if not done(folder / "training.json", *labels):
        words = [
            "--model_id",
            arguments.model,
            "--data",
            arguments.labels,
            "--run_name",
            folder.name,
            "--seed",
            str(seed),
        ]
        words += ["--output_dir", str(folder.parent), "--work_dir", str(work / "runs"), "--save_base", "reference"]
        words += ["--adapters", arguments.adapters] if arguments.adapters else []
        run_stage(step, f"routers from {way} labels, seed {seed}", "train.py", *WAYS[way], *words)
    return folder


def executed(model, tokenizer, requests: list[Request], batch_size: int, forced: bool) -> tuple[list[bool], list]:
    """Verdicts and routes, of the full path or as the routers decide."""
    routes = [full_route(model.config.num_hidden_layers)] * len(requests) if forced else None
    verdicts, taken = Evaluator(model, tokenizer, batch_size).verdicts_and_routes(requests, routes)
    return [verdict.correct for verdict in verdicts], taken


def row_of(name: str, seed: int | None, target: float | None, bias: float, correct: list[bool], routes: list) -> dict:
    right = sum(correct)
    return {
        "name": name,
        "seed": seed,
        "target_layers": target,
        "bias": bias,
        "layers": mean_layers(routes),
        "accuracy": right / len(correct),
        "ci95": wilson_interval(right, len(correct)),
        "distinct_routes": len(set(routes)),
        "correct": correct,
    }


def rows_of(folder: Path, way: str, seed: int, arguments: argparse.Namespace) -> list[dict]:
    """What one checkpoint does: the full path, as trained, and at each target."""
    model, tokenizer = load_checkpoint(folder, torch.float32, pick_device(arguments.device))
    requests = draw_requests(
        arguments.data, arguments.split, arguments.num_samples, tokenizer, Prompting(apply_chat_template=arguments.chat)
    )
    prompts = [request.prompt_ids for request in requests]

    def layers_at(bias: float) -> float:
        model.config.route_bias = bias
        return mean_layers(decided_routes(model, tokenizer, prompts, arguments.batch_size))

    found = [row_of("full path", None, None, 0.0, *executed(model, tokenizer, requests, arguments.batch_size, True))]
    for target in tqdm([None, *arguments.targets], desc=f"{way}, seed {seed}"):
        bias = 0.0 if target is None else find_bias(layers_at, target, TOLERANCE)[0]
        model.config.route_bias = bias
        done_so = executed(model, tokenizer, requests, arguments.batch_size, False)
        found.append(row_of(way, seed, target, bias, *done_so))
    return found


def compared(rows: list[dict]) -> list[dict]:
    """Each row against the full path and, of value, against hindsight at the same target and seed."""
    full = dict(enumerate(rows[0]["correct"]))
    hindsight = {(row["seed"], row["target_layers"]): row for row in rows if row["name"] == "hindsight"}
    for row in rows[1:]:
        own, other = dict(enumerate(row["correct"])), hindsight.get((row["seed"], row["target_layers"]))
        row["against_full"] = mcnemar(full, own)
        if row["name"] == "value":
            row["against_hindsight"] = mcnemar(dict(enumerate(other["correct"])), own)
    return [{name: value for name, value in row.items() if name != "correct"} for row in rows]


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--labels", required=True, help="comma-separated folders of labels of any search")
    parser.add_argument("--data", default="arithmetic", help="data sets whose questions are executed")
    parser.add_argument("--split", default="validation", choices=SPLITS, help="their split")
    parser.add_argument("--num_samples", type=int, help="questions of each data set, at most; default all")
    parser.add_argument("--model", default=DEFAULT_MODEL, help="base model of the labels")
    parser.add_argument("--adapters", default="", help="checkpoint with the adapters of the labels")
    parser.add_argument("--targets", default="29,28,26,24", help="mean numbers of layers, with commas between")
    parser.add_argument("--seeds", type=int, default=3, help="training seeds")
    parser.add_argument("--chat", action="store_true", help="wrap prompts in the chat template, as the labels did")
    parser.add_argument("--batch_size", type=int, default=16, help="questions a forward")
    parser.add_argument("--device", default="auto", help="torch device; auto: cuda if there is one, else cpu")
    parser.add_argument("--work_dir", default="runs/value_labels", help="folder of checkpoints and features")
    parser.add_argument("--json", required=True, help="file for the results")
    arguments = parser.parse_args()
    folders = [Path(name.strip()) for name in arguments.labels.split(",")]
    found = label_problems(folders, arguments.adapters, arguments.model)
    found += [problem.replace("--dataset", "--data", 1) for problem in unknown_names(arguments.data)]
    if arguments.seeds < 1:
        found.append(f"--seeds {arguments.seeds} must be at least 1")
    try:
        arguments.targets = [float(text) for text in arguments.targets.split(",") if text.strip()]
    except ValueError:
        found.append(f"--targets {arguments.targets!r} must be numbers of layers, such as 28,26")
    raise_all([problem.replace("--data:", "--labels:", 1) for problem in found])
    return arguments


def main() -> None:
    arguments = parse_arguments()
    jobs = [(way, seed) for seed in range(arguments.seeds) for way in WAYS]
    rows, trained = [], {}
    for number, (way, seed) in enumerate(jobs, 1):
        folder = train_one(arguments, way, seed, f"{number}/{len(jobs)}")
        trained[folder.name] = json.loads((folder / "training.json").read_text()).get("held_out")
        own = rows_of(folder, way, seed, arguments)
        rows += own[1:] if rows else own
    result = {
        "model": arguments.model,
        "labels": label_hashes([Path(name.strip()) for name in arguments.labels.split(",")]),
        "data": arguments.data,
        "split": arguments.split,
        "n": len(rows[0]["correct"]),
        "held_out": {name: told for name, told in trained.items() if told},
        "rows": compared(rows),
        "arguments": vars(arguments),
        "hardware": hardware(),
        "date": today(),
        "versions": versions(),
        "git_commit": git_commit(),
    }
    for row in result["rows"]:
        target = "as trained" if row["target_layers"] is None else f"target {row['target_layers']:g}"
        low, high = row["ci95"]
        versus = row.get("against_hindsight")
        told = f", against hindsight {versus['difference']:+.3f} (p {versus['p']:.3f})" if versus else ""
        print(
            f"{row['name']:10} seed {row['seed']} {target:11} {row['layers']:6.2f} layers, {row['accuracy']:.3f} "
            f"({low:.3f} – {high:.3f}), {row['distinct_routes']} routes{told}"
        )
    write_json(Path(arguments.json), result)


if __name__ == "__main__":
    run_command(main)
