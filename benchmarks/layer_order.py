"""Which layers to leave out? Divergence from the model's own answers along nested paths of two orders, and its price.

    python benchmarks/layer_order.py checkpoints/adapters --json benchmarks/results/value/layer_order.json

Orders are made on search questions: block influence (what changes the prompt's states least) and divergence (greedy:
without which the model stays nearest to its own answers), with the checkpoint's adapters in the place of skipped
layers. Both are then measured on answers to validation questions: mean KL(full || path) of answer tokens, in nats.
Seconds are those of making each order, one after the other in one process.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch

from routing.common.devices import DTYPES, pick_device
from routing.common.errors import run_command
from routing.common.files import write_json
from routing.common.run_info import git_commit, hardware, today, versions
from routing.labels.menus import influences
from routing.models.checkpoint import load_adapted
from routing.models.families import load_tokenizer
from routing.scoring.divergence import AnswerDivergence, answers_of, greedy_order
from routing.scoring.packed import PathEvaluator
from routing.scoring.requests import draw_requests
from routing.search.influence import influence_order
from routing.search.menu import nested_routes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, help="checkpoint with adapters, of train.py --objective adapters")
    parser.add_argument("--model", default="smollm2-135m-instruct", help="its base, whose tokenizer is read")
    parser.add_argument("--dataset", default="procedural", help="data sets")
    parser.add_argument("--num_samples", type=int, default=64, help="questions of each data set and split")
    parser.add_argument("--skips", default="2,4,6,8,10,12", help="numbers of layers to leave out")
    parser.add_argument("--kept", type=int, default=1, help="first layers that stay")
    parser.add_argument("--threads", type=int, default=2, help="processor threads")
    parser.add_argument("--json", type=Path, help="file for the results")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    model = load_adapted(arguments.checkpoint, DTYPES["float32"], pick_device("auto"))
    tokenizer, depth = load_tokenizer(arguments.model), model.config.num_hidden_layers
    drawn = {s: draw_requests(arguments.dataset, s, arguments.num_samples, tokenizer) for s in ("search", "validation")}
    skips = [int(text) for text in arguments.skips.split(",")]
    layers, orders, seconds = range(arguments.kept, depth), {}, {}

    began = time.perf_counter()
    found = influence_order(influences(PathEvaluator(model, tokenizer), drawn["search"]))
    orders["influence"] = [layer for layer in found if layer in layers]
    seconds["influence"] = time.perf_counter() - began

    began = time.perf_counter()
    measured, asked = AnswerDivergence(model, answers_of(model, tokenizer, drawn["search"], 32)), []

    def diverging(gone: frozenset[int]) -> float:
        asked.append(gone)
        return measured(tuple(int(layer not in gone) for layer in range(depth)))

    orders["divergence"] = greedy_order(layers, max(skips), diverging)
    seconds["divergence"] = time.perf_counter() - began

    judge = AnswerDivergence(model, answers_of(model, tokenizer, drawn["validation"], 32))
    rows = [
        {"order": name, "skipped": count, "layers": order[:count], "divergence": judge(route)}
        for name, order in orders.items()
        for count, route in zip(skips, nested_routes(order, skips, depth), strict=True)
    ]
    for row in rows:
        print(f"{row['order']}, {row['skipped']} skipped: {row['divergence']:.4f} nats")
    print(f"seconds: {seconds}, paths measured: {len(asked)}")
    if arguments.json:
        given = {name: str(value) for name, value in vars(arguments).items() if name != "json"}
        about = {"hardware": hardware(), "date": today(), "versions": versions(), "git_commit": git_commit()}
        measured_on = {"answer_tokens": judge.tokens, "seconds": seconds, "paths_measured": len(asked)}
        write_json(arguments.json, {"arguments": given, **measured_on, "rows": rows, **about})


if __name__ == "__main__":
    run_command(main)
