"""What could routing gain? Of a dense table of labels, before any router is trained.

    python -m routing headroom data/menu --output runs/headroom
    python -m routing headroom data/menu --again data/menu-other-words

LABELS are folders of `data_generation.py --search menu`, of one data set or many, all of one menu. --again takes the
same questions in other words, made by the same command with --wording 1 and another --output_dir; then what a path
does to a question is parted from luck. Prints tables and one sentence: route, or take which static path. Writes
headroom.json, headroom.png and headroom_datasets.png.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

from rich.console import Console

from routing.common.errors import raise_all, run_command
from routing.common.files import unwritable, write_json
from routing.common.parser import Parser
from routing.common.run_info import made_with
from routing.common.tables import print_table
from routing.evaluation.headroom import COSTS, describe, measure
from routing.labels.reading import label_hashes
from routing.labels.table import read_table
from routing.report.headroom_plots import plot_datasets, plot_frontier


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(prog="dlr headroom", description=__doc__)
    parser.add_argument("labels", metavar="LABELS", type=Path, nargs="+", help="label folders of a menu")
    parser.add_argument("--again", type=Path, nargs="+", default=[], help="label folders, made with --wording 1")
    parser.add_argument(
        "--costs", default=",".join(f"{cost:g}" for cost in COSTS), help="reward a layer, with commas between"
    )
    parser.add_argument("--folds", type=int, default=10, help="parts for cross-fitting, 2 or more")
    parser.add_argument("--max_loss", type=float, default=0.02, help="reward that a static path may lose, 0 to 1")
    parser.add_argument("--seed", type=int, default=0, help="of the bootstrap")
    parser.add_argument("--output", type=Path, help="folder for JSON and pictures, default the first of LABELS")
    arguments = parser.parse_args(argv)
    problems = []
    try:
        arguments.costs = sorted({float(word) for word in arguments.costs.split(",")})
        if not all(0 <= cost < math.inf for cost in arguments.costs):
            problems.append(f"--costs {arguments.costs} must be at least 0")
    except ValueError:
        problems.append(f"--costs {arguments.costs!r} must be numbers with commas between, such as 0,0.005,0.01")
    if arguments.folds < 2:
        problems.append(f"--folds {arguments.folds} must be at least 2")
    if not 0 <= arguments.max_loss < 1:
        problems.append(f"--max_loss {arguments.max_loss} must be at least 0 and below 1")
    if arguments.seed < 0:
        problems.append(f"--seed {arguments.seed} must be at least 0")
    raise_all(problems + unwritable("--output", arguments.output or arguments.labels[0]))
    return arguments


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


def main(argv: list[str] | None = None) -> None:
    arguments = parse_arguments(argv)
    table = read_table(arguments.labels)
    again = read_table(arguments.again) if arguments.again else None
    report = measure(table, again, arguments.costs, arguments.folds, arguments.max_loss, arguments.seed)
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


if __name__ == "__main__":
    run_command(main)
