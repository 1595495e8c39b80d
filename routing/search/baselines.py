"""Searches that the tree search is compared with, at equal numbers of evaluations.

All keep the protocol of `routing.search.mcts.search`: a generator that yields each route whose verdict it needs, the
full one first and none twice, is sent the verdict, and returns a SearchResult. None stops at a right route: each goes
on until `evaluations` routes beside the full one were evaluated or it finds nothing new. Verdicts come in the order
of evaluation, so what a method would have found with fewer evaluations can be read from the same result.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from random import Random
from typing import NamedTuple, Protocol

from routing.search.mcts import SearchSettings, longest_path, search
from routing.search.results import SearchResult, Verdict, reward_of
from routing.search.routes import SKIP, Route, full_route, moves, route_length

Searching = Generator[Route, Verdict, SearchResult]
# Draws in a row without a new route after which a random method takes the space for exhausted.
PATIENCE = 1000


class Method(Protocol):
    """What all methods are called with; one that has no use for `prior` or `reward` ignores it.

    Args:
        depth: L.
        evaluations: most routes to evaluate beside the full one.
        budget: longest path, as a multiple of L, at least 1.
        rng: the only source of chance.
        prior: influence of each layer, [L], or None.
        reward: binary or margin, see `reward_of`.
    """

    def __call__(
        self,
        depth: int,
        evaluations: int,
        budget: float,
        rng: Random,
        prior: Sequence[float] | None = None,
        reward: str = "binary",
    ) -> Searching: ...


def random_paths(
    depth: int,
    evaluations: int,
    budget: float,
    rng: Random,
    prior: Sequence[float] | None = None,
    reward: str = "binary",
    max_edits: int | None = None,
) -> Searching:
    """Independent random routes: the control for whether a search gains anything from the verdicts.

    The number of edits is uniform on 1..max_edits, and each edit is a random one of the tree search's own moves, so
    the same routes are within reach. Counts drawn layer by layer would be no fair control: nearly all such routes
    edit most of the layers, which no model survives. As an edit touches 4/3 layers on average, the default touches
    between one layer and a third of them, as often few as many.

    Args:
        depth, evaluations, budget, rng, prior, reward: see Method; prior and reward are not used.
        max_edits: default L / 4, at least 2.
    """
    full = full_route(depth)
    verdicts = {full: (yield full)}
    max_length = longest_path(depth, budget)
    most = max(2, depth // 4) if max_edits is None else max_edits
    in_vain = 0
    while len(verdicts) <= evaluations and in_vain < PATIENCE:
        route = full
        for _ in range(rng.randint(1, most)):
            options = moves(route, max_length)
            if not options:
                break
            route = rng.choice(options)
        in_vain += 1
        if route not in verdicts:
            verdicts[route] = yield route
            in_vain = 0
    return SearchResult(verdicts)


def random_chain(
    depth: int,
    evaluations: int,
    budget: float,
    rng: Random,
    prior: Sequence[float] | None = None,
    reward: str = "binary",
) -> Searching:
    """What published code for arXiv 2510.12773 amounts to: each route is one random move from the last one.

    Its tree expands leaves only, so every node has one child and UCB has nothing to choose from. Deviations: where
    the chain cannot go deeper it starts again at the full path, and routes met before cost no evaluation.

    Args:
        depth, evaluations, budget, rng, prior, reward: see Method; prior and reward are not used.
    """
    full = route = full_route(depth)
    verdicts = {full: (yield full)}
    max_length = longest_path(depth, budget)
    in_vain = 0
    while len(verdicts) <= evaluations and in_vain < PATIENCE:
        options = moves(route, max_length)
        route = rng.choice(options) if options else full
        in_vain += 1
        if route not in verdicts:
            verdicts[route] = yield route
            in_vain = 0
    return SearchResult(verdicts)


def greedy_deletion(
    depth: int,
    evaluations: int,
    budget: float,
    rng: Random,
    prior: Sequence[float] | None = None,
    reward: str = "binary",
) -> Searching:
    """Delete the best single layer, and again from there: `beam_deletion` with a beam of one route."""
    return beam_deletion(depth, evaluations, budget, rng, prior, reward, width=1)


def beam_deletion(
    depth: int,
    evaluations: int,
    budget: float,
    rng: Random,
    prior: Sequence[float] | None = None,
    reward: str = "binary",
    width: int = 4,
) -> Searching:
    """Level by level delete one more layer, and keep the best `width` routes of each level.

    Right routes come before wrong ones, then a greater reward before a smaller, then the order of trial. With binary
    rewards the first `width` right routes are thus the best whatever follows, and the level ends there: each route
    keeps the first deletions that leave it right. With margins all deletions of a level are compared. A level
    without a right route is passed too, so that a wrong full path is searched for a deletion that fixes it.

    A descent ends with one layer left. The evaluations that remain go to further descents with the layers in random
    order, until one of them evaluates nothing new; with margins that is usually the second.

    Args:
        depth, evaluations, budget, rng, reward: see Method; no route is longer than L, so budget is not used.
        prior: layers are tried in its order, least influence first, in the first descent; None: in random order.
        width: routes kept a level.

    Raises:
        ValueError: for a width below 1, or a margin reward of a verdict without margin.
    """
    if width < 1:
        raise ValueError(f"a beam of {width} routes keeps nothing; width must be at least 1")
    full = full_route(depth)
    verdicts = {full: (yield full)}
    order = list(range(depth))
    rng.shuffle(order)
    if prior is not None:
        order.sort(key=lambda layer: prior[layer])
    while True:
        before = len(verdicts)
        beam = [(full, tuple(order))]
        while beam:
            beam = yield from _best_deletions(beam, verdicts, evaluations, reward, width)
        if len(verdicts) > evaluations or len(verdicts) == before:
            return SearchResult(verdicts)
        rng.shuffle(order)


# A route and the layers that may be deleted from it, in the order of trial.
Ordered = tuple[Route, tuple[int, ...]]


def _deletions(beam: list[Ordered]) -> Iterator[Ordered]:
    for route, order in beam:
        if route_length(route) > 1:
            for position, layer in enumerate(order):
                # Layers tried before this one come last: without them a longer route was already wrong, or no better.
                rest = order[position + 1 :] + order[:position]
                yield route[:layer] + (SKIP,) + route[layer + 1 :], rest


def _best_deletions(
    beam: list[Ordered], verdicts: dict[Route, Verdict], evaluations: int, reward: str, width: int
) -> Generator[Route, Verdict, list[Ordered]]:
    """The next level of a beam; empty where no layer can be deleted or no evaluation is left."""
    level: dict[Route, Ordered] = {}
    right = 0
    for route, rest in _deletions(beam):
        if route in level:
            continue
        if route not in verdicts:
            if len(verdicts) > evaluations:
                return []
            verdicts[route] = yield route
        level[route] = (route, rest)
        right += verdicts[route].correct
        if reward == "binary" and right == width:
            break
    # Sorting is stable: equals stay in the order of trial.
    best = sorted(level, key=lambda r: (verdicts[r].correct, reward_of(verdicts[r], reward)), reverse=True)
    return [level[route] for route in best[:width]]


def tree_search(
    depth: int,
    evaluations: int,
    budget: float,
    rng: Random,
    prior: Sequence[float] | None = None,
    reward: str = "binary",
) -> Searching:
    """`routing.search.mcts.search` with its default settings, but without its early stop and by evaluations."""
    settings = SearchSettings(budget=budget, stop_saving=None, reward=reward, evaluations=evaluations)
    return search(depth, settings, rng, prior)


def _without_prior(method: Method) -> Method:
    def unguided(depth, evaluations, budget, rng, prior=None, reward="binary"):
        return method(depth, evaluations, budget, rng, None, reward)

    return unguided


def _with_prior(method: Method) -> Method:
    def guided(depth, evaluations, budget, rng, prior=None, reward="binary"):
        # Without one it would silently be the row without prior once more.
        if prior is None or len(prior) != depth:
            given = "none" if prior is None else f"{len(prior)} numbers"
            raise ValueError(f"this method needs a prior of {depth} numbers, one a layer; given: {given}")
        return method(depth, evaluations, budget, rng, prior, reward)

    return guided


METHODS: dict[str, Method] = {
    "random_paths": random_paths,
    "random_chain": random_chain,
    "greedy_deletion": _without_prior(greedy_deletion),
    "greedy_deletion_prior": _with_prior(greedy_deletion),
    "beam_deletion": _without_prior(beam_deletion),
    "beam_deletion_prior": _with_prior(beam_deletion),
    "tree": _without_prior(tree_search),
    "tree_prior": _with_prior(tree_search),
}


class StaticPath(NamedTuple):
    """A route for all examples of a data set, and its score there."""

    route: Route
    score: float


def static_path(
    depth: int,
    score_many: Callable[[list[Route]], Sequence[float]],
    max_skips: int | None = None,
    layers: Sequence[int] | None = None,
) -> list[StaticPath]:
    """The best path that is the same for all examples, for each number of skipped layers: greedy forward selection.

    One more layer is skipped a round: the one without which the data set's score is best. A plain function, since
    all candidates of a round are known at once and no other search has to run beside it. It asks for one score a
    remaining layer and round, at most K L in all.

    Args:
        depth: L.
        score_many: the data set's accuracy, or number of right answers, along each of the routes that it is given.
        max_skips: K, rounds; default as many as possible with one layer left.
        layers: those that may be skipped, in order of preference between equal scores; default all, the first first.

    Returns:
        K static paths; the one at index k - 1 skips k layers.

    Raises:
        ValueError: if there are not K layers to skip with one left, or `score_many` returns another number of scores.
    """
    free = list(range(depth) if layers is None else dict.fromkeys(layers))
    most = min(len(free), depth - 1)
    rounds = most if max_skips is None else max_skips
    if not 0 <= rounds <= most:
        raise ValueError(f"{rounds} layers cannot be skipped; with {len(free)} of {depth} free, 0..{most} can")
    route = full_route(depth)
    found = []
    for _ in range(rounds):
        candidates = [route[:layer] + (SKIP,) + route[layer + 1 :] for layer in free]
        scored = dict(zip(free, score_many(candidates), strict=True))
        layer = max(scored, key=scored.__getitem__)
        free.remove(layer)
        route = route[:layer] + (SKIP,) + route[layer + 1 :]
        found.append(StaticPath(route, scored[layer]))
    return found
