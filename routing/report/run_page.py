"""Runs of training end to end as report.csv, pictures, and one HTML page that holds them all."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from functools import partial
from html import escape
from pathlib import Path

from routing.common.files import write_text
from routing.common.tables import csv_text
from routing.report.groups import Group, Point, control_points, own_point, unequal
from routing.report.page import drawn, facts, page, picture, table
from routing.report.run_plots import (
    LOOKS,
    plot_categories,
    plot_components,
    plot_final_losses,
    plot_layer_skips,
    plot_pareto,
    plot_quality,
    plot_skip_rates,
    plot_speed,
    plot_temperature,
    plot_validation,
    skips_layers,
)
from routing.report.runs import Run
from routing.report.words import NONE, signed

CSV_COLUMNS = (
    "group", "objective", "router", "target_skip", "layer_penalty", "method", "seeds", "layers", "skip_ratio", "loss",
    "loss_low", "loss_high", "interval_over", "perplexity", "difference", "difference_low", "difference_high",
    "speedup",
)  # fmt: skip
TABLE = ("group", "seeds", "layers", "skip ratio", "loss", "95 % interval", "perplexity", "speed-up")
CONTROL_TABLE = ("group, method", "layers", "loss", "95 % interval", "− routed", "its interval", "speed-up")
NOTE = (
    "Layers: executed a token, padding not counted. Skip ratio: share of the layers behind those that always run. "
    "Loss: nats a token, on test text for runs with controls.csv, else in the last validation. 95 % interval of "
    "the mean loss: over seeds (Student's t) where a group has several, else over rows of text. Perplexity: exp of the "
    "loss. Speed-up: measured tokens a second, those of the same weights at full depth = 1."
)
CONTROL_NOTE = (
    "Controls run the same trained weights otherwise: at full depth, with the same layers left out for all text "
    "(static), with random ones by row (random layers) or by token (random tokens); the base is untrained. − routed: "
    "loss less that of the routed model on the same rows; above 0 the router is better."
)
CORRELATIONS = ("layers against", "Pearson r", "95 % interval", "n")
CORRELATION_NOTE = "Intervals of passages by Fisher's z, that of token rarity by resampling passages."


def write_report(groups: Sequence[Group], output: Path) -> list[str]:
    """Write report.csv, a PNG for each picture and report.html.

    Returns:
        what makes comparisons unfair, as sentences; the page tells them too.
    """
    output.mkdir(parents=True, exist_ok=True)
    own = [own_point(group) for group in groups]
    points = [point for first in own for point in (first, *control_points(first.group))]
    write_text(output / "report.csv", csv_text(CSV_COLUMNS, map(csv_row, points)))
    notes = unequal(groups)
    runs = [run for group in groups for run in group.runs]
    sections = [_results(own, notes)]
    if len(points) > len(own):
        rows = [_control_cells(point) for point in points]
        sections.append(section("Controls", f"<p>{escape(CONTROL_NOTE)}</p>\n{table(CONTROL_TABLE, rows)}"))
    sections.append(section("Pictures", pictures(_draws(groups, own, points), output)))
    sections += [_analysis(run, output) for run in runs if run.analysis]
    title = f"{len(runs)} run{'s' if len(runs) > 1 else ''} of training end to end"
    write_text(output / "report.html", page(title, "\n".join([facts(_about(runs)), *sections])))
    return notes


def csv_row(point: Point) -> list:
    """Cells under CSV_COLUMNS of a group and a way to run its weights; None for what is unknown."""
    known = point.group.arguments
    return [
        point.group.name, *(known[name] for name in CSV_COLUMNS[1:5]), point.method, point.runs, point.layers,
        point.skip_ratio, point.loss, *(point.interval or [None] * 2), point.over, math.exp(point.loss),
        point.difference, *(point.difference_interval or [None] * 2), point.speedup,
    ]  # fmt: skip


def _about(runs: Sequence[Run]) -> dict[str, str]:
    """What was trained on what."""
    found = {"runs": ", ".join(run.name for run in runs)}
    for title, name in (("base model", "model_id"), ("corpus", "corpus"), ("tokens a row", "sequence_length")):
        values = dict.fromkeys(str(run.arguments[name]) for run in runs if name in run.arguments)
        if values:
            found[title] = ", ".join(values)
    return found


def section(title: str, body: str) -> str:
    return f"<section>\n<h2>{escape(title)}</h2>\n{body}\n</section>"


def _number(value: float | None, digits: int) -> str:
    return NONE if value is None else f"{value:.{digits}f}"


def _interval(ends: list[float] | None) -> str:
    return f"{ends[0]:.4f} – {ends[1]:.4f}".replace("-", "−") if ends else NONE


def _results(points: Sequence[Point], notes: list[str]) -> str:
    rows = [
        [
            point.group.name, str(point.runs), _number(point.layers, 2), f"{point.skip_ratio:.1%}",
            _number(point.loss, 4), _interval(point.interval) + (f" ({point.over})" if point.over else ""),
            _number(math.exp(point.loss), 2), _number(point.speedup, 2),
        ]
        for point in points
    ]  # fmt: skip
    warned = "".join(f"<li>{escape(note)}</li>\n" for note in notes)
    listed = f"<ul>\n{warned}</ul>\n" if notes else ""
    return section("Groups", f"<p>{escape(NOTE)}</p>\n{listed}{table(TABLE, rows)}")


def _control_cells(point: Point) -> list[str]:
    difference = NONE if point.difference is None else signed(point.difference)
    return [
        f"{point.group.name}: {LOOKS[point.method][0]}", _number(point.layers, 2), _number(point.loss, 4),
        _interval(point.interval), difference, _interval(point.difference_interval), _number(point.speedup, 2),
    ]  # fmt: skip


def _draws(groups: Sequence[Group], own: Sequence[Point], points: Sequence[Point]) -> dict[str, tuple[str, Callable]]:
    """Pictures by file name, with title and function (file, title); those that the runs have something for."""
    found = {
        "validation_loss": ("Validation loss", partial(plot_validation, groups)),
        "final_loss": ("Final loss", partial(plot_final_losses, own)),
        "loss_components": ("Parts of the training loss", partial(plot_components, groups)),
        "pareto": ("Loss against executed layers", partial(plot_pareto, points)),
        "quality_layers": ("Perplexity against executed layers, single runs", partial(plot_quality, groups)),
    }
    if any(group.arguments["objective"] == "gumbel" for group in groups):
        found["temperature"] = ("Temperature against executed layers", partial(plot_temperature, groups))
    if any(point.speedup is not None and point.method != "full" for point in points):
        found["speed"] = ("Measured speed", partial(plot_speed, points))
    if any(map(skips_layers, groups)):
        found["layer_skips"] = ("Skipped tokens by layer", partial(plot_layer_skips, groups))
    return found


def pictures(draws: dict[str, tuple[str, Callable]], output: Path) -> str:
    """Draw pictures into files, and as HTML."""
    shown = []
    for name, (title, draw) in draws.items():
        png = drawn(draw, title)
        (output / f"{name}.png").write_bytes(png)
        shown.append(picture(title, png))
    return '<div class="column">\n' + "\n".join(shown) + "\n</div>"


def _analysis(run: Run, output: Path) -> str:
    """What the router of one run spends layers on."""
    found = run.analysis
    rows = [
        [
            name.replace("_", " "),
            NONE if value["r"] is None else signed(value["r"]),
            f"{signed(value['ci95'][0])} – {signed(value['ci95'][1])}" if value["ci95"] else NONE,
            f"{value['n']:,}",
        ]
        for name, value in found["correlations"].items()
    ]
    safe = re.sub(r"[^\w.=-]", "_", run.name)
    draws = {
        f"categories_{safe}": ("Layers by kind of token", partial(plot_categories, found)),
        f"skip_rates_{safe}": ("Skipped tokens by layer", partial(plot_skip_rates, found)),
    }
    body = (
        f"<p>{found['tokens']:,} tokens, {found['mean_layers']:.2f} layers a token. {escape(CORRELATION_NOTE)}</p>\n"
        f"{table(CORRELATIONS, rows)}\n{pictures(draws, output)}"
    )
    return section(f"Router of {run.name}", body)
