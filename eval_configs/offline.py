"""Questions and checks of the tasks in this folder, by the same code that the search uses.

lm-eval imports this file by its path, from whatever directory it was started in, so the project's own folder
may have to be added to the import path.
"""

import sys
from pathlib import Path

try:
    import routing  # noqa: F401
except ModuleNotFoundError:
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import datasets

from routing.tasks import load_examples
from routing.tasks.answers import CHECKERS
from routing.tasks.calls import CALL_SCORES
from routing.tasks.examples import Example
from routing.tasks.prompts import prompt_text, scoring_of


def load(dataset: str, scoring: str = "auto", split: str = "test", **_) -> dict[str, datasets.Dataset]:
    """Documents of a split that is never searched, in a fixed random order.

    Args:
        dataset: name from routing/tasks.
        scoring: decides what the prompt asks for.
        _: metadata that lm-eval passes along.
    """
    rows = [
        {
            "prompt": prompt_text(example, scoring_of(example, scoring)),
            "dataset": example.dataset,
            "question": example.question,
            "answer": example.answer,
            "accepted": list(example.accepted),
            "choices": list(example.choices),
            "gold": example.gold,
            "checker": example.checker,
            "tools": example.tools,
        }
        for example in load_examples(dataset, split, num_samples=None, seed=0)
    ]
    return {split: datasets.Dataset.from_list(rows)}


def example_of(doc: dict) -> Example:
    """The example that a document was made from, but for its prompt."""
    return Example(
        doc["dataset"],
        doc["question"],
        doc["answer"],
        tuple(doc["choices"]),
        doc["gold"],
        doc["checker"],
        accepted=tuple(doc["accepted"]),
        tools=doc["tools"],
    )


def check(doc: dict, results: list[str]) -> dict[str, float]:
    """Accuracy of one generated answer."""
    return {"acc": float(CHECKERS[doc["checker"]](results[0], example_of(doc)))}


def check_function_calls(doc: dict, results: list[str]) -> dict[str, float]:
    """Accuracy of one generated answer, and the scores of its function calls."""
    example = example_of(doc)
    return check(doc, results) | {name: score(results[0], example) for name, score in CALL_SCORES.items()}
