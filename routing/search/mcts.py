"""Monte Carlo tree search over routes.

Source: Dr.LLM, arXiv 2510.12773, section 3: root = full path; UCB(child) = Q/v + c sqrt(ln V / v) - λ|π|/L with
c = 1.8 and λ = 3; a random child with probability 0.1; 50 simulations; binary reward; stop at the first
wrong-to-right fix, or when a right path at least 2 layers shorter is found.

Deviations:
- progressive widening: a node visited V times may have ceil(V ** widening) open children. Published code expands
  leaves only, which makes a random chain with one child a node, where c and λ have no effect;
- focus (can be switched off): nothing is searched below a wrong path while the full path is right, and of the untried
  moves of a node the one comes first that did best in this search, wherever it was made (all moves as first, Gelly
  and Silver 2007), less λ for each L layers it adds where the full path is right; after a right path the next move is
  made from there at once;
- of equal moves a random one comes first, as published, or optionally the one that edits the latest layers: what a path
  computed before them is stored, so that this is faster, but then most labels skip the last layers;
- transpositions are merged: a route is one node however it was reached, and is evaluated once;
- the root is evaluated once;
- optionally a prior orders the untried moves of a node: those that edit layers of little influence come first;
- optionally evaluations are counted instead of simulations;
- with that or with focus, parts of the tree without new routes are left alone.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from random import Random

from routing.search.results import SearchResult, Verdict, reward_of
from routing.search.routes import Route, full_route, moves, route_length

MOVE_ORDERS = ("random", "late")


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
        focus: let the verdicts of this search order the moves, and leave wrong paths alone where the full one is right.
        stop_saving: a right path this many layers shorter than L ends the search, as does the first right path
            where the full one is wrong; None: never stop early.
        reward: binary or margin, see `reward_of`.
        evaluations: routes to evaluate beside the full one, in place of `num_simulations`: a simulation that comes
            upon an evaluated route does not count, and the search ends early only when no route is left; None: no
            such limit.
        move_order: random or late: which of equal moves comes first.
    """

    num_simulations: int = 50
    budget: float = 2.0
    exploration_constant: float = 1.8
    length_penalty: float = 3.0
    random_prob: float = 0.1
    widening: float = 0.25
    focus: bool = True
    stop_saving: int | None = 2
    reward: str = "binary"
    evaluations: int | None = None
    move_order: str = "random"


# First layer, number of layers, and their new count.
Edit = tuple[int, int, int]


@dataclass(eq=False, slots=True)
class Node:
    """A route in the tree: its visits, its summed rewards and its links; closed once nothing new is below it."""

    route: Route
    visits: int = 0
    reward: float = 0.0
    children: list[Node] = field(default_factory=list)
    untried: list[tuple[Edit, Route]] | None = None
    closed: bool = False


class MoveRecord:
    """How often each edit was made in a search, and the rewards it got, whatever the path it was made on.

    Args:
        prior: influence of each layer, [L]: an edit of the layer of least influence is expected to get 0.9, of the most
            0.1, between them by rank. None: 0.5 for all.
    """

    def __init__(self, prior: Sequence[float] | None = None):
        self._made: dict[Edit, tuple[int, float]] = {}
        self._expected: dict[int, float] = {}
        if prior is not None:
            ranked = sorted(range(len(prior)), key=prior.__getitem__)
            self._expected = {layer: 0.9 - 0.8 * rank / max(len(prior) - 1, 1) for rank, layer in enumerate(ranked)}

    def add(self, edit: Edit, reward: float) -> None:
        made, rewards = self._made.get(edit, (0, 0.0))
        self._made[edit] = made + 1, rewards + reward

    def value(self, edit: Edit, depth: int, length_penalty: float) -> float:
        """What the edit promises, less λ for each L layers that it adds."""
        _, width, count = edit
        return self.promise(edit) - length_penalty * width * (count - 1) / depth

    def promise(self, edit: Edit) -> float:
        """Mean reward, drawn towards what is expected; for a pair of layers that is the promise of its worse half."""
        made, rewards = self._made.get(edit, (0, 0.0))
        first, width, count = edit
        if width == 1:
            expected = self._expected.get(first, 0.5)
        else:
            expected = min(self.promise((layer, 1, count)) for layer in (first, first + 1))
        return (rewards + 2 * expected) / (made + 2)


@dataclass
class TreeResult(SearchResult):
    """A SearchResult with the tree that was built."""

    root: Node


def ucb(child: Node, parent_visits: int, settings: SearchSettings) -> float:
    """Q/v + c sqrt(ln V / v) - λ|π|/L of a visited child."""
    explore = math.sqrt(math.log(max(parent_visits, 1)) / child.visits)
    length = route_length(child.route) / len(child.route)
    value = child.reward / child.visits
    return value + settings.exploration_constant * explore - settings.length_penalty * length


def search(
    depth: int, settings: SearchSettings, rng: Random, prior: Sequence[float] | None = None
) -> Generator[Route, Verdict, TreeResult]:
    """Search the routes of a model with `depth` layers for one example.

    A generator: it yields each route whose verdict it needs, is sent the verdict, and returns a TreeResult.
    Thus many searches can run side by side and be evaluated in one batch.

    Args:
        depth: L.
        settings: see SearchSettings.
        rng: the only source of chance.
        prior: influence of each layer, [L]: untried moves are taken in the order of the summed influence of the layers
            they edit, least first; with focus it is what `MoveRecord` expects, and the order of equals. None: as
            `move_order` says.
    """
    root = Node(full_route(depth))
    nodes = {root.route: root}
    verdicts: dict[Route, Verdict] = {}
    verdicts[root.route] = yield root.route
    base_correct = verdicts[root.route].correct
    root.visits, root.reward = 1, reward_of(verdicts[root.route], settings.reward)
    max_length = longest_path(depth, settings.budget)
    # Where the full path is wrong, any change may help: repeats are as good as skips, strong layers as good as weak.
    penalty = settings.length_penalty if base_correct else 0.0
    simulations, moves_made, start = 0, MoveRecord(prior if base_correct else None), [root]
    found = _ends_search(root.route, verdicts[root.route], base_correct, settings)
    while not found and _may_go_on(root, len(verdicts) - 1, simulations, settings):
        simulations += 1
        line, edit = _descend(start, nodes, max_length, settings, rng, prior, moves_made, penalty)
        leaf = line[-1]
        if leaf.route not in verdicts:
            verdicts[leaf.route] = yield leaf.route
            found = _ends_search(leaf.route, verdicts[leaf.route], base_correct, settings)
        reward = reward_of(verdicts[leaf.route], settings.reward)
        if edit is not None:
            moves_made.add(edit, reward)
            leaf.closed = settings.focus and base_correct and not verdicts[leaf.route].correct
        for node in line:
            node.visits += 1
            node.reward += reward
        # What was just found right is worth another move at once; otherwise from the root again.
        right = edit is not None and verdicts[leaf.route].correct
        start = line if settings.focus and right else [root]
        if settings.focus or settings.evaluations is not None:
            _close(line)
    return TreeResult(verdicts, root)


def longest_path(depth: int, budget: float) -> int:
    """budget * L in layer executions; 1.16 * 25 means 29 although it is 28.999999999999996 in floating point."""
    return int(budget * depth + 1e-9)


def _ends_search(route: Route, verdict: Verdict, base_correct: bool, settings: SearchSettings) -> bool:
    if settings.stop_saving is None or not verdict.correct:
        return False
    return not base_correct or len(route) - route_length(route) >= settings.stop_saving


def _may_go_on(root: Node, evaluations: int, simulations: int, settings: SearchSettings) -> bool:
    if settings.evaluations is None:
        return simulations < settings.num_simulations
    return evaluations < settings.evaluations and not root.closed


def _close(line: list[Node]) -> None:
    """Close the nodes of a line, from its end, that have no move left and no open child.

    A transposed node may stay open above children that another line closed; the next descent into it ends there
    and closes it. So every descent evaluates a route or closes a node, and a search that counts evaluations ends.
    """
    for node in reversed(line):
        if node.untried is None or node.untried or not all(child.closed for child in node.children):
            return
        node.closed = True


def _untried(
    node: Node, max_length: int, rng: Random, prior: Sequence[float] | None, late: bool
) -> list[tuple[Edit, Route]]:
    """Moves of a node, the one to try first at the end."""
    routes = moves(node.route, max_length)
    ranked = []
    first = 0
    for route in routes:
        # `moves` goes through the layers in order, so the first edited layer is never to the left of the last one.
        while route[first] == node.route[first]:
            first += 1
        pair = route[first + 1 : first + 2] != node.route[first + 1 : first + 2]
        influence = 0.0 if prior is None else sum(prior[first : first + 1 + pair])
        # Between equals of a prior the shorter route first.
        order = route_length(route) if prior is not None else -first if late else 0
        ranked.append((influence, order, ((first, 1 + pair, route[first]), route)))
    rng.shuffle(ranked)
    ranked.sort(key=itemgetter(0, 1), reverse=True)
    return [move for _, _, move in ranked]


def _next_move(node: Node, focus: bool, moves_made: MoveRecord, penalty: float) -> tuple[Edit, Route]:
    """Take the move to try next from a node's untried ones."""
    at = len(node.untried) - 1
    if focus:
        depth = len(node.route)
        values = [moves_made.value(edit, depth, penalty) for edit, _ in node.untried]
        best = max(values)
        at = max(index for index, value in enumerate(values) if value == best)
    return node.untried.pop(at)


def _descend(
    start: list[Node],
    nodes: dict[Route, Node],
    max_length: int,
    settings: SearchSettings,
    rng: Random,
    prior: Sequence[float] | None,
    moves_made: MoveRecord,
    penalty: float,
) -> tuple[list[Node], Edit | None]:
    """Nodes from the root to a new node, with the edit that made it, or to an old one that cannot go deeper.

    Args:
        start: the nodes to begin with: the root alone, or a line that ends in a node just made.
    """
    line = list(start)
    while True:
        node = line[-1]
        if node.untried is None:
            node.untried = _untried(node, max_length, rng, prior, settings.move_order == "late")
        choices = [child for child in node.children if not child.closed]
        siblings = len(choices) if settings.focus else len(node.children)
        if node.untried and (not choices or siblings < math.ceil(node.visits**settings.widening)):
            edit, route = _next_move(node, settings.focus, moves_made, penalty)
            child = nodes.get(route)
            if child is None:
                child = nodes[route] = Node(route)
                node.children.append(child)
                return [*line, child], edit
            # Reached before by other moves: the same node becomes a child here too.
            node.children.append(child)
            if child.closed:
                continue
            choices.append(child)
        if not choices:
            return line, None
        line.append(_choose(choices, node.visits, settings, rng))


def _choose(choices: list[Node], parent_visits: int, settings: SearchSettings, rng: Random) -> Node:
    if rng.random() < settings.random_prob:
        return rng.choice(choices)
    return max(choices, key=lambda child: ucb(child, parent_visits, settings))
