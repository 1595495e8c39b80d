"""Re-testing right answers: a path that is right by luck is seldom right on the same question in another form.

A path that answers one question right need not be right for a reason: a random answer to a question of four choices
is right one time in four. The re-test puts the question in another form; only a path that is right on both counts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from routing.scoring.plain import Evaluator
from routing.scoring.requests import Request
from routing.search.results import Verdict
from routing.search.routes import Route
from routing.tasks.examples import Example


class Scorer(Protocol):
    """What a search asks for verdicts; `PathEvaluator` is one."""

    def prepare(self, requests: Sequence[Request]) -> None:
        """A group of requests is next, the one before is over."""

    def verdicts(self, requests: Sequence[Request], routes: Sequence[Route]) -> list[Verdict]:
        """Verdict of each request along its route."""

    def finish(self, request: Request) -> None:
        """The search of a request is over."""


class VerifiedScorer:
    """A scorer that re-tests what is right.

    Args:
        scorer: gives the verdicts, of the questions and of their other forms.
        variant: the request of an example in another form.
    """

    def __init__(self, scorer: Scorer, variant: Callable[[Example], Request]):
        self.scorer, self.variant = scorer, variant
        self._variants: dict[Request, Request] = {}

    def prepare(self, requests: Sequence[Request]) -> None:
        self._variants = {request: self.variant(request.example) for request in requests}
        self.scorer.prepare([*self._variants, *self._variants.values()])

    def verdicts(self, requests: Sequence[Request], routes: Sequence[Route]) -> list[Verdict]:
        verdicts = self.scorer.verdicts(requests, routes)
        right = [index for index, verdict in enumerate(verdicts) if verdict.correct]
        again = self.scorer.verdicts([self._variants[requests[i]] for i in right], [routes[i] for i in right])
        for index, second in zip(right, again, strict=True):
            verdicts[index] = retested(verdicts[index], second)
        return verdicts

    def finish(self, request: Request) -> None:
        self.scorer.finish(request)
        self.scorer.finish(self._variants.pop(request))


class StableScorer:
    """A scorer that repeats what is right with nothing else in the batch, by the plain evaluator.

    In fp32 the second verdict is the first; in half precision it need not be.
    """

    def __init__(self, scorer: Scorer, alone: Evaluator):
        self.scorer, self.alone = scorer, alone
        self.prepare, self.finish = scorer.prepare, scorer.finish

    def verdicts(self, requests: Sequence[Request], routes: Sequence[Route]) -> list[Verdict]:
        verdicts = self.scorer.verdicts(requests, routes)
        return [
            retested(verdict, self.alone.verdicts([request], [route])[0]) if verdict.correct else verdict
            for verdict, request, route in zip(verdicts, requests, routes, strict=True)
        ]


def retested(first: Verdict, second: Verdict) -> Verdict:
    """The verdict of a right answer after its re-test: of margins and scores, the smaller one of both."""
    margin = None if first.margin is None else min(first.margin, second.margin)
    score = None if first.score is None else min(first.score, second.score)
    return Verdict(second.correct, margin, not second.correct, score, first.output)
