"""What `dlr sweep` does: trains and evaluates each run of a grid, in a process of its own, and merges the tables."""

from __future__ import annotations

import argparse
import csv
import json
import shutil
import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import torch
from tqdm import tqdm

from routing.commands.sweep import command_line, is_language_model
from routing.common.errors import UserError
from routing.common.files import write_json, write_text
from routing.common.locks import held
from routing.common.ray_workers import Workers, cluster
from routing.common.run_info import made_with
from routing.common.stages import ROOT, call
from routing.common.tables import csv_text
from routing.training.language_model.arguments import RESULT
from routing.training.run_folder import last_whole_checkpoint

FAILED = "failed.txt"  # in the folder of a run: how it ended


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


def attempt(name: str, values: dict, output: Path, evaluation: dict) -> str | None:
    """Make a run; why it failed, or None."""
    try:
        make_run(name, values, output, evaluation)
    except UserError as error:  # A run that diverged must not end those behind it.
        return str(error)
    return None


def on_worker() -> Callable[[str, dict, Path, dict], str | None]:
    """What a worker of a cluster does."""
    return attempt


@dataclass
class Sweep:
    """The runs of a grid, as this process sees them.

    Attributes:
        taken: runs that another process makes.
        failed: runs that failed, now or before.
    """

    grid: dict
    runs: dict[str, dict]
    output: Path
    retry_failed: bool
    taken: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)

    @property
    def evaluation(self) -> dict:
        return self.grid.get("evaluation") or {}

    def claim(self, name: str, stack: ExitStack) -> bool:
        """Whether this process is to make a run, which it holds until the stack is closed."""
        folder = self.output / "runs" / name
        folder.mkdir(parents=True, exist_ok=True)
        if not stack.enter_context(held(folder / ".sweep.lock", wait=False)):
            self.taken.append(name)
        elif (folder / FAILED).exists() and not self.retry_failed:
            self.failed.append(name)
        elif last_file(name, self.runs[name], self.output).exists():
            self.finish(name, None)  # It may have been killed between its last file and this.
        else:
            return True
        return False

    def finish(self, name: str, failure: str | None) -> None:
        """Note how a run ended, remove what is needed no more, and merge the tables."""
        note = self.output / "runs" / name / FAILED
        if failure is not None:
            write_text(note, f"{failure}\n")
            self.failed.append(name)
            return
        note.unlink(missing_ok=True)
        shutil.rmtree(self.output / "runs" / name / "trainer", ignore_errors=True)
        if not self.grid.get("keep_checkpoints", True):
            shutil.rmtree(self.output / "checkpoints" / name, ignore_errors=True)
        with held(self.output / ".tables.lock", wait=True):
            for table in ("metrics.csv", "controls.csv"):
                merge(self.output, self.runs, table)

    def make(self) -> None:
        """Make the runs one after the other."""
        for name, values in tqdm(self.runs.items(), desc="runs"):
            with ExitStack() as stack:
                if self.claim(name, stack):
                    self.finish(name, attempt(name, values, self.output, self.evaluation))

    def make_on(self, workers: Workers) -> None:
        """Make the runs by workers of a cluster, which see the output folder as this process does."""
        left, claims = iter(self.runs), {}
        progress = tqdm(total=len(self.runs), desc=f"runs on {workers.count} workers")

        def task():
            for name in left:
                with ExitStack() as stack:
                    if self.claim(name, stack):
                        claims[name] = stack.pop_all()
                        return name, f"run {name}", (name, self.runs[name], self.output.resolve(), self.evaluation)
                progress.update()
            return None

        with progress, ExitStack() as every:
            every.callback(lambda: [stack.close() for stack in claims.values()])
            for name, failure in workers.results(task, lambda: True):
                with claims.pop(name):
                    self.finish(name, failure)
                progress.update()


def run(grid: dict, runs: dict[str, dict], output: Path, arguments: argparse.Namespace) -> None:
    """Make the runs of a grid, see `runs_of`, that are not done and that no other process makes.

    Raises:
        UserError: at the end, naming runs that failed.
    """
    output.mkdir(parents=True, exist_ok=True)
    with held(output / ".manifest.lock", wait=True):
        write_manifest(output / "manifest.json", grid, runs)
    sweep = Sweep(grid, runs, output, arguments.retry_failed)
    if arguments.engine == "ray":
        with cluster(arguments.address):
            sweep.make_on(Workers(on_worker, f"runs of {output.name}", arguments.workers))
    else:
        sweep.make()
    if sweep.taken:
        print(f"left to another process: {', '.join(sweep.taken)}")
    if failed := sweep.failed:
        told = [f"{name}: {(output / 'runs' / name / FAILED).read_text(encoding='utf-8').strip()}" for name in failed]
        raise UserError(
            f"{len(failed)} of {len(runs)} runs failed; the others are done. --retry_failed tries them again.\n"
            + "\n".join(told)
        )
