"""When the verdict on an answer is certain before the answer ends.

Greedy decoding may stop there: it saves the tokens that could change nothing. Each rule answers for every text
that starts with the one given, so it is None wherever that is not proven; None too often is only slow.
"""

from __future__ import annotations

import string
from collections.abc import Callable
from decimal import Decimal
from functools import lru_cache

import regex

# The very patterns of the checkers: a copy could drift away from them.
from routing.tasks.answers import (
    CHECKERS,
    GOES_ON,
    LEADING,
    MARKED,
    NUMBER,
    STATED,
    as_number,
    check_calls,
    check_exact,
    check_number,
    check_regex,
    check_solution,
    normalise,
    plain_text,
)
from routing.tasks.calls import complete_list
from routing.tasks.examples import Example

# Decoders write it for a character of which some bytes are missing; the next token may replace it.
_UNFINISHED = "\ufffd"
# Regular expressions whose partial matches can be trusted: no assertion but ^ and $ (what is behind the end may make
# a lookahead, \b or \B hold that fails at the end), no back reference, atomic group or fuzzy match.
_TRUSTED = regex.compile(
    r"(?:\(\?i\))?"
    r"(?:[^\\()\[\]{}*+?]|\\[dDsSwWnt]|\\[^\w\s]|\[\^?(?:\\[dDsSwWnt]|\\[^\w\s]|[^\\\[\]])+\]"
    r"|\((?:\?i?:|(?![?*]))|\)|(?:[*+?]|\{\d+(?:,\d*)?\})\??(?!\+))*"
)


# Checkers of numbers, of which a limit of new tokens may cut the end off.
NUMERIC = ("number", "solution")


def is_right(text: str, example: Example, cut: bool) -> bool:
    """The verdict on a generated answer.

    Args:
        cut: whether the limit of new tokens ended it. A number that might have gone on is then no answer.
    """
    right = CHECKERS[example.checker](text, example)
    return right and (not cut or example.checker not in NUMERIC or settled(text, example) is True)


def settled(text: str, example: Example) -> bool | None:
    """The verdict on every text that starts with `text`, itself included; None where they may differ.

    A character decoded in part (U+FFFD at the end of `text`) counts as not yet there.
    """
    return RULES[example.checker](text.rstrip(_UNFINISHED), example)


def _letter(text: str, example: Example) -> bool | None:
    letter = _final_letter(text, len(example.choices))
    if letter is None:
        return None
    verdict = string.ascii_uppercase.index(letter) == example.gold
    # "E." is the beginning of "E. coli": what the text may still become goes before its letter. Dots at its end
    # would not count, so any number of them may stand there.
    plain = [plain_text(choice) for choice in example.choices]
    begun = " ".join(text.casefold().split())
    for index, choice in enumerate(plain):
        decides = len(choice) > 1 and plain.count(choice) == 1
        if decides and (choice + "." * len(begun)).startswith(begun) and (index == example.gold) != verdict:
            return None
    return verdict


def _final_letter(text: str, num_choices: int) -> str | None:
    """The letter that `stated_letter` reads in every text that starts with `text`."""
    allowed = string.ascii_uppercase[:num_choices]
    lead = LEADING.match(text.lstrip())
    if lead:
        letter, after = lead.group(1), lead.group("after")
        # A letter at the end may become a word; behind a blank, it counts alone or where the text goes on about it.
        marked = after[:1] not in ("", " ", "\t")
        if (marked or (letter.isupper() and GOES_ON.match(after))) and letter.upper() in allowed:
            return letter.upper()
    # The first "answer" goes before all that follow and before any "choice" or "option". Text behind it no longer
    # changes what leads, since "answer" is neither a lone letter nor a way to go on about one.
    stated = next((match for match in STATED.finditer(text) if match.group("word").casefold() == "answer"), None)
    if stated is None or stated.group("letter").upper() not in allowed:
        return None
    letter, rest = stated.group("letter"), text[stated.end() :]
    if rest in ("", "'", "’"):  # "B" may become "Banana", "I'" may become "I'm".
        return None
    if letter in "aAI" and not (GOES_ON.match(rest) or regex.match(r"\s*[^\s\w]", rest)):  # It may be an article.
        return None
    return letter.upper()


def _number(text: str, example: Example) -> bool | None:
    answer = as_number(example.answer)
    if answer is None or not answer.is_finite():  # No numeral equals it.
        return False
    found = NUMBER.search(text)
    if found is None:
        return None
    # A longer text has its first number at the same place: nothing that holds a digit is only half a number.
    begun = text[found.start() :]
    if not NUMBER.fullmatch(begun, partial=True):
        return check_number(text, example)
    # The number can grow. Left as it is, it may be right; grown, it starts with all of `begun`.
    if check_number(text, example) or _may_equal(begun, answer):
        return None
    return False


def _solution(text: str, example: Example) -> bool | None:
    mark = MARKED.search(text)
    if mark is None or mark.end() == len(text):  # What is last may be followed by another number, or by the mark.
        return None
    begun = text[mark.end() :]
    if NUMBER.fullmatch(begun, partial=True):
        return None
    return check_solution(text, example)


def _may_equal(begun: str, value: Decimal) -> bool:
    """Whether some numeral that starts with `begun` equals the value; True as well where that is not known."""
    begun = begun.replace("−", "-")
    if not begun.isascii():  # Digits of other scripts count too.
        return True
    pattern = _numerals(value)
    return pattern is None or pattern.fullmatch(begun, partial=True) is not None


@lru_cache(maxsize=4096)
def _numerals(value: Decimal) -> regex.Pattern | None:
    """All numerals equal to a value, and some with misplaced commas; None if they would be very long."""
    if abs(value.adjusted()) > 99:
        return None
    whole, _, fraction = format(value.copy_abs(), "f").partition(".")
    whole, fraction = whole.lstrip("0"), fraction.rstrip("0")
    sign = "[-+]?" if value == 0 else "-" if value < 0 else r"\+?"
    end = rf"\.{fraction}0*" if fraction else r"(?:\.0*)?"
    digits = f"{int(whole):,}".replace(",", ",?") if whole else ""
    return regex.compile(sign + "[0,]*" + digits + end)


def _exact(text: str, example: Example) -> bool | None:
    line, newline, _ = text.lstrip().partition("\n")
    if newline:
        return check_exact(text, example)
    # A mark that normalising keeps shows the word, perhaps empty as yet, in which the text may go on.
    *words, last = normalise(line + _UNFINISHED).split()
    last = last.removesuffix(_UNFINISHED)
    for answer in (example.answer, *example.accepted):
        wanted = normalise(answer).split()
        # Articles vanish, so a word that may become one is no obstacle.
        following = ("a", "an", "the", *wanted[len(words) : len(words) + 1])
        if wanted and wanted[: len(words)] == words and any(word.startswith(last) for word in following):
            return None
    return False


def _regex(text: str, example: Example) -> bool | None:
    begun = text.lstrip()
    if not _TRUSTED.fullmatch(example.answer):
        return None
    # Blanks at the end are stripped if nothing follows, and part of the answer otherwise.
    if check_regex(text, example) or regex.fullmatch(example.answer, begun, regex.DOTALL, partial=True):
        return None
    return False


def _boxed(text: str, example: Example) -> None:
    """Never certain: the last box counts, and another one may always follow."""


def _calls(text: str, example: Example) -> bool | None:
    """Certain behind a whole JSON list at the beginning, which is read alone whatever follows it."""
    return check_calls(text, example) if complete_list(text) else None


RULES: dict[str, Callable[[str, Example], bool | None]] = {
    "letter": _letter,
    "number": _number,
    "solution": _solution,
    "boxed": _boxed,
    "exact": _exact,
    "regex": _regex,
    "calls": _calls,
}
