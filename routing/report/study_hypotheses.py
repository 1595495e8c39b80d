"""What became of the hypotheses of a study: a row for each model, the models of a claim one below the other."""

from __future__ import annotations

from collections.abc import Sequence

from routing.report.words import signed

COLUMNS = ("what was claimed", "model", "outcome", "difference (95 %)", "p, Holm", "questions", "seeds")


def hypothesis_rows(tested: Sequence[dict]) -> list[list[str]]:
    """Cells under COLUMNS, of the `hypotheses` of `routing.study.results.collect`."""
    claims = list(dict.fromkeys(one["says"] for one in tested))
    return [
        [
            one["says"],
            one["model"],
            verdict(one),
            f"{signed(one['difference'])} ({' to '.join(map(signed, one['ci95']))})",
            probability(one["p_holm"]),
            str(one["n"]),
            str(one["seeds"]),
        ]
        for one in sorted(tested, key=lambda one: claims.index(one["says"]))
    ]


def verdict(one: dict) -> str:
    """What became of a hypothesis."""
    return "holds" if one["holds"] else "not shown" if one["settled"] else "open until all seeds are there"


def probability(p: float | None) -> str:
    return "–" if p is None else "< 0.001" if p < 0.001 else f"{p:.3f}"
