"""Routes of the controls that a routed model is held against: random ones of equal length, the best static ones."""

from __future__ import annotations

import math
from collections.abc import Sequence
from random import Random

from tqdm import tqdm

from routing.path_scoring import PathEvaluator
from routing.scoring import Request
from routing.search.baselines import static_path
from routing.search.routes import Route, route_length

TOGETHER = 8  # questions whose candidate paths are evaluated side by side


def random_route(depth: int, length: int, rng: Random) -> Route:
    """A random route of given length: with layers skipped, or repeated where it is longer than the model."""
    chosen = set(rng.sample(range(depth), min(abs(length - depth), depth)))
    other = 0 if length < depth else 2
    return tuple(other if layer in chosen else 1 for layer in range(depth))


def random_like(routes: Sequence[Route], seed: int) -> list[Route]:
    """For each route a random one of equal length."""
    rng = Random(seed)
    return [random_route(len(route), route_length(route), rng) for route in routes]


def static_routes(evaluator: PathEvaluator, requests: list[Request], depth: int, skips: int) -> list[Route]:
    """The best routes for all of some questions, with 1, 2, ... layers skipped (greedy).

    Args:
        requests: questions to choose by; not those that the routes are evaluated on.
        skips: how many routes.
    """

    def score_many(routes: list[Route]) -> list[int]:
        """Right answers along each route; all routes of some questions at once, since they share their beginnings."""
        right = [0] * len(routes)
        evaluator.prepare(requests)
        for start in tqdm(range(0, len(requests), TOGETHER), desc="static paths", leave=False):
            part = requests[start : start + TOGETHER]
            pairs = [(request, route) for request in part for route in routes]
            verdicts = evaluator.verdicts(*map(list, zip(*pairs)))
            for at, verdict in enumerate(verdicts):
                right[at % len(routes)] += verdict.correct
            for request in part:
                evaluator.finish(request)
        evaluator.release()
        return right

    return [path.route for path in static_path(depth, score_many, skips)]


def skips_around(depth: int, mean_layers: float) -> list[int]:
    """Numbers of skipped layers, at least 1, whose static paths run just more and just fewer layers than a mean."""
    saved = max(depth - mean_layers, 0.0)
    return sorted({skips for skips in (math.floor(saved), math.ceil(saved)) if 1 <= skips < depth})
