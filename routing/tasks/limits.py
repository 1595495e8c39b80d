"""Limits of new tokens that follow the data: the longest right answer, by the model's own tokenizer, must fit.

An answer's limit is one of its data set, never of the question: it must tell nothing of the right answer.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice, takewhile
from pathlib import Path

from routing.common.errors import UserError
from routing.common.user_files import records
from routing.tasks import HUB, OFFLINE, expand_names, iterate, name_of_file
from routing.tasks.examples import SPLITS, Example
from routing.tasks.local import WANTED, local_examples
from routing.tasks.prompts import AS_PUBLISHED, expected_answers, max_new_tokens, scoring_of

# A limit that is exact for the longest answer would leave no token by which its end shows. A number needs two: "146,"
# may become "146,000", and "146, " may not.
END = 2
TOGETHER = 1024  # questions whose answers are tokenized at a time
FOLLOWING = ("number", "exact", "boxed", "solution")  # checkers whose answers say how long an answer may be


def _right(example: Example, chat: bool) -> list[str]:
    """Texts that a right answer is expected to be; none where none is known."""
    right = expected_answers(example, chat)
    if example.checker == "letter":
        right = [text for text in right if text.endswith("ABCDEFGHIJKLMNOPQRSTUVWXYZ"[example.gold])]
    if example.checker in ("exact", "solution"):
        right = [example.answer, *example.accepted]
    # With the space that is before it in most texts, so that the chat form has no limit of its own.
    return [f" {text}" for text in right]


def answer_tokens(examples: Iterable[Example], tokenizer, chat: bool) -> Iterator[tuple[Example, int]]:
    """Each question with the tokens of the shortest text that is a right answer to it; 0 where none is known."""
    examples = iter(examples)
    while part := list(islice(examples, TOGETHER)):
        texts = [_right(example, chat) for example in part]
        flat = [text for own in texts for text in own]
        lengths = map(len, tokenizer(flat, add_special_tokens=False).input_ids if flat else ())
        for example, own in zip(part, texts, strict=True):
            yield example, min((next(lengths) for _ in own), default=0)


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
        own = name not in OFFLINE and name not in HUB
        stat = Path(name).stat() if own else None
        found |= _limits(name, stat and (stat.st_size, stat.st_mtime_ns), tokenizer)
    return found


@lru_cache(maxsize=64)
def _limits(name: str, stamp: tuple[int, int] | None, tokenizer) -> dict[str, int]:
    """Of one data set; `stamp` tells that a file is another one now."""
    found: dict[str, int] = {}
    # Those that come with the toolkit hold questions of one kind each: the first one tells.
    stopping = takewhile if name in OFFLINE else filter
    for example, need in answer_tokens(stopping(follows, _whole(name)), tokenizer, chat=False):
        if need + END > max(max_new_tokens(example, chat=False), found.get(example.dataset, 0)):
            found[example.dataset] = need + END
    return found


@dataclass
class CutOff:
    """Questions of a data set whose right answer the limit of new tokens cuts off.

    Attributes:
        first, need, limit: the first one, the tokens of its answer, and the limit.
        count: how many there are.
        longest: most tokens of such an answer.
    """

    first: Example
    need: int
    limit: int
    count: int = 0
    longest: int = 0


def misfits(examples: Iterable[Example], scoring: str, tokenizer, chat: bool, limit_of) -> dict[str, CutOff]:
    """What the limits of new tokens cut off, by data set.

    Args:
        scoring: as asked for.
        limit_of: of a data set, None for the usual.
    """
    found: dict[str, CutOff] = {}
    generating = (example for example in examples if scoring_of(example, scoring) == "generate")
    for example, need in answer_tokens(generating, tokenizer, chat):
        limit = limit_of(example.dataset) or max_new_tokens(example, chat)
        if need > limit:
            own = found.setdefault(example.dataset, CutOff(example, need, limit))
            own.count, own.longest = own.count + 1, max(own.longest, need)
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
        told = (
            f"of {counts[dataset]} questions of {dataset}, {cut.count} have a right answer of more than {cut.limit} "
            f"new tokens, the limit (first {line_of(cut.first, names)}, {cut.need} tokens; the longest has "
            f"{cut.longest})"
        )
        enough = f"--max_new_tokens {cut.longest + END}"
        if cut.count == counts[dataset]:
            raise UserError(f"{told}, so none can be answered rightly; give {enough}.")
        warnings.append(f"warning: {told}; they will count as wrong. {enough} gives them room")
    return warnings
