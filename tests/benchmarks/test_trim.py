"""benchmarks/trim.py: what a model makes of the test questions, beside the dense one."""

from __future__ import annotations

import numpy as np
import pytest
from trim import row

from routing.labels.table import Table


def test_a_row_counts_questions_of_its_own_path_and_pairs_them_by_id():
    rewards = np.array([[1.0, 0.0], [1.0, 1.0], [0.0, 1.0], [1.0, 0.0]])
    table = Table([(1, 1, 1), (1, 0, 1)], rewards, ["d"] * 4, ["a", "b", "c", "e"], [{}] * 4, [0] * 4, [{}])
    dense = {"e": True, "c": False, "b": True, "a": True}  # in another order
    found = row("cut", [0, 2], table, 1, dense)
    assert (found["path"], found["layers"], found["accuracy"], found["minus_dense"]) == ("0,2", 2, 0.5, -0.25)
    assert found["lower_bound"] < -0.25 and found["ci95"][0] < 0.5 < found["ci95"][1]
    assert found["paired_with_dense"]["p"] == pytest.approx(1.0)
    assert row("dense", [0, 1, 2], table, 0, dense)["minus_dense"] == 0
