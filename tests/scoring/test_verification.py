"""Re-tests of right answers: other forms of a question, and what becomes of a verdict."""

from __future__ import annotations

from dataclasses import replace

import pytest

from routing.scoring.requests import Request
from routing.scoring.verification import StableScorer, VerifiedScorer, retested
from routing.search.results import Verdict
from routing.tasks import iterate
from routing.tasks.examples import Example
from routing.tasks.offline import ARITHMETIC_SHOTS
from routing.tasks.prompts import prompt_text
from routing.tasks.variants import permuted, rephrased

CHOOSING = Example("quiz", "Which is cold?", "a tundra", ("a marsh", "a tundra", "plains"), 1, "letter")
OPEN = Example("open", "Capital of France?", "Paris")


def sum_of(question: str, answer: str) -> Example:
    return Example("arithmetic", question, answer, checker="number", shots=ARITHMETIC_SHOTS)


class Scripted:
    """Gives verdicts by (question form, route) and notes every call."""

    def __init__(self, verdicts: dict):
        self.by_key, self.calls, self.prepared, self.finished = verdicts, [], [], []

    def prepare(self, requests):
        self.prepared.append([request.prompt for request in requests])

    def verdicts(self, requests, routes):
        keys = [(request.prompt, route) for request, route in zip(requests, routes, strict=True)]
        self.calls.append(keys)
        return [self.by_key[key] for key in keys]

    def finish(self, request):
        self.finished.append(request.prompt)


def request_of(prompt: str) -> Request:
    return Request(replace(OPEN, question=prompt), "generate", prompt, (1,))


def other_form(example: Example) -> Request:
    return request_of(f"{example.question}'")


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        (Verdict(True), Verdict(True), Verdict(True)),
        (Verdict(True), Verdict(False), Verdict(False, None, lucky=True)),
        (Verdict(True, 0.3), Verdict(True, 0.1), Verdict(True, 0.1)),
        (Verdict(True, 0.1), Verdict(True, 0.3), Verdict(True, 0.1)),
        (Verdict(True, 0.3), Verdict(False, -0.2), Verdict(False, -0.2, lucky=True)),
    ],
)
def test_retested(first, second, expected):
    assert retested(first, second) == expected


def test_right_answers_are_asked_again_in_another_form():
    a, b, c = (request_of(name) for name in "abc")
    scorer = Scripted(
        {
            ("a", (1, 1)): Verdict(True),
            ("a'", (1, 1)): Verdict(False),
            ("b", (1, 0)): Verdict(False),
            ("c", (0, 1)): Verdict(True, 0.5),
            ("c'", (0, 1)): Verdict(True, 0.25),
        }
    )
    verified = VerifiedScorer(scorer, other_form)
    verified.prepare([a, b, c])
    assert scorer.prepared == [["a", "b", "c", "a'", "b'", "c'"]]
    found = verified.verdicts([a, b, c], [(1, 1), (1, 0), (0, 1)])
    assert found == [Verdict(False, lucky=True), Verdict(False), Verdict(True, 0.25)]
    # Wrong answers are not asked again, and the re-tests go in one batch.
    assert scorer.calls == [[("a", (1, 1)), ("b", (1, 0)), ("c", (0, 1))], [("a'", (1, 1)), ("c'", (0, 1))]]
    verified.finish(b)
    assert scorer.finished == ["b", "b'"]
    verified.prepare([b])
    assert scorer.prepared[1:] == [["b", "b'"]]


def test_the_other_form_is_made_once():
    made = []

    def variant(example):
        made.append(example.question)
        return other_form(example)

    request = request_of("a")
    routes = [(1, 1), (1, 0)]
    verified = VerifiedScorer(Scripted({(name, r): Verdict(True) for name in ("a", "a'") for r in routes}), variant)
    verified.prepare([request])
    assert [verified.verdicts([request], [route]) for route in routes] == [[Verdict(True)]] * 2
    assert made == ["a"]


def test_right_answers_are_repeated_alone():
    a, b, c = (request_of(name) for name in "abc")
    route = (1, 1)
    scorer = Scripted({("a", route): Verdict(True), ("b", route): Verdict(False), ("c", route): Verdict(True, 0.5)})
    alone = Scripted({("a", route): Verdict(False), ("c", route): Verdict(True, 0.5)})
    stable = StableScorer(scorer, alone)
    stable.prepare([a, b, c])
    assert stable.verdicts([a, b, c], [route] * 3) == [Verdict(False, lucky=True), Verdict(False), Verdict(True, 0.5)]
    assert alone.calls == [[("a", route)], [("c", route)]]
    stable.finish(c)
    assert (scorer.prepared, scorer.finished) == ([["a", "b", "c"]], ["c"])


def test_permuted():
    once = permuted(CHOOSING)
    assert once == replace(CHOOSING, choices=("plains", "a marsh", "a tundra"), gold=2)
    assert permuted(once) == replace(CHOOSING, choices=("a tundra", "plains", "a marsh"), gold=0)
    assert permuted(permuted(once)) == CHOOSING
    assert once.id == CHOOSING.id
    assert prompt_text(once, "generate").splitlines()[1:4] == ["A. plains", "B. a marsh", "C. a tundra"]
    # Loglikelihood prompts list no choices: there is nothing to permute.
    assert prompt_text(once, "loglikelihood") == prompt_text(CHOOSING, "loglikelihood")


def test_rephrased():
    for example in (CHOOSING, OPEN):
        assert rephrased(example) == replace(example, form=1)
        assert rephrased(example).id == example.id


@pytest.mark.parametrize(
    ("question", "expected"),
    [("3 + 5 =", "5 + 3 ="), ("12 * 7 =", "7 * 12 ="), ("9 - 4 =", "9 - 4 ="), ("4 + 4 =", "4 + 4 =")],
)
def test_rephrased_arithmetic(question, expected):
    other = rephrased(sum_of(question, "0"))
    assert (other.question, other.shots, other.answer) == (expected, "5 * 4 = 20\n", "0")


@pytest.mark.parametrize("question", ["5 * 4 =", "4 * 5 ="])
def test_the_solved_example_never_tells_the_answer(question):
    other = rephrased(Example("arithmetic", question, "20", checker="number", shots=ARITHMETIC_SHOTS))
    assert other.shots == ARITHMETIC_SHOTS and other.question != question


def test_no_re_test_shows_the_question_solved():
    for example in iterate("arithmetic", "search"):
        other = rephrased(example)
        assert not other.shots.startswith(other.question)
        assert prompt_text(other, "generate") != prompt_text(example, "generate")
        left, sign, right, _ = other.question.split()
        value = {"+": int(left) + int(right), "-": int(left) - int(right), "*": int(left) * int(right)}[sign]
        assert str(value) == other.answer
