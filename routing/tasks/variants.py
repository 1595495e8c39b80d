"""The same question in another form, to tell a path that is right for a reason from a lucky one."""

from __future__ import annotations

import re
from dataclasses import replace

from routing.tasks import function_calls, procedural
from routing.tasks.examples import Example
from routing.tasks.offline import ARITHMETIC_SHOTS

OTHER_SHOTS = "5 * 4 = 20\n"
OTHER_CALLS = {
    function_calls.SHOTS: function_calls.OTHER_SHOTS,
    function_calls.SHORT_SHOTS: function_calls.OTHER_SHORT_SHOTS,
}


def permuted(example: Example) -> Example:
    """The choices rotated by one place: each has another letter, and the answer stays what it is."""
    choices = example.choices[-1:] + example.choices[:-1]
    return replace(example, choices=choices, gold=(example.gold + 1) % len(choices))


def commuted(question: str) -> str:
    """a + b = as b + a =, and a * b = likewise; other questions as they are."""
    return re.sub(r"^([\d.]+) ([+*]) ([\d.]+) =$", r"\3 \2 \1 =", question)


def rephrased(example: Example) -> Example:
    """The question in other words: another template or other solved examples, and a + b as b + a."""
    if example.shots in OTHER_CALLS:
        return replace(example, shots=OTHER_CALLS[example.shots], form=1)
    question = commuted(example.question)
    if example.dataset == "procedural" and example.shots:  # a file of one's own may have that name
        return replace(example, question=question, shots=procedural.OTHER_SHOTS[example.shots])
    if example.shots != ARITHMETIC_SHOTS:
        return replace(example, form=1)
    # The solved example must not tell the answer, in either order.
    told = any(OTHER_SHOTS.startswith(form) for form in (question, example.question))
    return replace(example, question=question, shots=ARITHMETIC_SHOTS if told else OTHER_SHOTS)
