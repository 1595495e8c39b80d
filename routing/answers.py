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

if TYPE_CHECKING:  # routing.tasks imports this module.
    from routing.tasks.examples import Example

_STATED = regex.compile(
    r"\b(?:answer|choice|option)\b\s*(?:is|would\s+be|=|:)?\s*:?\s*[\(\[\*\"'`_]*([A-Za-z])(?![A-Za-z'’])",
    regex.IGNORECASE,
)
_LEADING = regex.compile(r"^[\s\(\[\*\"'`_]*([A-Za-z])(?P<after>[\s\).\]:,;*\"'`_/-].*|)$", regex.DOTALL)
# After a bare letter and a space, words that go on about the choice; others make "A" an article, "I" a pronoun.
_GOES_ON = regex.compile(r"^\s+(?:because|since|as|is|would|and|\(|[-–—:=])", regex.IGNORECASE)
_NUMBER = regex.compile(r"[-+]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?")


def stated_letter(text: str, num_choices: int) -> str | None:
    """The letter a text answers with, upper case, or None.

    Reads "Answer: C", "the answer is (c)", "B", "(B)", "**B**", "B. because", "B because", "b)".
    """
    allowed = string.ascii_uppercase[:num_choices]
    lead = _LEADING.match(text.strip())
    if lead:
        letter, after = lead.group(1), lead.group("after")
        alone = after.strip() == ""
        marked = after[:1] not in ("", " ", "\t", "\n") or after[:1] == "\n"
        if (alone or marked or (letter.isupper() and _GOES_ON.match(after))) and letter.upper() in allowed:
            return letter.upper()
    for match in _STATED.finditer(text):
        letter = match.group(1)
        rest = text[match.end() :]
        article = letter in "aAI" and regex.match(r"\s+\w", rest) and not _GOES_ON.match(rest)
        if letter.upper() in allowed and not article:
            return letter.upper()
    return None


def check_letter(text: str, example: Example) -> bool:
    """Right if the stated letter is that of the right choice, or the text is that choice word for word."""
    letter = stated_letter(text, len(example.choices))
    if letter is not None:
        return string.ascii_uppercase.index(letter) == example.gold
    return normalise(text) == normalise(example.choices[example.gold])


def first_number(text: str) -> Decimal | None:
    """The first number in a text, thousands separators allowed."""
    match = _NUMBER.search(text)
    return as_number(match.group()) if match else None


def as_number(text: str) -> Decimal | None:
    try:
        return Decimal(text.replace(",", "").strip())
    except InvalidOperation:
        return None


def check_number(text: str, example: Example) -> bool:
    """Right if the first number in the text equals the answer."""
    found = first_number(text)
    return found is not None and found == as_number(example.answer)


def check_boxed(text: str, example: Example) -> bool:
    r"""Right if the text holds a \boxed{} that math-verify finds equal to the answer."""
    if r"\boxed{" not in text:
        return False
    from math_verify import LatexExtractionConfig, parse, verify
    from math_verify.parser import NormalizationConfig

    boxed = LatexExtractionConfig(boxed_match_priority=0, normalization_config=NormalizationConfig(boxed="all"))
    gold = parse(f"\\boxed{{{example.answer}}}", extraction_config=[boxed])
    return verify(gold, parse(text, extraction_config=[boxed], extraction_mode="first_match"))


def normalise(text: str) -> str:
    """Lower case, without articles, punctuation and superfluous spaces, as SQuAD compares answers."""
    text = "".join(" " if letter in string.punctuation else letter for letter in text.casefold())
    return " ".join(word for word in text.split() if word not in ("a", "an", "the"))


def check_exact(text: str, example: Example) -> bool:
    """Right if the first line equals an accepted answer after normalisation."""
    line = text.strip().split("\n")[0]
    return normalise(line) in {normalise(answer) for answer in (example.answer, *example.accepted)}


def check_regex(text: str, example: Example) -> bool:
    """Right if the stripped text matches the answer, a regular expression, from its start to its end."""
    return regex.fullmatch(example.answer, text.strip(), regex.DOTALL) is not None


CHECKERS: dict[str, Callable[[str, Example], bool]] = {
    "letter": check_letter,
    "number": check_number,
    "boxed": check_boxed,
    "exact": check_exact,
    "regex": check_regex,
}
