"""What a study leaves: study.json, study.csv, study.md, study.html, pictures, and its table on the terminal."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from routing.common.files import write_text
from routing.common.run_info import made_with
from routing.common.tables import csv_text, markdown_table, print_table
from routing.report import study_hypotheses
from routing.report.study_hypotheses import hypothesis_rows, probability
from routing.report.study_overview import overview
from routing.report.study_page import share_used, study_page
from routing.report.study_plots import plot_frontier, plot_run_shares
from routing.report.study_questions import questions_page
from routing.report.words import budget_words, signed
from routing.study.plan import ALL, Plan
from routing.study.results import TEXT, Answers, rows_keys

COLUMNS = (
    "method", "layers left out", "accuracy (95 %)", "− full (95 %)", "p, Holm", "− static (95 %)", "p, Holm ", "layers",
    "time", "GFLOP", "headroom", "training", "added",
)  # fmt: skip


ON_TERMINAL = 9  # columns
QUESTIONS = "questions.html"


def write_study(output: Path, plan: Plan, found: dict, opened: dict | None, answers: Sequence[Answers] = ()) -> None:
    """Write all files of a study from what `routing.study.results.collect` found.

    Args:
        answers: to single questions, for a page of them.
    """
    about = {"plan": plan.values, "plan_sha256": plan.digest, "test_opened": opened} | made_with()
    write_text(output / "study.json", json_text(about | found))
    rows = found["rows"]
    columns = [key for key in rows_keys() if key != "run_shares"]
    lines = ([json.dumps(v) if isinstance(v := row[key], list) else v for key in columns] for row in rows)
    write_text(output / "study.csv", csv_text(columns, lines))
    pictures = []
    for model, task in groups(rows):
        for kind, (what, wanted, _) in PICTURES.items():
            name = f"{kind}-{model}-{task}.png"
            if any(row[wanted] is not None for row in shown(rows, model, task)):
                draw_picture(rows, kind, model, task, output / name)
                pictures.append((name, f"{what}: {model}, {task}"))
    write_text(output / "study.md", markdown(found))
    if answers:
        write_text(output / QUESTIONS, questions_page(answers))
    write_text(output / "study.html", study_page(output, found, pictures, QUESTIONS if answers else ""))
    for model, task in groups(rows):
        own = shown(rows, model, task)
        if task == ALL or len(groups(rows)) == 1 or not any(key == (model, ALL) for key in groups(rows)):
            lines = [cells(row)[:ON_TERMINAL] for row in own]
            print_table(f"{model}, {task}: {own[0]['n']} questions", COLUMNS[:ON_TERMINAL], lines, ("method",), 190)
    if found["hypotheses"]:
        left = study_hypotheses.COLUMNS[:3]
        print_table("hypotheses", study_hypotheses.COLUMNS, hypothesis_rows(found["hypotheses"]), left, 190)
    if found["missing"]:
        print(f"not there yet: {'; '.join(found['missing'])}")
    print(f"written to {output}: study.html, study.md, study.csv, study.json")


def json_text(found: dict) -> str:
    """JSON with a line for each row, of which there are thousands; the rest is indented."""
    rows = ",\n".join(json.dumps(row, ensure_ascii=False) for row in found["rows"])
    rest = {key: value for key, value in found.items() if key != "rows"}
    head = json.dumps(rest, indent=1, ensure_ascii=False).removesuffix("\n}")
    return head + ',\n "rows": [\n' + rows + "\n ]\n}\n"


# kind -> what it shows, what of a row it needs, and what draws it
PICTURES = {
    "frontier": ("Accuracy against measured time", "seconds", plot_frontier),
    "routes": ("Which layers run", "run_shares", plot_run_shares),
}


def draw_picture(rows: Sequence[dict], kind: str, model: str, task: str, path: Path) -> None:
    """One of PICTURES, of all rows of a study."""
    what, wanted, draw = PICTURES[kind]
    own = [row for row in shown(rows, model, task) if row[wanted] is not None]
    draw(own, path, f"{model}, {task}: {what[0].lower()}{what[1:]}")


def groups(rows: Sequence[dict]) -> list[tuple[str, str]]:
    """Models and tasks of accuracy, all tasks together first."""
    found = dict.fromkeys((row["model"], row["task"]) for row in rows if row["accuracy"] is not None)
    return sorted(found, key=lambda key: (key[0], key[1] != ALL))


def shown(rows: Sequence[dict], model: str, task: str) -> list[dict]:
    """Rows of all seeds together."""
    return [row for row in rows if (row["model"], row["task"], row["seed"]) == (model, task, ALL)]


def cells(row: dict) -> list[str]:
    """The cells of a row under COLUMNS."""
    low, high = row["ci95"]
    full, static = row["difference_ci95"], row["static_ci95"]
    is_full = row["method"] == "full"
    none = "–"
    return [
        row["title"],
        budget_words(row["budget"]),
        f"{row['accuracy']:.3f} ({low:.3f} to {high:.3f})",
        none if is_full else f"{signed(row['difference'])} ({signed(full[0])} to {signed(full[1])})",
        probability(row["p_holm"]),
        none if is_full else f"{signed(row['static_difference'])} ({signed(static[0])} to {signed(static[1])})",
        probability(row["static_p_holm"]),
        f"{row['layers']:.2f}",
        none if row["seconds"] is None else f"{row['seconds'] / row['seconds_full']:.3f}",
        f"{row['flops'] / 1e9:.2f}",
        none if row["headroom"] is None else share_used(row["headroom"]),
        f"{row['training_seconds']:.0f} s, {row['training_forwards']} passes, {row['training_labels']} labels",
        none if row["added_parameters"] is None else f"{row['added_parameters'] / 1e6:.2f} M",
    ]


def loss_words(row: dict) -> str:
    low, high = row["loss_ci95"]
    return f"{signed(row['loss_difference'])} ({signed(low)} to {signed(high)})"


def markdown(found: dict) -> str:
    """The tables of a study as Markdown."""
    rows, parts = found["rows"], ["# Study\n"]
    if found["hypotheses"]:
        table = markdown_table(study_hypotheses.COLUMNS, hypothesis_rows(found["hypotheses"]))
        parts.append(f"## Hypotheses\n\n{table}\n")
    for model, task in groups(rows):
        own = shown(rows, model, task)
        parts += [
            f"## {model}, {task}\n\n{own[0]['n']} questions. Difference to the full model (95 %), layers executed:\n",
            f"{overview(own)}\n\nAll columns (docs/study.md tells what they are):\n",
            f"{markdown_table(COLUMNS, map(cells, own))}\n",
        ]
    text = [row for row in rows if row["task"] == TEXT and row["seed"] == ALL]
    if text:
        columns = ("model", "method", "layers left out", "layers", "perplexity", "− full, nats a token (95 %)", "p")
        lines = [
            (row["model"], row["title"], budget_words(row["budget"]), f"{row['layers']:.2f}",
             f"{row['perplexity']:.2f}", loss_words(row), probability(row["p"])) for row in text
        ]  # fmt: skip
        parts.append(f"## Text\n\n{markdown_table(columns, lines)}\n")
    if found["missing"]:
        parts.append(f"## Not there yet\n\n{'; '.join(found['missing'])}.\n")
    return "\n".join(parts)
