"""The procedural task: right answers, disjoint splits, solved examples that tell nothing."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest
import yaml

from eval_configs.offline import check, load
from routing.tasks import iterate, load_examples
from routing.tasks.answers import CHECKERS
from routing.tasks.examples import SPLITS, Example, question_hash, split_of
from routing.tasks.offline import arithmetic
from routing.tasks.procedural import KINDS, in_words, kind_of, procedural
from routing.tasks.prompts import prompt_text
from routing.tasks.variants import rephrased

CONFIGS = Path(__file__).resolve().parents[2] / "eval_configs"
WORDS = dict(zip("zero one two three four five six seven eight nine ten eleven twelve".split(), range(13)))  # noqa: SIM905
WORDS |= {"thirteen": 13, "fourteen": 14, "fifteen": 15, "sixteen": 16, "seventeen": 17, "eighteen": 18, "nineteen": 19}
WORDS |= {"twenty": 20, "thirty": 30, "forty": 40, "fifty": 50, "sixty": 60, "seventy": 70, "eighty": 80, "ninety": 90}


@pytest.fixture(scope="module")
def drawn() -> dict[str, list[Example]]:
    return {split: list(iterate("procedural", split)) for split in SPLITS}


def numeral(text: str) -> int:
    hundreds, _, rest = text.rpartition("hundred")
    rest = sum(WORDS[word] for word in re.split(r"[ -]+", rest.removeprefix(" and ").strip()) if word)
    return 100 * WORDS[hundreds.strip()] + rest if hundreds else rest


def worked_out(question: str) -> float:
    """The answer, another way."""
    numbers = [float(number) for number in re.findall(r"\d+(?:\.\d+)?", question)]
    if question.endswith(","):
        return numbers[-1] + (numbers[-1] - numbers[0]) / (len(numbers) - 1)
    if question.startswith("The number after"):
        return numbers[0] + 1
    if not numbers:
        return numeral(question.removesuffix(" ="))
    sign = question.split()[1]
    return {"+": numbers[0] + numbers[1], "-": numbers[0] - numbers[1], "*": numbers[0] * numbers[1],
            "/": numbers[0] / numbers[1]}[sign]  # fmt: skip


def content(question: str) -> tuple:
    """What equivalent questions share: two operands in any order, and a successor is a sum."""
    if question.startswith("The number after"):
        return "+", (1.0, float(question.split()[3]))
    found = re.fullmatch(r"([\d.]+) ([+*]) ([\d.]+) =", question)
    return (found[2], tuple(sorted(map(float, found.group(1, 3))))) if found else (question,)


def test_answers_are_right(drawn):
    for example in (example for part in drawn.values() for example in part):
        assert float(example.answer) == pytest.approx(worked_out(example.question)), example.question
        assert float(example.answer) > 0 and example.checker == "number"
        assert CHECKERS["number"](f" {example.answer}\n{example.shots}", example)
        assert not CHECKERS["number"](f" {float(example.answer) + 1}", example)


def test_solved_examples_are_right_too():
    for kind in KINDS.values():
        for line in (kind.shots + kind.other_shots).splitlines():
            question, answer = re.fullmatch(r"(.*(?:=|is|,)) ([\d.]+)", line).groups()
            assert float(answer) == pytest.approx(worked_out(question)), line


def test_there_are_enough_questions(drawn):
    sizes = {split: len(part) for split, part in drawn.items()}
    assert sum(sizes.values()) >= 8000
    for split, least in {"search": 2500, "validation": 800, "calibration": 1500, "test": 1600}.items():
        assert sizes[split] >= least, sizes
    for part in drawn.values():
        shares = Counter(kind_of(example.question) for example in part)
        assert shares.keys() == KINDS.keys() and max(shares.values()) < 0.35 * len(part)


def test_splits_are_disjoint_by_content(drawn):
    seen = Counter(key for part in drawn.values() for key in {content(example.question) for example in part})
    assert max(seen.values()) == 1
    sums = [content(e.question) for part in drawn.values() for e in part if kind_of(e.question) == "sums"]
    assert len(sums) == len(set(sums)), "each pair is asked for in one order"


def test_what_arithmetic_asks_too_is_in_the_same_split():
    """The larger share of calibration is taken from search: only between these two may they differ."""
    other = {content(e.question): split for split in SPLITS for e in arithmetic(split, None)}
    common = 0
    for split in SPLITS:
        for example in procedural(split, None):
            if (place := other.get(content(example.question))) is not None:
                common += 1
                assert place == split or {place, split} == {"search", "calibration"}
    assert common > 200


def test_drawing_is_reproducible(drawn):
    first, again = (load_examples("procedural", "test", 50, seed=3) for _ in range(2))
    assert first == again and set(first) < set(drawn["test"])
    assert first != load_examples("procedural", "test", 50, seed=4)


def test_no_solved_example_tells_an_answer(drawn):
    for example in (example for part in drawn.values() for example in part):
        other = rephrased(example)
        assert other.answer == example.answer and other.id.startswith("procedural/")
        assert prompt_text(other, "generate") != prompt_text(example, "generate")
        for solved in (example.shots, other.shots):
            for line in solved.splitlines():
                shown = line.rpartition(" ")[0]
                assert content(shown) not in (content(example.question), content(other.question))
        assert content(other.question) == content(example.question)


def test_reworded_by_hand():
    (example,) = (e for s in SPLITS for e in iterate("procedural", s) if e.question == "60 + 12 =")
    other = rephrased(example)
    assert (other.question, other.shots) == ("12 + 60 =", "21 + 34 = 55\n")
    named_alike = Example("procedural", "60 + 12 =", "72", checker="number")
    assert rephrased(named_alike).form == 1, "a file of one's own, procedural.jsonl, has no solved examples"


def test_numbers_in_words():
    assert [in_words(n) for n in (0, 13, 20, 42, 100, 305, 999)] == [
        "zero", "thirteen", "twenty", "forty-two", "one hundred", "three hundred and five",
        "nine hundred and ninety-nine",
    ]  # fmt: skip
    assert all(numeral(in_words(n)) == n for n in range(1000))


def test_the_lm_eval_task_judges_as_stage_1_does(drawn):
    task = yaml.load((CONFIGS / "routed_procedural.yaml").read_text(), Loader=yaml.BaseLoader)
    assert task["task"] == "routed_procedural" and task["dataset_kwargs"] == {"dataset": "procedural"}
    assert "generation_kwargs" not in task  # The limit follows the model's tokenizer, see eval_configs/offline.py.
    docs = load("procedural")["test"]
    assert {doc["question"] for doc in docs} == {example.question for example in drawn["test"]}
    by_question = {example.question: example for example in drawn["test"]}
    for doc in list(docs)[:50]:
        assert doc["prompt"] == prompt_text(by_question[doc["question"]], "generate")
        assert check(doc, [f" {doc['answer']}\n"]) == {"acc": 1.0} and check(doc, [" none"]) == {"acc": 0.0}


def test_split_of_carves_calibration_from_search():
    for number in range(500):
        example = Example("d", f"question {number}", "x")
        share = int(question_hash(example)[:8], 16) / 16**8
        expected = [
            name
            for name, end in zip(("search", "calibration", "validation", "test"), (0.5, 0.6, 0.7, 1))
            if share < end
        ]
        assert split_of(example) == expected[0]
        larger = split_of(example, 0.2)
        assert larger == split_of(example) or (larger == "calibration" and 0.4 <= share < 0.5)
