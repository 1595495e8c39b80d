"""Questions and checks of the tasks in this folder, by the same code that the search uses.

lm-eval imports this file by its path, from whatever directory it was started in, so the project's own folder
may have to be added to the import path.
"""

import logging
import sys
from contextlib import suppress
from functools import cache
from pathlib import Path

try:
    import routing  # noqa: F401
except ModuleNotFoundError:
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import datasets
from lm_eval.api.task import ConfigurableTask

from routing.common.errors import UserError
from routing.models.checkpoint_files import training_record
from routing.models.families import load_tokenizer
from routing.scoring.certainty import is_right
from routing.scoring.prompting import DEFAULT, trained_prompting
from routing.tasks import load_examples
from routing.tasks.calls import CALL_SCORES
from routing.tasks.examples import Example
from routing.tasks.limits import limits_of
from routing.tasks.prompts import max_new_tokens, prompt_text, scoring_of, stop_of


class Questions(ConfigurableTask):
    """Questions whose answers end where the search ends them.

    In the chat form a token ends an answer, in the plain one a text; and its limit of new tokens follows the data set
    and the model's tokenizer. `--gen_kwargs max_gen_toks=N` of lm_eval goes before.
    """

    def __init__(self, config: dict):
        super().__init__(config={name: value for name, value in config.items() if name != "class"})

    def construct_requests(self, doc: dict, ctx: str, apply_chat_template: bool = False, **others):
        made = super().construct_requests(doc, ctx, apply_chat_template=apply_chat_template, **others)
        if self.OUTPUT_TYPE == "generate_until":
            example, given = example_of(doc), self.config.generation_kwargs
            stop = stop_of(example, apply_chat_template)
            ends = {"until": [stop] if stop else [], "do_sample": False}
            limit = doc["max_new_tokens"] or max_new_tokens(example, apply_chat_template)
            # lm-eval puts "until: blank line" where a task says nothing.
            own = {name: value for name, value in given.items() if name != "until"}
            made.arguments = (ctx, ends | {"max_gen_toks": limit} | own)
        return made


@cache
def limits(dataset: str, pretrained: str | None, tokenizer: str | None) -> dict[str, int]:
    """New tokens of an answer by data set: as a checkpoint says, else as its tokenizer and the data want it."""
    name = tokenizer or pretrained
    if not name:
        logging.getLogger(__name__).warning(
            "no tokenizer is known (model_args pretrained=...), so answers of %s have the usual number of new tokens",
            dataset,
        )
        return {}
    prompting = DEFAULT
    if pretrained:
        with suppress(UserError):  # A base has no such record.
            prompting = trained_prompting(training_record(Path(pretrained)))
    if prompting.max_new_tokens is not None:
        return {dataset: prompting.max_new_tokens}
    return limits_of(dataset, load_tokenizer(name)) | dict(prompting.limits)


def load(
    dataset: str,
    scoring: str = "auto",
    split: str = "test",
    pretrained: str | None = None,
    tokenizer: str | None = None,
    **_,
) -> dict[str, datasets.Dataset]:
    """Documents of a split that is never searched, in a fixed random order.

    Args:
        dataset: name from routing/tasks.
        scoring: decides what the prompt asks for.
        pretrained, tokenizer: of --model_args, by which the limit of new tokens goes.
        _: further metadata that lm-eval passes along.
    """
    known = limits(dataset, pretrained, tokenizer)
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
            "max_new_tokens": known.get(example.dataset, 0),
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
    """Accuracy of one generated answer.

    evaluation.py says of each answer whether the limit of new tokens cut it off; stock lm_eval does not.
    """
    return {"acc": float(is_right(results[0], example_of(doc), getattr(results[0], "cut", False)))}


def check_function_calls(doc: dict, results: list[str]) -> dict[str, float]:
    """Accuracy of one generated answer, and the scores of its function calls."""
    example = example_of(doc)
    return check(doc, results) | {name: score(results[0], example) for name, score in CALL_SCORES.items()}
