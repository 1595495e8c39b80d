"""Words and signs of a look: what a layer did by colour and by sign, and the two answers compared in sentences."""

from __future__ import annotations

from dataclasses import dataclass

from routing.evaluation.knobs import AS_ROUTER_SAYS
from routing.evaluation.look import Answer, Look
from routing.evaluation.look_rows import Row


@dataclass(frozen=True)
class Mark:
    """How a mark is shown.

    Attributes:
        sign: one ASCII character, so that nothing hangs on colours or fonts.
        color: behind it; black text is read on all of them.
        words: what it means.
    """

    sign: str
    color: tuple[int, int, int]
    words: str


# Colours of Okabe and Ito (2008), told apart by colour-blind readers.
MARKS = {
    "skip": Mark("-", (238, 238, 238), "skipped"),
    "adapter": Mark("a", (0, 158, 115), "skipped, an adapter stands in"),
    "run": Mark("1", (86, 180, 233), "run once"),
    "repeat": Mark("2", (230, 159, 0), "run twice"),
    "gdn": Mark("g", (86, 180, 233), "Gated DeltaNet"),
    "softmax": Mark("s", (230, 159, 0), "softmax attention"),
}
SPACE = str.maketrans({"\n": "⏎", "\t": "⇥", " ": "·"})


def marks_in(look: Look) -> list[str]:
    """The marks that occur, in the order of the table."""
    found = {mark for row in (*look.rows, *look.paths) for mark in row.marks}
    return [mark for mark in MARKS if mark in found]


def shown(text: str) -> str:
    """The text of a token with its white space to be seen; … for a part of a character."""
    return text.translate(SPACE) or "…"


def number(value: float) -> str:
    """Layers: whole numbers without digits behind the point."""
    return f"{value:.0f}" if value == int(value) else f"{value:.1f}"


def columns_of(look: Look) -> str:
    """What the columns are."""
    return "block" if look.router == "hybrid" else "layer"


def decides(look: Look) -> str:
    """What decides, for what, and how it is set."""
    for_what = {"input": "once for the prompt", "token": "for each token", "nothing": "nothing: all inputs are alike"}
    own = look.setting is None or look.setting == ("pruned_layers", AS_ROUTER_SAYS)
    setting = "" if own else f"; {look.setting[0]} {look.setting[1]:g}"
    return f"{look.router}, decides {for_what[look.decides_for]}{setting}"


def name_of(answer: Answer) -> str:
    return "Routed" if answer.routed else "Every layer once"


def verdict(answer: Answer) -> str:
    return {None: "", True: "right", False: "wrong"}[answer.right]


def route_words(row: Row) -> str:
    """A route in words, for those who do not look at it."""
    parts = []
    for mark, words in (("skip", "skipped"), ("adapter", "replaced by an adapter"), ("repeat", "run twice")):
        layers = [str(layer) for layer, own in enumerate(row.marks) if own == mark]
        parts += [f"{words}: {', '.join(layers)}"] if layers else []
    text = "; ".join(parts)
    return f"Layers {text}. The others run once." if text else "Every layer runs once."


def mechanism_words(look: Look) -> str:
    """Of a hybrid, the share of tokens that take softmax attention in each block."""
    shares = [sum(row.marks[block] == "softmax" for row in look.rows) / len(look.rows) for block in range(look.depth)]
    told = ", ".join(f"block {block} {share:.0%}" for block, share in enumerate(shares))
    return f"Tokens that take softmax attention: {told}. Each block runs once, so no layers are saved."


def summary(look: Look) -> str:
    """Layers and time beside every layer once, in a sentence made from the numbers."""
    full, routed = look.full, look.routed
    if full is None:
        time = "" if routed.seconds is None else f" It took {_seconds(routed)} for {_timed(look)}."
        return mechanism_words(look) + time
    share = 1 - routed.layers / full.layers
    much = "as many" if share == 0 else f"{abs(share):.0%} {'fewer' if share > 0 else 'more'}"
    a_token = " a token" if look.decides_for == "token" else ""
    text = f"The routed model runs {number(routed.layers)} of {number(full.layers)} layers{a_token} ({much})"
    if full.seconds is not None:
        text += (
            f" and takes {routed.seconds / full.seconds:.2f} of the time: {_seconds(routed)} against {_seconds(full)} "
            f"for {_timed(look)}"
        )
    return f"{text}. {'Both answer the same.' if routed.text == full.text else 'The answers differ.'}"


def _seconds(answer: Answer) -> str:
    return f"{answer.seconds:.3f} s"


def _timed(look: Look) -> str:
    tokens = f"{look.timed_tokens} new token{'s' if look.timed_tokens > 1 else ''}"
    times = f"median of {look.repeats}, in turn" if look.full is not None else f"median of {look.repeats}"
    return f"the prompt and {tokens} ({times}, {look.device})"
