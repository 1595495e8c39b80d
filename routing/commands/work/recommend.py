"""What `dlr recommend` does: the cheapest method whose loss is shown to stay within bounds, and its commands."""

from __future__ import annotations

import argparse

from routing.common.errors import UserError
from routing.study.plan import ALL

WORDS = {"seconds": "measured time", "layers": "layers", "flops": "arithmetic"}
NO_METHOD = ("oracle",)


def candidates(rows: list[dict], model: str, task: str, max_loss: float, by: str) -> list[dict]:
    """Rows that lose at most so much with 95 % confidence and cost less than the full model, the cheapest first."""
    own = [row for row in rows if (row["model"], row["task"], row["seed"]) == (model, task, "all")]
    full = next((row for row in own if row["method"] == "full"), None)
    if full is None:
        return []
    found = [
        row
        for row in own
        if row["method"] not in ("full", *NO_METHOD)
        and row["difference_lower_bound"] >= -max_loss
        and row[by] is not None
        and full[by] is not None
        and row[by] < full[by]
        and row["layers"] < full["layers"]  # Else it is the clock that was lucky.
    ]
    return sorted(found, key=lambda row: (row[by] / full[by], -row["accuracy"]))


def run(study: dict, model: str, task: str, arguments: argparse.Namespace) -> None:
    rows, by = study["rows"], arguments.by
    found = candidates(rows, model, task, arguments.max_loss, by)
    own = [row for row in rows if (row["model"], row["task"], row["seed"]) == (model, task, "all")]
    if not any(row[by] is not None for row in own):
        raise UserError(f"the study has not measured seconds of {model} on {task} yet; run it on, or give --by layers")
    if not found:
        depth = max((row["layers"] for row in own if row["method"] == "full"), default=0.0)
        known = [row for row in own if row["method"] not in NO_METHOD and row["layers"] < depth]
        nearest = max(known, key=lambda row: row["difference_lower_bound"], default=None)
        near = "" if nearest is None else (
            f" The nearest is {in_words(nearest)}: it may lose up to {-nearest['difference_lower_bound']:.3f}."
        )  # fmt: skip
        print(
            f"Take the full model: no method of {model} on {task} that saves {WORDS[by]} is shown to lose at most "
            f"{arguments.max_loss:g} with 95 % confidence on {own[0]['n'] if own else 0} questions.{near}"
        )
        return
    best, full = found[0], next(row for row in own if row["method"] == "full")
    seconds = "" if best["seconds"] is None else f", {best['seconds'] / full['seconds']:.2f} of its measured time"
    print(
        f"Take {in_words(best)}: accuracy {best['accuracy']:.3f}, the full model {full['accuracy']:.3f}; with 95 % "
        f"confidence the difference is at least {best['difference_lower_bound']:+.3f} ({best['n']} questions). It runs "
        f"{best['layers']:.1f} of {full['layers']:.0f} layers{seconds}."
    )
    names = [name for name in study["commands"] if name.startswith(f"{model}/") and name.endswith(f"/{best['method']}")]
    if names:
        print("\nThese commands make it (OUTPUT is a folder of yours, PLAN the plan of the study):")
        print("\n".join(f"  {command}" for command in study["commands"][names[0]]))
    for line in chosen_settings(study.get("settings", {}), best, task):
        print(line)
    if others := [in_words(row) for row in found[1:4]]:
        print(f"\nNext: {'; '.join(others)}.")


def chosen_settings(settings: dict, row: dict, asked: str) -> list[str]:
    """What validation chose for a row, by task, of the first seed that is there: lines to print."""
    wanted = (f"{row['model']}/", f"/{row['method']}/{row['budget']}")
    key = next((key for key in settings if key.startswith(wanted[0]) and key.endswith(wanted[1])), None)
    if key is None:
        return []
    lines = [f"\nValidation chose, for seed {key.split('/')[1]}:"]
    for task, own in settings[key].items():
        if asked in (ALL, task):
            fields = {name: value for name, value in own["fields"].items() if value is not None}
            told = (
                f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}" for name, value in fields.items()
            )
            parts = [own["checkpoint"], *told]
            parts += [f"path {own['path']}"] if own["path"] else []
            lines.append(f"  {task}: {', '.join(part for part in parts if part)}")
    return lines


def in_words(row: dict) -> str:
    budget = "no budget set" if row["budget"] == "free" else f"{row['budget']:.0%} fewer layers"
    return f"{row['title']} ({budget})"
