"""Routes of the controls that a routed model is held against: random ones of equal length, the best static ones."""

from __future__ import annotations

import math
from collections.abc import Sequence
from random import Random

from tqdm import tqdm

from routing.scoring.packed import PathEvaluator
from routing.scoring.requests import Request
from routing.search.baselines import static_path
from routing.search.routes import Route, route_length
from train_models.router_kinds import kind_of

TOGETHER = 8  # questions whose candidate paths are evaluated side by side


def random_route(depth: int, length: float, rng: Random, first: int = 0) -> Route:
    """A random route of given length: with layers skipped, or repeated where it is longer than the model.

    Args:
        length: layers executed; if it is no whole number, as the mean over tokens, it is rounded up or down at random.
        first: layers at the start that run once in any case, as those that a global router keeps.
    """
    length = int(length + rng.random()) if length % 1 else int(length)
    chosen = set(rng.sample(range(first, depth), min(abs(length - depth), depth - first)))
    other = 0 if length < depth else 2
    return tuple(other if layer in chosen else 1 for layer in range(depth))


def first_routed_layer(config) -> int:
    """The first layer that a routed model's router may skip."""
    return config.kept_layers if kind_of(config).keeps_layers else 0


def random_like(routes: Sequence[Route], seed: int, first: int = 0) -> list[Route]:
    """For each route a random one of equal length, see `like_route`."""
    rng = Random(seed)
    return [like_route(route, rng, first) for route in routes]


def like_route(route: Route, rng: Random, first: int = 0) -> Route:
    """A random route that runs as many layers: a route's own counts in another order, behind the first layers.

    One that skips and repeats layers would come out near the full path if its length alone were kept. Shares of tokens,
    of routers that decide for each token, tell no counts: then only the length is kept (`random_route`).
    """
    if any(count not in (0, 1, 2) for count in route):
        return random_route(len(route), route_length(route), rng, first)
    counts = list(route[first:])
    rng.shuffle(counts)
    return (*route[:first], *counts)


def drawn_like(items: Sequence, seed: int) -> list:
    """The same items, routes say, dealt out anew at random: as often each, whatever they were of."""
    return Random(seed).sample(list(items), len(items))


def around(menu: Sequence[Route], mean_layers: float) -> list[Route]:
    """The paths of a menu that run just fewer and just more layers than a mean; the ones of these lengths that are
    listed first. Without one on a side, that of the other side alone."""
    lengths = sorted({route_length(route) for route in menu})
    chosen = {
        max((n for n in lengths if n <= mean_layers), default=lengths[0]),
        min((n for n in lengths if n >= mean_layers), default=lengths[-1]),
    }
    return [next(route for route in menu if route_length(route) == n) for n in sorted(chosen)]


def static_routes(evaluator: PathEvaluator, requests: list[Request], depth: int, skips: int) -> list[Route]:
    """The best routes for all of some questions, with 1, 2, ... layers skipped (greedy).

    Args:
        requests: questions to choose by; not those that the routes are evaluated on.
        skips: how many routes.
    """

    def score_many(routes: list[Route]) -> list[float]:
        """Right answers along each route, or the sum of scores where the evaluator tells some; all routes of some
        questions at once, since they share their beginnings."""
        right = [0.0] * len(routes)
        evaluator.prepare(requests)
        for start in tqdm(range(0, len(requests), TOGETHER), desc="static paths", leave=False):
            part = requests[start : start + TOGETHER]
            pairs = [(request, route) for request in part for route in routes]
            verdicts = evaluator.verdicts(*map(list, zip(*pairs)))
            for at, verdict in enumerate(verdicts):
                right[at % len(routes)] += verdict.correct if verdict.score is None else verdict.score
            for request in part:
                evaluator.finish(request)
        evaluator.release()
        return right

    return [path.route for path in static_path(depth, score_many, skips)]


def skips_around(depth: int, mean_layers: float) -> list[int]:
    """Numbers of skipped layers, at least 1, whose static paths run just more and just fewer layers than a mean."""
    saved = max(depth - mean_layers, 0.0)
    return sorted({skips for skips in (math.floor(saved), math.ceil(saved)) if 1 <= skips < depth})
