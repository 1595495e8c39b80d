"""What `dlr frontier` does: routed, dense, static and random points answer the same questions in turn."""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch
from tqdm import tqdm

from routing.common.devices import DTYPES
from routing.common.files import write_json
from routing.common.run_info import hardware, made_with
from routing.common.statistics import mcnemar, wilson_interval
from routing.common.tables import print_table
from routing.evaluation.budget import decided_routes, find_bias, mean_layers
from routing.models.checkpoint import load_checkpoint
from routing.models.checkpoint_files import checkpoint_hash, training_record
from routing.models.placement import place_of
from routing.report.card import FRONTIER
from routing.report.plots import plot_frontier
from routing.scoring.context import fitting
from routing.scoring.controls import first_routed_layer, random_like, static_routes
from routing.scoring.packed import PathEvaluator
from routing.scoring.plain import Evaluator
from routing.scoring.prompting import asked, trained_prompting
from routing.scoring.requests import Request, draw_requests
from routing.search.routes import Route, full_route


@dataclass
class Point:
    """One way to answer the questions, and what came of it.

    Attributes:
        method: dense, static, routed or random.
        name: unique.
        bias: of the routers, for routed points.
        routes: forced routes, one a question; None: the routers decide.
        seed: of random routes.
    """

    method: str
    name: str
    bias: float = 0.0
    routes: list[Route] | None = None
    seed: int | None = None
    correct: list[bool] = field(default_factory=list)
    executed: list[Route] = field(default_factory=list)
    seconds: float = 0.0

    def summary(self, dense: Point) -> dict:
        right = sum(self.correct)
        paired = mcnemar(dict(enumerate(dense.correct)), dict(enumerate(self.correct)))
        return {
            "method": self.method,
            "name": self.name,
            "bias": self.bias if self.method == "routed" else None,
            "seed": self.seed,
            "layers": mean_layers(self.executed),
            "accuracy": right / len(self.correct),
            "ci95": wilson_interval(right, len(self.correct)),
            "against_dense": paired,
            "seconds": self.seconds,
            "speedup": dense.seconds / self.seconds,
        }


def answer(model, tokenizer, requests: list[Request], points: list[Point], batch_size: int) -> None:
    """Answer the questions with all points, batch by batch in turn; the points keep what came of it.

    One batch is answered before, untimed; each batch begins with another point.
    """
    evaluator = Evaluator(model, tokenizer, batch_size)
    warm_up = points[0]  # What the first forward pays once is nobody's time.
    model.config.route_bias = warm_up.bias
    evaluator.verdicts_and_routes(requests[:batch_size], warm_up.routes and warm_up.routes[:batch_size])
    for turn, start in enumerate(tqdm(range(0, len(requests), batch_size), desc="answering")):
        part, first = slice(start, start + batch_size), turn % len(points)
        for point in points[first:] + points[:first]:
            model.config.route_bias = point.bias
            forced = None if point.routes is None else point.routes[part]
            began = time.perf_counter()
            verdicts, routes = evaluator.verdicts_and_routes(requests[part], forced)
            if model.device.type == "cuda":
                torch.cuda.synchronize()
            point.seconds += time.perf_counter() - began
            point.correct += [verdict.correct for verdict in verdicts]
            point.executed += routes


def calibrated(model, tokenizer, requests: list[Request], arguments: argparse.Namespace) -> list[dict]:
    """The bias for each target, found on some questions."""
    prompts = [request.prompt_ids for request in requests]

    def layers_at(bias: float) -> float:
        model.config.route_bias = bias
        return mean_layers(decided_routes(model, tokenizer, prompts, arguments.batch_size))

    found = []
    for target in tqdm(arguments.targets, desc="calibrating"):
        bias, tried = find_bias(layers_at, target, arguments.tolerance)
        found.append({"target": target, "bias": bias, "validation_layers": tried[bias]})
    return found


def make_points(
    model, tokenizer, tuning: list[Request], test: list[Request], biases: dict[str, float], arguments
) -> list[Point]:
    """Dense, routed, random and static points for test questions; `biases` by the name of the routed point."""
    depth = model.config.num_hidden_layers
    routed = [Point("routed", name, bias=bias) for name, bias in biases.items()]
    random, fewest, first = [], depth - 1.0, first_routed_layer(model.config)
    for point in routed:
        model.config.route_bias = point.bias
        own = decided_routes(model, tokenizer, [request.prompt_ids for request in test], arguments.batch_size)
        fewest = min(fewest, mean_layers(own))
        random += [
            Point("random", f"random like {point.name}, seed {seed}", routes=random_like(own, seed, first), seed=seed)
            for seed in range(arguments.seeds)
        ]
    skips = min(max(round(depth - fewest), 1), arguments.max_static, depth - 1)
    evaluator = PathEvaluator(model, tokenizer, arguments.batch_size)
    static = [
        Point("static", f"static, {at + 1} skipped", routes=[route] * len(test))
        for at, route in enumerate(static_routes(evaluator, tuning, depth, skips))
    ]
    return [Point("dense", "dense", routes=[full_route(depth)] * len(test)), *routed, *random, *static]


def print_points(points: list[dict]) -> None:
    rows = [
        (
            point["name"], f"{point['layers']:.2f}", f"{point['accuracy']:.3f}",
            "{:.3f} – {:.3f}".format(*point["ci95"]), *(str(point["against_dense"][n]) for n in ("gained", "lost")),
            f"{point['against_dense']['p']:.3f}", f"{point['speedup']:.2f}",
        )
        for point in points
    ]  # fmt: skip
    columns = ("", "layers/input", "accuracy", "95 % interval", "gained", "lost", "p", "speed-up")
    print_table("test questions, never searched, trained or calibrated on", columns, rows, left=("",))


def run(arguments: argparse.Namespace) -> None:
    checkpoint_sha256 = checkpoint_hash(Path(arguments.checkpoint))
    model, tokenizer = load_checkpoint(Path(arguments.checkpoint), DTYPES[arguments.dtype], place_of(arguments))
    prompting = asked(trained_prompting(training_record(Path(arguments.checkpoint))), arguments)
    tuning, test = (
        fitting(draw_requests(arguments.dataset, split, arguments.num_samples, tokenizer, prompting), model.config)
        for split in ("validation", "test")
    )
    biases = {"routed, as saved": model.config.route_bias}
    found = calibrated(model, tokenizer, tuning, arguments)
    biases |= {f"routed, target {entry['target']:g}": entry["bias"] for entry in found}
    points = make_points(model, tokenizer, tuning, test, biases, arguments)
    answer(model, tokenizer, test, points, arguments.batch_size)
    summaries = [point.summary(points[0]) for point in points]
    print_points(summaries)
    output = Path(arguments.output or arguments.checkpoint)
    write_json(
        output / FRONTIER,
        {
            "points": summaries,
            "calibrated": found,
            "test_questions": len(test),
            "validation_questions": len(tuning),
            "arguments": vars(arguments),
            "checkpoint_sha256": checkpoint_sha256,
        }
        | made_with(),
    )
    plot_frontier(summaries, output / "frontier.png", f"{len(test)} test questions ({arguments.dataset}), {hardware()}")
    print(f"written to {output / FRONTIER} and {output / 'frontier.png'}")
