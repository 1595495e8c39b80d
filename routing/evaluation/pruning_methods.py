"""Ways to choose which layers to prune for each query: query routers, and the baselines that they are held against."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from routing.models.config_fields import config_with
from routing.scoring.controls import random_route
from routing.scoring.requests import Request
from routing.search.routes import Route, full_route
from train_models.query_text import query_text


@dataclass
class Method:
    """One way, and the route it gives each request.

    Attributes:
        name: as the tables call it.
        family: what it is an instance of: unpruned, router, static, influence, random; bare: the routes of another one
            with nothing in the place of pruned layers.
        skip_action: adapter or identity.
        routes: one a request.
    """

    name: str
    family: str
    skip_action: str
    routes: list[Route]

    @property
    def pruned(self) -> float:
        """Layers pruned a request."""
        return sum(route.count(0) for route in self.routes) / len(self.routes)


def leave_out(depth: int, layers: Sequence[int]) -> Route:
    """The route without some layers."""
    return tuple(int(layer not in set(layers)) for layer in range(depth))


def router_methods(name: str, model, tokenizer, requests: Sequence[Request], counts: Sequence[int]) -> list[Method]:
    """What a query router does by itself, and with a fixed number of layers to prune.

    Args:
        model: a checkpoint with a query router.
        counts: numbers of layers.
    """
    texts, found = [query_text(tokenizer, request.prompt_ids) for request in requests], []
    for label, fixed in [(name, {})] + [(f"{name}, {count} pruned", {"pruned_layers": count}) for count in counts]:
        with config_with(model, **fixed):
            routes = [tuple(route) for route in model.model.routers.decide(texts, model.config).tolist()]
        found.append(Method(label, "router", model.config.skip_action, routes))
    return found


def random_methods(depth: int, sizes: Sequence[int], label: str, skip_action: str, seeds: int) -> list[Method]:
    """For each request as many layers pruned as in `sizes`, chosen at random; one method for each seed."""
    found = []
    for seed in range(seeds):
        rng = Random(f"{seed}/{label}")
        routes = [random_route(depth, depth - size, rng) for size in sizes]
        found.append(Method(f"random {label}, seed {seed}", "random", skip_action, routes))
    return found


def fixed_method(family: str, route: Route, skip_action: str, count: int) -> Method:
    """The same route for all requests."""
    pruned = route.count(0)
    return Method(f"{family}, {pruned} pruned", family, skip_action, [route] * count)


def unpruned(depth: int, count: int) -> Method:
    return Method("unpruned", "unpruned", "identity", [full_route(depth)] * count)
