"""Verdicts on generated answers: what models really write, and what only looks right."""

from __future__ import annotations

import os
import subprocess
import sys
from decimal import Decimal
from pathlib import Path

import pytest

from routing.tasks.answers import (
    CHECKERS,
    check_boxed,
    check_exact,
    check_letter,
    check_number,
    check_regex,
    first_number,
    normalise,
    stated_letter,
)
from routing.tasks.examples import Example

ROOT = Path(__file__).resolve().parents[2]


def choosing(*choices: str, gold: int) -> Example:
    return Example("quiz", "Which one?", choices[gold], choices, gold, "letter")


def asking(answer: str, checker: str, *accepted: str) -> Example:
    return Example("quiz", "What?", answer, checker=checker, accepted=accepted)


ANIMALS = choosing("a marsh", "a tundra", "the plains", "a desert", gold=1)


def test_module_can_be_imported_first():
    """lm-eval imports eval_configs/offline.py, and it this module, before anything else of the project."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    result = subprocess.run(
        [sys.executable, "-c", "import routing.tasks.answers"], env=environment, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr[-500:]


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("B", "B"),
        ("b", "B"),
        (" B\n", "B"),
        ("B.", "B"),
        ("(B)", "B"),
        ("[B]", "B"),
        ("**B**", "B"),
        ('"B"', "B"),
        ("b)", "B"),
        ("B. because it is cold", "B"),
        ("B because it is cold", "B"),
        ("B, since it is cold", "B"),
        ("B is right", "B"),
        ("B: a tundra", "B"),
        ("B\n\nA tundra is cold.", "B"),
        ("A. A marsh", "A"),
        ("A", "A"),
        ("Answer: B", "B"),
        ("answer: b", "B"),
        ("Answer: (B)", "B"),
        ("Answer: **B**", "B"),
        ("**Answer: B**", "B"),
        ("**Answer:** B", "B"),
        ("Answer:\nB", "B"),
        ("The answer is (c).", "C"),
        ("The correct answer is: C) the plains", "C"),
        ("The answer is option C", "C"),
        ("The right choice would be C.", "C"),
        ("The answer is a", "A"),
        ("The answer is 'B'.", "B"),
        ('The answer is "B".', "B"),
        ("I think the answer is D", "D"),
        ("Option A is wrong, so the answer is B.", "B"),
        ("Answer: B\nQuestion: Which other one?\nAnswer: C", "B"),
    ],
)
def test_stated_letter_of_what_models_write(text, letter):
    assert stated_letter(text, 4) == letter


@pytest.mark.parametrize(
    "text",
    [
        "",
        "   ",
        "A dog is an animal",
        "a dog",
        "The answer is a dog",
        "I am not sure",
        "Because it is cold",
        "the plains",
        "Banana",
        "none of them",
        "The answer is unknown",
        "7",
    ],
)
def test_text_that_states_no_letter(text):
    assert stated_letter(text, 4) is None


def test_letters_end_with_the_choices():
    assert stated_letter("E", 5) == "E"
    assert stated_letter("Answer: E", 5) == "E"
    assert stated_letter("E", 4) is None
    assert stated_letter("The answer is (E).", 4) is None
    assert stated_letter("I", 9) == "I"
    assert stated_letter("I think the answer is D", 9) == "D"


def test_letter_decides_the_verdict():
    assert check_letter("B", ANIMALS)
    assert check_letter("B. because it is cold", ANIMALS)
    assert not check_letter("A", ANIMALS)
    assert not check_letter("The answer is (c).", ANIMALS)
    fifth = choosing("v", "w", "x", "y", "z", gold=4)
    assert check_letter("E", fifth) and check_letter("The answer is (e).", fifth)
    assert not check_letter("F", fifth)


def test_text_of_a_choice_counts_word_for_word():
    assert check_letter("a tundra", ANIMALS)
    assert check_letter("A tundra.", ANIMALS)
    assert check_letter("Tundra", ANIMALS)
    assert not check_letter("a desert", ANIMALS)
    assert not check_letter("a tundra or a desert", ANIMALS)


@pytest.mark.parametrize("example", [ANIMALS, choosing("//", "/", "%", "|", gold=1), choosing("B.", "A.", "C", gold=1)])
def test_empty_answer_is_wrong(example):
    assert not check_letter("", example)
    assert not check_letter(" \n", example)


@pytest.mark.parametrize(
    "example",
    [
        choosing("brick house", "A-frame house", "igloo", "tent", gold=1),
        choosing("yeast", "algae", "E. coli", "moss", "fern", gold=2),
        choosing("letter", "phone", "e-mail", "telegram", "fax", gold=2),
        choosing("A and C", "A and B", "B and C", "B and D", gold=3),
        choosing("C is heavier than A.", "D is heavier than A.", gold=1),
    ],
)
def test_text_of_a_choice_is_not_taken_for_a_letter(example):
    assert check_letter(example.choices[example.gold], example)
    assert not any(check_letter(text, example) for text in example.choices if text != example.answer)


def test_lone_letter_is_the_letter_even_where_choices_are_letters():
    blood = choosing("O", "A", "B", "AB", gold=1)
    assert check_letter("B", blood)
    assert not check_letter("A", blood)


def test_signs_tell_choices_apart():
    example = choosing("3", "-3", "6", "-6", gold=1)
    assert check_letter("-3", example)
    assert not check_letter("3", example)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("7", "7"),
        ("The answer is 7", "7"),
        ("7.", "7"),
        ("-3", "-3"),
        ("x = -3", "-3"),
        ("\u22123", "-3"),
        ("+4", "4"),
        ("18.0", "18"),
        ("1,000", "1000"),
        ("1,234,567.5", "1234567.5"),
        ("$1,234.50", "1234.5"),
        ("3, 4 and 5", "3"),
        ("18\n6 * 4 = 24", "18"),
        (".5", "0.5"),
    ],
)
def test_first_number(text, number):
    assert first_number(text) == Decimal(number)


@pytest.mark.parametrize("text", ["", "no number", "seven", "-", ",,,"])
def test_text_without_a_number(text):
    assert first_number(text) is None
    assert not check_number(text, asking("7", "number"))


def test_numbers_compare_by_value():
    assert check_number("18.0", asking("18", "number"))
    assert check_number(" 1,000 apples", asking("1000", "number"))
    assert check_number("1000", asking("1,000", "number"))
    assert not check_number("19", asking("18", "number"))
    assert not check_number("3", asking("-3", "number"))
    assert not check_number("181", asking("18", "number"))


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"\boxed{\frac{1}{2}}", "0.5"),
        (r"\boxed{0.5}", r"\frac{1}{2}"),
        (r"\boxed{\dfrac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{\frac12}", "0.5"),
        (r"\boxed{\frac{1}{2}}", r"\frac12"),
        (r"\boxed{\frac{14}{3}}", r"\frac{14}3"),
        (r"\boxed{\sqrt2}", r"\sqrt{2}"),
        (r"\boxed{\sqrt{\frac{1}{4}}}", r"\frac{1}{2}"),
        (r"\boxed{\frac{\sqrt{3}}{2}}", r"\frac{\sqrt{3}}{2}"),
        (r"So the result is $\boxed{5}$.", "5"),
        (r"\boxed{5} so \boxed{5}", "5"),
        (r"$4$, no: \boxed{5}", "5"),
        (r"\boxed{1,000}", "1000"),
        (r"\boxed{12\text{ cm}}", "12"),
        (r"\boxed{\text{even}}", r"\text{even}"),
        (r"\boxed{x^2+1}", "1+x^2"),
        (r"\boxed{(1,2)}", "(1,2)"),
    ],
)
def test_boxed_answer_is_right(text, answer):
    assert check_boxed(text, asking(answer, "boxed"))


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("", "5"),
        ("5", "5"),
        ("$5$", "5"),
        (r"$\frac{1}{2}$", "0.5"),
        (r"\boxed{}", "5"),
        (r"$5$ \boxed{}", "5"),
        (r"The result is $5$. \boxed{", "5"),
        (r"$5$, no: \boxed{4}", "5"),
        (r"\boxed{6}", "5"),
        (r"\boxed{-1}", "1"),
        (r"\boxed{(2,1)}", "(1,2)"),
        (r"\boxed{\text{odd}}", r"\text{even}"),
        (r"\boxed{5} \boxed{6}", "5"),
    ],
)
def test_boxed_answer_is_wrong(text, answer):
    assert not check_boxed(text, asking(answer, "boxed"))


@pytest.mark.parametrize(
    ("text", "answer", "accepted"),
    [
        ("Eiffel Tower", "Eiffel Tower", ()),
        ("the eiffel tower.", "Eiffel Tower", ()),
        ("  An   Eiffel Tower!\nIt is in Paris.", "the Eiffel Tower", ()),
        ("\nParis", "Paris", ()),
        ("denver", "Denver Broncos", ("The Broncos", "Denver")),
        ("U.S.", "US", ()),
        ("unanswerable", "unanswerable", ()),
        ("STRASSE", "Straße", ()),
    ],
)
def test_exact_answer_is_right(text, answer, accepted):
    assert check_exact(text, asking(answer, "exact", *accepted))


@pytest.mark.parametrize(
    ("text", "answer", "accepted"),
    [
        ("Tower", "Eiffel Tower", ()),
        ("Paris, France", "Paris", ("Lutetia",)),
        ("Rome\nParis", "Paris", ()),
        ("", "Paris", ()),
        ("", "A", ()),
    ],
)
def test_exact_answer_is_wrong(text, answer, accepted):
    assert not check_exact(text, asking(answer, "exact", *accepted))


def test_normalise():
    assert normalise(" The  Cat, an apple & A dog ") == "cat apple dog"
    assert normalise("another theatre") == "another theatre"


def test_regex_matches_the_whole_answer():
    example = asking(r"\d+ (cats|dogs)", "regex")
    assert check_regex(" 12 cats\n", example)
    assert not check_regex("12 cats and 3 dogs", example)
    assert not check_regex("some 12 cats", example)
    assert check_regex("first\nlast", asking(r"first.last", "regex"))


def test_every_checker_refuses_an_empty_answer():
    examples = {"letter": ANIMALS} | {name: asking("5", name) for name in CHECKERS if name != "letter"}
    assert not any(CHECKERS[name]("", example) for name, example in examples.items())
