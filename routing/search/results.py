"""What a search is told, and what it finds."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import NamedTuple

from routing.search.routes import Route, route_length

REWARDS = ("binary", "margin")
# Nats per byte: a margin of this size is worth 0.73 of a right answer, minus this size 0.27.
MARGIN_SCALE = 0.1


class Verdict(NamedTuple):
    """Is the answer right along a route?

    Attributes:
        correct: the binary verdict.
        margin: loglikelihood of the right choice minus that of the best wrong one, each per byte of its choice;
            None where there are no choices to compare.
        lucky: the answer was right, but wrong once the question was put in another form; then `correct` is False.
        score: how good the answer is, in the units of the score that was asked for (`tasks.answers.SCORES`); None where
            the verdict alone was asked for.
        output: the answer itself, whole; None likewise.
    """

    correct: bool
    margin: float | None = None
    lucky: bool = False
    score: float | None = None
    output: str | None = None


def reward_of(verdict: Verdict, kind: str) -> float:
    """Reward in [0, 1]: 1 for a right answer (binary), or the logistic function of the margin (margin).

    Raises:
        ValueError: for a margin reward of a verdict without margin.
    """
    if kind == "binary":
        return float(verdict.correct)
    if verdict.margin is None:
        raise ValueError("a margin reward needs verdicts with margins, which loglikelihood scoring gives")
    return 1 / (1 + math.exp(-max(-50.0, min(50.0, verdict.margin / MARGIN_SCALE))))


@dataclass
class SearchResult:
    """What a search found.

    Attributes:
        verdicts: every evaluated route, in order of evaluation, with its verdict; the full path comes first.
    """

    verdicts: dict[Route, Verdict]

    @property
    def full(self) -> Route:
        """The route of the full path."""
        return next(iter(self.verdicts))

    @property
    def base_correct(self) -> bool:
        """Verdict of the full path."""
        return self.verdicts[self.full].correct

    @property
    def best(self) -> Route | None:
        """See `best_route`."""
        return best_route(self.verdicts)


def best_route(verdicts: dict[Route, Verdict]) -> Route | None:
    """The right route with fewest executions, then fewest distinct layers, then found first; None without any."""
    right = [route for route, verdict in verdicts.items() if verdict.correct]
    return min(right, key=lambda route: (route_length(route), sum(map(bool, route))), default=None)


def run_search(searching: Generator[Route, Verdict, SearchResult], score: Callable[[Route], Verdict]) -> SearchResult:
    """Run one search to its end, with a function that gives the verdict of a route."""
    route = next(searching)
    while True:
        try:
            route = searching.send(score(route))
        except StopIteration as finished:
            return finished.value
