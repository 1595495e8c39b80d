"""A user's own questions: {"question": …, "answer": …, "choices": […], "checker": …}, as JSON or a table."""

from __future__ import annotations

import re
import string
from collections.abc import Iterator
from pathlib import Path

import regex

from routing.common.errors import UserError
from routing.common.user_files import Cell, records
from routing.tasks.answers import CHECKERS, as_number, final_number
from routing.tasks.examples import Example

WANTED = (
    'each question must be an object with "question" (text), "answer" (text or number; with choices: the right '
    'choice, its letter or its index), optional "choices" (list of at least 2 texts) and optional "checker"'
)

# Letters are for choices, and calls need functions, for which a line has no place.
OPEN_CHECKERS = set(CHECKERS) - {"letter", "calls"}


def parse_local(row, dataset: str) -> Example:
    """Example of one row; raises a ValueError that says what is wrong."""
    if not isinstance(row, dict):
        raise ValueError(f"it is a {type(row).__name__}, no object")
    question, answer, choices = row.get("question"), row.get("answer"), row.get("choices") or ()
    if not isinstance(question, str) or not question.strip():
        raise ValueError(f'"question" must be a text, got {question!r}')
    if isinstance(answer, bool) or not isinstance(answer, (str, int, float)) or str(answer).strip() == "":
        raise ValueError(f'"answer" must be a text or a number, got {answer!r}')
    if choices:
        return _with_choices(dataset, question, answer, choices)
    checker = row.get("checker", _checker_of(answer))
    if not isinstance(checker, str) or checker not in OPEN_CHECKERS:
        allowed = ", ".join(sorted(OPEN_CHECKERS))
        raise ValueError(f'"checker" must be one of {allowed} for a question without choices, got {checker!r}')
    if checker == "number" and as_number(str(answer)) is None:
        raise ValueError(f'"answer" must be a number for the checker "number", got {answer!r}')
    if checker == "solution" and final_number(str(answer)) is None:
        raise ValueError(f'"answer" must be a number, or a worked solution that ends with one, got {answer!r}')
    if checker == "regex":
        try:
            regex.compile(str(answer))
        except regex.error as error:
            raise ValueError(f'"answer" {answer!r} is no regular expression ({error})') from error
    return Example(dataset, str(question), str(answer), checker=checker)


# A cell of a table that means a number: not 007.
NUMBER = re.compile(r"-?(0|[1-9]\d*)(\.\d+)?")


def _checker_of(answer) -> str:
    """How an answer is checked unless its line says: "#### 12" at the end of a text is GSM8K's way."""
    if not isinstance(answer, str) or (isinstance(answer, Cell) and NUMBER.fullmatch(answer)):
        return "number"
    return "solution" if "####" in answer and final_number(answer) is not None else "exact"


def _with_choices(dataset: str, question: str, answer, choices) -> Example:
    valid = isinstance(choices, list) and all(isinstance(c, str) and c.strip() for c in choices)
    if not valid or not 2 <= len(choices) <= len(string.ascii_uppercase) or len(set(choices)) < len(choices):
        raise ValueError(f'"choices" must be a list of 2 to 26 different texts, got {choices!r}')
    if isinstance(answer, int) and 0 <= answer < len(choices):
        gold = answer
    elif answer in choices:
        gold = choices.index(answer)
    elif isinstance(answer, str) and answer.upper() in list(string.ascii_uppercase[: len(choices)]):
        gold = string.ascii_uppercase.index(answer.upper())
    elif isinstance(answer, Cell) and answer.isdecimal() and int(answer) < len(choices):
        gold = int(answer)
    else:
        raise ValueError(f'"answer" {answer!r} is none of the choices, nor the letter or index of one')
    return Example(dataset, str(question), choices[gold], tuple(choices), gold, "letter")


def local_examples(path: Path, dataset: str) -> Iterator[Example]:
    """Examples of a file of `user_files.records`, streamed.

    Raises:
        UserError: for an empty file or a bad line, with its number.
    """
    found = False
    for place, row in records(path, WANTED):
        try:
            example = parse_local(row, dataset)
        except ValueError as error:
            raise UserError(f"{place}: {error}; {WANTED}.") from error
        found = True
        yield example
    if not found:
        raise UserError(f"{path} holds no question; {WANTED}.")
