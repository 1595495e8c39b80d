"""Monte Carlo tree search over routes.

Source: Dr.LLM, arXiv 2510.12773, section 3: root = full path; UCB(child) = Q/v + c sqrt(ln V / v) - λ|π|/L with
c = 1.8 and λ = 3; a random child with probability 0.1; 50 simulations; binary reward; stop at the first
wrong-to-right fix, or when a right path at least 2 layers shorter is found.

Deviations:
- progressive widening: a node visited V times may have ceil(V ** widening) children. Published code expands
  leaves only, which makes a random chain with one child a node, where c and λ have no effect;
- transpositions are merged: a route is one node however it was reached, and is evaluated once;
- the root is evaluated once;
- optionally a prior orders the untried moves of a node: those that edit layers of little influence come first.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from random import Random

from routing.search.routes import Route, full_route, moves, route_length


@dataclass(frozen=True)
class SearchSettings:
    """Settings of one search.

    Attributes:
        num_simulations: descents into the tree after the root was evaluated.
        budget: longest path, as a multiple of L.
        exploration_constant: c of the UCB rule.
        length_penalty: λ of the UCB rule.
        random_prob: probability of descending to a random child instead.
        widening: exponent of progressive widening, in (0, 1].
        stop_saving: a right path this many layers shorter than L ends the search.
    """

    num_simulations: int = 50
    budget: float = 2.0
    exploration_constant: float = 1.8
    length_penalty: float = 3.0
    random_prob: float = 0.1
    widening: float = 0.5
    stop_saving: int = 2


@dataclass
class Node:
    """A route in the tree: its visits, its summed rewards and its links."""

    route: Route
    visits: int = 0
    reward: float = 0.0
    children: list[Node] = field(default_factory=list)
    untried: list[Route] | None = None


@dataclass
class SearchResult:
    """What a search found.

    Attributes:
        base_correct: verdict of the full path.
        verdicts: every evaluated route, in order of evaluation, with its verdict.
        best: the shortest right route, then the one of fewest distinct layers, then the first found; None if
            no route was right.
        root: the tree.
    """

    base_correct: bool
    verdicts: dict[Route, bool]
    best: Route | None
    root: Node


def best_route(verdicts: dict[Route, bool]) -> Route | None:
    """The right route with fewest executions, then fewest distinct layers, then found first."""
    right = [route for route, correct in verdicts.items() if correct]
    return min(right, key=lambda route: (route_length(route), sum(map(bool, route))), default=None)


def ucb(child: Node, parent_visits: int, settings: SearchSettings) -> float:
    """Q/v + c sqrt(ln V / v) - λ|π|/L of a visited child."""
    explore = math.sqrt(math.log(max(parent_visits, 1)) / child.visits)
    length = route_length(child.route) / len(child.route)
    value = child.reward / child.visits
    return value + settings.exploration_constant * explore - settings.length_penalty * length


def search(
    depth: int, settings: SearchSettings, rng: Random, prior: Sequence[float] | None = None
) -> Generator[Route, bool, SearchResult]:
    """Search the routes of a model with `depth` layers for one example.

    A generator: it yields each route whose verdict it needs, is sent the verdict, and returns a SearchResult.
    Thus many searches can run side by side and be evaluated in one batch.

    Args:
        depth: L.
        settings: see SearchSettings.
        rng: the only source of chance.
        prior: influence of each layer, [L]; untried moves are taken in the order of the summed influence of the
            layers they edit, least first. None: in random order.
    """
    root = Node(full_route(depth))
    nodes = {root.route: root}
    verdicts: dict[Route, bool] = {}
    base_correct = verdicts[root.route] = bool((yield root.route))
    root.visits, root.reward = 1, float(base_correct)
    max_length = int(settings.budget * depth)
    for _ in range(settings.num_simulations):
        if _finished(verdicts, base_correct, depth, settings):
            break
        line = _descend(root, nodes, max_length, settings, rng, prior)
        leaf = line[-1]
        if leaf.route not in verdicts:
            verdicts[leaf.route] = bool((yield leaf.route))
        for node in line:
            node.visits += 1
            node.reward += verdicts[leaf.route]
    return SearchResult(base_correct, verdicts, best_route(verdicts), root)


def _finished(verdicts: dict[Route, bool], base_correct: bool, depth: int, settings: SearchSettings) -> bool:
    best = best_route(verdicts)
    if best is None:
        return False
    return not base_correct or depth - route_length(best) >= settings.stop_saving


def _untried(node: Node, max_length: int, rng: Random, prior: Sequence[float] | None) -> list[Route]:
    """Moves of a node, the one to try first at the end."""
    routes = moves(node.route, max_length)
    rng.shuffle(routes)
    if prior is not None:
        edits = {r: sum(p for p, old, new in zip(prior, node.route, r) if old != new) for r in routes}
        # Between equals the shorter route first.
        routes.sort(key=lambda route: (edits[route], route_length(route)), reverse=True)
    return routes


def _descend(
    root: Node,
    nodes: dict[Route, Node],
    max_length: int,
    settings: SearchSettings,
    rng: Random,
    prior: Sequence[float] | None,
) -> list[Node]:
    """Nodes from the root to a new node, or to an old one that cannot go deeper."""
    line = [root]
    while True:
        node = line[-1]
        if node.untried is None:
            node.untried = _untried(node, max_length, rng, prior)
        if node.untried and len(node.children) < math.ceil(node.visits**settings.widening):
            route = node.untried.pop()
            child = nodes.get(route)
            if child is None:
                child = nodes[route] = Node(route)
                node.children.append(child)
                return [*line, child]
            # Reached before by other moves: the same node becomes a child here too.
            node.children.append(child)
        if not node.children:
            return line
        line.append(_choose(node, settings, rng))


def _choose(node: Node, settings: SearchSettings, rng: Random) -> Node:
    if rng.random() < settings.random_prob:
        return rng.choice(node.children)
    return max(node.children, key=lambda child: ucb(child, node.visits, settings))


def run_search(score: Callable[[Route], bool], depth: int, settings: SearchSettings, rng: Random) -> SearchResult:
    """One search to its end, with a function that gives the verdict of a route."""
    searching = search(depth, settings, rng)
    route = next(searching)
    while True:
        try:
            route = searching.send(score(route))
        except StopIteration as finished:
            return finished.value
