"""Pairs of explored layer sets: who wins, what is dropped, drawing, files."""

from __future__ import annotations

import subprocess
import sys
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from routing.training.preferences.pairs import best_of, pairs_of, read_pairs, write_pairs


def record_of(*tried: tuple[float, list[int]], name: str = "calls/1") -> dict:
    entries = [{"score": score, "pruned_layers": pruned, "output": "", "path": [], "correct": score > 0}
               for score, pruned in tried]  # fmt: skip
    return {"id": name, "tried": entries}


def test_pairs_by_hand():
    """The higher score wins whatever it prunes, then more pruned layers; equal in both is dropped."""
    record = record_of((1.0, []), (1.0, [4]), (0.5, [1, 2]), (0.5, [2, 3]))
    found = [tuple(pair.values()) for pair in pairs_of(record, "all", 0, 0)]
    assert found == [
        ("calls/1", [4], [], 1.0, 1.0),
        ("calls/1", [], [1, 2], 1.0, 0.5),
        ("calls/1", [], [2, 3], 1.0, 0.5),
        ("calls/1", [4], [1, 2], 1.0, 0.5),
        ("calls/1", [4], [2, 3], 1.0, 0.5),
    ]
    first = pairs_of(record, "all", 0, 0)[0]
    assert list(first) == ["id", "winner_pruned_layers", "loser_pruned_layers", "winner_score", "loser_score"]


TRIED = st.lists(
    st.tuples(st.sampled_from((-5.0, 0.0, 0.5, 1.0)), st.sets(st.integers(0, 5)).map(sorted)),
    min_size=1, max_size=8, unique_by=lambda tried: tuple(tried[1]),
)  # fmt: skip


@given(TRIED, st.integers(1, 40), st.integers(0, 3))
def test_all_pairs_are_those_of_the_rule_and_random_ones_are_some_of_them(tried, count, seed):
    record = record_of(*tried)
    every = pairs_of(record, "all", count, seed)
    for pair in every:
        winner, loser = ((pair[f"{who}_score"], len(pair[f"{who}_pruned_layers"])) for who in ("winner", "loser"))
        assert winner > loser
    ties = sum((a, len(x)) == (b, len(y)) for (a, x), (b, y) in combinations(tried, 2))
    assert len(every) == len(tried) * (len(tried) - 1) // 2 - ties
    some = pairs_of(record, "random", count, seed)
    assert len(some) == min(count, len(every)) and all(pair in every for pair in some)
    keys = {(tuple(pair["winner_pruned_layers"]), tuple(pair["loser_pruned_layers"])) for pair in some}
    assert len(keys) == len(some)
    assert some == pairs_of(record, "random", count, seed)


def test_drawing_depends_on_seed_and_query():
    tried = [(float(score), list(range(size))) for score in range(3) for size in range(8)]
    draws = [pairs_of(record_of(*tried, name=name), "random", 5, seed) for name in "ab" for seed in (0, 1)]
    for one, other in combinations(draws, 2):
        assert [pair | {"id": ""} for pair in one] != [pair | {"id": ""} for pair in other]


@pytest.mark.parametrize(
    "tried, expected",
    (
        ([(1.0, []), (1.0, [3]), (0.5, [1, 2])], [[3]]),
        ([(1.0, []), (0.5, [1]), (1.0, [2, 3]), (1.0, [4, 5])], [[2, 3], [4, 5]]),
        ([(0.5, []), (1.0, [1]), (0.9, [1, 2])], [[1]]),
        ([(0.0, []), (0.0, [1]), (-5.0, [2])], []),
    ),
)
def test_best_sets(tried, expected):
    assert best_of(record_of(*tried)) == expected


def test_pairs_are_read_as_they_were_written_and_appear_whole(tmp_path):
    pairs = pairs_of(record_of((1.0, []), (0.5, [2]), (0.25, [1, 3]), name="calls/é"), "all", 0, 0)
    path = tmp_path / "pairs.jsonl"
    assert write_pairs(path, iter(pairs)) == 3 and list(read_pairs(path)) == pairs

    def broken():
        yield pairs[0]
        raise RuntimeError

    with pytest.raises(RuntimeError):
        write_pairs(path, broken())
    assert list(read_pairs(path)) == pairs and [found.name for found in tmp_path.iterdir()] == ["pairs.jsonl"]


def test_pairs_need_no_torch():
    code = "import sys, routing.training.preferences.pairs; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
