"""Runs of training end to end, read from their folders: arguments, metrics, controls, layers, analysis."""

from __future__ import annotations

import csv
import json
import math
from dataclasses import dataclass
from pathlib import Path

from routing.common.errors import UserError, raise_all

# Columns that routing.training.end_to_end.training and routing.commands.text_evaluation write.
METRICS = (
    "step", "epoch", "train_loss", "ce_loss", "kd_loss", "gate_loss", "target_loss", "validation_loss", "active_layers",
    "skip_ratio", "temperature", "learning_rate", "perplexity", "tokens_per_second", "peak_memory_gib",
)  # fmt: skip
CONTROLS = (
    "method_seed", "layers", "skip_ratio", "loss", "loss_low", "loss_high", "perplexity", "difference",
    "difference_low", "difference_high", "speedup", "target",
)  # fmt: skip
METHODS = ("base", "full", "routed", "random_tokens", "random_layers", "static", "threshold")
ARGUMENTS = ("run_name", "objective", "router", "seed", "target_skip", "layer_penalty", "kept_layers")

Row = dict[str, float | str | None]


@dataclass(frozen=True)
class Run:
    """One run.

    Attributes:
        folder: that was read.
        arguments: of its training.
        metrics: a row for each validation, by METRICS; None where a cell is empty.
        controls: a row for each way to run the trained weights on test text, by CONTROLS and `method`.
        layers: share of tokens that ran each layer [L]; None where that was not written.
        analysis: what `python -m routing analysis` wrote; None without.
    """

    folder: Path
    arguments: dict
    metrics: list[Row]
    controls: list[Row]
    layers: list[float] | None
    analysis: dict | None

    @property
    def name(self) -> str:
        return self.arguments["run_name"]

    @property
    def own(self) -> Row | None:
        """The control that is the model as it is used: along its routes, or at full depth where nothing decides any."""
        named = {row["method"]: row for row in self.controls}
        return named.get("routed", named.get("full"))

    @property
    def result(self) -> Row:
        """Loss (nats a token), layers (a token) and skip_ratio (of the routable layers); on test text where it was
        evaluated, else those of the last validation."""
        if self.own:
            return {name: self.own[name] for name in ("loss", "layers", "skip_ratio")}
        last = self.metrics[-1]
        return {
            "loss": last["validation_loss"],
            "layers": last["active_layers"],
            "skip_ratio": last["skip_ratio"],
        }


def find_runs(folders: list[Path]) -> tuple[list[Path], list[str]]:
    """Folders of runs, of folders of one run each or of sweeps, each once.

    Returns:
        folders with metrics, and names of folders of sweeps that hold no metrics yet.

    Raises:
        UserError: naming every folder without metrics.csv.
    """
    chosen, empty, found = {}, [], []
    for folder in folders:
        if not (folder / "runs").is_dir():
            chosen[folder.resolve()] = folder
            continue
        below = sorted(path for path in (folder / "runs").iterdir() if path.is_dir())
        begun = [path for path in below if (path / "metrics.csv").exists()]
        empty += [path.name for path in below if path not in begun]
        chosen |= {path.resolve(): path for path in begun}
        if not begun:
            found.append(f"{folder / 'runs'} holds no run with metrics.csv; wait for the sweep's first validation")
    found += [
        f"{folder} holds no metrics.csv, so it is no run; give the folder of a run (runs/NAME) or of a sweep"
        for folder in chosen.values()
        if not (folder / "metrics.csv").is_file()
    ]
    raise_all(found)
    return list(chosen.values()), empty


def read_run(folder: Path) -> Run:
    """One run.

    Raises:
        UserError: naming file, line and remedy where one of its files is malformed.
    """
    arguments = read_object(folder / "arguments.json", ARGUMENTS)
    metrics = read_table(folder / "metrics.csv", METRICS)
    for line, row in enumerate(metrics, 2):
        for name in ("step", "validation_loss", "active_layers", "skip_ratio"):
            _require(row, name, folder / "metrics.csv", line)
    path, controls = folder / "controls.csv", []
    if path.exists():
        controls = read_table(path, CONTROLS, ("method",))
        for line, row in enumerate(controls, 2):
            if row["method"] not in METHODS:
                raise _malformed(path, line, f"method {row['method']!r} is none of {', '.join(METHODS)}")
            once = ("base", "full", "routed")
            if row["method"] in once and any(row["method"] == other["method"] for other in controls[: line - 2]):
                raise _malformed(path, line, f"method {row['method']} is there twice")
            for name in ("layers", "skip_ratio", "loss", "loss_low", "loss_high"):
                _require(row, name, path, line)
    path, layers = folder / "layers.csv", None
    if path.exists():
        rows = read_table(path, ("layer", "share"))
        for line, row in enumerate(rows, 2):
            if row["layer"] != line - 2 or row["share"] is None or not 0 <= row["share"] <= 1:
                raise _malformed(path, line, f"expected layer {line - 2} and a share of 0 to 1")
        layers = [row["share"] for row in rows]
    analysis = None
    if (folder / "analysis.json").exists():
        names = ("router", "tokens", "kept_layers", "mean_layers", "categories", "correlations", "layer_skip_rates")
        analysis = read_object(folder / "analysis.json", names)
    return Run(folder, arguments, metrics, controls, layers, analysis)


def read_object(path: Path, names: tuple[str, ...]) -> dict:
    """A JSON object that holds some names.

    Raises:
        UserError: if it does not.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path} cannot be read ({error}). Give the folder of a whole run, or make it again."
        ) from error
    missing = [name for name in names if not isinstance(found, dict) or name not in found]
    if missing:
        raise UserError(f"{path} lacks {', '.join(missing)}; make it again with this version.")
    return found


def read_table(path: Path, numbers: tuple[str, ...], words: tuple[str, ...] = ()) -> list[Row]:
    """Rows of a CSV file with a head; an empty cell of a number is None. Other columns are left out.

    Args:
        numbers: columns of finite numbers.
        words: columns of text.

    Raises:
        UserError: naming file and line, if a column or all rows are missing, or a cell is wrong.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            lines = list(csv.reader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} cannot be read ({error}). Make it again.") from error
    if len(lines) < 2:
        raise UserError(
            f"{path}, line {len(lines) + 1}: the file ends {'before its first row' if lines else 'before its head'}. "
            "Make it again, or leave the run out."
        )
    head, found = lines[0], []
    missing = [name for name in (*words, *numbers) if name not in head]
    if missing:
        raise _malformed(path, 1, f"there is no column {', '.join(missing)}")
    for number, cells in enumerate(lines[1:], 2):
        if len(cells) != len(head):
            raise _malformed(path, number, f"{len(cells)} cells below {len(head)} columns")
        texts = dict(zip(head, cells))
        row: Row = {name: texts[name] for name in words}
        for name in numbers:
            row[name] = _number(texts[name], name, path, number)
        found.append(row)
    return found


def _number(text: str, name: str, path: Path, line: int) -> float | None:
    try:
        value = float(text) if text else None
    except ValueError:
        value = math.nan
    if value is not None and not math.isfinite(value):
        raise _malformed(path, line, f"{name} is {text!r}, which is no finite number")
    return value


def _require(row: Row, name: str, path: Path, line: int) -> None:
    if row[name] is None:
        raise _malformed(path, line, f"{name} is empty")


def _malformed(path: Path, line: int, what: str) -> UserError:
    return UserError(f"{path}, line {line}: {what}. Make the file again, or leave the run out.")
