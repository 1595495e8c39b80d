"""Prompts: the one place that writes and tokenizes them, for search, training and evaluation alike."""

from __future__ import annotations

import string
from collections.abc import Sequence

from routing.tasks.examples import Example

SCORINGS = ("auto", "generate", "loglikelihood", "loglikelihood_norm", "loglikelihood_bytes")
LETTER_REQUEST = 'Reply with the letter of the right choice only, as in "Answer: A".'
BOXED_REQUEST = r"Reply with the final result only, inside \boxed{}."
# New tokens of greedy decoding, from Dr.LLM: 10 for choices with an instruct model, 2 with a base model, 15 for math.
MAX_NEW_TOKENS = {"boxed": 15, "number": 4, "exact": 16, "regex": 16}


def scoring_of(example: Example, scoring: str) -> str:
    """The scoring of an example; auto means loglikelihood where there are choices, else generate."""
    if scoring == "auto":
        return "loglikelihood" if example.choices else "generate"
    return scoring


def max_new_tokens(example: Example, chat: bool) -> int:
    """How many tokens an answer may have."""
    if example.checker == "letter":
        return 10 if chat else 2
    return MAX_NEW_TOKENS[example.checker]


def prompt_text(example: Example, scoring: str) -> str:
    """The prompt before any chat template; the choices are listed only where a letter is asked for."""
    if example.shots:
        return example.shots + example.question
    if example.choices and scoring == "generate":
        listed = "\n".join(f"{letter}. {text}" for letter, text in zip(string.ascii_uppercase, example.choices))
        return f"Question: {example.question}\n{listed}\n{LETTER_REQUEST}\nAnswer:"
    if example.checker == "boxed":
        return f"Question: {example.question}\n{BOXED_REQUEST}\nAnswer:"
    return f"Question: {example.question}\nAnswer:"


def build_prompt(example: Example, scoring: str, tokenizer, chat: bool) -> str:
    """The whole prompt as text, chat template applied on request."""
    text = prompt_text(example, scoring)
    if not chat:
        return text
    message = [{"role": "user", "content": text}]
    return tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True)


def encode(tokenizer, text: str) -> list[int]:
    """Token ids of a prompt as lm-eval makes them: no second BOS where the text brings its own."""
    if tokenizer.bos_token and text.startswith(tokenizer.bos_token):
        return tokenizer.encode(text, add_special_tokens=False)
    return tokenizer.encode(text)


def encode_choice(tokenizer, prompt: str, choice: str) -> tuple[list[int], list[int]]:
    """Ids of the prompt and of the choice behind it, split as lm-eval splits a request.

    Trailing spaces of the prompt go to the choice, which is otherwise joined by one space.
    """
    stripped = prompt.rstrip()
    continuation = (prompt[len(stripped) :] or " ") + choice
    context = encode(tokenizer, stripped)
    return context, encode(tokenizer, stripped + continuation)[len(context) :]


def left_pad(prompts: Sequence[Sequence[int]], pad_id: int) -> tuple[list[list[int]], list[list[int]]]:
    """Token ids and attention mask of a left-padded batch, each [B, T] as lists."""
    width = max(map(len, prompts))
    ids = [[pad_id] * (width - len(prompt)) + list(prompt) for prompt in prompts]
    mask = [[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    return ids, mask
