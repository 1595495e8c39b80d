"""Questions made ready for one model: prompt and answers as tokens, and how the answer is scored. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, replace

from routing.common.errors import UserError, raise_all
from routing.models.templates import filling_problems
from routing.scoring.prompting import DEFAULT, Prompting
from routing.tasks import expand_names, load_examples
from routing.tasks.examples import Example
from routing.tasks.limits import limits_of
from routing.tasks.prompts import (
    build_prompt,
    encode,
    encode_answers,
    encode_choice,
    expected_answers,
    max_new_tokens,
    scoring_of,
    stop_of,
)


@dataclass(frozen=True, eq=False)
class Request:
    """An example made ready for one model.

    Attributes:
        example: the question.
        scoring: generate, loglikelihood, loglikelihood_norm or loglikelihood_bytes.
        prompt: the whole prompt as text.
        prompt_ids: its tokens.
        choice_ids: tokens of each choice, for loglikelihood scoring.
        expected_ids: tokens of answers to expect, for generate scoring; no verdict depends on them.
        max_new_tokens: for generate scoring.
        stop: text at which a generated answer ends, or None for the end-of-sequence token alone.
    """

    example: Example
    scoring: str
    prompt: str
    prompt_ids: tuple[int, ...]
    choice_ids: tuple[tuple[int, ...], ...] = ()
    expected_ids: tuple[tuple[int, ...], ...] = ()
    max_new_tokens: int = 0
    stop: str | None = None

    def key(self) -> list:
        """All that the answers to it and their verdicts hang on, for keys of what is kept on disk."""
        example = self.example
        judged = [example.choices, example.gold, example.answer, example.accepted, example.checker]
        return [self.scoring, self.prompt_ids, self.choice_ids, self.max_new_tokens, self.stop, judged]


def make_request(
    example: Example, scoring: str, prompt: str, tokenizer, chat: bool, limit: int | None = None
) -> Request:
    """The request of an example whose prompt text is already built (by `routing.tasks.prompts.build_prompt`).

    Args:
        limit: new tokens of a generated answer; None: the usual of its checker.
    """
    if scoring == "generate":
        ids = tuple(encode(tokenizer, prompt))
        expected = encode_answers(tokenizer, prompt, expected_answers(example, chat))
        return Request(
            example, scoring, prompt, ids, expected_ids=tuple(map(tuple, expected)),
            max_new_tokens=limit or max_new_tokens(example, chat), stop=stop_of(example, chat),
        )  # fmt: skip
    pairs = [encode_choice(tokenizer, prompt, choice, chat) for choice in example.choices]
    return Request(example, scoring, prompt, tuple(pairs[0][0]), choice_ids=tuple(tuple(choice) for _, choice in pairs))


def request_of(
    example: Example, scoring: str, tokenizer, chat: bool = False, tools_in_template: bool = False
) -> Request:
    """`prompted` for a record that says no more than this; `scoring` may be auto."""
    asked = Prompting(scoring=scoring, apply_chat_template=chat, tools_in_template=tools_in_template)
    return prompted(example, tokenizer, asked)


def prompted(example: Example, tokenizer, prompting: Prompting) -> Request:
    """The request of an example, asked as a record says."""
    kind = scoring_of(example, prompting.scoring)
    chat = prompting.apply_chat_template
    prompt = build_prompt(example, kind, tokenizer, chat, prompting.tools_in_template, prompting)
    return make_request(example, kind, prompt, tokenizer, chat, prompting.limit_of(example.dataset))


def draw_requests(
    names: str, split: str, num_samples: int | None, tokenizer, prompting: Prompting = DEFAULT
) -> list[Request]:
    """Questions of a split of some data sets (comma-separated names), ready for the model.

    Raises:
        UserError: if the questions cannot be had, or a chat template is asked for that the tokenizer lacks.
    """
    if prompting.apply_chat_template:
        raise_all(filling_problems(tokenizer, prompting, True, prompting.tools_in_template))
    examples = [example for name in expand_names(names) for example in load_examples(name, split, num_samples, seed=0)]
    if prompting.scoring.startswith("loglikelihood") and any(not example.choices for example in examples):
        without = sorted({example.dataset for example in examples if not example.choices})
        raise UserError(
            f"{', '.join(without)}: the routers were trained with scoring {prompting.scoring}, which compares choices, "
            "and these questions have none; name data sets with choices"
        )
    if tokenizer is not None and prompting.max_new_tokens is None:
        found = limits_of(names, tokenizer) | dict(prompting.limits)
        prompting = replace(prompting, limits=tuple(found.items()))
    return [prompted(example, tokenizer, prompting) for example in examples]
