"""The methods that the tree search is compared with: by hand, by their rules, and where the best answer is known."""

from __future__ import annotations

import os
import subprocess
import sys
from itertools import product
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from routing.search.baselines import (
    METHODS,
    StaticPath,
    beam_deletion,
    greedy_deletion,
    random_chain,
    random_paths,
    static_path,
    tree_search,
)
from routing.search.results import Verdict, run_search
from routing.search.routes import full_route, moves, route_length

ROOT = Path(__file__).resolve().parents[2]
DELETIONS = ["greedy_deletion", "greedy_deletion_prior", "beam_deletion", "beam_deletion_prior"]
TREES = ["tree", "tree_prior"]
RANDOM = ["random_paths", "random_chain"]


def asked_by(searching, score) -> list[tuple[int, ...]]:
    """The routes that a search asks for, in order, with a score that gives verdicts or says right or wrong."""
    asked = []

    def ask(route) -> Verdict:
        asked.append(route)
        verdict = score(route)
        return verdict if isinstance(verdict, Verdict) else Verdict(verdict, 1.0 if verdict else -1.0)

    result = run_search(searching, ask)
    assert list(result.verdicts) == asked, "the result has what was asked for, in order, and nothing twice"
    return asked


def in_layer_order(layers) -> list[float]:
    """A prior by which the layers are tried in this order."""
    return [list(layers).index(layer) for layer in range(len(layers))]


def text(routes) -> list[str]:
    return ["".join(map(str, route)) for route in routes]


class Scripted(Random):
    """Leaves lists as they are; draws of numbers and choices follow a script."""

    def __new__(cls, script=()):
        return super().__new__(cls)

    def __init__(self, script=()):
        super().__init__()
        self.script = list(script)

    def shuffle(self, x):
        pass

    def randint(self, a, b):
        value = self.script.pop(0)
        assert a <= value <= b
        return value

    def choice(self, seq):
        value = self.script.pop(0)
        assert value in seq
        return value


SPACES = st.fixed_dictionaries(
    {
        "depth": st.integers(1, 6),
        "budget": st.sampled_from([1.0, 1.2, 1.5, 2.0]),
        "evaluations": st.sampled_from([0, 1, 2, 7, 40, 2000]),
        "seed": st.integers(0, 1000),
        "share": st.sampled_from([0.0, 0.1, 0.5, 1.0]),
    }
)


@pytest.mark.parametrize("reward", ["binary", "margin"])
@pytest.mark.parametrize("name", METHODS)
@settings(max_examples=20, deadline=None)
@given(space=SPACES)
def test_every_method_keeps_the_rules(name, reward, space):
    depth, budget, evaluations = space["depth"], space["budget"], space["evaluations"]
    prior = [Random(space["seed"]).random() for _ in range(depth)]

    def score(route) -> Verdict:
        chance = Random(str((space["seed"], route))).random()
        return Verdict(chance < space["share"], space["share"] - chance)

    def run() -> list[tuple[int, ...]]:
        return asked_by(METHODS[name](depth, evaluations, budget, Random(space["seed"]), prior, reward), score)

    asked = run()
    assert asked[0] == full_route(depth)
    assert len(asked) == len(set(asked)) <= 1 + evaluations
    for route in asked:
        assert len(route) == depth and set(route) <= {0, 1, 2}
        assert 1 <= route_length(route) <= budget * depth
    if name in DELETIONS:
        assert all(set(route) <= {0, 1} for route in asked)
    assert asked == run(), "the seed decides everything"


@pytest.mark.parametrize("name", METHODS)
def test_all_evaluations_are_used_while_there_are_new_routes(name):
    prior = [Random(0).random() for _ in range(12)]
    for evaluations in (0, 1, 50, 70):
        assert len(asked_by(METHODS[name](12, evaluations, 2.0, Random(0), prior), lambda r: False)) == 1 + evaluations


@pytest.mark.parametrize("name", METHODS)
def test_fewer_evaluations_are_a_prefix(name):
    """So one run tells what a method would have found at any smaller number."""
    prior = [Random(0).random() for _ in range(10)]
    long, short = (
        asked_by(METHODS[name](10, evaluations, 1.5, Random(3), prior), lambda r: sum(r) % 3 == 0)
        for evaluations in (60, 25)
    )
    assert long[:26] == short


@pytest.mark.parametrize("name", METHODS)
def test_other_seeds_search_otherwise(name):
    """With a prior without ties only the tree's random descents are left to chance, or a beam's later descents."""
    prior = [Random(0).random() for _ in range(10)]
    traces = {tuple(asked_by(METHODS[name](10, 90, 2.0, Random(s), prior), lambda r: sum(r) > 7)) for s in range(4)}
    assert len(traces) == 4


@pytest.mark.parametrize("name", RANDOM + TREES)
@pytest.mark.parametrize(("depth", "budget"), [(1, 1.0), (1, 2.0), (2, 1.0), (2, 1.5), (2, 2.0), (3, 2.0)])
def test_a_small_space_is_searched_whole(name, depth, budget):
    """Edits of at most two steps reach all routes of two layers; three layers need three."""
    space = {r for r in product((0, 1, 2), repeat=depth) if 1 <= sum(r) <= budget * depth}
    method = METHODS[name]
    if name == "random_paths":
        searching = random_paths(depth, 500, budget, Random(0), max_edits=depth)
    else:
        searching = method(depth, 500, budget, Random(0), [0.5] * depth)
    assert set(asked_by(searching, lambda r: False)) == space


@pytest.mark.parametrize("name", DELETIONS)
def test_deletions_in_the_smallest_models(name):
    assert asked_by(METHODS[name](1, 9, 2.0, Random(0), [1.0]), lambda r: False) == [(1,)]
    assert set(asked_by(METHODS[name](2, 9, 2.0, Random(0), [1.0, 2.0]), lambda r: False)) == {(1, 1), (0, 1), (1, 0)}


def test_random_paths_by_hand():
    """Two draws of one and two edits; a draw of a known route costs nothing."""
    script = [1, (1, 0, 1), 2, (0, 1, 1), (0, 1, 2), 1, (1, 0, 1), 2, (1, 0, 0), (2, 0, 0)]
    asked = asked_by(random_paths(3, 3, 2.0, Scripted(script)), lambda r: False)
    assert text(asked) == ["111", "101", "012", "200"]


def test_a_random_path_ends_where_there_is_no_move():
    script = [2, (2,), 1, (2,)]
    assert asked_by(random_paths(1, 1, 2.0, Scripted(script)), lambda r: False) == [(1,), (2,)]


@pytest.mark.parametrize(("depth", "most"), [(4, 2), (8, 2), (12, 3), (32, 8)])
def test_number_of_edits(depth, most):
    """Uniform up to a quarter of the layers: an edit leaves one or two layers with another count than 1."""
    asked = asked_by(random_paths(depth, 300, 2.0, Random(0)), lambda r: False)[1:]
    changed = [sum(count != 1 for count in route) for route in asked]
    assert max(changed) <= 2 * most and max(changed) >= most
    assert sum(changed) / len(changed) <= 4 / 3 * most


def test_random_paths_do_not_depend_on_verdicts():
    traces = [asked_by(random_paths(8, 40, 2.0, Random(0)), lambda r, right=right: right) for right in (True, False)]
    assert traces[0] == traces[1]


def test_max_edits():
    asked = asked_by(random_paths(8, 100, 2.0, Random(0), max_edits=1), lambda r: False)
    assert set(asked[1:]) == set(moves(full_route(8), 16)), "23 routes, then nothing new"


def test_random_chain_by_hand():
    """On from the last route as deep as moves go, then again from the full path; known routes are free of charge."""
    script = [(1, 0), (2, 0), (1, 0), (2, 0), (0, 1), (0, 2)]
    asked = asked_by(random_chain(2, 4, 2.0, Scripted(script)), lambda r: True)
    assert text(asked) == ["11", "10", "20", "01", "02"]


def test_each_route_of_a_chain_is_a_move_from_the_last():
    asked = asked_by(random_chain(20, 10, 2.0, Random(1)), lambda r: sum(r) % 2 == 0)
    assert all(later in moves(earlier, 40) for earlier, later in zip(asked, asked[1:]))
    # Ever deeper: by the tenth move at least ten of twenty layers are edited.
    assert sum(count != 1 for count in asked[-1]) >= 10


def test_greedy_deletion_by_hand_with_binary_rewards():
    """Layers 1 and 3 are needed. Layers are tried in order; after a deletion the layers not yet tried come first.

    0 goes; 1 must stay; 2 goes; 3 must stay; then 1 again without 2: must stay. Nothing is right any more, so the
    first wrong one, without 3, is followed: 1 alone cannot be deleted.
    """
    asked = asked_by(greedy_deletion(4, 8, 2.0, Scripted()), lambda r: r[1] == r[3] == 1)
    assert text(asked) == ["1111", "0111", "0011", "0101", "0100", "0001"]


def test_greedy_deletion_by_hand_with_margins():
    """Every deletion of a level is compared: layer 2 costs least, then layer 0; then no other may go.

    After 2 of 0 1 2 3 the order is 3 0 1, and after 0 of these it is 1 3.
    """
    cost = [0.3, 0.9, 0.1, 0.4]

    def score(route) -> Verdict:
        margin = 0.5 - sum(c for c, count in zip(cost, route) if not count)
        return Verdict(margin > 0, margin)

    asked = asked_by(greedy_deletion(4, 99, 2.0, Scripted(), reward="margin"), score)
    assert text(asked) == ["1111", "0111", "1011", "1101", "1110", "1100", "0101", "1001", "0001", "0100"]
    result = run_search(greedy_deletion(4, 99, 2.0, Random(0), reward="margin"), score)
    assert result.best == (0, 1, 0, 1)


def test_a_right_deletion_comes_before_a_greater_margin():
    """A lucky answer has a margin like a right one, but is not right."""
    verdicts = {
        (1, 1, 1): Verdict(True, 1.0),
        (0, 1, 1): Verdict(False, 2.0, lucky=True),
        (1, 0, 1): Verdict(True, 0.1),
        (1, 1, 0): Verdict(True, 0.2),
    }
    searching = greedy_deletion(3, 4, 2.0, Scripted(), reward="margin")
    asked = asked_by(searching, lambda r: verdicts.get(r, Verdict(False, -1.0)))
    assert text(asked) == ["111", "011", "101", "110", "010"], "on from 110"


def test_margins_are_needed_for_margin_rewards():
    for method in (greedy_deletion, beam_deletion, tree_search):
        with pytest.raises(ValueError, match="loglikelihood"):
            run_search(method(4, 9, 2.0, Random(0), reward="margin"), lambda r: Verdict(False))


def test_deletions_follow_the_prior():
    asked = asked_by(greedy_deletion(4, 4, 2.0, Random(0), in_layer_order([2, 0, 3, 1])), lambda r: r == (1, 1, 1, 1))
    assert text(asked) == ["1111", "1101", "0111", "1110", "1011"]


def test_equal_influence_is_left_to_chance():
    firsts = {asked_by(greedy_deletion(6, 1, 2.0, Random(s), [1.0] * 6), lambda r: True)[1] for s in range(30)}
    assert len(firsts) == 6


def test_a_wrong_full_path_is_fixed_by_deletions():
    """Two layers do harm, and with either the answer is wrong: found on the second level, within 6 + 5 + 4 + 3 + 2."""
    for seed in range(6):
        result = run_search(
            beam_deletion(6, 100, 2.0, Random(seed), width=6), lambda r: Verdict(r[1] == r[4] == 0 and r[0] == 1)
        )
        assert not result.base_correct and result.best == (1, 0, 0, 0, 0, 0)


def test_beam_deletion_by_hand():
    """Width 2: a level ends with its second right route; both are followed, and a route reached twice is one."""
    asked = asked_by(beam_deletion(3, 99, 2.0, Scripted(), width=2), lambda r: sum(r) > 1)
    # 011 and 101 are right, so 110 waits. Level 2: 001 and 010 from 011; 100 and 001 again from 101. One layer is
    # left, and the second descent finds nothing new.
    assert text(asked) == ["111", "011", "101", "001", "010", "100"]


def test_a_beam_finds_what_greedy_deletion_misses():
    """The best single deletion leads nowhere: layer 0 costs least, but without it the rest are needed."""

    def score(route) -> Verdict:
        gone = [layer for layer, count in enumerate(route) if not count]
        if gone == [0]:
            return Verdict(True, 0.9)
        margin = -1.0 if 0 in gone else 0.8 - 0.1 * len(gone)
        return Verdict(margin > 0, margin)

    best = {
        width: run_search(beam_deletion(5, 999, 2.0, Random(0), reward="margin", width=width), score).best
        for width in (1, 2)
    }
    assert route_length(best[1]) == 4 and best[2] == (1, 0, 0, 0, 0)


@pytest.mark.parametrize("reward", ["binary", "margin"])
def test_greedy_deletion_is_a_beam_of_one(reward):
    def score(route) -> Verdict:
        return Verdict(sum(route) % 3 > 0, (sum(route) % 3) - 0.5)

    assert asked_by(greedy_deletion(9, 60, 2.0, Random(4), None, reward), score) == asked_by(
        beam_deletion(9, 60, 2.0, Random(4), None, reward, width=1), score
    )


def test_a_beam_of_none():
    with pytest.raises(ValueError, match="width"):
        next(beam_deletion(4, 9, 2.0, Random(0), width=0))


def test_evaluations_that_remain_go_to_further_descents():
    """All is right, so a descent of seven deletions asks seven times; other orders then ask for other routes."""
    asked = asked_by(greedy_deletion(8, 50, 2.0, Random(0)), lambda r: True)
    assert [route_length(r) for r in asked[:8]] == [8, 7, 6, 5, 4, 3, 2, 1]
    assert len(asked) == 51 and route_length(asked[8]) >= 6


@pytest.mark.parametrize("name", DELETIONS)
@pytest.mark.parametrize("reward", ["binary", "margin"])
def test_deletions_keep_the_layers_that_are_needed(name, reward):
    """Layers 1, 4 and 6 of ten are needed and no other: the shortest right path is known."""
    needed = (1, 4, 6)

    def score(route) -> Verdict:
        missing = sum(route[layer] == 0 for layer in needed)
        return Verdict(not missing, 0.3 - missing + 0.01 * (10 - sum(route)))

    prior = [float(layer in needed) for layer in range(10)]
    result = run_search(METHODS[name](10, 200, 2.0, Random(0), prior, reward), score)
    assert result.best == (0, 1, 0, 0, 1, 0, 1, 0, 0, 0)


def test_a_good_prior_saves_evaluations():
    """With the needed layers last in order, the seven others go in seven evaluations."""
    needed = (1, 4, 6)
    prior = [float(layer in needed) for layer in range(10)]
    searching = METHODS["greedy_deletion_prior"](10, 7, 2.0, Random(0), prior)
    result = run_search(searching, lambda r: Verdict(all(r[layer] for layer in needed)))
    assert result.best == (0, 1, 0, 0, 1, 0, 1, 0, 0, 0)


@pytest.mark.parametrize("name", RANDOM + TREES)
def test_one_repeat_that_fixes_a_wrong_answer(name):
    target = (1, 1, 2, 1, 1)
    result = run_search(METHODS[name](5, 242, 2.0, Random(0), [1.0] * 5), lambda r: Verdict(r == target))
    assert result.best == target and not result.base_correct


def test_a_tree_finds_more_than_its_controls():
    """Shortening a path of which most deletions are harmless: a tree goes on from what was right."""
    needed = (0, 3, 9, 14)

    def found(name) -> float:
        lengths = []
        for seed in range(6):
            searching = METHODS[name](16, 150, 2.0, Random(seed))
            lengths.append(route_length(run_search(searching, lambda r: Verdict(all(r[i] for i in needed))).best))
        return sum(lengths) / len(lengths)

    lengths = {name: found(name) for name in ("tree", "random_paths", "greedy_deletion")}
    assert lengths["greedy_deletion"] == 4 <= lengths["tree"] < lengths["random_paths"] - 2


def test_no_method_stops_at_a_right_route():
    for name, method in METHODS.items():
        asked = asked_by(method(12, 40, 2.0, Random(0), [1.0] * 12), lambda r: r != full_route(12))
        assert len(asked) == 41, name


@pytest.mark.parametrize("name", [name for name in METHODS if name.endswith("_prior")])
def test_a_method_with_prior_wants_one(name):
    with pytest.raises(ValueError, match="needs a prior of 4 numbers.*none"):
        METHODS[name](4, 9, 2.0, Random(0))
    with pytest.raises(ValueError, match="given: 3 numbers"):
        METHODS[name](4, 9, 2.0, Random(0), [1.0, 2.0, 3.0])


@pytest.mark.parametrize("name", [name for name in METHODS if not name.endswith("_prior")])
def test_a_method_without_prior_ignores_one(name):
    traces = [
        asked_by(METHODS[name](8, 30, 2.0, Random(0), prior), lambda r: sum(r) % 2 == 0)
        for prior in (None, [8.0, 7.0, 6.0, 5.0, 4.0, 3.0, 2.0, 1.0])
    ]
    assert traces[0] == traces[1]


def number_right(routes) -> list[int]:
    """Of 100 examples: each skipped layer costs some, and layers 1 and 2 together cost more than alone."""
    cost = [30, 1, 2, 5]
    return [100 - sum(c for c, n in zip(cost, r) if not n) - 40 * (r[1] == r[2] == 0) for r in routes]


def test_static_path_by_hand():
    """Layer 1 goes first (99); then 3 (94) rather than 2 (57) or 0 (69); then 0 (64) rather than 2 (52)."""
    assert static_path(4, number_right) == [
        StaticPath((1, 0, 1, 1), 99),
        StaticPath((1, 0, 1, 0), 94),
        StaticPath((0, 0, 1, 0), 64),
    ]


def test_static_path_asks_for_each_round_at_once():
    rounds = []

    def score_many(routes):
        rounds.append(text(routes))
        return number_right(routes)

    assert static_path(4, score_many, max_skips=2)[-1] == ((1, 0, 1, 0), 94)
    assert rounds == [["0111", "1011", "1101", "1110"], ["0011", "1001", "1010"]]


def test_static_path_of_some_layers():
    assert static_path(4, number_right, layers=[3, 2]) == [((1, 1, 0, 1), 98), ((1, 1, 0, 0), 93)]
    assert static_path(4, lambda routes: [0.5] * len(routes), 2, layers=[2, 0, 2]) == [
        ((1, 1, 0, 1), 0.5),
        ((0, 1, 0, 1), 0.5),
    ]
    assert static_path(4, number_right, max_skips=0) == static_path(1, number_right) == []
    assert static_path(2, lambda routes: [0.1, 0.2]) == [((1, 0), 0.2)]


@pytest.mark.parametrize(("skips", "layers"), [(4, None), (3, [0, 1]), (-1, None)])
def test_static_path_that_is_none(skips, layers):
    with pytest.raises(ValueError, match="cannot be skipped"):
        static_path(4, number_right, skips, layers)


def test_static_path_wants_a_score_of_each_route():
    with pytest.raises(ValueError):
        static_path(4, lambda routes: [1.0])


@settings(max_examples=50)
@given(st.lists(st.integers(0, 50), min_size=2, max_size=7))
def test_greedy_static_path_is_best_where_costs_add_up(costs):
    """Against all subsets."""
    found = static_path(len(costs), lambda routes: [-sum(c for c, n in zip(costs, r) if not n) for r in routes])
    for skips, (route, score) in enumerate(found, start=1):
        assert route.count(0) == skips and set(route) <= {0, 1}
        assert score == -sum(sorted(costs)[:skips])


def test_baselines_import_no_torch():
    code = "import routing.search.baselines, sys; assert 'torch' not in sys.modules and 'numpy' not in sys.modules"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
