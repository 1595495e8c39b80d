"""Arithmetic of several kinds, easy and hard ones: enough distinct questions to show that two accuracies are equal.

Every question is there in one form only, of 35 + 13 and 13 + 35 the first, so that 2,500 test questions are 2,500
different ones. What comes to the same (the number after 34, and 34 + 1) shares a key, by which the splits go; sums,
differences and products share theirs with those of the data set `arithmetic`, so that they are in the same split; but
as more of this one is for calibration, some of its calibration questions are search questions of `arithmetic`: what was
trained on that data set must not be calibrated on this one.

The default model answers 0.47 of 640 validation questions rightly, at full depth: numerals 0.62, rising 0.57,
successors 0.56, decimals 0.45, sums 0.44, products 0.39, quotients 0.30, differences 0.24, falling 0.23 (17 to 183
questions each; `benchmarks/base_accuracy.py --datasets procedural --limit 1000` takes all). Kinds on which it guesses
(the larger of two numbers, remainders) or fails (the number before, halves, percentages, sums of three) are left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from typing import NamedTuple

from routing.tasks.examples import Example, split_of

CALIBRATION = 0.2  # twice the usual share, from the search part: a guarantee needs many questions


class Question(NamedTuple):
    """A question, its answer, and a key that all questions share that come to the same."""

    text: str
    answer: str
    key: str


class Kind(NamedTuple):
    """Questions of one form.

    Attributes:
        questions: all of them.
        shots: solved examples put before each.
        other_shots: those of a re-test.
        solved: keys of all solved examples, which are asked nowhere.
    """

    questions: Callable[[], Iterator[Question]]
    shots: str
    other_shots: str
    solved: tuple[str, ...]


ONES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
ONES += ["eleven", "twelve", *(f"{stem}teen" for stem in ("thir", "four", "fif", "six", "seven", "eigh", "nine"))]
TENS = ["zero", "ten", *(f"{stem}ty" for stem in ("twen", "thir", "for", "fif", "six", "seven", "eigh", "nine"))]


def in_words(number: int) -> str:
    """A number from 0 to 999, as it is read in British English."""
    hundreds, rest = divmod(number, 100)
    if hundreds:
        return f"{ONES[hundreds]} hundred" + (f" and {in_words(rest)}" if rest else "")
    if rest < len(ONES):
        return ONES[rest]
    return TENS[rest // 10] + (f"-{ONES[rest % 10]}" if rest % 10 else "")


def tenths(number: int) -> str:
    """A number of tenths as a decimal."""
    return f"{number // 10}.{number % 10}"


def sums() -> Iterator[Question]:
    for first in range(11, 70):
        for second in range(10, min(first, 39) + 1):
            yield Question(f"{first} + {second} =", str(first + second), f"{second} + {first} =")


def differences() -> Iterator[Question]:
    for second in range(1, 21):
        for result in range(1, 16):
            text = f"{second + result} - {second} ="
            yield Question(text, str(result), text)


def products() -> Iterator[Question]:
    for first in range(2, 46):
        for second in range(2, min(first, 12) + 1):
            yield Question(f"{first} * {second} =", str(first * second), f"{second} * {first} =")


def quotients() -> Iterator[Question]:
    for second in range(2, 11):
        for result in range(2, 41):
            text = f"{second * result} / {second} ="
            yield Question(text, str(result), text)


def decimals() -> Iterator[Question]:
    for large in range(11, 42):
        for small in range(10, large + 1):
            first, second = tenths(large), tenths(small)
            if large % 10 or small % 10:  # 3.0 + 2.0 is 3 + 2.
                yield Question(f"{first} + {second} =", tenths(large + small), f"{second} + {first} =")


def numerals() -> Iterator[Question]:
    for number in range(11, 1000):
        yield Question(f"{in_words(number)} =", str(number), f"{in_words(number)} =")


def successors() -> Iterator[Question]:
    for number in range(11, 999):
        yield Question(f"The number after {number} is", str(number + 1), f"1 + {number} =")


def progressions(steps: range, starts: range) -> Iterator[Question]:
    for step in steps:
        for start in starts:
            numbers = [start + step * place for place in range(6)]
            text = ", ".join(map(str, numbers[:5])) + ","
            yield Question(text, str(numbers[5]), text)


def rising() -> Iterator[Question]:
    yield from progressions(range(1, 13), range(200))


def falling() -> Iterator[Question]:
    yield from progressions(range(-8, 0), range(50, 200))


PRODUCT_SHOTS, OTHER_PRODUCT_SHOTS = "6 * 3 = 18\n", "5 * 4 = 20\n"
KINDS: dict[str, Kind] = {
    "sums": Kind(sums, "12 + 35 = 47\n", "21 + 34 = 55\n", ("12 + 35 =", "21 + 34 =")),
    "differences": Kind(
        differences, "12 + 35 = 47\n47 - 12 = 35\n", "21 + 34 = 55\n55 - 21 = 34\n", ("47 - 12 =", "55 - 21 =")
    ),
    "products": Kind(products, PRODUCT_SHOTS, OTHER_PRODUCT_SHOTS, ("3 * 6 =", "4 * 5 =")),
    "quotients": Kind(quotients, PRODUCT_SHOTS, OTHER_PRODUCT_SHOTS, ()),
    "decimals": Kind(decimals, "1.2 + 3.5 = 4.7\n", "2.1 + 3.4 = 5.5\n", ("1.2 + 3.5 =", "2.1 + 3.4 =")),
    "numerals": Kind(
        numerals,
        "forty-two = 42\nthree hundred and five = 305\ntwo hundred and eighty = 280\n",
        "sixty-three = 63\nfour hundred and seven = 407\none hundred and fifty = 150\n",
        tuple(f"{in_words(number)} =" for number in (42, 305, 280, 63, 407, 150)),
    ),
    "successors": Kind(
        successors,
        "The number after 34 is 35\nThe number after 119 is 120\n",
        "The number after 56 is 57\nThe number after 229 is 230\n",
        tuple(f"1 + {number} =" for number in (34, 119, 56, 229)),
    ),
    "rising": Kind(rising, "2, 4, 6, 8, 10, 12\n", "3, 6, 9, 12, 15, 18\n", ("2, 4, 6, 8, 10,", "3, 6, 9, 12, 15,")),
    "falling": Kind(falling, "12, 10, 8, 6, 4, 2\n", "18, 15, 12, 9, 6, 3\n", ()),
}
# Solved examples, and those of a re-test.
OTHER_SHOTS = {kind.shots: kind.other_shots for kind in KINDS.values()}


def procedural(split: str, loader: Callable) -> Iterator[Example]:
    """All kinds, one after the other; solved examples of its kind before each question."""
    for kind in KINDS.values():
        for text, answer, key in kind.questions():
            if key not in kind.solved and split_of(Example("procedural", key, answer), CALIBRATION) == split:
                yield Example("procedural", text, answer, checker="number", shots=kind.shots)


@cache
def _kinds() -> dict[str, str]:
    return {question.text: name for name, kind in KINDS.items() for question in kind.questions()}


def kind_of(question: str) -> str:
    """The kind of a question, a key of KINDS.

    Raises:
        KeyError: if it is none of this data set.
    """
    return _kinds()[question]
