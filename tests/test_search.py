"""The search over layer paths: hand-written expectations, a golden trace, and problems whose best path is known."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from routing.search.mcts import Node, SearchResult, SearchSettings, best_route, run_search, search, ucb
from routing.search.routes import full_route, moves, route_length, to_path, to_route

ROOT = Path(__file__).resolve().parents[1]
ROUTES = st.lists(st.integers(0, 2), min_size=1, max_size=8).map(tuple)


def never(route) -> bool:
    return False


def evaluated(settings: SearchSettings, seed: int = 0, depth: int = 6, score=never) -> list[tuple[int, ...]]:
    """Routes whose verdict a search asks for, in order."""
    asked = []

    def ask(route):
        asked.append(route)
        return score(route)

    run_search(ask, depth, settings, Random(seed))
    return asked


def guided(prior, settings: SearchSettings, depth: int, rng: Random) -> list[tuple[int, ...]]:
    """Routes that a search with a prior asks for when none is right."""
    searching = search(depth, settings, rng, prior)
    asked = [next(searching)]
    try:
        while True:
            asked.append(searching.send(False))
    except StopIteration:
        return asked


def mean_length(routes) -> float:
    return sum(map(route_length, routes)) / len(routes)


def tree(result: SearchResult) -> tuple[list[Node], dict[int, int]]:
    """All nodes of a search, each once, and the number of parents of each by its id()."""
    nodes, parents, waiting = {}, {}, [result.root]
    while waiting:
        node = waiting.pop()
        if id(node) not in nodes:
            nodes[id(node)] = node
            for child in node.children:
                parents[id(child)] = parents.get(id(child), 0) + 1
                waiting.append(child)
    return list(nodes.values()), parents


def test_moves_of_three_layers():
    assert moves((1, 1, 1), 6) == [
        (0, 1, 1),
        (0, 0, 1),
        (2, 1, 1),
        (1, 0, 1),
        (1, 0, 0),
        (1, 2, 1),
        (1, 1, 0),
        (1, 1, 2),
    ]
    assert moves((0, 1, 1), 6) == [(0, 0, 1), (0, 2, 1), (0, 1, 0), (0, 1, 2)]
    assert moves((1, 0, 1), 6) == [(0, 0, 1), (2, 0, 1), (1, 0, 0), (1, 0, 2)]
    assert moves((1, 2, 1), 6) == [(0, 2, 1), (2, 2, 1), (1, 2, 0), (1, 2, 2)]
    assert moves((0, 1, 0), 6) == [(0, 2, 0)]
    assert moves((0, 2, 0), 6) == moves((2, 2, 2), 6) == []


def test_moves_keep_the_budget():
    assert moves((1, 1, 1), 3) == [(0, 1, 1), (0, 0, 1), (1, 0, 1), (1, 0, 0), (1, 1, 0)]
    assert (1, 2, 2) not in moves((1, 2, 1), 4)
    assert (0, 2, 1) in moves((0, 1, 1), 3) and (0, 2, 2) not in moves((0, 2, 1), 3)


@settings(max_examples=200)
@given(ROUTES.filter(any), st.integers(1, 16))
def test_moves_change_one_thing(route, max_length):
    """Nothing runs thrice, nothing stays as it was, no action undoes another, and one layer is always left."""
    results = moves(route, max_length)
    assert len(results) == len(set(results))
    for result in results:
        assert set(result) <= {0, 1, 2} and len(result) == len(route)
        assert 1 <= route_length(result) <= max(max_length, route_length(route))
        changed = [layer for layer, (old, new) in enumerate(zip(route, result)) if old != new]
        assert all(route[layer] == 1 for layer in changed)
        if route_length(result) > route_length(route):
            assert len(changed) == 1 and route_length(result) <= max_length
        else:
            assert changed in ([changed[0]], [changed[0], changed[0] + 1])
            assert all(result[layer] == 0 for layer in changed)


@settings(max_examples=100)
@given(ROUTES)
def test_route_and_path_are_equivalent(route):
    path = to_path(route)
    assert to_route(path, len(route)) == route
    assert len(path) == route_length(route) and path == sorted(path)


def test_paths_by_hand():
    assert to_path((1, 0, 2, 1)) == [0, 2, 2, 3]
    assert to_route([0, 2, 2, 3], 4) == (1, 0, 2, 1)
    assert full_route(3) == (1, 1, 1)


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ([0, 3], "outside 0..2"),
        ([-1, 0], "outside 0..2"),
        ([1, 0], "order"),
        ([0, 1, 0], "order"),
        ([1, 1, 1], "layer 1"),
    ],
)
def test_paths_that_are_no_route(path, reason):
    with pytest.raises(ValueError, match=reason):
        to_route(path, 3)


def test_ucb_by_hand():
    """Q/v + c sqrt(ln V / v) - λ|π|/L with Q = 3, v = 4, V = 20, |π| = 5, L = 4."""
    child = Node((1, 2, 1, 1), visits=4, reward=3.0)
    settings = SearchSettings(exploration_constant=1.8, length_penalty=3.0)
    assert ucb(child, 20, settings) == pytest.approx(0.75 + 1.8 * math.sqrt(math.log(20) / 4) - 3.75)
    assert ucb(child, 20, replace(settings, exploration_constant=0.0)) == pytest.approx(-3.0)
    assert ucb(child, 20, replace(settings, length_penalty=0.0)) == pytest.approx(2.3077, abs=1e-4)
    assert ucb(child, 1, settings) == pytest.approx(-3.0)


def test_best_route():
    assert best_route({}) is None
    assert best_route({(1, 1): False}) is None
    assert best_route({(1, 1, 1): True, (0, 1, 1): True, (0, 0, 1): False}) == (0, 1, 1)
    # Equal lengths: fewer distinct layers, which occupy less memory; then the one found first.
    assert best_route({(1, 1, 1, 0): True, (1, 2, 0, 0): True}) == (1, 2, 0, 0)
    assert best_route({(0, 1, 1): True, (1, 0, 1): True}) == (0, 1, 1)
    assert best_route({(1, 0, 1): True, (0, 1, 1): True}) == (1, 0, 1)


class NoChance(Random):
    """Leaves lists as they are and never descends at random."""

    def shuffle(self, x):
        pass

    def random(self):
        return 1.0

    def choice(self, seq):
        raise AssertionError("descended at random")


def test_two_layers_by_hand():
    """Moves are taken from the end of the list, and a node visited V times may have ceil(sqrt(V)) children.

    After (1,2) and (1,0) the root has V = 3 and its children UCB 1.8·sqrt(ln 3) - 3·1.5 and 1.8·sqrt(ln 3) - 3·0.5,
    so it descends to (1,0), and from there to (2,0), where nothing can follow. This repeats until the root may have
    a third child at V = 5 and a fourth at V = 10.
    """
    result = run_search(never, 2, SearchSettings(num_simulations=10), NoChance())
    assert list(result.verdicts) == [(1, 1), (1, 2), (1, 0), (2, 0), (2, 1), (0, 1)]
    nodes = {node.route: node for node in tree(result)[0]}
    visits = {route: node.visits for route, node in nodes.items()}
    assert visits == {(1, 1): 11, (1, 2): 1, (1, 0): 7, (2, 0): 6, (2, 1): 1, (0, 1): 1}
    assert [child.route for child in nodes[1, 1].children] == [(1, 2), (1, 0), (2, 1), (0, 1)]


def test_rewards_by_hand():
    """The same tree with (2,0) right, and a search that goes on: rewards go up the line that led there."""
    settings = SearchSettings(num_simulations=4, stop_saving=2)
    result = run_search(lambda route: route in ((1, 1), (2, 0)), 2, settings, NoChance())
    nodes = {node.route: node for node in tree(result)[0]}
    assert list(result.verdicts) == [(1, 1), (1, 2), (1, 0), (2, 0)]
    assert {route: (node.visits, node.reward) for route, node in nodes.items()} == {
        (1, 1): (5, 3.0),
        (1, 2): (1, 0.0),
        (1, 0): (3, 2.0),
        (2, 0): (2, 2.0),
    }


def test_golden_trace():
    """Labels made earlier are only reproducible while this does not change."""
    trace = (
        "111111 111101 111100 111000 121101 011111 100100 011110 100200 111001 100111 "
        "100121 200111 100221 011100 100000 200110 112111 112121 112100 100211"
    )
    assert ["".join(map(str, route)) for route in evaluated(SearchSettings(num_simulations=20))] == trace.split()


def test_same_seed_same_search_and_other_seed_another():
    settings = SearchSettings()
    assert evaluated(settings, 3) == evaluated(settings, 3)
    assert evaluated(settings, 3) != evaluated(settings, 4)


@pytest.mark.parametrize("seed", range(5))
def test_base_right_and_one_shorter_path(seed):
    """A right path two layers shorter is known to be the only one; enough simulations must come upon it."""
    target = (1, 1, 0, 0, 1, 1, 1, 1)
    result = run_search(lambda r: r in (full_route(8), target), 8, SearchSettings(num_simulations=200), Random(seed))
    assert result.base_correct and result.best == target


@pytest.mark.parametrize("seed", range(5))
def test_right_wherever_two_layers_are_skipped(seed):
    settings = SearchSettings(num_simulations=100)
    result = run_search(lambda r: r == full_route(8) or r[2] == r[3] == 0, 8, settings, Random(seed))
    assert result.best[2] == result.best[3] == 0 and route_length(result.best) <= 6


@pytest.mark.parametrize("seed", range(5))
def test_wrong_answer_fixed_by_one_repeat(seed):
    target = (1, 1, 1, 1, 1, 2, 1, 1)
    asked = evaluated(SearchSettings(num_simulations=400), seed, 8, lambda route: route == target)
    assert asked[0] == full_route(8)
    assert asked[-1] == target, "the search ends with the first fix"


def test_every_single_change_is_tried_when_widening_is_full():
    """With V children for V visits, as many simulations as the root has moves find whichever is right."""
    for target in moves(full_route(5), 10):
        result = run_search(lambda r, t=target: r == t, 5, SearchSettings(num_simulations=400, widening=1.0), Random(1))
        assert result.best == target and not result.base_correct


def test_nodes_have_siblings():
    """A published search expands leaves only: a chain with one child a node, on which c and λ have no effect."""
    early = run_search(never, 6, SearchSettings(num_simulations=5), Random(0))
    assert len(early.root.children) >= 2
    late = run_search(never, 6, SearchSettings(num_simulations=60), Random(0))
    inner = [node for node in tree(late)[0] if node is not late.root]
    assert sum(len(node.children) >= 2 for node in inner) >= 3


@pytest.mark.parametrize("widening", [0.3, 0.5, 1.0])
def test_widening_bounds_the_children(widening):
    result = run_search(never, 6, SearchSettings(num_simulations=150, widening=widening), Random(0))
    for node in tree(result)[0]:
        assert len(node.children) <= math.ceil(node.visits**widening)
    wider = run_search(never, 6, SearchSettings(num_simulations=150, widening=1.0), Random(0))
    assert len(result.root.children) <= len(wider.root.children)


def test_statistics_of_the_tree_add_up():
    settings = SearchSettings(num_simulations=80, stop_saving=6)
    result = run_search(lambda r: sum(r) % 2 == 0, 6, settings, Random(0))
    nodes, _ = tree(result)
    assert result.root.visits == 81
    for node in nodes:
        assert 0 <= node.reward <= node.visits and node.visits >= 1
    assert {node.route for node in nodes} == set(result.verdicts)
    assert sum(child.visits for child in result.root.children) >= 80


@pytest.mark.parametrize("seed", range(4))
def test_length_penalty_prefers_short_paths(seed):
    settings = SearchSettings(num_simulations=60, random_prob=0.0)
    free, penalised = (evaluated(replace(settings, length_penalty=value), seed, 8) for value in (0.0, 3.0))
    assert free != penalised
    assert mean_length(penalised) < mean_length(free) - 0.2


def test_exploration_constant_changes_the_choice():
    settings = SearchSettings(num_simulations=60, random_prob=0.0)
    greedy, curious = (
        run_search(never, 8, replace(settings, exploration_constant=value), Random(0)) for value in (0.0, 10.0)
    )
    assert list(greedy.verdicts) != list(curious.verdicts)
    most = [max(child.visits for child in r.root.children) / r.root.visits for r in (greedy, curious)]
    assert most[0] > 2 * most[1], "without exploration one child takes nearly all visits"


def test_reward_attracts_visits():
    """Skipping layer 0 is always right, at equal lengths of the alternatives: the search must go there."""
    settings = SearchSettings(num_simulations=150, random_prob=0.0, length_penalty=0.0, stop_saving=99)
    result = run_search(lambda r: r[0] == 0 or r == full_route(6), 6, settings, Random(0))
    right = [route for route in result.verdicts if route[0] == 0]
    plain = [r for r in evaluated(settings, 0, 6) if r[0] == 0]
    assert len(right) > 1.5 * len(plain)


def test_random_descents():
    settings = SearchSettings(num_simulations=60, random_prob=1.0)
    always = evaluated(settings)
    assert len(always) > 20
    assert always == evaluated(replace(settings, length_penalty=0.0, exploration_constant=9.0)), "UCB has no say"
    assert always != evaluated(replace(settings, random_prob=0.0))


@settings(max_examples=25)
@given(
    depth=st.integers(1, 6),
    budget=st.sampled_from([1.0, 1.2, 1.5, 2.0]),
    seed=st.integers(0, 1000),
    share=st.sampled_from([0.0, 0.1, 0.5, 1.0]),
)
def test_every_search_keeps_the_rules(depth, budget, seed, share):
    chance = Random(seed)
    asked = []

    def score(route):
        asked.append(route)
        return chance.random() < share

    settings = SearchSettings(num_simulations=40, budget=budget)
    result = run_search(score, depth, settings, Random(seed))
    assert asked[0] == full_route(depth) and len(asked) == len(set(asked)) == len(result.verdicts)
    assert asked == list(result.verdicts) and len(asked) <= 41
    for route in asked:
        assert len(route) == depth and set(route) <= {0, 1, 2}
        assert 1 <= route_length(route) <= budget * depth
    assert result.base_correct == result.verdicts[full_route(depth)]
    assert result.best == best_route(result.verdicts)
    if result.base_correct:
        assert route_length(result.best) <= depth
        early = [r for r in asked[:-1] if result.verdicts[r] and depth - route_length(r) >= 2]
    else:
        early = [r for r in asked[:-1] if result.verdicts[r]]
    assert not early, "the search went on after it should have stopped"


def test_a_search_without_moves_ends():
    assert evaluated(SearchSettings(budget=1.0), depth=1) == [(1,)]
    assert set(evaluated(SearchSettings(num_simulations=500), depth=2)) == {
        (1, 1),
        (0, 1),
        (1, 0),
        (2, 1),
        (1, 2),
        (2, 2),
        (0, 2),
        (2, 0),
    }


def test_stop_saving():
    for saving in (1, 2, 3, 4):
        asked = evaluated(SearchSettings(num_simulations=300, stop_saving=saving), score=lambda route: True)
        assert 6 - route_length(asked[-1]) >= saving
        assert all(6 - route_length(route) < saving for route in asked[:-1])


def test_nothing_is_searched_without_simulations():
    assert evaluated(SearchSettings(num_simulations=0)) == [full_route(6)]


@pytest.mark.parametrize("seed", range(3))
def test_prior_orders_the_moves(seed):
    """Least summed influence of the edited layers first; skipping a layer before repeating it."""
    settings = SearchSettings(num_simulations=11, widening=1.0)
    assert guided([7, 1, 4, 2], settings, 4, Random(seed)) == [
        (1, 1, 1, 1),
        (1, 0, 1, 1),
        (1, 2, 1, 1),
        (1, 1, 1, 0),
        (1, 1, 1, 2),
        (1, 1, 0, 1),
        (1, 1, 2, 1),
        (1, 0, 0, 1),
        (1, 1, 0, 0),
        (0, 1, 1, 1),
        (2, 1, 1, 1),
        (0, 0, 1, 1),
    ]


def test_prior_takes_no_move_away():
    settings = SearchSettings(num_simulations=3000, widening=1.0, length_penalty=0.0)
    everything = set(guided(None, settings, 3, Random(0)))
    assert len(everything) == 3**3 - 1
    assert set(guided([0.5, 0.0, 0.1], settings, 3, Random(0))) == everything


def test_equal_influence_is_left_to_chance():
    settings = SearchSettings(num_simulations=12)
    traces = {tuple(guided([1] * 6, settings, 6, Random(seed))) for seed in range(5)}
    assert len(traces) > 1
    assert all(sum(trace[1]) == 5 for trace in traces), "one edited layer has less influence than two"


def test_transpositions_are_one_node():
    """(0, 1, 0) is reached by skipping layer 0 and then 2, or 2 and then 0: one node, evaluated once."""
    result = run_search(never, 4, SearchSettings(num_simulations=300), Random(0))
    nodes, parents = tree(result)
    assert len({node.route for node in nodes}) == len(nodes)
    assert max(parents.values()) >= 2
    for node in nodes:
        assert len({id(child) for child in node.children}) == len(node.children)
        assert {child.route for child in node.children} <= set(moves(node.route, 8))


def test_a_search_is_a_conversation():
    """Many searches run side by side, so one only says what it needs and is told the verdict."""
    searching = search(4, SearchSettings(num_simulations=3), Random(0))
    assert next(searching) == (1, 1, 1, 1)
    asked = [searching.send(False)]
    with pytest.raises(StopIteration) as stop:
        while True:
            asked.append(searching.send(False))
    assert list(stop.value.value.verdicts) == [(1, 1, 1, 1), *asked]
    assert stop.value.value.best is None and not stop.value.value.base_correct


def test_search_imports_no_torch():
    code = "import routing.search.mcts, sys; assert 'torch' not in sys.modules and 'numpy' not in sys.modules"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
