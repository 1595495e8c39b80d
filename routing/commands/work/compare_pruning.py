"""What `dlr compare_pruning` does: verdicts and speed of routers and baselines on the same questions."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from routing.common.devices import DTYPES
from routing.common.files import file_stamps, write_json, write_text
from routing.common.keyed import judging
from routing.common.run_info import hardware, made_with
from routing.common.statistics import mcnemar, wilson_interval
from routing.evaluation.pruning_methods import (
    Method,
    fixed_method,
    leave_out,
    random_methods,
    router_methods,
    unpruned,
)
from routing.evaluation.pruning_speed import measure
from routing.models.bases import load_stock, weight_stamps
from routing.models.checkpoint import load_adapted, load_checkpoint
from routing.models.checkpoint_files import training_record
from routing.models.config_fields import config_with
from routing.models.families import load_tokenizer
from routing.models.placement import place_of
from routing.report.pruning_pictures import comparison_text, plot_comparison, print_comparison
from routing.scoring.along import verdicts_along
from routing.scoring.context import fitting
from routing.scoring.controls import skips_around, static_routes
from routing.scoring.packed import PathEvaluator
from routing.scoring.plain import Evaluator
from routing.scoring.prompting import asked, recorded, trained_prompting
from routing.scoring.requests import draw_requests
from routing.search.influence import influence_order
from routing.search.results import Verdict
from routing.search.routes import Route

ACTIONS = ("adapter", "identity")
PERMUTATIONS = 10_000
NEAR_TIES = 8  # one question of so many may differ by a near tie


class Comparison:
    """Models, questions and results of one call.

    Args:
        arguments: checked.
    """

    def __init__(self, arguments: argparse.Namespace):
        self.arguments, self.output = arguments, Path(arguments.output)
        folder = Path(arguments.adapters)
        record = training_record(folder)
        self.base_name, self.revision = record["arguments"]["model_id"], record.get("base_revision")
        self.place, self.dtype = place_of(arguments), DTYPES[arguments.dtype]
        self.tokenizer = load_tokenizer(self.base_name, self.revision)
        self.model = load_adapted(folder, self.dtype, self.place)
        self.depth = self.model.config.num_hidden_layers
        prompting = asked(trained_prompting(training_record(folder)), arguments)
        drawn = {"validation": arguments.control_samples, "test": arguments.num_samples}
        self.tuning, self.test = (
            fitting(draw_requests(arguments.dataset, split, count, self.tokenizer, prompting), self.model.config)
            for split, count in drawn.items()
        )
        self.key = [
            file_stamps(folder, "*.safetensors", "config.json"),
            [self.base_name, weight_stamps(self.base_name, self.revision)],
            arguments.dtype,
            recorded(prompting),
            hardware(),
            judging(),
        ]

    def influence_routes(self, most: int) -> list[Route]:
        """The routes without the 1, 2, ... layers of least block influence on validation prompts."""
        evaluator = PathEvaluator(self.model, self.tokenizer, self.arguments.batch_size)
        evaluator.prepare(self.tuning)
        order = influence_order(evaluator.influence(self.tuning))
        evaluator.release()
        return [leave_out(self.depth, order[:size]) for size in range(1, most + 1)]

    def static_routes(self, most: int, skip_action: str) -> list[Route]:
        """The best routes without 1, 2, ... layers that are the same for all queries; kept in a file."""
        path = self.output / "parts" / f"static-{skip_action}.json"
        asked = [request.key() for request in self.tuning]
        key = json.loads(json.dumps([self.key, self.arguments.score, asked], default=str))
        saved = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        found = saved.get("routes", []) if saved.get("key") == key else []
        if len(found) < most:
            size, score = self.arguments.batch_size, self.arguments.score
            evaluator = PathEvaluator(self.model, self.tokenizer, size, score=score)
            with config_with(self.model, skip_action=skip_action):
                found = static_routes(evaluator, self.tuning, self.depth, most)
            write_json(path, {"key": key, "routes": found})
        return [tuple(route) for route in found]

    def routers(self) -> list[Method]:
        """What the query routers of all checkpoints do."""
        found = []
        for folder in self.arguments.checkpoints:
            model, tokenizer = load_checkpoint(folder, self.dtype, self.place)
            found += router_methods(folder.name, model, tokenizer, self.test, self.arguments.counts)
        return found

    def methods(self) -> list[Method]:
        """Routers and baselines; these at the numbers asked for, and at those around what a router prunes itself."""
        count, routers = len(self.test), self.routers()
        own = [method for method in routers if method.name in {f.name for f in self.arguments.checkpoints}]
        around = [size for method in own for size in skips_around(self.depth, self.depth - method.pruned)]
        sizes, most = sorted({*self.arguments.counts, *around}), self.arguments.max_static
        influence = self.influence_routes(max(sizes)) if sizes else []
        found = [unpruned(self.depth, count), *routers]
        for skip_action in ACTIONS:
            # Around a router's own number the baselines have adapters, as it has.
            own_sizes = sizes if skip_action == "adapter" else self.arguments.counts
            fixed_sizes = [size for size in own_sizes if size <= max(self.arguments.counts, default=0) or size <= most]
            static = self.static_routes(max(fixed_sizes, default=0), skip_action)
            for family, routes, chosen in (("static", static, fixed_sizes), ("influence", influence, own_sizes)):
                found += [fixed_method(family, routes[size - 1], skip_action, count) for size in chosen]
            for size in self.arguments.counts:
                seeds = self.arguments.seeds
                found += random_methods(self.depth, [size] * count, f"{size} pruned", skip_action, seeds)
        chosen = [method for method in found if method.family == "static" and method.skip_action == "adapter"]
        for method in [*chosen, *own]:
            if method.skip_action == "adapter":  # What the adapters bring, at the very same layers.
                found.append(Method(f"{method.name}, bare", "bare", "identity", method.routes))
        for method in own:
            pruned = [route.count(0) for route in method.routes]
            found += random_methods(self.depth, pruned, f"like {method.name}", method.skip_action, self.arguments.seeds)
        return found

    def verdicts(self, methods: Sequence[Method]) -> list[list[Verdict]]:
        """Of each method the verdicts of all test questions."""
        found: dict[int, list[Verdict]] = {}
        for skip_action in ACTIONS:
            chosen = [at for at, method in enumerate(methods) if method.skip_action == skip_action]
            lines = verdicts_along(
                self.model, self.tokenizer, self.test, [methods[at].routes for at in chosen], skip_action,
                self.arguments.batch_size, self.arguments.score, self.output / "parts", self.key,
            )  # fmt: skip
            found |= dict(zip(chosen, lines, strict=True))
        return [found[at] for at in range(len(methods))]

    def proof(self, methods: Sequence[Method], verdicts: Sequence[Sequence[Verdict]]) -> list[dict]:
        """Whether the checkpoints' own generate() takes the routes and gives the answers of the table."""
        found, names = [], [method.name for method in methods]
        part = self.test[:16]
        for folder in self.arguments.checkpoints:
            model, tokenizer = load_checkpoint(folder, self.dtype, self.place)
            answers, routes = Evaluator(model, tokenizer, 1, score=self.arguments.score).verdicts_and_routes(part, None)
            at = names.index(folder.name)
            same = sum(route == own for route, own in zip(routes, methods[at].routes[: len(part)], strict=True))
            right = sum(a.output == b.output for a, b in zip(answers, verdicts[at][: len(part)], strict=True))
            found.append({"name": folder.name, "questions": len(part), "same_routes": same, "same_answers": right})
            print_agreement(folder, same, right, len(part), self.dtype == torch.float32)
        return found

    def speeds(self, methods: Sequence[Method]) -> dict[str, list[dict]]:
        """Measured speed of routers as they are, and of baselines with adapters; kept in a file, method by method.

        Time hangs on the number of pruned layers, hardly on which: the baselines are static sets of all numbers, and of
        the largest number block influence and the first seed of random layers too.
        """
        path, arguments = self.output / "parts" / "speed.json", self.arguments
        step = max(len(self.test) // max(arguments.speed_prompts, 1), 1)
        places = list(range(0, len(self.test), step))[: arguments.speed_prompts]  # From all data sets.
        prompts = [self.test[at] for at in places]
        asked = [[request.key() for request in prompts], arguments.speed_tokens, arguments.repeats]
        key = json.loads(json.dumps([self.key, asked], default=str))
        saved = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        done = saved.get("done", {}) if saved.get("key") == key else {}
        stock = load_stock(self.base_name, self.dtype, self.revision, self.place)
        folders, timed = {folder.name: folder for folder in arguments.checkpoints}, []
        for method in methods if prompts else ():
            largest = method.pruned == max(arguments.counts, default=None)
            baseline = method.family == "static" or (largest and method.family == "influence")
            baseline |= largest and method.family == "random" and method.name.endswith("pruned, seed 0")
            baseline = baseline and method.skip_action == "adapter"
            name = f"{method.name}, {method.skip_action}" if baseline else method.name
            if not (name in folders or baseline or method.family == "unpruned"):
                continue
            timed.append(name)
            routes = [list(method.routes[at]) for at in places]
            made_of = file_stamps(folders[name], "*.safetensors", "config.json") if name in folders else []
            if done.get(name, {}).get("of") == [routes, made_of]:
                continue
            model, forced = self.model, routes
            if name in folders:
                (model, _), forced = load_checkpoint(folders[name], self.dtype, self.place), None
            with config_with(model, skip_action=method.skip_action):
                results = [
                    measure(stock, model, prompts, forced, tokens, arguments.repeats)
                    for tokens in arguments.speed_tokens
                ]
            done[name] = {"of": [routes, made_of], "results": results}
            write_json(path, {"key": key, "done": done})
        return {name: done[name]["results"] for name in timed}


def print_agreement(folder: Path, same: int, right: int, count: int, exact: bool) -> None:
    """Say where a checkpoint's own generate() takes other routes, or gives other answers than the table.

    Near ties of floats may do that to single questions. Where they are more, the table is not of this checkpoint.

    Args:
        exact: whether float32 was used; in half precision answers differ more often, and are only told.
    """
    told = f"{folder}: its own generate() takes {same} of {count} routes and gives {right} of the answers of the table"
    least = count - max(count // NEAR_TIES, 1)
    if same < least or (right < least and exact):
        raise RuntimeError(f"{told}, so neither table nor times would be of this checkpoint. Please report this.")
    if min(same, right) < count:
        print(f"{told}; the others are near ties of floats", file=sys.stderr)


def score_interval(scores: Sequence[float]) -> list[float]:
    """95 % interval of a mean score: Wilson's where all are 0 or 1, else by bootstrap over questions."""
    if set(scores) <= {0, 1}:
        return wilson_interval(round(sum(scores)), len(scores))
    values = np.array(scores, dtype=float)
    drawn = np.random.default_rng(0).integers(0, len(values), (2000, len(values)))
    return np.quantile(values[drawn].mean(1), (0.025, 0.975)).tolist()


def paired_scores(first: Sequence[Verdict], second: Sequence[Verdict]) -> dict:
    """Second less first on the same questions: mean difference of scores, its bootstrap interval, and p: McNemar's test
    of right answers where the score is that they are right, else of a random sign for each question's difference."""
    difference = np.array([b.score - a.score for a, b in zip(first, second, strict=True)])
    drawn = np.random.default_rng(0).integers(0, len(difference), (2000, len(difference)))
    right = [{at: verdict.correct for at, verdict in enumerate(side)} for side in (first, second)]
    found = mcnemar(*right)
    if any(verdict.score != verdict.correct for verdict in (*first, *second)):
        signs = np.random.default_rng(0).choice([-1.0, 1.0], (PERMUTATIONS, len(difference)))
        extreme = np.abs(signs @ difference) >= abs(difference.sum()) - 1e-9
        found["p"] = float((extreme.sum() + 1) / (PERMUTATIONS + 1))
    return found | {
        "score_difference": float(difference.mean()),
        "score_ci95": np.quantile(difference[drawn].mean(1), (0.025, 0.975)).tolist(),
    }


def summaries(methods: Sequence[Method], verdicts: Sequence[Sequence[Verdict]]) -> list[dict]:
    """One row a method, each beside the unpruned model, and with adapters beside without."""
    rows = []
    bare = [at for at, method in enumerate(methods) if method.skip_action == "identity" and method.family != "unpruned"]
    for method, own in zip(methods, verdicts, strict=True):
        scores = [verdict.score for verdict in own]
        row = {
            "name": method.name,
            "family": method.family,
            "skip_action": method.skip_action,
            "pruned": method.pruned,
            "score": sum(scores) / len(scores),
            "ci95": score_interval(scores),
            "accuracy": sum(verdict.correct for verdict in own) / len(own),
            "distinct_routes": len(set(method.routes)),
            "against_unpruned": paired_scores(verdicts[0], own),
        }
        twin = next((at for at in bare if methods[at].routes == method.routes), None)
        if method.skip_action == "adapter" and twin is not None:
            row["against_no_adapters"] = paired_scores(verdicts[twin], own)
        rows.append(row)
    return rows


def router_tests(methods: Sequence[Method], verdicts: Sequence[Sequence[Verdict]], own: Sequence[str]) -> list[dict]:
    """Routers against baselines with adapters at as many pruned layers; of a router's own number, those around it."""
    found = []
    for at, method in enumerate(methods):
        if method.family != "router":
            continue
        sizes = skips_around(len(method.routes[0]), len(method.routes[0]) - method.pruned)
        wanted = {f"{family}, {size} pruned" for family in ("static", "influence") for size in sizes}
        wanted |= {f"random {size} pruned, seed 0" for size in sizes if method.name not in own}
        wanted |= {f"random like {method.name}, seed 0"}
        for other, control in enumerate(methods):
            if control.skip_action == method.skip_action and control.name in wanted:
                entry = {"router": method.name, "pruned": method.pruned, "control": control.name}
                found.append(entry | {"control_pruned": control.pruned} | paired_scores(verdicts[other], verdicts[at]))
    return found


def run(arguments: argparse.Namespace) -> None:
    comparison = Comparison(arguments)
    methods = comparison.methods()
    verdicts = comparison.verdicts(methods)
    names = [folder.name for folder in arguments.checkpoints]
    result = {
        "n": len(comparison.test),
        "score": arguments.score,
        "depth": comparison.depth,
        "model": comparison.base_name,
        "data": arguments.dataset,
        "methods": summaries(methods, verdicts),
        "router_tests": router_tests(methods, verdicts, names),
        "generate_agrees": comparison.proof(methods, verdicts),
        "speed": comparison.speeds(methods),
        "arguments": {name: value for name, value in vars(arguments).items() if name != "checkpoints"}
        | {"checkpoints": [str(folder) for folder in arguments.checkpoints]},
    } | made_with()
    write_json(comparison.output / "comparison.json", result)
    write_text(comparison.output / "comparison.md", comparison_text(result))
    plot_comparison(result, comparison.output / "comparison.png")
    print_comparison(result)
    print(f"written to {comparison.output / 'comparison.json'}, comparison.md and comparison.png")
