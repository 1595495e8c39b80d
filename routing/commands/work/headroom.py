"""What `dlr headroom` does: tables, pictures and one sentence."""

from __future__ import annotations

import argparse

from rich.console import Console

from routing.common.files import write_json
from routing.common.run_info import made_with
from routing.common.tables import print_table
from routing.evaluation.headroom import COSTS, describe, measure
from routing.labels.reading import label_hashes
from routing.labels.table import Table
from routing.report.headroom_plots import plot_datasets, plot_frontier


def print_report(report: dict) -> None:
    console = Console(width=120)
    returns = report["variance"].get("returns under other words")
    shares = [(name, f"{share:.1%}") for name, share in report["variance"].items() if share is not returns]
    print_table("shares of the variance of rewards", ("", "share"), shares, left=("",))
    if returns:
        low, high = returns["ci95"]
        console.print(
            f"Under other words path × question returns with a correlation of {returns['of path × question']:.2f} "
            f"({low:.2f} to {high:.2f}), the mean of a question with {returns['of question']:.2f}; "
            f"{report['repeated_questions']} questions.",
            highlight=False,
        )
    paths = [
        (
            describe(tuple(path["route"])),
            f"{path['reward']:.3f}",
            *(f"{means[k]:.3f}" for means in report["by_dataset"].values()),
        )
        for k, path in enumerate(report["paths"])
    ]
    print_table("static paths", ("path", "reward", *report["by_dataset"]), paths, left=("path",))
    gains = []
    for row in report["gains"] + report["other_wording"]:
        lower = row["gain_lower_bound"]
        gain, difference = (
            "{:+.3f} ({:+.3f} to {:+.3f})".format(row[name], *row[f"{name}_ci95"]) for name in ("gain", "difference")
        )
        gains.append((
            row["policy"], f"{row['cost']:g}", f"{row['layers']:.2f}", f"{row['reward']:.3f}", f"{row['static']:.3f}",
            gain, "–" if lower is None else f"{lower:+.3f}", difference,
        ))  # fmt: skip
    columns = ("knows", "cost", "layers", "reward", "static", "gain, 95 %", "at least", "− full path, 95 %")
    title = "chosen for each question, cross-fitted; static: the best static path at equal mean layers"
    print_table(title, columns, gains, left=("knows",))
    console.print(
        "at least: lower bounds of all gains that hold together with 95 % confidence. hindsight, the best path of each "
        f"question picked by its own verdicts: {report['hindsight']:.3f}, which no router can reach.",
        highlight=False,
    )


def run(arguments: argparse.Namespace, table: Table, again: Table | None) -> None:
    report = measure(table, again, arguments.costs or COSTS, arguments.folds, arguments.max_loss, arguments.seed)
    print_report(report)
    output = arguments.output or arguments.labels[0]
    output.mkdir(parents=True, exist_ok=True)
    made = {
        "labels": label_hashes(arguments.labels + arguments.again),
        "folds": arguments.folds,
        "seed": arguments.seed,
    }
    write_json(output / "headroom.json", report | made | made_with())
    plot_frontier(report, output / "headroom.png")
    plot_datasets(report, output / "headroom_datasets.png")
    print(f"written to {output / 'headroom.json'}, headroom.png and headroom_datasets.png beside it")
    print(report["sentence"])
