"""A look for the terminal: routes as coloured signs, what paths are worth, both answers."""

from __future__ import annotations

from rich.console import Console
from rich.text import Text

from routing.evaluation.look import Look
from routing.report.look_words import MARKS, columns_of, decides, marks_in, name_of, number, shown, summary, verdict

NAME = 16  # characters of a row's name


def print_look(look: Look, console: Console) -> None:
    """Print a look; lines are as long as a model is deep."""
    console.print(look_text(look), soft_wrap=True)


def look_text(look: Look) -> Text:
    text = Text(f"{look.question.title}\n", style="bold")
    text.append(f"{look.question.prompt}\n\n", style="not bold")
    text.append(f"router: {decides(look)}\n\n", style="not bold")
    text.append_text(_head(f"{columns_of(look)}s", look.depth, "layers" if look.full else ""))
    part = None
    for row in look.rows:
        if len(look.rows) > 1 and row.part != part:
            part = row.part
            text.append(f"{part}:\n", style="not bold")
        count = number(row.layers) if look.full else ""
        text.append_text(_line(row.name if row.name == "prompt" else shown(row.name), row.marks, count))
    if look.paths:
        text.append("\n")
        text.append_text(_head("paths", look.depth, "layers  reward   worth"))
        for at, path in enumerate(look.paths):
            numbers = f"{number(path.layers):>6}  {path.reward:6.3f}  {path.worth:6.3f}"
            taken = "  < taken" if path.taken else ""
            text.append_text(_line(f"path {at}", path.marks, numbers + taken, bold=path.taken))
        text.append("worth: the estimated reward, less cost and caution\n", style="not bold")
    text.append_text(_key(look))
    for answer in filter(None, (look.full, look.routed)):
        seconds = "" if answer.seconds is None else f", {answer.seconds:.3f} s"
        right = verdict(answer) and f", {verdict(answer)}"
        layers = f"{number(answer.layers)} {columns_of(look)}s"
        text.append(f"\n{name_of(answer)} ({layers}{seconds}{right}):\n", style="bold")
        text.append(f"{answer.text}\n", style="not bold")
    if look.question.request is not None:
        text.append(f"\nRight answer: {look.question.request.example.answer}\n", style="not bold")
    return text.append(f"\n{summary(look)}\n", style="not bold")


def _head(name: str, depth: int, right: str) -> Text:
    """Two lines with the numbers of the columns, tens above ones."""
    tens = "".join(str(at // 10) if at and at % 10 == 0 else " " for at in range(depth))
    ones = "".join(str(at % 10) for at in range(depth))
    lines = f"{'':{NAME}} {tens}\n" if depth > 10 else ""
    return Text(f"{lines}{name:{NAME}} {ones}  {right}\n", style="not bold dim")


def _line(name: str, marks: tuple[str, ...], right: str, bold: bool = False) -> Text:
    name = name if len(name) <= NAME else name[: NAME - 1] + "…"
    line = Text(f"{name:{NAME}} ", style="bold" if bold else "not bold")
    for mark in marks:
        line.append(MARKS[mark].sign, style=_style(mark))
    return line.append(f"  {right}\n")


def _style(mark: str) -> str:
    red, green, blue = MARKS[mark].color
    return f"black on rgb({red},{green},{blue})"


def _key(look: Look) -> Text:
    key = Text("\n", style="not bold")
    for mark in marks_in(look):
        key.append(f" {MARKS[mark].sign} ", style=_style(mark)).append(f" {MARKS[mark].words}   ")
    return key.append("\n")
