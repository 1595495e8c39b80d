"""Runs of train.py --objective lm as report.csv, pictures, and one HTML page that holds them all."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from html import escape
from pathlib import Path
from statistics import median

from routing.common.files import write_text
from routing.common.tables import csv_text
from routing.report.hybrid_plots import plot_bars, plot_curves, plot_shares
from routing.report.hybrid_runs import HybridGroup, HybridRun, Pair, group_hybrid_runs, middle, paired, unequal_runs
from routing.report.page import facts, page, table
from routing.report.run_page import pictures, section
from routing.report.words import NONE

CSV_COLUMNS = (
    "group", "seeds", "parameters", "validation_loss", "validation_low", "validation_high", "test_loss", "test_low",
    "test_high", "test_perplexity", "softmax_share", "share_entropy", "routing_entropy", "balance_loss",
    "tokens_per_second", "validation_tokens_per_second",
)  # fmt: skip
TABLE = (
    "group", "seeds", "parameters", "validation loss", "95 % interval", "test loss", "95 % interval", "test perplexity",
    "softmax", "share entropy", "routing entropy", "balance", "tokens/s, training", "tokens/s, reading",
)  # fmt: skip
NOTE = (
    "Losses: nats a token, of the language model alone, in which the balance loss has no part, at the validation with "
    "the lowest loss, without noise; that checkpoint is then measured on test text. Intervals: 95 %, of the mean over "
    "seeds (Student's t). Softmax: share of tokens that take softmax attention in routed blocks, on validation text. "
    "Share entropy: of these shares, at most 0.693; routing entropy: of a token's probabilities, mean. Balance: its "
    "loss on validation text, 1 at its best, up to 2. Tokens a second: of all processes, the median over "
    "validations and the intervals between them; the machine may have done other work beside."
)
PAIRED_COLUMNS = ("first", "second", "seeds", "difference", "low", "high")
PAIRED_NOTE = (
    "Test loss of the first less that of the second, nats a token, seed by seed; below 0 the first is better. "
    "Interval: 95 %, of the mean over seeds (Student's t); where it holds 0, these runs do not tell which is better."
)


def of_best(name: str) -> Callable[[HybridRun], float | None]:
    """A column of metrics.csv, at the validation that was kept."""
    return lambda run: run.best.get(name)


def speed(name: str) -> Callable[[HybridRun], float | None]:
    """Median of a column of metrics.csv: a single interval may have shared the machine."""

    def value(run: HybridRun) -> float | None:
        known = [row[name] for row in run.metrics if row[name] is not None]
        return median(known) if known else None

    return value


def parameters(run: HybridRun) -> int | None:
    return run.result["parameters"]["total"] if run.result else None


def test_loss(run: HybridRun) -> float | None:
    return run.test_loss


def write_hybrid_report(runs: Sequence[HybridRun], output: Path) -> list[str]:
    """Write report.csv, paired.csv where there is a pair, a PNG for each picture and report.html.

    Returns:
        what makes comparisons unfair, and alarms, as sentences; the page tells them too.
    """
    output.mkdir(parents=True, exist_ok=True)
    groups = group_hybrid_runs(runs)
    rows = [row_of(group) for group in groups]
    write_text(output / "report.csv", csv_text(CSV_COLUMNS, rows))
    pairs = [paired_row(pair) for pair in paired(groups)]
    if pairs:
        write_text(output / "paired.csv", csv_text(PAIRED_COLUMNS, pairs))
    else:
        (output / "paired.csv").unlink(missing_ok=True)  # of a report of other runs
    notes = unequal_runs(groups)
    warned = "".join(f"<li>{escape(note)}</li>\n" for note in notes)
    listed = f"<ul>\n{warned}</ul>\n" if notes else ""
    body = [
        facts(_about(runs)),
        section("Configurations", f"<p>{escape(NOTE)}</p>\n{listed}{table(TABLE, [_cells(row) for row in rows])}"),
        *([section("Paired differences", _paired_table(pairs))] if pairs else []),
        section("Pictures", pictures(_draws(groups), output)),
    ]
    title = f"{len(runs)} hybrid language model{'s' if len(runs) > 1 else ''}"
    write_text(output / "report.html", page(title, "\n".join(body)))
    return notes


def paired_row(pair: Pair) -> list:
    """Cells under PAIRED_COLUMNS."""
    centre, interval = middle(pair.differences)
    return [pair.first, pair.second, len(pair.differences), centre, *(interval or [None] * 2)]


def _paired_table(rows: Sequence[list]) -> str:
    cells = [
        [f"{first} - {second}", str(seeds), f"{centre:+.4f}", NONE if low is None else f"{low:+.4f} – {high:+.4f}"]
        for first, second, seeds, centre, low, high in rows
    ]
    return f"<p>{escape(PAIRED_NOTE)}</p>\n{table(('groups', 'seeds', 'difference', '95 % interval'), cells)}"


def row_of(group: HybridGroup) -> list:
    """Cells under CSV_COLUMNS; None for what is unknown."""

    def mean(name: str) -> float | None:
        return middle(group.values(of_best(name)))[0]

    loss, interval = middle(group.values(of_best("validation_loss")))
    test, test_interval = middle(group.values(test_loss))
    sizes = group.values(parameters)
    return [
        group.name, len(group.runs), sizes[0] if sizes else None, loss, *(interval or [None] * 2), test,
        *(test_interval or [None] * 2), None if test is None else math.exp(test),
        mean("softmax_share"), mean("share_entropy"), mean("routing_entropy"), mean("validation_balance_loss"),
        *(middle(group.values(speed(name)))[0] for name in ("tokens_per_second", "validation_tokens_per_second")),
    ]  # fmt: skip


def _cells(row: list) -> list[str]:
    name, seeds, size, loss, low, high, test, test_low, test_high, perplexity, *routing = row
    share, entropy, uncertain, balance, *speeds = routing

    def number(value: float | None, shape: str) -> str:
        return NONE if value is None else format(value, shape)

    def interval(low: float | None, high: float | None) -> str:
        return NONE if low is None else f"{low:.3f} – {high:.3f}"

    return [
        name, str(seeds), number(size, ","), number(loss, ".4f"), interval(low, high), number(test, ".4f"),
        interval(test_low, test_high), number(perplexity, ".1f"), number(share, ".1%"), number(entropy, ".3f"),
        number(uncertain, ".3f"), number(balance, ".4f"), *(number(value, ",.0f") for value in speeds),
    ]  # fmt: skip


def _about(runs: Sequence[HybridRun]) -> dict[str, str]:
    found = {"runs": ", ".join(run.name for run in runs)}
    names = (("corpus", "corpus"), ("tokens a row", "sequence_length"), ("width", "hidden_size"))
    for title, name in names:
        # A file's fields win over the arguments; results of earlier versions do not record them.
        made = [((run.result or {}).get("model") or run.arguments).get(name, run.arguments[name]) for run in runs]
        found[title] = ", ".join(dict.fromkeys(map(str, made)))
    rates = dict.fromkeys(f"{run.result['learning_rate']:g}" for run in runs if run.result)
    return found | ({"learning rate": ", ".join(rates)} if rates else {})


def _draws(groups: Sequence[HybridGroup]) -> dict[str, tuple[str, Callable]]:
    """Pictures by file name, with title and function (file, title); those that the runs have something for."""

    def curves(column: str, label: str, log: bool = False) -> Callable:
        return partial(plot_curves, groups, column, label, log)

    def bars(value: Callable, label: str, digits: int, whole: bool = False) -> Callable:
        return partial(plot_bars, groups, value, label, digits, whole)

    found = {
        "validation_loss": ("Validation loss", curves("validation_loss", "nats a token, language model alone")),
        "perplexity": ("Validation perplexity", curves("perplexity", "perplexity (logarithmic)", True)),
        "train_loss": ("Training loss", curves("train_loss", "nats a token, language model alone")),
        "final_loss": ("Lowest validation loss", bars(of_best("validation_loss"), "loss, nats a token", 4)),
    }
    if any(group.values(test_loss) for group in groups):
        found["test_loss"] = ("Loss on test text", bars(test_loss, "loss, nats a token", 4))
    if any(run.blocks for group in groups for run in group.runs):
        found["routing_share"] = ("Routing share over training", partial(plot_shares, groups))
    more = {
        "routing_entropy": ("Routing entropy", curves("routing_entropy", "nats a token, at most 0.693")),
        "balance_loss": ("Balance loss in training", curves("balance_loss", "balance loss, 1 at its best, up to 2")),
        "temperature": ("Temperature of the gates", curves("temperature", "tau")),
    }
    for name, drawn in more.items():
        if any(group.curve(name)[0] for group in groups):
            found[name] = drawn
    found["training_speed"] = (
        "Training speed", bars(speed("tokens_per_second"), "tokens a second", 0, True),
    )  # fmt: skip
    found["reading_speed"] = (
        "Speed on validation text", bars(speed("validation_tokens_per_second"), "tokens a second", 0, True),
    )  # fmt: skip
    return found
