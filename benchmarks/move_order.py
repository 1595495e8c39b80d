"""What the order of equal moves does to the labels of the tree search: random, the last layers first, or by influence.

    .venv/bin/python benchmarks/move_order.py --dataset arithmetic --json benchmarks/results/value/move_order.json

The search with its default settings, on the same search questions with each order. Of an order: how many different
routes its labels have, how often the most frequent one comes, how many of the labels of questions that the full path
answers skip the same two layers (the two that are skipped together most often), and what the search costs. None of it
says how accurate routers become that learn from the labels.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

from routing.common.errors import run_command
from routing.common.files import write_json
from routing.common.run_info import git_commit, hardware, today, versions
from routing.labels.labelling import Labeller, no_prior
from routing.models.base_files import locate_model
from routing.models.default_model import DEFAULT_MODEL
from routing.models.families import load_base_config, load_tokenizer, routed_class
from routing.scoring.packed import PathEvaluator
from routing.scoring.requests import draw_requests
from routing.search.mcts import SearchSettings
from routing.search.results import SearchResult
from routing.search.routes import pruned_layers, route_length

GROUP = 64  # questions searched side by side
# name -> (order of equal moves, whether influence is the prior)
ORDERS = {"random": ("random", False), "late": ("late", False), "influence": ("random", True)}


def figures(results: Sequence[SearchResult]) -> dict:
    """What the labels of some searches look like."""
    depth = len(results[0].full)
    labels = [result.best for result in results if result.best is not None]
    of_right = [result.best for result in results if result.base_correct]
    shortened = [route for route in of_right if route_length(route) < depth]
    pairs = Counter(pair for route in of_right for pair in combinations(pruned_layers(route), 2))
    pair, together = pairs.most_common(1)[0] if pairs else ((), 0)
    layers = Counter(layer for route in of_right for layer in pruned_layers(route))
    return {
        "questions": len(results),
        "right_at_full_depth": len(of_right),
        "fixed": len(labels) - len(of_right),
        "shortened": len(shortened),
        "mean_layers_of_labels": sum(map(route_length, labels)) / max(len(labels), 1),
        "labels": len(labels),
        "distinct_routes": len(set(labels)),
        "distinct_routes_of_right": len(set(of_right)),
        "most_frequent_route_share": max(Counter(labels).values(), default=0) / max(len(labels), 1),
        "same_pair": list(pair),
        "same_pair_share": together / max(len(of_right), 1),
        "skips_of_each_layer": [layers[layer] for layer in range(depth)],
        "evaluations": sum(len(result.verdicts) for result in results),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=DEFAULT_MODEL, help="base model: hub id, folder or the default")
    parser.add_argument("--dataset", default="arithmetic", help="comma-separated data sets")
    parser.add_argument("--num_samples", type=int, default=128, help="search questions of each data set, at most")
    parser.add_argument("--num_simulations", type=int, default=50, help="simulations for each question")
    parser.add_argument("--seed", type=int, default=0, help="seed of the searches")
    parser.add_argument("--json", help="file for the results")
    arguments = parser.parse_args()
    config, tokenizer = load_base_config(arguments.model), load_tokenizer(arguments.model)
    model = routed_class(config.model_type).from_pretrained(locate_model(arguments.model)).eval()
    requests = draw_requests(arguments.dataset, "search", arguments.num_samples, tokenizer)
    orders = {}
    for name, (order, guided) in ORDERS.items():
        evaluator = PathEvaluator(model, tokenizer, batch_size=GROUP)
        labeller = Labeller(
            depth=config.num_hidden_layers,
            settings=SearchSettings(num_simulations=arguments.num_simulations, move_order=order),
            seed=arguments.seed,
            scorer=evaluator,
            prior=evaluator.influence if guided else no_prior,
        )
        results, start = [], time.perf_counter()
        for at in range(0, len(requests), GROUP):
            results += labeller.search_group(requests[at : at + GROUP], {}, lambda verdicts: None)
        orders[name] = figures(results) | {"seconds": time.perf_counter() - start}
        row = orders[name]
        print(
            f"{name:9} {row['labels']} labels, {row['distinct_routes']} different; of {row['right_at_full_depth']} "
            f"right at full depth {row['same_pair_share']:.0%} skip layers {row['same_pair']} together; "
            f"{row['evaluations']} evaluations, {row['seconds']:.0f} s",
            flush=True,
        )
    if arguments.json:
        about = {"model": arguments.model, "hardware": hardware(), "date": today(), "arguments": vars(arguments)}
        write_json(Path(arguments.json), about | {"versions": versions(), "git_commit": git_commit(), "orders": orders})


if __name__ == "__main__":
    run_command(main)
