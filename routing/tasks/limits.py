"""Limits of new tokens that follow the data: the longest right answer, by the model's own tokenizer, must fit.

An answer's limit is one of its data set, never of the question: it must tell nothing of the right answer.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from routing.common.errors import UserError
from routing.common.user_files import records
from routing.tasks import HUB, OFFLINE, expand_names, iterate, name_of_file
from routing.tasks.examples import SPLITS, Example
from routing.tasks.local import WANTED, local_examples
from routing.tasks.prompts import AS_PUBLISHED, expected_answers, max_new_tokens, scoring_of

# A limit that is exact for the longest answer would leave no token by which its end shows.
END = 1
FOLLOWING = ("number", "exact", "boxed", "solution")  # checkers whose answers say how long an answer may be


def answer_tokens(example: Example, tokenizer, chat: bool) -> int:
    """Tokens of the shortest text that a right answer is expected to be; 0 where none is known."""
    right = expected_answers(example, chat)
    if example.checker == "letter":
        right = [text for text in right if text.endswith("ABCDEFGHIJKLMNOPQRSTUVWXYZ"[example.gold])]
    if example.checker in ("exact", "solution"):
        right = [example.answer, *example.accepted]
    # With the space that is before it in most texts, so that the chat form has no limit of its own.
    return min((len(tokenizer.encode(f" {text}", add_special_tokens=False)) for text in right), default=0)


def _whole(name: str) -> Iterator[Example]:
    """All questions of a data set, whatever the split; none of the hub's, whose limits are fixed."""
    if name in OFFLINE:
        for split in SPLITS:
            yield from iterate(name, split)
    elif name not in HUB:
        yield from local_examples(Path(name), name_of_file(Path(name)))


def follows(example: Example) -> bool:
    return example.checker in FOLLOWING and not example.dataset.startswith(AS_PUBLISHED)


def limits_of(names: str, tokenizer) -> dict[str, int]:
    """New tokens of an answer by data set, where its longest right answer needs more than the usual.

    Args:
        names: comma-separated data sets.
    """
    found: dict[str, int] = {}
    for name in expand_names(names):
        for example in _whole(name):
            if not follows(example):
                if name in OFFLINE:
                    break  # Its questions are all of one kind.
                continue
            need = answer_tokens(example, tokenizer, chat=False) + END
            if need > max(max_new_tokens(example, chat=False), found.get(example.dataset, 0)):
                found[example.dataset] = need
    return found


def misfits(
    examples: Iterable[Example], scoring: str, tokenizer, chat: bool, limit_of
) -> dict[str, list[tuple[Example, int, int]]]:
    """Questions whose right answer the limit of new tokens cuts off, by data set: (question, its tokens, the limit).

    Args:
        scoring: as asked for.
        limit_of: of a data set, None for the usual.
    """
    found: dict[str, list[tuple[Example, int, int]]] = {}
    for example in examples:
        if scoring_of(example, scoring) != "generate":
            continue
        limit = limit_of(example.dataset) or max_new_tokens(example, chat)
        if (need := answer_tokens(example, tokenizer, chat)) > limit:
            found.setdefault(example.dataset, []).append((example, need, limit))
    return found


def line_of(example: Example, names: str) -> str:
    """Where a question stands: file and line of the user's own, else its id."""
    for name in expand_names(names):
        if name in HUB or name in OFFLINE or name_of_file(Path(name)) != example.dataset:
            continue
        for place, row in records(Path(name), WANTED):
            if row["question"] == example.question:
                return place
    return example.id


def check_limits(examples: Iterable[Example], names: str, scoring: str, tokenizer, chat: bool, limit_of) -> list[str]:
    """What to warn of.

    Raises:
        UserError: if no right answer of a data set can fit.
    """
    counts: dict[str, int] = {}

    def counted() -> Iterator[Example]:
        for example in examples:
            counts[example.dataset] = counts.get(example.dataset, 0) + 1
            yield example

    warnings = []
    for dataset, cut in misfits(counted(), scoring, tokenizer, chat, limit_of).items():
        example, need, limit = cut[0]
        longest = max(tokens for _, tokens, _ in cut)
        told = (
            f"of {counts[dataset]} questions of {dataset}, {len(cut)} have a right answer of more than {limit} new "
            f"tokens, the limit (first {line_of(example, names)}, {need} tokens; the longest has {longest})"
        )
        if len(cut) == counts[dataset]:
            raise UserError(f"{told}, so none can be answered rightly; give --max_new_tokens {longest + END}.")
        warnings.append(f"warning: {told}; they will count as wrong. --max_new_tokens {longest + END} gives them room")
    return warnings
