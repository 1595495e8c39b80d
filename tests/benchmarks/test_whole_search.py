"""Whole searches on two sides: the same labels where verdicts agree, and told where they do not."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import whole_search
from fake_search import DEPTH, REQUESTS, SETTINGS, Score

MODEL = SimpleNamespace(config=SimpleNamespace(num_hidden_layers=DEPTH))


class Evaluator(Score):
    ties, runner = 0, SimpleNamespace(layer_tokens=70)


def compared(verdict, count: int = 3) -> tuple[dict, Evaluator]:
    evaluator = Evaluator()
    naive = whole_search.NaiveSearches(DEPTH, SETTINGS, REQUESTS[:count], verdict)
    return whole_search.compare(MODEL, evaluator, REQUESTS, SETTINGS, naive, "test"), evaluator


def test_equal_verdicts_give_equal_labels():
    score, asked = Score(), []

    def verdict(request, route) -> bool:
        asked.append((request.example.id, route))
        return score.verdict(request.example.id, route).correct

    row, evaluator = compared(verdict)
    assert row["agreement"] == 1 and (row["questions"], row["naive_questions"]) == (len(REQUESTS), 3)
    ids = {request.example.id for request in REQUESTS[:3]}
    assert sorted(asked) == sorted(pair for pair in evaluator.asked if pair[0] in ids)
    assert (row["pairs"], row["naive_pairs"]) == (len(evaluator.asked), len(asked))
    assert row["ratio"] == pytest.approx(row["ours_per_second"] / row["naive_per_second"])


def test_another_verdict_is_a_disagreement():
    """One question is answered rightly by the naive side at once; searches of both sides go on to their ends."""
    score, changed = Score(share=0.0), REQUESTS[1]
    row, _ = compared(lambda request, route: request is changed or score.verdict("", route).correct)
    assert row["agreement"] < 1 and row["naive_questions"] == 3
