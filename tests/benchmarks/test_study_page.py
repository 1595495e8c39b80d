"""benchmarks/study_page.py: tables of the study's page, made from its rows."""

from __future__ import annotations

import pytest
from study_page import with_tables

from routing.common.errors import UserError
from routing.report.study_overview import overview


def row(model: str, method: str, task: str = "all", seed="all", difference: float = -0.1) -> dict:
    ends = {"difference": difference, "difference_ci95": [difference - 0.1, difference + 0.1], "layers": 8.0}
    return {"model": model, "method": method, "title": method, "budget": 0.1, "task": task, "seed": seed} | ends


def test_each_table_is_made_anew_and_nothing_else():
    rows = [row("a", "x"), row("b", "x", difference=-0.3), row("a", "y", task="sums"), row("a", "z", seed=0)]
    page = "# A\n\n<!-- table of a -->\n\n| old |\n| --- |\n| 1 |\n\nText.\n\n<!-- table of b -->\n\n\nEnd.\n"
    made = with_tables(page, rows)
    of_a, of_b = overview(rows[:1]), overview(rows[1:2])
    assert made == f"# A\n\n<!-- table of a -->\n\n{of_a}\n\nText.\n\n<!-- table of b -->\n\n{of_b}\n\nEnd.\n"
    assert with_tables(made, rows) == made


def test_a_model_without_rows_is_refused():
    with pytest.raises(UserError, match="has a table of c, of which study.json has no rows"):
        with_tables("<!-- table of c -->\n\n\n", [row("a", "x")])
