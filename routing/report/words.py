"""Evaluations in words: the rows of their tables, paired tests as sentences, and the table on the terminal."""

from __future__ import annotations

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

COLUMNS = (
    "method",
    "accuracy",
    "95 % interval",
    "− base",
    "at least",
    "gained",
    "lost",
    "p",
    "layers /input",
    "rerouted",
    "GFLOPs /input",
    "seconds",
)
NONE = "–"
LEVEL = 0.05
NOTE = (
    "− base: difference in accuracy; at least: its one-sided 95 % lower bound; gained, lost: answers, against the base "
    "on the same questions; p: exact McNemar test. rerouted: inputs whose route is not every layer once. GFLOPs: an "
    "estimate. seconds: measured inside the model for the whole task, all processes together."
)


def signed(difference: float) -> str:
    return f"{difference:+.3f}".replace("-", "−")


def budget_words(budget) -> str:
    """A budget as tables tell it."""
    return "not set" if budget == "free" else f"{budget:.0%} fewer"


def p_value(p: float) -> str:
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def interval(summary: dict) -> str:
    low, high = summary["ci95"]
    return f"{low:.3f} – {high:.3f}"


def rows(result: dict) -> list[list[str]]:
    """Cells under COLUMNS: base, where it was evaluated, routed model, controls."""
    found = []
    if result["base"]:
        found.append(_row("base", result["base"], None, None))
    bound = result.get("difference_lower_bound")  # Not in results of earlier versions.
    found.append(_row("routed", result["routed"], result["paired"], bound, f"{result['rerouted']:.1%}"))
    for control in result["controls"]:
        bound = control.get("difference_lower_bound")
        found.append(_row(control["name"], control, control["paired_with_base"], bound))
    return found


def _row(name: str, summary: dict, paired: dict | None, bound: float | None, rerouted: str = NONE) -> list[str]:
    against = [NONE] * 5
    if paired:
        least = NONE if bound is None else signed(bound)
        counts = [str(paired["gained"]), str(paired["lost"])]
        against = [signed(paired["difference"]), least, *counts, p_value(paired["p"])]
    measured = [f"{summary['layers']:.2f}", rerouted, f"{summary['gflops']:.2f}", f"{summary['seconds']:.1f}"]
    return [name, f"{summary['accuracy']:.3f}", interval(summary), *against, *measured]


def comparisons(result: dict) -> list[tuple[str, dict]]:
    """What the routed model was paired with, and the paired test as routed against it."""
    found = [("base", result["paired"])] if result["paired"] else []
    for control in result["controls"]:
        other = control["paired_with_routed"]  # the control against the routed model
        turned = {"difference": -other["difference"], "gained": other["lost"], "lost": other["gained"], "p": other["p"]}
        found.append((control["name"], turned))
    return found


def verdict(paired: dict) -> str:
    """What a paired test says of the first model, in three words."""
    if paired["p"] >= LEVEL:
        return "no measurable difference"
    return f"measurably {'more' if paired['difference'] > 0 else 'less'} accurate"


def sentence(other: str, paired: dict) -> str:
    """A paired test of the routed model in words."""
    return (
        f"routed against {other}: {signed(paired['difference'])}, gained {paired['gained']} and lost "
        f"{paired['lost']} answers, p {_relation(paired['p'])}: {verdict(paired)}"
    )


def _relation(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"= {p:.3f}"


def static_sentence(result: dict) -> str | None:
    """The routed model beside static paths at equal mean layers, in words; None where that was not measured."""
    found = result.get("static_at_equal_layers")
    if not found:
        return None
    return (
        f"routed against static paths at equal mean layers ({found['layers']:.2f}, two of them mixed by a coin): "
        f"{signed(found['difference'])}, at least {signed(found['lower_bound'])} with 95 % confidence, one-sided p "
        f"{_relation(found['p'])}"
    )


def shares(result: dict) -> str:
    """How often layers were skipped and repeated, in words."""
    share = result["route_share"]
    return f"layers skipped {share['skip']:.1%}, run once {share['run']:.1%}, repeated {share['repeat']:.1%}"


def questions(result: dict) -> str:
    """How many questions were asked in which form, in words."""
    inputs = result["routed"]["inputs"]
    counts = [f"{n} {what}{'' if n == 1 else 's'}" for n, what in ((result["n"], "question"), (inputs, "input"))]
    first = " from the start of the task" if result["limit"] is not None else ""
    shots = "the task's own number of" if result["num_fewshot"] is None else str(result["num_fewshot"])
    chat = "with" if result["apply_chat_template"] else "without"
    return f"{counts[0]}{first}, {counts[1]}; {shots} solved examples, {chat} chat template"


def print_table(results: list[dict], console: Console | None = None) -> None:
    """One row for each task and method, fit for 120 columns; below it what the paired tests say."""
    look = {"box": box.SIMPLE_HEAD, "padding": (0, 1, 0, 0), "show_edge": False, "pad_edge": False}
    table = Table(caption=escape(NOTE), caption_justify="left", **look)
    table.add_column("task, n\n  method", overflow="fold", vertical="bottom")
    for column in COLUMNS[1:]:
        table.add_column(column.replace(" /", "\n/"), justify="right", no_wrap=True, vertical="bottom")
    for result in results:
        table.add_row(f"[bold]{escape(result['task'])}, n {result['n']}[/]")
        for name, *cells in rows(result):
            table.add_row(f"  {escape(name)}", *cells)
        table.add_section()
    console = console or Console(width=120)
    console.print(table)
    for result in results:
        console.print(escape(f"{result['task']}: {shares(result)}"), highlight=False)
        for other, paired in comparisons(result):
            console.print(escape(f"  {sentence(other, paired)}"), highlight=False)
        if said := static_sentence(result):
            console.print(escape(f"  {said}"), highlight=False)
