"""Does routing by value pay? Menu routers beside the full model, static paths, shuffled and random routers; seeds.

    .venv/bin/python benchmarks/value.py --dataset procedural --output runs/value \\
        --json benchmarks/results/value/procedural.json

For each seed the commands that a user would type: adapters, dense tables of search, validation and test questions, a
router, and one whose training questions are shuffled. Each is told and done once; a study that was interrupted
continues, and several may run beside one another for different --seeds.

All is chosen on validation questions: the cost that runs at most so many layers on average, and the static path, or
two of them mixed by a coin, of most reward at as many layers. Then the test table is opened once. Every method is a
set of weights on the paths of the menu, question by question, so all differences are paired: a question counts once,
with its mean over seeds. Intervals are bootstrap percentiles, questions and seeds both drawn anew; p values are
one-sided, from the same draws. Controls:
- static: the best static path of the menu, with the same adapters, at equal mean layers; `static_hindsight` is chosen
  on the test questions themselves, and so too good.
- shuffled: a router that learned from the prompts of other questions, at the cost that runs as many layers.
- drawn: the router's own routes dealt out at random.
- dataset: the best path of each data set by the search questions, at the price at which it runs as many layers on
  validation: an oracle of the task's identity. With one data set it is a static path.
`hindsight` is the share of questions that some path answers rightly: what no router can reach.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table as RichTable

from routing.common.devices import DTYPES, pick_device
from routing.common.errors import UserError, run_command
from routing.common.files import write_json
from routing.common.run_info import git_commit, hardware, today, versions
from routing.common.stages import done, run_stage
from routing.evaluation.calibration import deciding
from routing.labels.table import Table, read_table
from routing.models.checkpoint import load_checkpoint
from routing.models.checkpoint_files import training_record
from routing.models.default_model import DEFAULT_MODEL
from routing.study.comparing import static_mixture
from routing.training.value.menu import requests_of

TARGETS = (25.5, 24.0, 22.0, 20.0)
COSTS = np.unique(np.concatenate([np.linspace(0, 0.05, 101), np.linspace(0.05, 0.3, 51)]))
DRAWS = 10000
ADAPTERS = ("--learning_rate", "1e-3", "--lr_schedule", "cosine")


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=DEFAULT_MODEL, help="base model")
    parser.add_argument("--dataset", default="procedural", help="comma-separated data sets with splits")
    parser.add_argument("--menu", default="divergence:0,2,4,6,8+influence:8,10,12", help="SPEC of the menu")
    parser.add_argument("--seeds", default="0,1,2", help="seeds of adapters, healing and what is drawn")
    parser.add_argument("--adapter_samples", type=int, default=800, help="questions of each data set for adapters")
    parser.add_argument("--adapter_epochs", type=int, default=0, help="epochs of their first stage")
    start = "--start least_squares --adapter_size 288 --score_samples 2"
    parser.add_argument("--heal", default=start, help="more options of train.py for adapters; --heal_epochs N heals")
    parser.add_argument("--search", type=int, default=2000, help="questions of each data set that routers learn from")
    parser.add_argument("--validation", type=int, default=800, help="questions of each data set that choose")
    parser.add_argument("--test", type=int, default=1700, help="test questions of each data set, at most")
    parser.add_argument("--caution", default="2.0", help="of the routers")
    parser.add_argument("--targets", default=",".join(map(str, TARGETS)), help="mean layers")
    parser.add_argument("--output", default="runs/value", help="folder of all that is made")
    parser.add_argument("--json", help="file for the results; without it stages are run alone")
    parser.add_argument("--device", default="auto", help="torch device")
    return parser


def stages(arguments: argparse.Namespace, seed: int) -> Path:
    """All that is made for one seed; its folder."""
    folder = Path(arguments.output) / f"seed-{seed}"
    common = ("--device", arguments.device, "--seed", str(seed))
    places = ("--output_dir", str(folder), "--work_dir", str(folder / "runs"))
    adapters = folder / "adapters"
    heal = arguments.heal.split()
    check_made(adapters, num_samples=arguments.adapter_samples, num_epochs=arguments.adapter_epochs)
    if not done(adapters / "training.json"):
        run_stage(
            f"seed {seed}", "adapters", "train.py", "--objective", "adapters", "--model_id", arguments.model,
            "--dataset", arguments.dataset, "--num_samples", str(arguments.adapter_samples), "--num_epochs",
            str(arguments.adapter_epochs), *ADAPTERS, "--run_name", "adapters", *places, *common, *heal,
            *(("--heal_menu", arguments.menu) if "--heal_epochs" in heal else ()),
            *resumed(folder / "runs" / "adapters"),
        )  # fmt: skip
    spec = arguments.menu
    for split in ("search", "validation", "test"):
        run_stage(
            f"seed {seed}", f"table of {split} questions", "data_generation.py", "--model", arguments.model,
            "--search", "menu", "--menu", spec, "--dataset", arguments.dataset, "--split", split, "--num_samples",
            str(getattr(arguments, split)), "--adapters", str(adapters), "--output_dir", str(folder / split),
            "--device", arguments.device,
        )  # fmt: skip
        spec = str(folder / "search" / "labels.header.json")
    for name, extra in (("router", ()), ("shuffled", ("--shuffle_questions",))):
        check_made(folder / name, caution=float(arguments.caution))
        if not done(folder / name / "training.json", folder / "search" / "labels.jsonl"):
            run_stage(
                f"seed {seed}", name, "train.py", "--objective", "value", "--model_id", arguments.model, "--data",
                str(folder / "search"), "--adapters", str(adapters), "--caution", arguments.caution, "--save_base",
                "reference", "--run_name", name, *places, *common, *extra,
            )  # fmt: skip
    return folder


def check_made(checkpoint: Path, **wanted) -> None:
    """Refuse what an earlier study made otherwise."""
    if not (checkpoint / "training.json").exists():
        return
    made = training_record(checkpoint)["arguments"]
    if changed := [f"--{key} was {made[key]}, now {value}" for key, value in wanted.items() if made[key] != value]:
        raise UserError(f"{checkpoint} was made otherwise: {'; '.join(changed)}. Give another --output.")


def resumed(work: Path) -> tuple[str, ...]:
    return ("--resume",) if work.exists() else ()


class Chooser:
    """Weights [N, K] that a router puts on the paths of its menu, at any cost."""

    def __init__(self, checkpoint: Path, table: Table, device: str):
        model, tokenizer = load_checkpoint(checkpoint, DTYPES["float32"], pick_device(device))
        index = {tuple(route): at for at, route in enumerate(model.config.menu)}
        assert [*index] == list(table.routes), f"{checkpoint} has another menu than the table"
        prompts = [request.prompt_ids for request in requests_of(table, tokenizer)]
        decide = deciding(model, tokenizer, prompts, 32)
        self.at = lambda cost: one_hot([index[route] for route in decide(cost)], len(index))


def one_hot(chosen, paths: int) -> np.ndarray:
    return np.eye(paths)[np.asarray(chosen)]


def layers_of(weights: np.ndarray, layers: np.ndarray) -> float:
    return float((weights @ layers).mean())


def cost_for(chooser: Chooser, layers: np.ndarray, target: float, costs=COSTS) -> float:
    """The least cost that runs at most so many layers; the largest where none does."""
    return next((float(cost) for cost in costs if layers_of(chooser.at(cost), layers) <= target), float(costs[-1]))


def nearest_cost(chooser: Chooser, layers: np.ndarray, target: float) -> float:
    return float(min(COSTS, key=lambda cost: abs(layers_of(chooser.at(cost), layers) - target)))


def by_dataset(search: Table, validation: Table, target: float):
    """Function (data sets) -> [N, K], the best path of each data set at the price that runs so many layers."""
    names = sorted(set(search.datasets))
    rewards = {n: search.rewards[np.array(search.datasets) == n].mean(0) for n in names}

    def weights(price: float, datasets) -> np.ndarray:
        best = {name: int(np.argmax(rewards[name] - price * search.layers)) for name in names}
        return one_hot([best[name] for name in datasets], len(search.layers))

    price = min(COSTS, key=lambda p: abs(layers_of(weights(p, validation.datasets), validation.layers) - target))
    return lambda datasets: weights(price, datasets)


def methods_of(folder: Path, targets: list[float], device: str) -> tuple[dict, Table]:
    """{target: {method: weights [N, K] on the test questions}}, all chosen on validation, and the test table."""
    tables = {split: read_table([folder / split]) for split in ("search", "validation", "test")}
    validation, test = tables["validation"], tables["test"]
    layers = test.layers
    own = {split: Chooser(folder / "router", tables[split], device) for split in ("validation", "test")}
    other = {split: Chooser(folder / "shuffled", tables[split], device) for split in ("validation", "test")}
    everyone, found = np.ones((len(test.ids), 1)), {}
    for target in targets:
        cost = cost_for(own["validation"], layers, target)
        routed = own["test"].at(cost)
        mean = layers_of(routed, layers)
        at_validation = layers_of(own["validation"].at(cost), layers)
        found[target] = {
            "routed": routed,
            "static": everyone * static_mixture(validation.rewards.mean(0), layers, mean),
            "static_hindsight": everyone * static_mixture(test.rewards.mean(0), layers, mean),
            "shuffled": other["test"].at(nearest_cost(other["validation"], layers, at_validation)),
            "drawn": everyone * routed.mean(0),
            "dataset": by_dataset(tables["search"], validation, at_validation)(test.datasets),
            "cost": cost,
        }
    return found, test


def draws_of(seeds: int, questions: int, rng: np.random.Generator):
    """Draws of (seeds, questions) with replacement."""
    for _ in range(DRAWS):
        yield rng.integers(0, seeds, seeds), rng.integers(0, questions, questions)


def intervals(gains: np.ndarray) -> dict:
    """Of differences [S, N]: mean, 95 % interval, one-sided 95 % lower bound, p of no gain; seeds, questions drawn."""
    rng = np.random.default_rng(0)
    means = np.empty(DRAWS)
    for at, (seeds, questions) in enumerate(draws_of(*gains.shape, rng)):
        means[at] = gains[seeds].mean(0)[questions].mean()
    low, high, bound = np.quantile(means, (0.025, 0.975, 0.05))
    return {
        "difference": float(gains.mean()), "ci95": [float(low), float(high)], "lower_bound": float(bound),
        "p": float((1 + (means <= 0).sum()) / (1 + DRAWS)), "by_seed": gains.mean(1).tolist(),
    }  # fmt: skip


def result_at(target: float, seeds: list[dict], tables: list[Table]) -> dict:
    rewards = np.stack([table.rewards for table in tables])  # [S, N, K]
    layers = tables[0].layers
    values = {
        name: np.stack([(own[target][name] * r).sum(1) for own, r in zip(seeds, rewards)])
        for name in seeds[0][target] if name != "cost"
    }  # fmt: skip
    values["base"] = rewards[:, :, 0]
    mean_layers = {
        name: float(np.mean([layers_of(own[target][name], layers) for own in seeds]))
        for name in seeds[0][target] if name != "cost"
    } | {"base": float(layers[0])}  # fmt: skip
    return {
        "target_layers": target,
        "costs": [own[target]["cost"] for own in seeds],
        "methods": {n: {"accuracy": float(v.mean()), "layers": mean_layers[n]} for n, v in values.items()},
        "minus": {n: intervals(values["routed"] - v) for n, v in values.items() if n != "routed"},
        "routes_taken": np.mean([own[target]["routed"].mean(0) for own in seeds], axis=0).tolist(),
    }


def study(folders: list[Path], targets: list[float], device: str) -> dict:
    found = [methods_of(folder, targets, device) for folder in folders]
    tables = [table for _, table in found]
    # Menus may differ, as their orders may rest on a seed's adapters; their lengths may not.
    if any(table.ids != tables[0].ids or (table.layers != tables[0].layers).any() for table in tables):
        raise ValueError("the seeds have different questions, or paths of other lengths")
    rewards = np.stack([table.rewards for table in tables])
    datasets = np.array(tables[0].datasets)
    return {
        "questions": len(tables[0].ids),
        "routes_by_seed": [[list(route) for route in table.routes] for table in tables],
        "layers": tables[0].layers.tolist(),
        "paths": rewards.mean((0, 1)).tolist(),
        "paths_by_dataset": {n: rewards[:, datasets == n].mean((0, 1)).tolist() for n in sorted(set(datasets))},
        "hindsight": float(rewards.max(2).mean()),
        "results": [result_at(target, [own for own, _ in found], tables) for target in targets],
    }


def print_study(result: dict) -> None:
    table = RichTable(title=f"{result['questions']} test questions, base {result['paths'][0]:.3f}")
    for column in ("layers", "routed", "− base (lower bound)", "static", "p", "shuffled", "p", "drawn", "dataset", "p"):
        table.add_column(column, justify="right")
    for row in result["results"]:
        own, minus = row["methods"], row["minus"]

        def beside(name: str, own=own, minus=minus) -> tuple[str, str]:
            return f"{own[name]['accuracy']:.3f}", f"{minus[name]['p']:.4f}"

        table.add_row(
            f"{own['routed']['layers']:.2f}", f"{own['routed']['accuracy']:.3f}",
            f"{minus['base']['difference']:+.3f} ({minus['base']['lower_bound']:+.3f})",
            *beside("static"), *beside("shuffled"), f"{own['drawn']['accuracy']:.3f}", *beside("dataset"),
        )  # fmt: skip
    Console(width=140).print(table)


def main() -> None:
    arguments = make_parser().parse_args()
    seeds = [int(seed) for seed in arguments.seeds.split(",")]
    folders = [stages(arguments, seed) for seed in seeds]
    if not arguments.json:
        return
    result = study(folders, [float(target) for target in arguments.targets.split(",")], arguments.device)
    about = {
        "arguments": vars(arguments), "command": " ".join(["python", "benchmarks/value.py", *sys.argv[1:]]),
        "hardware": hardware(), "date": today(), "versions": versions(), "git_commit": git_commit(),
    }  # fmt: skip
    write_json(Path(arguments.json), about | result)
    print_study(result)


if __name__ == "__main__":
    run_command(main)
