"""Exploration of pruned layer sets: many scored routes of one example, from good to bad, for routers to learn from.

The searches of query-level pruning. Both keep the protocol of `routing.search.mcts.search`: a generator that yields
each route whose verdict it needs, the full one first and none twice, is sent the verdict, and returns a SearchResult.
A scenario is a route with at least one layer pruned and at least one left; layers are never repeated.

Deviations from the published description, common to both:
- the scenarios of an example are distinct, however they were come upon; repeats would only weigh on the pairs that are
  made of them;
- the full path is evaluated and recorded too, and is no scenario;
- one layer is always left, since a path of no layers answers nothing.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from random import Random

from routing.search.results import SearchResult, Verdict
from routing.search.routes import RUN, SKIP, Route, full_route, to_path


@dataclass(frozen=True)
class ExplorationSettings:
    """Settings of both searches.

    Attributes:
        num_scenarios: scenarios of one `dfs`, at most.
        branching: children that `dfs` tries at the full path; half as many, rounded down, at each level below.
        min_branching: children it tries at any level, at least.
        subsets: layer sets that `random_subsets` draws of each size.
        stop_score: a size whose mean score is below this one is its last.
    """

    num_scenarios: int = 20
    branching: int = 8
    min_branching: int = 2
    subsets: int = 5
    stop_score: float = 0.1


def score_of(verdict: Verdict) -> float:
    """The score of a verdict; 1 for right and 0 for wrong where no score was asked for."""
    return float(verdict.correct) if verdict.score is None else verdict.score


def dfs(
    depth: int, settings: ExplorationSettings, rng: Random, prior: Sequence[float] | None = None
) -> Generator[Route, Verdict, SearchResult]:
    """Depth first: prune one more random layer a step, and go on below a child that scores no worse than its parent.

    Deviations: a route met before, by the same layers in another order, is neither a child nor a scenario again, and
    another one is drawn in its place. Where the full path scores 0 or less, it alone is recorded.

    Args:
        depth: L.
        settings: see ExplorationSettings.
        rng: the only source of chance.
        prior: not used.
    """
    full = full_route(depth)
    verdicts = {full: (yield full)}
    if score_of(verdicts[full]) > 0:
        yield from _descend(full, settings.branching, verdicts, settings, rng)
    return SearchResult(verdicts)


def _descend(
    route: Route, branching: int, verdicts: dict[Route, Verdict], settings: ExplorationSettings, rng: Random
) -> Generator[Route, Verdict, None]:
    """Try children of a route, each with all that is below it, until there are enough of them or of scenarios."""
    unpruned = to_path(route)
    if len(unpruned) == 1:
        return
    rng.shuffle(unpruned)
    tried = 0
    for layer in unpruned:
        # The full path is no scenario, so that there is room for one more while they are as many.
        if tried == branching or len(verdicts) > settings.num_scenarios:
            return
        child = route[:layer] + (SKIP,) + route[layer + 1 :]
        if child in verdicts:
            continue
        tried += 1
        verdicts[child] = yield child
        if score_of(verdicts[child]) >= score_of(verdicts[route]):
            yield from _descend(child, max(branching // 2, settings.min_branching), verdicts, settings, rng)


def random_subsets(
    depth: int, settings: ExplorationSettings, rng: Random, prior: Sequence[float] | None = None
) -> Generator[Route, Verdict, SearchResult]:
    """Random layer sets of size 1 to L-1, until the answers of a size are bad.

    Deviations: the sets of a size are distinct, so that there are fewer where fewer exist (L of size L-1).

    Args:
        depth: L.
        settings: see ExplorationSettings.
        rng: the only source of chance.
        prior: not used.
    """
    full = full_route(depth)
    verdicts = {full: (yield full)}
    for size in range(1, depth):
        routes = distinct_subsets(depth, size, settings.subsets, rng)
        for route in routes:
            verdicts[route] = yield route
        if sum(score_of(verdicts[route]) for route in routes) / len(routes) < settings.stop_score:
            break
    return SearchResult(verdicts)


def distinct_subsets(depth: int, size: int, count: int, rng: Random) -> list[Route]:
    """Different routes with `size` pruned layers, drawn uniformly: `count` of them, or all where there are fewer."""
    routes: dict[Route, None] = {}
    while len(routes) < min(count, math.comb(depth, size)):
        pruned = set(rng.sample(range(depth), size))
        routes[tuple(SKIP if layer in pruned else RUN for layer in range(depth))] = None
    return list(routes)


# By the name that data_generation.py --search knows them by.
EXPLORATIONS = {"dfs": dfs, "random": random_subsets}
