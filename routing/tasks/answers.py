"""Checking generated answers.

A checker maps (generated text, example) to a verdict. Published checkers accept only a bare letter A to D,
while models say "B. because" or have a fifth choice; ours reads the letter out of what models really write.
"""

from __future__ import annotations

import string
from collections.abc import Callable
from decimal import Decimal, InvalidOperation
from typing import TYPE_CHECKING

import regex

from routing.tasks.calls import CALL_SCORES, json_match

if TYPE_CHECKING:  # routing.tasks imports this module.
    from routing.tasks.examples import Example

STATED = regex.compile(
    r"\b(?P<word>answer|choice|option)\b[\s*_]*(?:is|would\s+be|=|:)?[\s*_]*:?"
    r"[\s\(\[*\"'`_]*(?P<letter>[A-Za-z])(?![A-Za-z]|['’][A-Za-z])",
    regex.IGNORECASE,
)
LEADING = regex.compile(r"^[\s\(\[\*\"'`_]*([A-Za-z])(?P<after>[\s\).\]:,;*\"'`_/-].*|)$", regex.DOTALL)
# After a bare letter and a space, words that go on about the choice; others make "A" an article, "I" a pronoun.
GOES_ON = regex.compile(r"^\s+(?:because|since|as|is|would|and|\(|[-–—:=])", regex.IGNORECASE)
NUMBER = regex.compile(r"[-−+]?(?:(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|\.\d+)")
_BOX = regex.compile(r"\\boxed(?P<body>\{(?:[^{}]|(?&body))*\})")


def stated_letter(text: str, num_choices: int) -> str | None:
    """The letter a text answers with, upper case, or None.

    Reads "Answer: C", "the answer is (c)", "B", "(B)", "**B**", "B. because", "B because", "b)".
    """
    allowed = string.ascii_uppercase[:num_choices]
    lead = LEADING.match(text.strip())
    if lead:
        letter, after = lead.group(1), lead.group("after")
        alone = after.strip() == ""
        marked = after[:1] not in ("", " ", "\t", "\n") or after[:1] == "\n"
        if (alone or marked or (letter.isupper() and GOES_ON.match(after))) and letter.upper() in allowed:
            return letter.upper()
    # "Option A is wrong, so the answer is B": what is called the answer goes before what is called an option.
    stated = sorted(STATED.finditer(text), key=lambda match: match.group("word").casefold() != "answer")
    for match in stated:
        letter = match.group("letter")
        rest = text[match.end() :]
        article = letter in "aAI" and regex.match(r"\s+\w", rest) and not GOES_ON.match(rest)
        if letter.upper() in allowed and not article:
            return letter.upper()
    return None


def check_letter(text: str, example: Example) -> bool:
    """Right if the text states the letter of the right choice, or is that choice.

    The text of a choice is looked for before a letter ("E. coli" is no answer E), and decides only if no other
    choice reads the same.
    """
    plain = [plain_text(choice) for choice in example.choices]
    if len(plain_text(text)) > 1 and plain.count(plain_text(text)) == 1:
        return plain.index(plain_text(text)) == example.gold
    letter = stated_letter(text, len(example.choices))
    if letter is not None:
        return string.ascii_uppercase.index(letter) == example.gold
    normal = [normalise(choice) for choice in example.choices]
    found = normalise(text)
    return found != "" and normal.count(found) == 1 and normal.index(found) == example.gold


def plain_text(text: str) -> str:
    return " ".join(text.casefold().split()).rstrip(".")


def first_number(text: str) -> Decimal | None:
    """The first number in a text, thousands separators allowed."""
    match = NUMBER.search(text)
    return as_number(match.group()) if match else None


def as_number(text: str) -> Decimal | None:
    try:
        return Decimal(text.replace(",", "").replace("−", "-").strip())
    except InvalidOperation:
        return None


def check_number(text: str, example: Example) -> bool:
    """Right if the first number in the text equals the answer."""
    found = first_number(text)
    return found is not None and found == as_number(example.answer)


MARKED = regex.compile(r"####[\s$*]*")


def final_number(text: str) -> Decimal | None:
    """The number behind the first ####, with which a worked solution of GSM8K ends; where there is none, the last."""
    mark = MARKED.search(text)
    if mark:
        found = NUMBER.match(text, mark.end())
        return as_number(found.group()) if found else None
    *_, last = NUMBER.findall(text) or [None]
    return as_number(last) if last else None


def check_solution(text: str, example: Example) -> bool:
    """Right if a worked solution comes to the number that the answer, a worked solution or a number, comes to."""
    found = final_number(text)
    return found is not None and found == final_number(example.answer)


def check_boxed(text: str, example: Example) -> bool:
    r"""Right if math-verify finds the last \boxed{} of the text equal to the answer."""
    from math_verify import LatexExtractionConfig, parse, verify

    boxes = list(_BOX.finditer(text))
    if not boxes or not boxes[-1].group("body")[1:-1].strip():
        return False
    boxed = [LatexExtractionConfig(boxed_match_priority=0)]
    gold = parse(f"\\boxed{{{example.answer}}}", extraction_config=boxed)
    return verify(gold, parse(boxes[-1].group(), extraction_config=boxed))


def normalise(text: str) -> str:
    """Lower case, without articles, punctuation and superfluous spaces, as SQuAD compares answers."""
    text = "".join(letter for letter in text.casefold() if letter not in string.punctuation)
    return " ".join(word for word in text.split() if word not in ("a", "an", "the"))


def check_exact(text: str, example: Example) -> bool:
    """Right if the first line equals an accepted answer after normalisation."""
    line = normalise(text.strip().split("\n")[0])
    return line != "" and line in {normalise(answer) for answer in (example.answer, *example.accepted)}


def check_regex(text: str, example: Example) -> bool:
    """Right if the stripped text matches the answer, a regular expression, from its start to its end."""
    return regex.fullmatch(example.answer, text.strip(), regex.DOTALL) is not None


def check_calls(text: str, example: Example) -> bool:
    """Right if the text makes the expected function calls and no other, see `routing.tasks.calls.json_match`."""
    return json_match(text, example) == 1


CHECKERS: dict[str, Callable[[str, Example], bool]] = {
    "letter": check_letter,
    "number": check_number,
    "solution": check_solution,
    "boxed": check_boxed,
    "exact": check_exact,
    "regex": check_regex,
    "calls": check_calls,
}


def accuracy(text: str, example: Example) -> float:
    """1 for a right answer, 0 for a wrong one, by the checker of the example."""
    return float(CHECKERS[example.checker](text, example))


# Graded scores of a generated answer, higher is better: --score of data_generation.py. Those of calls are for examples
# with the checker "calls" only, see `routing.tasks.calls.score_problems`.
SCORES: dict[str, Callable[[str, Example], float]] = {"accuracy": accuracy, **CALL_SCORES}
