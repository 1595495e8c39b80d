"""What healing brings, by path: accuracy with nothing in the place of skipped layers, with adapters in closed form,
with trained ones, and with either healed.

    .venv/bin/python benchmarks/healing.py --dataset arithmetic --seeds 3 --json benchmarks/results/value/healing.json \
        --plot benchmarks/results/value/healing.png

For each seed two runs of train.py --objective adapters: `mse` (gradient, as published) and `least squares` (closed form
alone), both healed (--kinds leaves one out). All stages then answer the same questions along the same paths, those of
the first run's menu.
Intervals: of one seed Wilson's, and Wald's for paired differences; over seeds bootstrap percentiles, seeds and
questions both drawn anew. p values are McNemar's, exact, for each seed. Settings are to be chosen on validation;
--split test is for the last look.

Runs and verdicts are kept in --work_dir, so a benchmark that was interrupted continues.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

from routing.common.cli import parse
from routing.common.devices import DTYPES, pick_device
from routing.common.errors import UserError, run_command
from routing.common.files import file_stamps, sha256, write_json
from routing.common.run_info import git_commit, hardware, today, versions
from routing.common.statistics import wilson_interval
from routing.models.checkpoint import load_checkpoint
from routing.models.default_model import DEFAULT_MODEL
from routing.scoring.requests import draw_requests
from routing.search.routes import Route, full_route
from routing.tasks.examples import SPLITS
from routing.training.adapters.arguments import LOSSES, AdapterArguments
from routing.training.adapters.run import run as run_adapters
from routing.training.adapters.stages import NOTHING, paired, plot_stages, right_by_stage, worth_of_stages

KINDS = ("mse", "least_squares")
# Which file of which run holds the weights of a stage.
FILES = {
    "least squares": ("least_squares", "least_squares"),
    "least squares healed": ("least_squares", "healed"),
    "mse": ("mse", "trained"),
    "mse healed": ("mse", "healed"),
}
COMPARED = (
    ("least squares", NOTHING),
    ("mse", NOTHING),
    ("least squares", "mse"),
    ("mse healed", "mse"),
    ("least squares healed", "least squares"),
    ("least squares healed", "mse healed"),
)
LEAST_SQUARES = ["--start=least_squares", "--num_epochs=0"]
DRAWS = 4000


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=DEFAULT_MODEL, help="base model")
    parser.add_argument("--dataset", default="arithmetic", help="comma-separated data sets: training and questions")
    parser.add_argument("--split", default="test", choices=SPLITS, help="split of the questions that are answered")
    parser.add_argument("--num_samples", type=int, default=2000, help="questions of each data set, at most")
    parser.add_argument("--train_samples", type=int, default=1000, help="questions of each data set for the adapters")
    parser.add_argument("--heal_dataset", default="", help="as in train.py; default --dataset")
    parser.add_argument("--heal_samples", type=int, default=5000, help="prompts of each data set for healing, at most")
    parser.add_argument("--menu", default="influence:2,4,6,8,10,12", help="as --heal_menu of train.py")
    parser.add_argument("--kept", type=int, default=0, help="as --heal_kept of train.py")
    parser.add_argument("--adapter_size", type=int, default=64, help="bottleneck of the adapters")
    parser.add_argument("--loss", default="mse", choices=LOSSES, help="as in train.py")
    parser.add_argument("--num_epochs", type=int, default=60, help="epochs of the gradient training")
    parser.add_argument("--learning_rate", type=float, default=1e-3, help="of the gradient training")
    parser.add_argument("--heal_epochs", type=int, default=4, help="epochs of healing")
    parser.add_argument("--heal_learning_rate", type=float, default=1e-5, help="of healing")
    parser.add_argument("--heal_random_share", type=float, default=0.5, help="as in train.py")
    parser.add_argument("--kinds", default=",".join(KINDS), help="starts of the adapters, separated by commas")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each kind")
    parser.add_argument("--batch_size", type=int, default=64, help="paths evaluated together, at most")
    parser.add_argument("--dtype", default="float32", choices=sorted(DTYPES))
    parser.add_argument("--device", default="auto", help="torch device; auto: cuda if there is one, else cpu")
    parser.add_argument("--work_dir", type=Path, default=Path("runs/healing"), help="folder of runs and verdicts")
    parser.add_argument("--json", type=Path, help="file for the results")
    parser.add_argument("--plot", type=Path, help="PNG for the picture")
    arguments = parser.parse_args(argv)
    kinds = arguments.kinds.split(",")
    if len(set(kinds)) < len(kinds) or not set(kinds) <= set(KINDS):
        raise UserError(f"--kinds {arguments.kinds}: give one or both of {', '.join(KINDS)}")
    return arguments


def train(arguments: argparse.Namespace, kind: str, seed: int, menu: str) -> Path:
    """Folder of the finished run of a kind (mse or least_squares); it goes on where it was interrupted."""
    name = f"{kind}-{seed}"
    place, done = arguments.work_dir / name, arguments.work_dir / "checkpoints" / name
    words = [
        f"--run_name={name}", f"--model_id={arguments.model}", f"--dataset={arguments.dataset}",
        f"--num_samples={arguments.train_samples}", f"--adapter_size={arguments.adapter_size}",
        f"--loss={arguments.loss}", f"--learning_rate={arguments.learning_rate}", "--lr_schedule=cosine",
        *(["--start=random", f"--num_epochs={arguments.num_epochs}"] if kind == "mse" else LEAST_SQUARES),
        f"--heal_epochs={arguments.heal_epochs}", f"--heal_menu={menu}", f"--heal_kept={arguments.kept}",
        f"--heal_dataset={arguments.heal_dataset}", f"--heal_samples={arguments.heal_samples}",
        f"--heal_learning_rate={arguments.heal_learning_rate}", f"--heal_random_share={arguments.heal_random_share}",
        f"--dtype={arguments.dtype}", f"--device={arguments.device}", f"--seed={seed}", "--save_base=reference",
        f"--output_dir={done.parent}", f"--work_dir={arguments.work_dir}",
    ]  # fmt: skip
    settings = place / "benchmark.json"
    same = settings.exists() and json.loads(settings.read_text()) == words
    if not (same and (done / "adapters.json").exists()):
        write_json(settings, words)
        run_adapters(parse(AdapterArguments, [*words, *(["--resume"] if same and resumable(place) else [])]))
    return done


def resumable(place: Path) -> bool:
    return (place / "arguments.json").exists()


def over_seeds(right: np.ndarray) -> dict:
    """Accuracy of verdicts [S, N] and its interval: of one seed Wilson's, of several by bootstrap."""
    mean = float(right.mean())
    if len(right) == 1:
        return {"accuracy": mean, "ci95": wilson_interval(int(right.sum()), right.shape[1])}
    return {"accuracy": mean, "ci95": drawn_interval(right.astype(float)), "by_seed": right.mean(1).tolist()}


def drawn_interval(values: np.ndarray) -> list[float]:
    """95 % bootstrap percentiles of the mean of values [S, N], seeds and questions drawn anew."""
    rng = np.random.default_rng(0)
    seeds, questions = values.shape
    means = [
        values[rng.integers(0, seeds, seeds)].mean(0)[rng.integers(0, questions, questions)].mean()
        for _ in range(DRAWS)
    ]
    return np.quantile(means, (0.025, 0.975)).tolist()


def compare(new: np.ndarray, old: np.ndarray) -> dict:
    """What a stage brings over another on the same seeds and questions, of verdicts [S, N]."""
    tests = [paired(first.tolist(), second.tolist()) for first, second in zip(old, new, strict=True)]
    found = {"difference": float(new.mean() - old.mean()), "p_by_seed": [test["p"] for test in tests]}
    gains = new.astype(float) - old
    return found | {"ci95": tests[0]["ci95"] if len(new) == 1 else drawn_interval(gains)}


def main(argv: list[str] | None = None) -> None:
    arguments = parse_arguments(argv)
    torch.manual_seed(0)
    kinds = arguments.kinds.split(",")
    files = {name: file for name, file in FILES.items() if file[0] in kinds}
    verdicts: dict[str, list] = {name: [] for name in (NOTHING, *files)}
    records, routes, menu = [], None, arguments.work_dir / "menu.json"
    for seed in range(arguments.seeds):
        done, reports = {}, {}
        for kind in kinds:
            done[kind] = train(arguments, kind, seed, str(menu) if routes else arguments.menu)
            reports[kind] = json.loads((done[kind] / "adapters.json").read_text())["healing"]
            if routes is None:  # Other seeds follow the same paths.
                skipping: list[Route] = [tuple(route) for route in reports[kind]["routes"]]
                routes = [full_route(len(skipping[0])), *skipping]
                write_json(menu, {"routes": routes})
        weights = {
            name: arguments.work_dir / f"{kind}-{seed}" / "trainer" / f"{file}.safetensors"
            for name, (kind, file) in files.items()
        }
        model, tokenizer = load_checkpoint(done[kinds[0]], DTYPES[arguments.dtype], pick_device(arguments.device))
        requests = draw_requests(arguments.dataset, arguments.split, arguments.num_samples, tokenizer)
        key = [
            file_stamps(done[kinds[0]], "*.safetensors"),
            {n: sha256(p) for n, p in weights.items()},
            arguments.dtype,
        ]
        right = right_by_stage(
            model, tokenizer, requests, routes, {name: load_file(weights[name]) for name in files},
            arguments.batch_size, arguments.work_dir / f"verdicts-{arguments.split}-{seed}", [key, hardware()],
        )  # fmt: skip
        del model
        for name, lines in right.items():
            verdicts[name].append(lines)
        records.append({kind: {k: v for k, v in own.items() if k != "paths"} for kind, own in reports.items()})
    stages = {name: np.array(own) for name, own in verdicts.items()}  # [S, K, N]
    worth = worth_of_stages({name: own[0].tolist() for name, own in stages.items()}, routes)
    base = stages[NOTHING][:, 0]
    results = []
    for at, path in enumerate(worth["paths"], 1):
        own = {
            name: over_seeds(lines[:, at]) | {"minus_full": compare(lines[:, at], base)}
            for name, lines in stages.items()
        }
        brought = {
            f"{new} - {old}": compare(stages[new][:, at], stages[old][:, at])
            for new, old in COMPARED
            if {new, old} <= set(stages)
        }
        results.append(
            {k: path[k] for k in ("route", "path", "skipped", "layers")} | {"stages": own, "brought": brought}
        )
    found = {"n": worth["n"], "seeds": arguments.seeds, "base": worth["base"], "paths": results, "healing": records}
    for path in results:
        told = ", ".join(f"{name} {own['accuracy']:.3f}" for name, own in path["stages"].items())
        print(f"{path['layers']} layers: {told}")
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        given = {name: str(value) for name, value in vars(arguments).items()}
        made_with = {"hardware": hardware(), "date": today(), "versions": versions(), "git_commit": git_commit()}
        write_json(arguments.json, found | {"arguments": given} | made_with)
    if arguments.plot:
        plot_stages(found, arguments.plot, f"{arguments.model}, {arguments.dataset}: {arguments.split} questions")


if __name__ == "__main__":
    run_command(main)
