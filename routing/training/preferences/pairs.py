"""Preferences between explored layer sets of one query, as pairs and as best sets. No torch here.

Winner: the higher score; of equal scores the one that prunes more layers; equal in both is no preference.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from itertools import combinations
from pathlib import Path
from random import Random

from routing.common.files import streamed

PAIRS = ("random", "all")


def worth(tried: dict) -> tuple[float, int]:
    """What decides between two tried paths, higher is better: score, then the number of pruned layers."""
    return tried["score"], len(tried["pruned_layers"])


def pairs_of(record: dict, kind: str, count: int, seed: int) -> list[dict]:
    """Pairs of one label record.

    Args:
        record: of data_generation.py --search dfs or random; `tried` has scores.
        kind: all, or random: some of all, drawn without repetition.
        count: random pairs, at most.
        seed: of the drawing, with the record's id.

    Returns:
        records {id, winner_pruned_layers, loser_pruned_layers, winner_score, loser_score}.
    """
    chosen = [(one, other) for one, other in combinations(record["tried"], 2) if worth(one) != worth(other)]
    if kind == "random":
        chosen = Random(f"{seed}/{record['id']}").sample(chosen, min(count, len(chosen)))
    return [_pair(record["id"], *sorted(both, key=worth, reverse=True)) for both in chosen]


def _pair(name: str, winner: dict, loser: dict) -> dict:
    return {
        "id": name,
        "winner_pruned_layers": winner["pruned_layers"],
        "loser_pruned_layers": loser["pruned_layers"],
        "winner_score": winner["score"],
        "loser_score": loser["score"],
    }


def best_of(record: dict) -> list[list[int]]:
    """The best pruned layer sets of a record, several where they are equal.

    None where no path scores above 0: failing with few layers is nothing to imitate.
    """
    best = max(map(worth, record["tried"]))
    return [tried["pruned_layers"] for tried in record["tried"] if worth(tried) == best] if best[0] > 0 else []


def write_pairs(path: Path, pairs: Iterable[dict]) -> int:
    """Write pairs as JSON lines, one by one; returns how many there are."""
    count = 0
    with streamed(path) as file:
        for pair in pairs:
            file.write(json.dumps(pair, ensure_ascii=False) + "\n")
            count += 1
    return count


def read_pairs(path: Path) -> Iterator[dict]:
    with path.open(encoding="utf-8") as file:
        for line in file:
            yield json.loads(line)
