"""The page of all results: benchmarks/results/gpu/README.md, made from the JSON of the sections."""

from __future__ import annotations

import json
from pathlib import Path

from routing.common.files import write_text

EXPECTED = Path(__file__).with_name("expected.json")
NOTES = "notes.md"


def cell(value) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
    if isinstance(value, int):
        return f"{value:,}"
    return "" if value is None else str(value).replace("|", "\\|")


def tables(rows: list[dict]) -> list[str]:
    """A table for each set of columns, in order; checks say whether they passed."""
    groups: dict[tuple, list[dict]] = {}
    for row in rows:
        groups.setdefault(tuple(name for name, value in row.items() if value is not None), []).append(row)
    lines = []
    for columns, own in groups.items():
        lines += ["", "| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
        lines += ["| " + " | ".join(cell(row.get(name)) for name in columns) + " |" for row in own]
    return lines


def section_page(result: dict, expected: dict) -> list[str]:
    name = result["section"]
    lines = [f"### {name}", "", f"Status: {result['status']}. {result.get('seconds', 0):.0f} s."]
    lines += ["", f"Expected before it was measured ({expected['seconds']} s): {expected['expected']}"]
    if result.get("error"):
        lines += ["", "```", *"".join(result["error"]).rstrip().splitlines()[-6:], "```"]
    for what in result.get("left_out", []):
        lines += ["", f"Left out: {what}."]
    return [*lines, *tables(result["rows"]), ""]


def write_page(folder: Path) -> Path:
    """Write the page of a folder of results; it says so where there are none."""
    expected = json.loads(EXPECTED.read_text())
    lines = [
        "# On a GPU",
        "",
        "Made by `python benchmarks/gpu.py --page` from the JSON files below this folder, which `make gpu` writes. What"
        " each section measures is told at the top of its file in `benchmarks/gpu_sections/`. Expectations were "
        f"written {expected['written']}.",
        "",
    ]
    cards = sorted({path.parent for path in folder.glob("*/*.json")})
    found = 0
    for card in cards:
        results = [json.loads(path.read_text()) for path in card.glob("*.json")]
        results = sorted(
            (r for r in results if not r.get("smoke")), key=lambda r: [*expected["sections"]].index(r["section"])
        )
        if not results:
            continue
        found += len(results)
        first = results[0]
        packages = ", ".join(f"{name} {number}" for name, number in first["versions"].items() if number)
        lines += [f"## {first['card']}", "", f"Driver {first['driver']}; {packages}.", ""]
        runs = sorted({(r["date"], r["commit"], r["command"]) for r in results}, key=str)
        lines += [f"{date}, commit {commit}: `{command}`" for date, commit, command in runs] + [""]
        notes = card / NOTES  # By hand: what the tables show, and what was mended because of them.
        lines += [notes.read_text().strip(), ""] if notes.exists() else []
        for result in results:
            lines += section_page(result, expected["sections"][result["section"]])
    if not found:
        lines += ["**There are no results yet: nothing of this project was run on a GPU.** What is expected:", ""]
        for name, own in expected["sections"].items():
            lines += [f"- {name}, {own['seconds']} s: {own['expected']}"]
    path = folder / "README.md"
    folder.mkdir(parents=True, exist_ok=True)
    write_text(path, "\n".join(lines).rstrip() + "\n")
    return path
