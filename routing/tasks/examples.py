"""Questions with checkable answers, and their division into disjoint splits."""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from routing.common.seen import Seen

SPLITS = ("search", "validation", "calibration", "test")


@dataclass(frozen=True)
class Example:
    """One question.

    Attributes:
        dataset: name of the data set.
        question: the question with its passage, if any.
        answer: the right answer; for questions with choices, the text of the right choice.
        choices: texts of the choices, empty for open questions.
        gold: index of the right choice, None for open questions.
        checker: how a generated answer is checked, see routing/tasks/answers.py.
        shots: solved examples put before the question, for models that must be shown the format.
        accepted: further right answers of an open question.
        form: which wording of the prompt is used, see routing/tasks/prompts.py.
        tools: functions that may be called, as JSON (a list of {name, description, parameters}); "" for none.
    """

    dataset: str
    question: str
    answer: str
    choices: tuple[str, ...] = ()
    gold: int | None = None
    checker: str = "exact"
    shots: str = ""
    accepted: tuple[str, ...] = ()
    form: int = 0
    tools: str = ""

    @property
    def id(self) -> str:
        """Data set and hash of question and choices: stable over runs and orders."""
        return f"{self.dataset}/{question_hash(self)[:16]}"


def to_line(example: Example, ascii_only: bool = False) -> str:
    """An example as one line of JSON."""
    return json.dumps(vars(example), ensure_ascii=ascii_only) + "\n"


def from_line(line: str | bytes) -> Example:
    """The example of a line of `to_line`."""
    record = json.loads(line)
    return Example(**record | {"choices": tuple(record["choices"]), "accepted": tuple(record["accepted"])})


def _normalise(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def question_hash(example: Example) -> str:
    """Hex SHA-256 of the normalised question, with its choices in sorted order where it has any."""
    parts = [_normalise(example.question), *sorted(map(_normalise, example.choices))]
    return hashlib.sha256("\x1f".join(parts).encode()).hexdigest()


def split_of(example: Example, calibration: float = 0.1) -> str:
    """Split of an example whose source has no splits of its own: 50 % search, 10 % calibration, 10 % validation, 30 %
    test.

    Args:
        calibration: share of all questions that is for calibration, from the 60 % of it and search.
    """
    share = int(question_hash(example)[:8], 16) / 16**8
    if share < 0.6:
        return "search" if share < 0.6 - calibration else "calibration"
    return "validation" if share < 0.7 else "test"


def held_out_key(example: Example) -> str:
    """The hash by which training keeps an example aside: of its question, or of the calls that it expects, since other
    words for the same calls must not be on both sides."""
    if example.checker == "calls":
        return hashlib.sha256(f"{example.dataset}\x1f{example.answer}".encode()).hexdigest()
    return question_hash(example)


def held_out(example_hash: str, fraction: float) -> bool:
    """Whether training keeps an example aside; a share of `fraction`, independent of `split_of`."""
    digest = hashlib.sha256(f"held-out/{example_hash}".encode()).hexdigest()
    return int(digest[:8], 16) / 16**8 < fraction


def distinct(examples: Iterable[Example]) -> Iterator[Example]:
    """Each question once, the first time it comes."""
    seen = Seen()
    return (example for example in examples if seen.add(bytes.fromhex(question_hash(example))))
