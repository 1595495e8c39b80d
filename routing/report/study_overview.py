"""A study in one small table: methods down, budgets across, what each loses against the full model."""

from __future__ import annotations

from collections.abc import Sequence

from routing.common.tables import markdown_table
from routing.report.words import NONE, budget_words, signed
from routing.study.plan import FREE


def overview(rows: Sequence[dict]) -> str:
    """Markdown: the paired difference to the full model, its 95 % interval, and the layers that ran.

    Args:
        rows: of one model and task, one seed or all together.
    """
    budgets = sorted({row["budget"] for row in rows}, key=lambda budget: (budget != FREE, budget))
    found: dict[str, dict] = {}
    for row in rows:
        if row["method"] != "full":
            found.setdefault(row["title"], {})[row["budget"]] = _cell(row)
    lines = [[title, *(own.get(budget, NONE) for budget in budgets)] for title, own in found.items()]
    return markdown_table(["method", *(budget_words(budget) for budget in budgets)], lines)


def _cell(row: dict) -> str:
    low, high = map(signed, row["difference_ci95"])
    return f"{signed(row['difference'])} ({low} to {high}), {row['layers']:.1f}"
