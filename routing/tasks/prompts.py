"""Prompts: the one place that writes and tokenizes them, for search, training and evaluation alike."""

from __future__ import annotations

import json
import string
from collections.abc import Sequence

from routing.common.errors import UserError
from routing.models.templates import EMPTY, Filling, fill
from routing.tasks.calls import expected_texts
from routing.tasks.examples import Example

SCORINGS = ("auto", "generate", "loglikelihood", "loglikelihood_norm", "loglikelihood_bytes")
# Wordings of a prompt, by `Example.form`: before the question, before the answer, request for a letter, for a box.
# The second one serves to re-test what was right with the first.
FORMS = (
    (
        "Question:",
        "Answer:",
        'Reply with the letter of the right choice only, as in "Answer: A".',
        r"Reply with the final result only, inside \boxed{}.",
    ),
    (
        "Q:",
        "A:",
        'Which one is right? Give its letter and nothing else, as in "Answer: A".',
        r"Give nothing but the result, inside \boxed{}.",
    ),
)
# New tokens of greedy decoding, from Dr.LLM: 10 for choices with an instruct model, 2 with a base model, 15 for math.
# Where an answer of the data is longer, the limit follows it: `routing.tasks.limits`.
MAX_NEW_TOKENS = {"boxed": 15, "number": 4, "exact": 16, "regex": 16, "calls": 384, "solution": 256}
# Data sets whose limit is as published, however long their answers are.
AS_PUBLISHED = "dart-"
# The longest list of right calls in the Berkeley data has 338 tokens; where one call is asked for, it has 97 at most.
SINGLE_CALLS = {"tool_calls": 32, "short_tool_calls": 24, "bfcl_simple": 128, "bfcl_multiple": 128}
# What is asked for below the functions, by `Example.form`.
CALL_REQUESTS = (
    "Reply with one line of JSON, the list of calls that answer the question, as in "
    '[{"name": "function", "arguments": {"argument": "value"}}], and with nothing else.',
    "Which calls answer it? Give them as a JSON list on one line, as in "
    '[{"name": "function", "arguments": {"argument": "value"}}], and no other text.',
)


def scoring_of(example: Example, scoring: str) -> str:
    """The scoring of an example; auto means loglikelihood where there are choices, else generate."""
    if scoring == "auto":
        return "loglikelihood" if example.choices else "generate"
    return scoring


STOP = "\n"  # text at which an answer ends in the plain form


def stop_of(example: Example, chat: bool) -> str | None:
    """Text at which a generated answer ends; None in the chat form, where a token ends it.

    A worked solution has lines; it ends where the model asks itself the next question.
    """
    if chat:
        return None
    return FORMS[example.form][0] if example.checker == "solution" else STOP


def max_new_tokens(example: Example, chat: bool) -> int:
    """How many tokens an answer may have where its data set asks for no more."""
    if example.checker == "letter":
        return 10 if chat else 2
    if example.checker == "calls":
        return SINGLE_CALLS.get(example.dataset, MAX_NEW_TOKENS["calls"])
    return MAX_NEW_TOKENS[example.checker]


def prompt_text(example: Example, scoring: str) -> str:
    """The prompt before any chat template; the choices are listed only where a letter is asked for.

    The functions that may be called are listed as JSON, unless the solved examples show them.
    """
    asked, answered, letter_request, boxed_request = FORMS[example.form]
    if example.checker == "calls":
        shown = example.shots or f"Functions:\n{example.tools}\n{CALL_REQUESTS[example.form]}\n"
        return f"{shown}{asked} {example.question}\n{answered}"
    if example.shots:
        return example.shots + example.question
    if example.choices and scoring == "generate":
        listed = "\n".join(f"{letter}. {text}" for letter, text in zip(string.ascii_uppercase, example.choices))
        return f"{asked} {example.question}\n{listed}\n{letter_request}\n{answered}"
    if example.checker == "boxed":
        return f"{asked} {example.question}\n{boxed_request}\n{answered}"
    return f"{asked} {example.question}\n{answered}"


def build_prompt(
    example: Example,
    scoring: str,
    tokenizer,
    chat: bool,
    tools_in_template: bool = False,
    filling: Filling = EMPTY,
) -> str:
    """The whole prompt as text, chat template applied on request.

    Args:
        example: the question.
        scoring: decides what the prompt asks for.
        tokenizer: brings the chat template.
        chat: whether it is applied.
        tools_in_template: whether the template lists the functions that may be called, in its own way, and the
            message is the question alone. By default the message lists them, as for stock lm-eval.
        filling: what fills the template beside the message.

    Raises:
        UserError: if the template is to list the functions and does not, or there is none.
    """
    if tools_in_template and not chat:
        raise UserError("tools_in_template: a chat template lists the functions; give --apply_chat_template too")
    if tools_in_template and example.tools:
        return _with_listed_tools(example, tokenizer, filling)
    text = prompt_text(example, scoring)
    return fill(tokenizer, text, filling) if chat else text


def _with_listed_tools(example: Example, tokenizer, filling: Filling) -> str:
    """The question alone, in a chat template that lists the functions."""
    tools = [{"type": "function", "function": function} for function in json.loads(example.tools)]
    prompt = fill(tokenizer, example.question, filling, tools)
    if prompt == fill(tokenizer, example.question, filling):
        raise UserError(
            "tools_in_template: the chat template of this tokenizer leaves the functions out; without this option the "
            "message lists them"
        )
    return prompt


def encode(tokenizer, text: str) -> list[int]:
    """Token ids of a prompt as lm-eval makes them: no second BOS where the text brings its own."""
    if tokenizer.bos_token and text.startswith(tokenizer.bos_token):
        return tokenizer.encode(text, add_special_tokens=False)
    return tokenizer.encode(text)


def encode_choice(tokenizer, prompt: str, choice: str, chat: bool = False) -> tuple[list[int], list[int]]:
    """Ids of the prompt and of the choice behind it, split as lm-eval splits a request.

    Trailing spaces of the prompt go to the choice, which is otherwise joined by one space; in the chat form by none.
    """
    stripped = prompt.rstrip()
    continuation = (prompt[len(stripped) :] or ("" if chat else " ")) + choice
    context = encode(tokenizer, stripped)
    return context, encode(tokenizer, stripped + continuation)[len(context) :]


def expected_answers(example: Example, chat: bool) -> list[str]:
    """Texts that a generated answer may well be, without the end: the right one, and the letters of all choices."""
    if example.checker == "letter":
        letters = string.ascii_uppercase[: len(example.choices)]
        return [*letters, *(f"Answer: {letter}" for letter in letters if chat)]
    if example.checker == "boxed":
        return [rf"\boxed{{{example.answer}}}"]
    if example.checker == "calls":
        return expected_texts(example)
    # Of an expression the texts are not known, and no model writes a whole solution in the same words.
    return [] if example.checker in ("regex", "solution") else [example.answer]


def encode_answers(tokenizer, prompt: str, answers: Sequence[str]) -> list[list[int]]:
    """Token ids of answers behind a prompt; those that merge with the prompt's last token are left out."""
    context = encode(tokenizer, prompt)
    space = "" if prompt[-1:].isspace() else " "
    whole = [encode(tokenizer, prompt + space + answer) for answer in answers]
    return [ids[len(context) :] for ids in whole if ids[: len(context)] == context]


def left_pad(prompts: Sequence[Sequence[int]], pad_id: int) -> tuple[list[list[int]], list[list[int]]]:
    """Token ids and attention mask of a left-padded batch, each [B, T] as lists."""
    width = max(map(len, prompts))
    ids = [[pad_id] * (width - len(prompt)) + list(prompt) for prompt in prompts]
    mask = [[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    return ids, mask
