"""Data sets of the HuggingFace hub, by their real schemas.

Each function maps (split, loader) to examples; `loader` is `datasets.load_dataset`, and a stand-in in tests.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache

from routing.tasks.examples import Example, split_of

OFFICIAL = {"search": "train", "calibration": "train", "validation": "validation", "test": "test"}


def _in_part(example: Example, split: str, parts: tuple[str, ...]) -> bool:
    """Whether an example of a training split is in `split`: `parts` are carved from it by hash, search is the rest."""
    own = split_of(example)
    return (own if own in parts else "search") == split


def _lettered(row: dict, dataset: str) -> Example:
    """ARC and CommonsenseQA: {question, choices: {text, label}, answerKey}."""
    gold = row["choices"]["label"].index(row["answerKey"])
    choices = tuple(row["choices"]["text"])
    return Example(dataset, row["question"], choices[gold], choices, gold, "letter")


def arc(config: str) -> Callable:
    def examples(split: str, loader: Callable) -> Iterator[Example]:
        name = {"ARC-Easy": "arc_easy", "ARC-Challenge": "arc_challenge"}[config]
        for row in loader("allenai/ai2_arc", config, split=OFFICIAL[split]):
            example = _lettered(row, name)
            if split in ("validation", "test") or _in_part(example, split, ("calibration",)):
                yield example

    return examples


def commonsense_qa(split: str, loader: Callable) -> Iterator[Example]:
    """Its test split has no answers: the training split is divided by question hash, validation is the test."""
    source = "validation" if split == "test" else "train"
    for row in loader("tau/commonsense_qa", split=source):
        example = _lettered(row, "commonsense_qa")
        if split == "test" or _in_part(example, split, ("validation", "calibration")):
            yield example


def squadv2(split: str, loader: Callable) -> Iterator[Example]:
    """Extractive questions; unanswerable ones want the word "unanswerable"."""
    source = "validation" if split == "test" else "train"
    for row in loader("rajpurkar/squad_v2", split=source):
        answers = tuple(dict.fromkeys(row["answers"]["text"])) or ("unanswerable",)
        question = (
            f'{row["context"]}\nQuestion: {row["question"]}\nAnswer with words of the passage, or with "unanswerable".'
        )
        example = Example("squadv2", question, answers[0], checker="exact", accepted=answers[1:])
        if split == "test" or _in_part(example, split, ("validation", "calibration")):
            yield example


@lru_cache(maxsize=1)
def _dart_levels(loader: Callable) -> dict[str, list[Example]]:
    """Questions of DART-Math by level, each once: of half a million answers to 7,500 questions, read once a process."""
    found: dict[str, dict[str, Example]] = {}
    for row in loader("hkust-nlp/dart-math-pool-math", split="train"):
        level = str(row["query_metadata"]["level"])
        if row["query"] not in (own := found.setdefault(level, {})):
            own[row["query"]] = Example(f"dart-{level}", row["query"], str(row["gt_ans"]), checker="boxed")
    return {level: list(own.values()) for level, own in found.items()}


def dart(level: int) -> Callable:
    """DART-Math of one difficulty level; questions repeat there, so splits go by question hash."""

    def examples(split: str, loader: Callable) -> Iterator[Example]:
        for example in _dart_levels(loader).get(str(level), ()):
            if split_of(example) == split:
                yield example

    return examples
