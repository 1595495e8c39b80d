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

from routing.search.baselines import random_chain
from routing.search.mcts import (
    MoveRecord,
    Node,
    SearchSettings,
    TreeResult,
    _next_move,
    _untried,
    longest_path,
    search,
    ucb,
)
from routing.search.results import MARGIN_SCALE, SearchResult, Verdict, best_route, reward_of, run_search
from routing.search.routes import full_route, moves, route_length, to_path, to_route

ROOT = Path(__file__).resolve().parents[2]
RIGHT, WRONG = Verdict(True), Verdict(False)
ROUTES = st.lists(st.integers(0, 2), min_size=1, max_size=8).map(tuple)


def plain(**others) -> SearchSettings:
    """Settings of a search without focus."""
    return SearchSettings(**({"focus": False, "widening": 0.5} | others))


def never(route) -> bool:
    return False


def searched(score, depth: int, settings: SearchSettings, rng: Random, prior=None) -> TreeResult:
    """One search with a score that says right or wrong."""
    return run_search(search(depth, settings, rng, prior), lambda route: Verdict(score(route)))


def evaluated(settings: SearchSettings, seed: int = 0, depth: int = 6, score=never) -> list[tuple[int, ...]]:
    """Routes whose verdict a search asks for, in order."""
    asked = []

    def ask(route):
        asked.append(route)
        return score(route)

    searched(ask, depth, settings, Random(seed))
    return asked


def guided(prior, settings: SearchSettings, depth: int, rng: Random) -> list[tuple[int, ...]]:
    """Routes that a search with a prior asks for when none is right."""
    return list(searched(never, depth, settings, rng, prior).verdicts)


def mean_length(routes) -> float:
    return sum(map(route_length, routes)) / len(routes)


def tree(result: TreeResult) -> tuple[list[Node], dict[int, int]]:
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
    settings = plain(exploration_constant=1.8, length_penalty=3.0)
    assert ucb(child, 20, settings) == pytest.approx(0.75 + 1.8 * math.sqrt(math.log(20) / 4) - 3.75)
    assert ucb(child, 20, replace(settings, exploration_constant=0.0)) == pytest.approx(-3.0)
    assert ucb(child, 20, replace(settings, length_penalty=0.0)) == pytest.approx(2.3077, abs=1e-4)
    assert ucb(child, 1, settings) == pytest.approx(-3.0)


def test_best_route():
    assert best_route({}) is None
    assert best_route({(1, 1): WRONG}) is None
    assert best_route({(1, 1, 1): RIGHT, (0, 1, 1): RIGHT, (0, 0, 1): WRONG}) == (0, 1, 1)
    # Equal lengths: fewer distinct layers, which occupy less memory; then the one found first.
    assert best_route({(1, 1, 1, 0): RIGHT, (1, 2, 0, 0): RIGHT}) == (1, 2, 0, 0)
    assert best_route({(0, 1, 1): RIGHT, (1, 0, 1): RIGHT}) == (0, 1, 1)
    assert best_route({(1, 0, 1): RIGHT, (0, 1, 1): RIGHT}) == (1, 0, 1)


def test_best_route_looks_at_nothing_but_right_and_short():
    """A great margin makes no route right or better, and luck is no right answer."""
    sure, hardly = Verdict(True, 5.0), Verdict(True, 0.01)
    assert best_route({(1, 1, 1): sure, (0, 1, 1): hardly}) == (0, 1, 1)
    assert best_route({(1, 0, 1): hardly, (0, 1, 1): sure}) == (1, 0, 1)
    assert best_route({(1, 1, 1): hardly, (0, 0, 1): Verdict(False, 5.0, lucky=True)}) == (1, 1, 1)
    # A repeat is an execution: (0, 0, 2, 2) is no shorter than the full path of four layers, but has fewer of them.
    assert best_route({(1, 1, 1, 1): RIGHT, (0, 0, 2, 2): RIGHT}) == (0, 0, 2, 2)


def test_result_of_a_search():
    result = SearchResult({(1, 1): WRONG, (2, 1): RIGHT, (0, 1): RIGHT})
    assert (result.full, result.base_correct, result.best) == ((1, 1), False, (0, 1))
    result = SearchResult({(1, 1): RIGHT, (0, 1): WRONG})
    assert (result.base_correct, result.best) == (True, (1, 1))


def test_rewards_of_a_verdict_by_hand():
    """Margin m is worth 1 / (1 + e^(-m / 0.1)): 0 is a draw, ±0.1 is one unit, ln 3 units are three to one."""
    assert MARGIN_SCALE == 0.1
    assert (reward_of(RIGHT, "binary"), reward_of(WRONG, "binary")) == (1.0, 0.0)
    assert reward_of(Verdict(False, 5.0, lucky=True), "binary") == 0.0
    assert reward_of(Verdict(True, 0.0), "margin") == 0.5
    assert reward_of(Verdict(True, 0.1), "margin") == pytest.approx(math.e / (1 + math.e))
    assert reward_of(Verdict(False, -0.1), "margin") == pytest.approx(1 / (1 + math.e))
    assert reward_of(Verdict(True, 0.1 * math.log(3)), "margin") == pytest.approx(0.75)
    assert reward_of(Verdict(False, -0.1 * math.log(3)), "margin") == pytest.approx(0.25)


def test_margins_beyond_measure_overflow_nothing():
    assert reward_of(Verdict(True, 1e9), "margin") == pytest.approx(1.0)
    assert 0 <= reward_of(Verdict(False, -1e9), "margin") < 1e-20
    assert reward_of(Verdict(False, -math.inf), "margin") < 1e-20


def test_no_margin_no_margin_reward():
    with pytest.raises(ValueError, match="loglikelihood"):
        reward_of(RIGHT, "margin")
    with pytest.raises(ValueError, match="loglikelihood"):
        searched(never, 3, plain(reward="margin"), Random(0))


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
    result = searched(never, 2, plain(num_simulations=10), NoChance())
    assert list(result.verdicts) == [(1, 1), (1, 2), (1, 0), (2, 0), (2, 1), (0, 1)]
    nodes = {node.route: node for node in tree(result)[0]}
    visits = {route: node.visits for route, node in nodes.items()}
    assert visits == {(1, 1): 11, (1, 2): 1, (1, 0): 7, (2, 0): 6, (2, 1): 1, (0, 1): 1}
    assert [child.route for child in nodes[1, 1].children] == [(1, 2), (1, 0), (2, 1), (0, 1)]


def test_rewards_by_hand():
    """The same tree with (2,0) right, and a search that goes on: rewards go up the line that led there."""
    settings = plain(num_simulations=4, stop_saving=2)
    result = searched(lambda route: route in ((1, 1), (2, 0)), 2, settings, NoChance())
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
    assert ["".join(map(str, route)) for route in evaluated(plain(num_simulations=20))] == trace.split()


def test_same_seed_same_search_and_other_seed_another():
    settings = plain()
    assert evaluated(settings, 3) == evaluated(settings, 3)
    assert evaluated(settings, 3) != evaluated(settings, 4)


@pytest.mark.parametrize("seed", range(5))
def test_base_right_and_one_shorter_path(seed):
    """A right path two layers shorter is known to be the only one; enough simulations must come upon it."""
    target = (1, 1, 0, 0, 1, 1, 1, 1)
    result = searched(lambda r: r in (full_route(8), target), 8, plain(num_simulations=200), Random(seed))
    assert result.base_correct and result.best == target


@pytest.mark.parametrize("seed", range(5))
def test_right_wherever_two_layers_are_skipped(seed):
    settings = plain(num_simulations=100)
    result = searched(lambda r: r == full_route(8) or r[2] == r[3] == 0, 8, settings, Random(seed))
    assert result.best[2] == result.best[3] == 0 and route_length(result.best) <= 6


@pytest.mark.parametrize("seed", range(5))
def test_wrong_answer_fixed_by_one_repeat(seed):
    target = (1, 1, 1, 1, 1, 2, 1, 1)
    asked = evaluated(plain(num_simulations=400), seed, 8, lambda route: route == target)
    assert asked[0] == full_route(8)
    assert asked[-1] == target, "the search ends with the first fix"


def test_every_single_change_is_tried_when_widening_is_full():
    """With V children for V visits, as many simulations as the root has moves find whichever is right."""
    for target in moves(full_route(5), 10):
        result = searched(lambda r, t=target: r == t, 5, plain(num_simulations=400, widening=1.0), Random(1))
        assert result.best == target and not result.base_correct


def test_nodes_have_siblings():
    """A published search expands leaves only: a chain with one child a node, on which c and λ have no effect."""
    early = searched(never, 6, plain(num_simulations=5), Random(0))
    assert len(early.root.children) >= 2
    late = searched(never, 6, plain(num_simulations=60), Random(0))
    inner = [node for node in tree(late)[0] if node is not late.root]
    assert sum(len(node.children) >= 2 for node in inner) >= 3


@pytest.mark.parametrize("widening", [0.3, 0.5, 1.0])
def test_widening_bounds_the_children(widening):
    result = searched(never, 6, plain(num_simulations=150, widening=widening), Random(0))
    for node in tree(result)[0]:
        assert len(node.children) <= math.ceil(node.visits**widening)
    wider = searched(never, 6, plain(num_simulations=150, widening=1.0), Random(0))
    assert len(result.root.children) <= len(wider.root.children)


def test_statistics_of_the_tree_add_up():
    settings = plain(num_simulations=80, stop_saving=6)
    result = searched(lambda r: sum(r) % 2 == 0, 6, settings, Random(0))
    nodes, _ = tree(result)
    assert result.root.visits == 81
    for node in nodes:
        assert 0 <= node.reward <= node.visits and node.visits >= 1
    assert {node.route for node in nodes} == set(result.verdicts)
    assert sum(child.visits for child in result.root.children) >= 80


@pytest.mark.parametrize("seed", range(4))
def test_length_penalty_prefers_short_paths(seed):
    settings = plain(num_simulations=60, random_prob=0.0)
    free, penalised = (evaluated(replace(settings, length_penalty=value), seed, 8) for value in (0.0, 3.0))
    assert free != penalised
    assert mean_length(penalised) < mean_length(free) - 0.2


def test_exploration_constant_changes_the_choice():
    settings = plain(num_simulations=60, random_prob=0.0)
    greedy, curious = (
        searched(never, 8, replace(settings, exploration_constant=value), Random(0)) for value in (0.0, 10.0)
    )
    assert list(greedy.verdicts) != list(curious.verdicts)
    most = [max(child.visits for child in r.root.children) / r.root.visits for r in (greedy, curious)]
    assert most[0] > 2 * most[1], "without exploration one child takes nearly all visits"


def test_reward_attracts_visits():
    """Skipping layer 0 is always right, at equal lengths of the alternatives: the search must go there."""
    settings = plain(num_simulations=150, random_prob=0.0, length_penalty=0.0, stop_saving=99)
    result = searched(lambda r: r[0] == 0 or r == full_route(6), 6, settings, Random(0))
    right = [route for route in result.verdicts if route[0] == 0]
    unrewarded = [r for r in evaluated(settings, 0, 6) if r[0] == 0]
    assert len(right) > 1.5 * len(unrewarded)


def hints_of(wanted: dict[int, int]):
    """Right where some layers have certain counts; each that has adds 0.4 to the margin."""

    def score(route) -> Verdict:
        done = sum(route[layer] == count for layer, count in wanted.items())
        return Verdict(done == len(wanted), 0.4 * done - 0.2 * len(wanted))

    return score


def evaluations_to_a_fix(settings: SearchSettings, depth: int, score) -> list[float]:
    """Of ten searches, fewest first; infinite where the search ended without one."""
    results = [run_search(search(depth, settings, Random(seed)), score) for seed in range(10)]
    assert not any(result.base_correct for result in results)
    return sorted(math.inf if result.best is None else len(result.verdicts) - 1 for result in results)


def test_margins_lead_where_binary_rewards_are_all_nought():
    """Four certain layers of twelve must be repeated: right answers give no hint of it, margins do."""
    settings = plain(num_simulations=1000, length_penalty=0.0, exploration_constant=0.5)
    score = hints_of({1: 2, 4: 2, 7: 2, 10: 2})
    assert evaluations_to_a_fix(replace(settings, reward="margin"), 12, score)[9] < 500
    assert evaluations_to_a_fix(settings, 12, score)[1] == math.inf


def test_margins_lead_with_the_published_constants():
    """Less so: with c = 1.8 and λ = 3 a reward of at most 1 says little."""
    settings = plain(num_simulations=1000)
    score = hints_of({1: 2, 5: 0, 8: 2})
    margin = evaluations_to_a_fix(replace(settings, reward="margin"), 10, score)
    binary = evaluations_to_a_fix(settings, 10, score)
    assert margin[9] < math.inf and sum(margin[:5]) < 0.7 * sum(binary[:5])


def test_without_hints_margins_change_nothing():
    """Where all margins are equal and all routes wrong, both rewards are constants and UCB's order is the same."""
    settings = plain(num_simulations=60)
    asked = [
        list(run_search(search(8, replace(settings, reward=r), Random(0)), lambda route: Verdict(False, -9.0)).verdicts)
        for r in ("binary", "margin")
    ]
    assert asked[0] == asked[1]


def test_random_descents():
    settings = plain(num_simulations=60, random_prob=1.0)
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
    focus=st.booleans(),
)
def test_every_search_keeps_the_rules(depth, budget, seed, share, focus):
    chance = Random(seed)
    asked = []

    def score(route):
        asked.append(route)
        return chance.random() < share

    settings = SearchSettings(num_simulations=40, budget=budget, focus=focus)
    result = searched(score, depth, settings, Random(seed))
    assert asked[0] == full_route(depth) and len(asked) == len(set(asked)) == len(result.verdicts)
    assert asked == list(result.verdicts) and len(asked) <= 41
    for route in asked:
        assert len(route) == depth and set(route) <= {0, 1, 2}
        assert 1 <= route_length(route) <= budget * depth
    assert result.full == full_route(depth) and result.base_correct == result.verdicts[full_route(depth)].correct
    assert result.best == best_route(result.verdicts)
    if result.base_correct:
        assert route_length(result.best) <= depth
        early = [r for r in asked[:-1] if result.verdicts[r].correct and depth - route_length(r) >= 2]
    else:
        early = [r for r in asked[:-1] if result.verdicts[r].correct]
    assert not early, "the search went on after it should have stopped"


def test_a_search_without_moves_ends():
    assert evaluated(plain(budget=1.0), depth=1) == [(1,)]
    assert set(evaluated(plain(num_simulations=500), depth=2)) == {
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
        asked = evaluated(plain(num_simulations=300, stop_saving=saving), score=lambda route: True)
        assert 6 - route_length(asked[-1]) >= saving
        assert all(6 - route_length(route) < saving for route in asked[:-1])


@pytest.mark.parametrize("base", [True, False])
def test_no_early_stop(base):
    """Every simulation is made although the first route that is tried is right and short."""
    settings = plain(num_simulations=60, stop_saving=None)
    asked = evaluated(settings, 0, 12, lambda route: base or route != full_route(12))
    assert len(asked) == 61
    assert len(evaluated(replace(settings, stop_saving=1), 0, 12, lambda route: True)) < 20


def test_an_early_stop_only_cuts_the_search():
    settings = plain(num_simulations=60, stop_saving=None)
    whole, cut = (
        evaluated(replace(settings, stop_saving=saving), 0, 12, lambda route: sum(route) % 2 == 0)
        for saving in (None, 2)
    )
    assert len(cut) < len(whole) and whole[: len(cut)] == cut


@pytest.mark.parametrize("focus", [False, True])
@pytest.mark.parametrize("count", [0, 1, 50, 400])
def test_evaluations_are_counted_exactly(count, focus):
    """Simulations that come upon a known route, many at this depth, do not count; 728 routes are there."""
    settings = plain(num_simulations=400, stop_saving=None, focus=focus)
    asked = evaluated(replace(settings, evaluations=count), depth=6)
    assert len(asked) == 1 + count
    assert len(evaluated(settings, depth=6)) < 400


@pytest.mark.parametrize("focus", [False, True])
@pytest.mark.parametrize("length_penalty", [0.0, 3.0])
@pytest.mark.parametrize("widening", [0.2, 1.0])
@pytest.mark.parametrize(
    ("depth", "budget", "routes"), [(1, 1.0, 1), (1, 2.0, 2), (2, 1.0, 5), (4, 1.25, 65), (5, 2.0, 242)]
)
def test_a_search_by_evaluations_ends_when_no_route_is_left(depth, budget, routes, widening, length_penalty, focus):
    """By hand: 3^5 - 1 = 242; depth 2 within 2 executions: 11 01 10 02 20; depth 4: 80 less 2222, 4 · 2221,
    6 · 2211 and 4 · 2220, which run 6 layers or more."""
    settings = SearchSettings(
        evaluations=10**6,
        stop_saving=None,
        budget=budget,
        widening=widening,
        length_penalty=length_penalty,
        focus=focus,
    )
    assert len(evaluated(replace(settings, random_prob=0.0), depth=depth)) == routes


def test_counting_evaluations_changes_no_search_that_meets_only_new_routes():
    settings = plain(num_simulations=100, stop_saving=None)
    assert evaluated(settings, depth=16) == evaluated(replace(settings, evaluations=100), depth=16)


def test_an_early_stop_also_ends_a_search_by_evaluations():
    settings = plain(evaluations=500, stop_saving=2)
    assert len(evaluated(settings, depth=6, score=lambda route: True)) < 10


def test_longest_path():
    assert [longest_path(depth, budget) for depth, budget in ((4, 2.0), (4, 1.0), (3, 1.5), (5, 1.1))] == [8, 4, 4, 5]
    assert 1.16 * 25 < 29, "a budget of 29 layers, but for rounding"
    assert longest_path(25, 1.16) == 29


def test_nothing_is_searched_without_simulations():
    assert evaluated(plain(num_simulations=0)) == [full_route(6)]


@pytest.mark.parametrize("seed", range(3))
def test_prior_orders_the_moves(seed):
    """Least summed influence of the edited layers first; skipping a layer before repeating it."""
    settings = plain(num_simulations=11, widening=1.0)
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


@settings(max_examples=100)
@given(
    ROUTES.filter(any),
    st.lists(st.sampled_from([0.0, 0.1, 0.2, 0.7]), min_size=8, max_size=8),
    st.integers(0, 9),
    st.booleans(),
)
def test_order_of_a_prior_is_that_of_the_sums(route, prior, seed, focus):
    """Against the plain way to order the moves: sum over all layers whose count differs."""
    expected = moves(route, 12)
    Random(seed).shuffle(expected)
    influence = {r: sum(p for p, old, new in zip(prior, route, r) if old != new) for r in expected}
    expected.sort(key=lambda r: (influence[r], route_length(r)), reverse=True)
    assert [move for _, move in _untried(Node(route), 12, Random(seed), prior, focus)] == expected


def test_prior_takes_no_move_away():
    settings = plain(num_simulations=3000, widening=1.0, length_penalty=0.0)
    everything = set(guided(None, settings, 3, Random(0)))
    assert len(everything) == 3**3 - 1
    assert set(guided([0.5, 0.0, 0.1], settings, 3, Random(0))) == everything


def test_equal_influence_is_left_to_chance():
    settings = plain(num_simulations=12)
    traces = {tuple(guided([1] * 6, settings, 6, Random(seed))) for seed in range(5)}
    assert len(traces) > 1
    assert all(sum(trace[1]) == 5 for trace in traces), "one edited layer has less influence than two"


def test_transpositions_are_one_node():
    """(0, 1, 0) is reached by skipping layer 0 and then 2, or 2 and then 0: one node, evaluated once."""
    result = searched(never, 4, plain(num_simulations=300), Random(0))
    nodes, parents = tree(result)
    assert len({node.route for node in nodes}) == len(nodes)
    assert max(parents.values()) >= 2
    for node in nodes:
        assert len({id(child) for child in node.children}) == len(node.children)
        assert {child.route for child in node.children} <= set(moves(node.route, 8))


def record_of(*made: tuple[tuple[int, int, int], float]) -> MoveRecord:
    record = MoveRecord()
    for edit, reward in made:
        record.add(edit, reward)
    return record


def test_promise_by_hand():
    """The mean reward, with two more trials of what was expected: 1/2, or the promise of a pair's worse half."""
    assert MoveRecord().promise((3, 1, 0)) == MoveRecord().promise((3, 2, 0)) == 0.5
    record = record_of(((3, 1, 0), 1.0), ((3, 1, 0), 1.0), ((4, 1, 0), 0.0))
    assert record.promise((3, 1, 0)) == pytest.approx(3 / 4)
    assert record.promise((4, 1, 0)) == pytest.approx(1 / 3)
    assert record.promise((3, 2, 0)) == pytest.approx(1 / 3), "as little as that of layer 4"
    assert record.promise((2, 2, 0)) == pytest.approx(1 / 2), "no more than that of layer 2, which nobody skipped"
    assert record.promise((3, 1, 2)) == 0.5, "skips say nothing of repeats"
    record.add((3, 2, 0), 1.0)
    assert record.promise((3, 2, 0)) == pytest.approx((1 + 2 / 3) / 3)
    assert record.promise((3, 1, 0)) == pytest.approx(3 / 4), "a pair says nothing of its halves"
    record.add((4, 1, 0), 0.25)
    assert record.promise((4, 1, 0)) == pytest.approx(1.25 / 4)


def test_value_of_a_move_by_hand():
    """λ|change of the length| / L is a bonus for what is skipped, and a malus for a repeat."""
    record = record_of(((3, 1, 0), 1.0), ((3, 1, 0), 1.0), ((4, 1, 0), 0.0))
    assert record.value((3, 1, 0), 10, 3.0) == pytest.approx(0.75 + 0.3)
    assert record.value((3, 2, 0), 10, 3.0) == pytest.approx(1 / 3 + 0.6)
    assert record.value((3, 1, 2), 10, 3.0) == pytest.approx(0.5 - 0.3)
    assert record.value((3, 2, 0), 10, 0.0) == record.promise((3, 2, 0))


def order_of_moves(settings: SearchSettings, record: MoveRecord, prior=None, rng: Random | None = None) -> list[str]:
    """Those of three layers, by numbers of runs."""
    node = Node(full_route(3))
    node.untried = _untried(node, 6, rng or NoChance(), prior, settings.move_order == "late")
    taken = [_next_move(node, settings.focus, record, settings.length_penalty) for _ in range(8)]
    assert node.untried == []
    for (first, width, count), route in taken:
        assert route == (*(1,) * first, *(count,) * width, *(1,) * (3 - first - width))
    return ["".join(map(str, route)) for _, route in taken]


@pytest.mark.parametrize("seed", range(3))
def test_of_equal_moves_the_last_layers_come_first(seed):
    """A skipped layer is worth λ / L = 0.1."""
    settings = SearchSettings(length_penalty=0.3, move_order="late")
    late = ["100", "001", "110", "101", "011", "112", "121", "211"]
    assert order_of_moves(settings, MoveRecord(), rng=Random(seed)) == late
    by_default = order_of_moves(SearchSettings(length_penalty=0.3), MoveRecord(), rng=Random(seed))
    assert set(by_default[:2]) == set(late[:2]), "what promises more comes first, whatever the order of equals"
    orders = {tuple(order_of_moves(SearchSettings(), MoveRecord(), rng=Random(other))) for other in range(20)}
    assert len(orders) > 10


def test_order_of_moves_by_hand():
    """A skipped layer is worth λ / L = 0.1."""
    settings = SearchSettings(length_penalty=0.3, move_order="late")
    # 011: 2/3 + 0.1; 001: 1/2 + 0.2; 101: 1/2 + 0.1; 100: 1/3 + 0.2; 110: 1/3 + 0.1; repeats: 1/2 - 0.1.
    record = record_of(((0, 1, 0), 1.0), ((2, 1, 0), 0.0))
    assert order_of_moves(settings, record) == ["011", "001", "101", "100", "110", "112", "121", "211"]
    assert order_of_moves(replace(settings, focus=False, move_order="random"), record) == [
        "112",
        "110",
        "121",
        "100",
        "101",
        "211",
        "001",
        "011",
    ]


def test_a_prior_decides_between_equals_of_the_record():
    settings = SearchSettings(length_penalty=0.3)
    prior = [0.3, 0.1, 0.2]
    assert order_of_moves(settings, MoveRecord(), prior) == ["100", "001", "101", "110", "011", "121", "112", "211"]
    assert order_of_moves(replace(settings, focus=False), MoveRecord(), prior)[:3] == ["101", "121", "110"]


def test_a_prior_is_an_expectation():
    """Ranks of influence 0.3, 0.1, 0.2 are 2, 0, 1: 0.1, 0.9 and 0.5; a pair has that of its worse half."""
    record = MoveRecord([0.3, 0.1, 0.2])
    expected = {(0, 1, 0): 0.1, (1, 1, 0): 0.9, (2, 1, 2): 0.5, (0, 2, 0): 0.1, (1, 2, 0): 0.5}
    assert {edit: pytest.approx(record.promise(edit)) for edit in expected} == expected
    record.add((1, 1, 0), 0.0)  # (0 + 2 * 0.9) / 3
    assert record.promise((1, 1, 0)) == pytest.approx(0.6)


def test_repeats_are_tried_where_the_full_path_is_wrong():
    settings = SearchSettings(num_simulations=20)
    for seed in range(3):
        routes = searched(lambda route: False, 16, settings, Random(seed)).verdicts
        assert any(2 in route for route in routes) and any(0 in route for route in routes)


def test_a_focused_search_by_hand():
    """Right while layer 2 is run; λ / L = 0.1, no exploration.

    100 is wrong and closed, so 001 follows, the other pair. It is right, so the search goes on from there to 002, below
    which nothing is: both are closed. The root's next move, 110, is wrong. 101 is right, and of its moves 001 comes
    first, but is closed, so 102 follows: repeating layer 2 was right before.
    """
    settings = SearchSettings(
        evaluations=6, stop_saving=None, length_penalty=0.3, exploration_constant=0.0, random_prob=0.0,
        move_order="late",
    )  # fmt: skip
    result = searched(lambda route: route[2] > 0, 3, settings, NoChance())
    assert ["".join(map(str, route)) for route in result.verdicts] == ["111", "100", "001", "002", "110", "101", "102"]
    assert {node.route for node in tree(result)[0] if node.closed} == {(1, 0, 0), (1, 1, 0), (0, 0, 1), (0, 0, 2)}


def harmless_up_to(costs, most):
    """Right while what the skipped layers cost adds up to no more than `most`."""
    return lambda route: sum(cost for cost, count in zip(costs, route) if not count) <= most


GOLDEN = {
    "random": (
        "11111111 11110011 00110011 11111001 10011001 11000011 11100001 "
        "11110000 00111001 10010011 11001001 11100011 11111000 00111000 "
        "01111001 11110010 11011001 11111100 11100100 11001100 10011100"
    ),
    "late": (
        "11111111 11111100 11110000 11111001 11100001 11001100 10011001 "
        "00111100 11001001 11100100 00111001 10011100 11111000 11100000 "
        "11110001 11001000 11101001 11101000 11101111 11101100 10001001"
    ),
}


@pytest.mark.parametrize("order", GOLDEN)
def test_golden_trace_of_a_focused_search(order):
    settings = SearchSettings(num_simulations=20, stop_saving=None, move_order=order)
    asked = evaluated(settings, 0, 8, harmless_up_to([5, 1, 3, 2, 6, 1, 4, 2], 7))
    assert ["".join(map(str, route)) for route in asked] == GOLDEN[order].split()


@pytest.mark.parametrize("reward", ["binary", "margin"])
@pytest.mark.parametrize("evaluations", [None, 60])
def test_nothing_is_searched_below_a_wrong_path_while_the_full_one_is_right(reward, evaluations):
    settings = SearchSettings(num_simulations=60, stop_saving=None, reward=reward, evaluations=evaluations)
    right = harmless_up_to([5, 1, 3, 2, 6, 1, 4, 2, 3, 1], 9)

    def run(score) -> list[Node]:
        result = run_search(search(10, settings, Random(0)), lambda r: Verdict(score(r), 1.0 if score(r) else -1.0))
        return tree(result)[0]

    wrong = [node for node in run(right) if not right(node.route)]
    assert len(wrong) > 5 and all(node.closed and not node.children and node.visits == 1 for node in wrong)
    below = [node for node in run(never) if node.children]
    assert len(below) > 5, "where the full path is wrong, so may be what leads to a right one"


def test_a_wrong_full_path_is_fixed_through_wrong_paths():
    """Two layers do harm that are no neighbours."""
    settings = SearchSettings(evaluations=150)
    result = searched(lambda r: r[1] == r[4] == 0 and r[0] > 0, 6, settings, Random(0))
    assert not result.base_correct and result.best is not None


def reachable(depth: int, budget: float, right) -> set[tuple[int, ...]]:
    """What a focused search may ask for: moves from the full path and, if it is right, from right paths only."""
    found, waiting = set(), [full_route(depth)]
    while waiting:
        route = waiting.pop()
        if route not in found:
            found.add(route)
            if right(route) or not right(full_route(depth)):
                waiting += moves(route, longest_path(depth, budget))
    return found


@settings(max_examples=60, deadline=None)
@given(
    depth=st.integers(1, 5),
    budget=st.sampled_from([1.0, 1.2, 1.5, 2.0]),
    seed=st.integers(0, 1000),
    share=st.sampled_from([0.0, 0.1, 0.5, 0.8, 1.0]),
    base=st.booleans(),
    widening=st.sampled_from([0.05, 0.25, 1.0]),
    reward=st.sampled_from(["binary", "margin"]),
    limit=st.sampled_from([0, 1, 5, 30, None]),
)
def test_every_focused_search_ends(depth, budget, seed, share, base, widening, reward, limit):
    """Within its limits, and where none holds with all that is open to it, nothing twice."""

    def right(route) -> bool:
        return base if route == full_route(depth) else Random(str((seed, route))).random() < share

    def run(settings: SearchSettings) -> list[tuple[int, ...]]:
        asked = []

        def score(route) -> Verdict:
            asked.append(route)
            return Verdict(right(route), Random(str((route, seed))).random() - 0.5)

        run_search(search(depth, settings, Random(seed)), score)
        assert asked[0] == full_route(depth) and len(asked) == len(set(asked))
        return asked

    settings = SearchSettings(budget=budget, stop_saving=None, widening=widening, reward=reward)
    space = reachable(depth, budget, right)
    by_evaluations = run(replace(settings, evaluations=10**6 if limit is None else limit))
    assert set(by_evaluations) <= space
    assert len(by_evaluations) == (len(space) if limit is None else min(len(space), 1 + limit))
    by_simulations = run(replace(settings, num_simulations=50 if limit is None else limit))
    assert set(by_simulations) <= space and len(by_simulations) <= 1 + (50 if limit is None else limit)
    assert by_simulations == run(replace(settings, num_simulations=50 if limit is None else limit))


@pytest.mark.parametrize("right", [True, False])
def test_simulations_are_not_spent_where_nothing_is_new(right):
    """Six layers have at most 728 other routes; a right path that has no more moves must not draw all visits."""
    settings = SearchSettings(num_simulations=2500, stop_saving=None)
    assert len(evaluated(settings, score=lambda route: right)) == 3**6 - 1


def test_focus_saves_more_layers():
    """Each skipped layer costs some of what the model can bear; no luck. Equal numbers of evaluations."""
    depth, problems = 24, 40
    focused = SearchSettings(evaluations=50, stop_saving=None)
    saved = {"focused": 0, "plain": 0, "chain": 0}
    for seed in range(problems):
        chance = Random(f"costs {seed}")
        right = harmless_up_to([chance.random() for _ in range(depth)], 1.0)
        searches = {
            "focused": search(depth, focused, Random(seed)),
            "plain": search(depth, plain(evaluations=50, stop_saving=None), Random(seed)),
            "chain": random_chain(depth, 50, 2.0, Random(seed)),
        }
        for name, searching in searches.items():
            result = run_search(searching, lambda route, right=right: Verdict(right(route)))
            assert len(result.verdicts) == 51
            saved[name] += depth - route_length(result.best)
    assert saved["focused"] > 2 * saved["chain"] > 0
    assert saved["focused"] > 1.5 * saved["plain"]


def test_the_seed_decides_a_focused_search():
    settings = SearchSettings(stop_saving=None)
    right = harmless_up_to([5, 1, 3, 2, 6, 1, 4, 2], 7)
    traces = [evaluated(settings, seed, 8, right) for seed in (3, 3, 4)]
    assert traces[0] == traces[1] != traces[2]


def test_a_search_is_a_conversation():
    """Many searches run side by side, so one only says what it needs and is told the verdict."""
    searching = search(4, plain(num_simulations=3), Random(0))
    assert next(searching) == (1, 1, 1, 1)
    asked = [searching.send(WRONG)]
    with pytest.raises(StopIteration) as stop:
        while True:
            asked.append(searching.send(WRONG))
    assert list(stop.value.value.verdicts) == [(1, 1, 1, 1), *asked]
    assert stop.value.value.best is None and not stop.value.value.base_correct


def test_search_imports_no_torch():
    code = "import routing.search.mcts, sys; assert 'torch' not in sys.modules and 'numpy' not in sys.modules"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
