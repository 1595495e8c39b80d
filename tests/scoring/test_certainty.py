"""Verdicts before the end of an answer: never wrong, and early on ordinary answers."""

from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from routing.scoring.certainty import RULES, _may_equal, settled
from routing.tasks.answers import CHECKERS
from routing.tasks.examples import Example


def choosing(*choices: str, gold: int) -> Example:
    return Example("quiz", "Which one?", choices[gold], choices, gold, "letter")


def asking(answer: str, checker: str, *accepted: str) -> Example:
    return Example("quiz", "What?", answer, checker=checker, accepted=accepted)


ANIMALS = choosing("a marsh", "a tundra", "the plains", "a desert", gold=1)
LIFE = ("yeast", "algae", "E. coli", "moss", "fern")


def texts(*pieces: str, max_size: int = 9) -> st.SearchStrategy[str]:
    """Random sequences of the pieces, of letters that checkers treat alike and of blanks."""
    odd = (" ", "  ", "\n", "\t", "\r", "\x0b", "\x1c", "\u3000", "\ufffd", ".", ",", "-")
    return st.lists(st.sampled_from(pieces) | st.sampled_from(odd), max_size=max_size).map("".join)


def never_wrong(text: str, example: Example) -> None:
    """The oracle: what is settled for the beginning of a text holds for all of its longer beginnings."""
    beginnings = [text[:end] for end in range(len(text) + 1)]
    verdicts = [CHECKERS[example.checker](beginning, example) for beginning in beginnings]
    for index, beginning in enumerate(beginnings):
        verdict = settled(beginning, example)
        assert verdict is None or set(verdicts[index:]) == {verdict}, (beginning, verdict)


def test_every_checker_has_a_rule():
    assert set(RULES) == set(CHECKERS)


@pytest.mark.parametrize(
    ("text", "answer", "verdict"),
    [
        ("", "18", None),
        ("The result is", "18", None),
        (" -", "18", None),
        ("1", "18", None),
        ("18", "18", None),
        ("18 ", "18", True),
        ("18\n", "18", True),
        ("18 apples", "18", True),
        ("$18 and 3", "18", True),
        ("18.", "18", None),
        ("18. ", "18", True),
        ("18.0", "18", None),
        ("18.00 ", "18", True),
        ("18.5", "18", False),
        ("18.05", "18", False),
        ("18,", "18", None),
        ("18, 19", "18", True),
        ("0", "18", None),
        ("0018 ", "18", True),
        ("+1", "18", None),
        ("+18=", "18", True),
        ("-1", "18", False),
        ("\u22121", "18", False),
        ("\u22121", "-18", None),
        ("1", "-18", False),
        (" 1", "35", False),
        ("18", "35", False),
        ("181", "18", False),
        ("1,", "18", False),
        ("1,", "1234", None),
        ("1,2", "1234", None),
        ("1,23", "1234", None),
        ("1,234", "1234", None),
        ("1,234,", "1234", None),
        ("1,234,5", "1234", None),
        ("1,234 ", "1234", True),
        ("1,2345", "1234", True),
        ("1,2345", "12345", False),
        ("1234,", "1234", True),
        ("1,23", "1", None),
        ("1,23 ", "1", True),
        ("1,235", "1234", False),
        (".", "0.5", None),
        (".5", "0.5", None),
        (".5 ", "0.5", True),
        (".6", "0.5", False),
        ("0", "0.5", None),
        ("1", "0.5", False),
        ("-0", "0", None),
        ("-0 ", "0", True),
        ("0.0", "0", None),
        ("0.01", "0", False),
        ("18", "1,800", None),
        ("18 ", "1,800", False),
        ("1", "1e3", None),
        ("2", "1e3", False),
        ("1", "1e200", None),
        ("1 ", "1e200", False),
        ("1", "12345678901234567890123456789012345678901234567890", None),
        ("2", "12345678901234567890123456789012345678901234567890", False),
        ("1", "\uff11\uff18", None),
        ("\uff11", "18", None),
        ("", "seven", False),
        ("7", "nan", False),
        ("7", "inf", False),
    ],
)
def test_first_number_settles(text, answer, verdict):
    assert settled(text, asking(answer, "number")) is verdict


@settings(max_examples=120)
@given(
    texts(*"0018.,-+\u2212a", "18", "1,234", "5", "is ", "\uff11", max_size=10),
    st.sampled_from(("18", "1", "-18", "0", "0.5", "18.05", "-.5", "1,234", "1801", "1e2", "no", "1000", "180018")),
)
def test_number_is_never_wrong(text, answer):
    never_wrong(text, asking(answer, "number"))


@given(st.decimals(-2000, 2000, places=2), st.sampled_from(("{}", "{:,}", "{:09}", "{:.4f}", "{:+}", "{:+,.3f}")))
@settings(max_examples=100)
def test_every_writing_of_a_number_may_become_it(value, form):
    numeral = form.format(value)
    assert Decimal(numeral.replace(",", "")) == value
    assert all(_may_equal(numeral[:end], value) for end in range(1, len(numeral) + 1))


def test_zero_has_either_sign():
    assert all(_may_equal(numeral, Decimal("-0.0")) for numeral in ("0", "-0", "+0.", "\u2212.0", "0,000.00"))


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        ("", None),
        ("B", None),
        (" B ", None),
        ("B.", True),
        ("b)", True),
        ("(B)", True),
        ("**B**", True),
        (" B\n", True),
        ("B:", True),
        ("B be", None),
        ("B because", True),
        ("B (", True),
        ("b because", None),
        ("A.", False),
        ("a ", None),
        ("A is", False),
        ("E.", None),
        ("F. Answer: B.", True),
        ("The answer is", None),
        ("Answer: B", None),
        ("Answer: B\n", True),
        ("Answer: B, ", True),
        ("Answer: (B)", True),
        ("Answer: C.", False),
        ("Answer: E.", None),
        ("Answer: B'", None),
        ("Answer: B' ", True),
        ("Answer: a ", None),
        ("Answer: a dog", None),
        ("Answer: A.", False),
        ("Answer: A because", False),
        ("I think the answer is B.", True),
        ("B or not, the answer is C.", False),
        ("A. Answer: B.", False),
        ("Option B.", None),
        ("Option A is wrong, so the answer is B.", True),
        ("a tundra", None),
        ("Tundra", None),
    ],
)
def test_letter_settles(text, verdict):
    assert settled(text, ANIMALS) is verdict


def test_only_a_text_that_one_choice_alone_has_replaces_a_letter():
    assert settled("B.", choosing("O", "A", "B", "AB", gold=1)) is True
    assert settled("B.", choosing("B. x", "A", "b. X.", gold=1)) is True
    assert settled("B.", choosing("B. x", "A", "b. y", gold=1)) is None


def test_letter_i_may_be_a_pronoun():
    many = choosing(*"rstuvwxyz", gold=8)
    assert settled("Answer: I am", many) is None
    assert settled("Answer: I.", many) is True


def test_blanks_that_only_strip_knows_do_not_hide_the_leading_letter():
    assert settled("\x1cB. Answer: C.", ANIMALS) is True


@pytest.mark.parametrize(
    ("text", "gold", "verdict"),
    [
        ("E.", 2, None),
        ("E. coli", 2, None),
        ("E. coli..", 2, None),
        ("E. coli is", 2, False),
        ("E. c", 4, None),
        ("E. d", 4, True),
        ("E)", 4, True),
        # Neither the letter nor the choice that the text may become is right.
        ("E.", 0, False),
        ("**E**", 4, True),
        ("(E", 4, None),
    ],
)
def test_text_of_a_choice_may_yet_replace_its_letter(text, gold, verdict):
    assert settled(text, choosing(*LIFE, gold=gold)) is verdict


CHOICES = (
    ANIMALS.choices,
    LIFE,
    ("O", "A", "B", "AB"),
    ("B.", "A.", "b..", "(a)", "the"),
    ("A and B", "A, B", "B because", "answer: a", "B"),
    ("e-mail", "Answer: B.", "b) x", "option a", "**b**"),
    tuple("abcdefghijklmnopqrstuvw"),
)
LETTER_PIECES = (
    *"ABEabeiIsS.*(:='’_\u017f",
    *("answer", "Answer:", "answer is ", "the answer is ", "choice", "option ", "is", "would be", "would  be "),
    *("because", " bec", "the", "an", "Banana", "A dog", "I'm", "(B)", "E. ", "E. coli", "coli", "tundra", "mail"),
)


@settings(max_examples=250)
@given(texts(*LETTER_PIECES), st.sampled_from(CHOICES), st.data())
def test_letter_is_never_wrong(text, choices, data):
    gold = data.draw(st.integers(0, min(len(choices), 6) - 1))
    never_wrong(text, choosing(*choices, gold=gold))


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        ("", None),
        ("\n", None),
        (" Paris", None),
        ("Paris\n", True),
        ("\nParis.\n", True),
        ("The Paris!\nIt is", True),
        ("P", None),
        ("Po", False),
        ("Paris,", None),
        ("Paris, F", False),
        ("Pari s", False),
        ("P-a.r", None),
        ("th", None),
        ("the", None),
        ("then", False),
        ("the P", None),
        ("the L", None),
        ("the London", False),
        ("an", None),
        ("and", False),
        ("city of", None),
        ("City of  the li", None),
        ("City of th", None),
        ("city of Paris", False),
        ("Paris a", None),
        ("Paris as", False),
        ("\u00cel", None),
        ("\u00celes", False),
        # Half of a character of two bytes.
        ("\ufffd", None),
        ("Paris \ufffd", None),
    ],
)
def test_first_line_settles(text, verdict):
    example = asking("Paris", "exact", "the city of light", "Lutetia", "\u00cele")
    assert settled(text, example) is verdict


def test_no_first_line_is_nothing():
    assert settled("", asking("The", "exact", "...")) is False


EXACT = (("Paris",), ("the city of light", "Theatre"), ("U.S.", "an apple a day"), ("the", "-"), ("Stra\u00dfe", "5-a"))


@settings(max_examples=200)
@given(
    texts(*"tThaeAnUuSs5\u00df'!", "an", "the", "city of", "light", "apple", "day", "theatre", "Paris", "stra", "U.S."),
    st.sampled_from(EXACT),
)
def test_exact_is_never_wrong(text, answers):
    never_wrong(text, asking(answers[0], "exact", *answers[1:]))


@pytest.mark.parametrize(
    ("text", "pattern", "verdict"),
    [
        ("", r"\d+ (cats|dogs)", None),
        (" 1", r"\d+ (cats|dogs)", None),
        ("12 ca", r"\d+ (cats|dogs)", None),
        ("12 cats", r"\d+ (cats|dogs)", None),
        ("12 cats\n", r"\d+ (cats|dogs)", None),
        ("12 cats a", r"\d+ (cats|dogs)", False),
        ("12 co", r"\d+ (cats|dogs)", False),
        ("some", r"\d+ (cats|dogs)", False),
        ("first\nl", r"first.last", None),
        ("first  ", r"first.last", False),
        ("YE", r"(?i)yes|no", None),
        ("YET", r"(?i)yes|no", False),
        ("ye", r"^(?:yes|no)$", None),
        ("yet", r"^(?:yes|no)$", False),
        # "ab" matches it, but the end behind "a" looks like a border of a word.
        ("a", r"a\B.", None),
        ("True", r"(?!True\b).*", None),
        ("b", r"a\Bb", None),
        ("b", r"(?<=a)a", None),
        ("b", r"(a)\1", None),
        ("b", r"(?:a){e<=1}", None),
        ("b", r"(?>a)", None),
        ("b", r"a*+", None),
    ],
)
def test_regular_expression_settles(text, pattern, verdict):
    assert settled(text, asking(pattern, "regex")) is verdict


PARTS = st.sampled_from(("a", "b", ".", r"\d", r"\s", "[ab]", "[^a]", r"\.", "1", " ", "\n", "^", "$"))
PATTERNS = st.recursive(
    PARTS,
    lambda inner: st.one_of(
        st.lists(inner, min_size=2, max_size=3).map("".join),
        st.tuples(inner, inner).map(lambda pair: "(?:{}|{})".format(*pair)),
        st.tuples(inner, st.sampled_from(("*", "+", "?", "{2}", "{1,2}", "*?", "+?", "??"))).map(
            lambda pair: "({}){}".format(*pair)
        ),
    ),
    max_leaves=6,
)


@settings(max_examples=200)
@given(texts(*"aabb1.", "aa", max_size=7), PATTERNS, st.sampled_from(("", "(?i)")))
def test_regular_expression_is_never_wrong(text, pattern, flag):
    never_wrong(text, asking(flag + pattern, "regex"))


@pytest.mark.parametrize("text", ["", r"\boxed{4}", r"\boxed{5}", r"So \boxed{5}.", "\\boxed{4}\n\n"])
def test_another_box_may_always_follow(text):
    assert settled(text, asking("5", "boxed")) is None
