"""Every picture of the pages, drawn anew from the committed results, by one command.

    .venv/bin/python benchmarks/figures.py                      # make figures: into benchmarks/results
    .venv/bin/python benchmarks/figures.py --only decode --output /tmp/figures

A picture is a row of FIGURES: its data, and the function that drew it when the data were measured. WITHOUT_DATA names
pictures whose data are not in the repository, which nothing can draw again.
"""

from __future__ import annotations

import argparse
import csv
import json
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import MISSING, fields
from functools import partial
from pathlib import Path

import hybrid
import routed_speed
import search_quality
import token_routing

from routing.commands.work import report
from routing.common.errors import UserError, run_command
from routing.common.tables import csv_text
from routing.report.plots import plot_frontier
from routing.report.pruning_pictures import plot_comparison
from routing.report.study import draw_picture
from routing.training.adapters.report import plot_worth
from routing.training.adapters.stages import plot_stages
from routing.training.end_to_end.arguments import EndToEndArguments
from routing.training.language_model.arguments import LanguageModelArguments
from routing.training.language_model.training import SHARE

RESULTS = Path(__file__).parent / "results"
Draw = Callable[[Path, Path], None]  # of the data and the picture


def _read(data: Path) -> dict:
    return json.loads(data.read_text(encoding="utf-8"))


def _speed(phase: str, data: Path, picture: Path) -> None:
    found = _read(data)
    title = f"{phase}, {found['model']}, {found['dtype']}, {found['hardware']}"
    routed_speed.plot(found["rows"], picture, title)


def _hybrid_speed(data: Path, picture: Path) -> None:
    found = _read(data)
    hybrid.plot(found["rows"], picture, f"width {found['hidden_size']}, {found['dtype']}, {found['hardware']}")


def _token_speed(data: Path, picture: Path) -> None:
    found = _read(data)
    token_routing.plot(found["rows"], picture, f"{found['model']}, {found['dtype']}, {found['hardware']}")


def _search_quality(data: Path, picture: Path) -> None:
    found = _read(data)
    # The keys of budgets are numbers in the program that measures and texts in JSON.
    table = {
        method: {int(name): row for name, row in rows.items() if name.isdigit()}
        for method, rows in found["methods"].items()
    }
    title = f"{found['model']}, {found['questions']} questions ({', '.join(found['data'])}), {found['seeds']} seeds"
    search_quality.plot(table, picture, title)


def _frontier(data: Path, picture: Path) -> None:
    found = _read(data)
    names = found["arguments"].get("dataset") or found["arguments"]["data"]
    plot_frontier(found["points"], picture, f"{found['test_questions']} test questions ({names}), {found['hardware']}")


def _comparison(data: Path, picture: Path) -> None:
    plot_comparison(_read(data), picture)


def _worth(model: str, data: Path, picture: Path) -> None:
    found = _read(data)
    names = found["arguments"].get("dataset") or found["arguments"]["data"]
    plot_worth(found, found["errors"], picture, f"{model}, {names}: {found['arguments']['split']} questions")


def _stages(data: Path, picture: Path) -> None:
    found = _read(data)
    given = found["arguments"]
    plot_stages(found, picture, f"{given['model']}, {given['dataset']}: {given['split']} questions")


def _sweep(kind: type, data: Path, picture: Path) -> None:
    """A picture of `dlr report`, of the merged tables of a sweep.

    Args:
        kind: arguments of its runs, whose defaults the manifest does not repeat.
        data: manifest.json, beside the tables.
    """
    with tempfile.TemporaryDirectory() as place:
        folders = _split(data, kind, Path(place) / "runs")
        report.run(folders, [], kind is LanguageModelArguments, Path(place) / "report")
        shutil.copy(Path(place) / "report" / picture.name, picture)


def _split(manifest: Path, kind: type, place: Path) -> list[Path]:
    """Folders of runs, as training left them, of the manifest and the merged tables of a sweep."""
    own = {one.name: one.default for one in fields(kind) if one.default is not MISSING}
    tables = {
        path.name: _rows_by_run(path) for path in (manifest.with_name(n) for n in ("metrics.csv", "controls.csv"))
    }
    made = []
    for name, values in _read(manifest)["runs"].items():
        folder = place / name
        folder.mkdir(parents=True)
        (folder / "arguments.json").write_text(json.dumps(own | values))
        for table, by_run in tables.items():
            if rows := by_run.get(name):
                # Runs without routed blocks had no column of their shares; the merged table has it for all.
                columns = [key for key in rows[0] if not key.startswith(SHARE) or any(row[key] for row in rows)]
                (folder / table).write_text(csv_text(columns, ([row[key] for key in columns] for row in rows)))
        made.append(folder)
    return made


def _rows_by_run(path: Path) -> dict[str, list[dict]]:
    found: dict[str, list[dict]] = {}
    if path.exists():
        with path.open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                found.setdefault(row.pop("run"), []).append(row)
    return found


HYBRIDS, TOKENS = "hybrid_sweep/manifest.json", "token_routing_sweep/manifest.json"


# picture -> its data, and what draws it; all below RESULTS.
def _study(data: Path, picture: Path) -> None:
    kind, model, task = picture.stem.split("-", 2)
    draw_picture(_read(data)["rows"], kind, model, task, picture)


STUDY = "study/study.json"
FIGURES: dict[str, tuple[str, Draw]] = {
    "decode.png": ("decode.json", partial(_speed, "decode")),
    "prefill.png": ("prefill.json", partial(_speed, "prefill")),
    "hybrid.png": ("hybrid.json", _hybrid_speed),
    "token_routing.png": ("token_routing.json", _token_speed),
    "search_quality.png": ("search_quality.json", _search_quality),
    "demo_frontier.png": ("demo_frontier.json", _frontier),
    "query_pruning/comparison.png": ("query_pruning/comparison.json", _comparison),
    "query_pruning/adapters.png": ("query_pruning/adapters.json", partial(_worth, "smollm2-135m-instruct")),
    "value/healing.png": ("value/healing.json", _stages),
    "study/frontier-smollm2-procedural.png": (STUDY, _study),
    "study/frontier-smollm2-choices.png": (STUDY, _study),
    "study/routes-smollm2-all.png": (STUDY, _study),
    "study/frontier-gemma3-all.png": (STUDY, _study),
    "study/routes-gemma3-all.png": (STUDY, _study),
    "hybrid_sweep/validation_loss.png": (HYBRIDS, partial(_sweep, LanguageModelArguments)),
    "hybrid_sweep/routing_share.png": (HYBRIDS, partial(_sweep, LanguageModelArguments)),
    "token_routing_sweep/pareto.png": (TOKENS, partial(_sweep, EndToEndArguments)),
}
# picture -> what is not in the repository.
WITHOUT_DATA = {
    "demo_routes.png": "routes of single questions",
    "demo_layer_rates.png": "routes of single questions",
    "token_routing_sweep/layer_skips.png": "layers.csv of each run",
}


def draw(name: str, output: Path) -> Path:
    """Draw one picture; its file."""
    data, function = FIGURES[name]
    picture = output / name
    picture.parent.mkdir(parents=True, exist_ok=True)
    function(RESULTS / data, picture)
    return picture


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="part of the names of the pictures; default: all")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder in the place of benchmarks/results")
    arguments = parser.parse_args()
    names = [name for name in FIGURES if arguments.only in name]
    if not names:
        raise UserError(f"--only {arguments.only!r} names none of {', '.join(FIGURES)}.")
    for name in names:
        print(draw(name, arguments.output))


if __name__ == "__main__":
    run_command(main)
