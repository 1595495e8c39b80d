"""What `dlr sweep` does: trains and evaluates each run of a grid, in a process of its own, and merges the tables."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import torch
from tqdm import tqdm

from routing.commands.sweep import command_line, is_language_model
from routing.common.errors import UserError
from routing.common.files import write_json, write_text
from routing.common.locks import held
from routing.common.run_info import made_with
from routing.common.tables import csv_text
from routing.training.language_model.arguments import RESULT
from routing.training.run_folder import last_whole_checkpoint

FAILED = "failed.txt"  # in the folder of a run: how it ended
ROOT = Path(__file__).resolve().parents[3]
LAUNCHER = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def environment() -> dict[str, str]:
    """Of a run's own process: alone, on the GPU of this one."""
    own = {key: value for key, value in os.environ.items() if key not in LAUNCHER and not key.startswith("ACCELERATE_")}
    if "LOCAL_RANK" in os.environ and torch.cuda.is_available():
        count = torch.cuda.device_count()
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(count)))).split(",")
        own["CUDA_VISIBLE_DEVICES"] = visible[int(os.environ["LOCAL_RANK"]) % count]
    return own


def call(command: list[str], log: Path) -> None:
    """Run a command, its output in a file.

    Raises:
        UserError: with the end of the output, if it fails.
    """
    with log.open("a", encoding="utf-8") as file:
        result = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, env=environment())
    if result.returncode:
        end = log.read_text(encoding="utf-8", errors="replace")[-1500:]
        raise UserError(f"{' '.join(command)} failed with status {result.returncode}; {log} ends with:\n{end}")


def last_file(name: str, values: dict, output: Path) -> Path:
    """The file that says that a run is done."""
    return output / "runs" / name / (RESULT if is_language_model(values) else "controls.csv")


def make_run(name: str, values: dict, output: Path, evaluation: dict) -> None:
    """Train, evaluate, keep the tables."""
    folder, checkpoint = output / "runs" / name, output / "checkpoints" / name
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "output.log"
    # A checkpoint without its run's folder is of another sweep.
    trained = (checkpoint / "training.json").exists() and (folder / "arguments.json").exists()
    if is_language_model(values) or not trained:
        places = {"output_dir": output / "checkpoints", "work_dir": output / "runs"}
        resume = ["--resume"] if last_whole_checkpoint(folder / "trainer") else []
        call([sys.executable, str(ROOT / "train.py"), *command_line(values | places), *resume], log)
    if not is_language_model(values):
        call([sys.executable, "-m", "routing", "text_evaluation", str(checkpoint), *command_line(evaluation)], log)
    if not is_language_model(values):
        for table in ("layers.csv", "text_evaluation.json", "controls.csv"):  # The last one says that the run is done.
            write_text(folder / table, (checkpoint / table).read_text(encoding="utf-8"))


def merge(output: Path, runs: dict[str, dict], table: str) -> None:
    """One CSV file of the tables that runs have by now, with the run's name first."""
    rows: list[dict] = []
    for name in runs:
        path = output / "runs" / name / table
        if path.exists():
            with path.open(encoding="utf-8", newline="") as file:
                rows += [{"run": name} | row for row in csv.DictReader(file)]
    if rows:
        columns = list(dict.fromkeys(name for row in rows for name in row))
        write_text(output / table, csv_text(columns, ([row.get(name) for name in columns] for row in rows)))


def write_manifest(path: Path, grid: dict, runs: dict[str, dict]) -> None:
    """What was asked for, and with which code and machine each time."""
    now = made_with() | {"threads": torch.get_num_threads()}
    made_by = json.loads(path.read_text())["made_by"] if path.exists() else []
    if now not in made_by:
        made_by.append(now)
    write_json(path, {"grid": grid, "runs": runs, "made_by": made_by})


def run(grid: dict, runs: dict[str, dict], output: Path, retry_failed: bool) -> None:
    """Make the runs of a grid, see `runs_of`, that are not done and that no other process makes.

    Raises:
        UserError: at the end, naming runs that failed.
    """
    evaluation = grid.get("evaluation") or {}
    output.mkdir(parents=True, exist_ok=True)
    with held(output / ".manifest.lock", wait=True):
        write_manifest(output / "manifest.json", grid, runs)
    taken, failed = [], []
    for name, values in tqdm(runs.items(), desc="runs"):
        (output / "runs" / name).mkdir(parents=True, exist_ok=True)
        with held(output / "runs" / name / ".sweep.lock", wait=False) as had:
            if not had:
                taken.append(name)
                continue
            failure = output / "runs" / name / FAILED
            if failure.exists() and not retry_failed:
                failed.append(name)
                continue
            if not last_file(name, values, output).exists():
                try:
                    make_run(name, values, output, evaluation)
                except UserError as error:  # A run that diverged must not end those behind it.
                    write_text(failure, f"{error}\n")
                    failed.append(name)
                    continue
            failure.unlink(missing_ok=True)
            # Not in make_run: a run may have been killed between its last file and this.
            shutil.rmtree(output / "runs" / name / "trainer", ignore_errors=True)
            if not grid.get("keep_checkpoints", True):
                shutil.rmtree(output / "checkpoints" / name, ignore_errors=True)
        with held(output / ".tables.lock", wait=True):
            for table in ("metrics.csv", "controls.csv"):
                merge(output, runs, table)
    if taken:
        print(f"left to another process: {', '.join(taken)}")
    if failed:
        told = [f"{name}: {(output / 'runs' / name / FAILED).read_text(encoding='utf-8').strip()}" for name in failed]
        raise UserError(
            f"{len(failed)} of {len(runs)} runs failed; the others are done. --retry_failed tries them again.\n"
            + "\n".join(told)
        )
