"""A grid of trainings on text, each evaluated; run it again to continue.

    python -m routing sweep experiments/token_routing.yaml --output sweeps/token-routing
    python -m routing sweep experiments/hybrid.yaml --output sweeps/hybrid
    accelerate launch --multi_gpu --num_processes 4 -m routing sweep GRID.yaml --output FOLDER    # a run a GPU

The YAML file holds `arguments` of train.py that all runs share; `runs`, a list of further arguments each, of which any
may be a list of values (all combinations are run), with a `name` where objective and router do not tell them apart;
`seeds`, which a run may have its own of; `evaluation`, arguments of `dlr text_evaluation`; and `keep_checkpoints`,
true unless given. Any number of processes fill one folder: manifest.json, runs/NAME/ with metrics.csv, controls.csv and
layers.csv, and of all runs together metrics.csv and controls.csv. `python -m routing report FOLDER` draws them. A run
that fails leaves failed.txt, the others go on, and it is tried again with --retry_failed alone.

Runs of objective lm, hybrid language models, measure themselves on test text and have result.json in the place of
controls.csv; a grid holds runs of that kind alone, or none.
"""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
from dataclasses import fields
from itertools import product
from pathlib import Path

import torch
from tqdm import tqdm

from routing.commands.text_evaluation import make_parser
from routing.common.cli import read_arguments
from routing.common.errors import UserError, raise_all, run_command
from routing.common.files import unwritable, write_json, write_text
from routing.common.locks import held
from routing.common.parser import Parser
from routing.common.run_info import made_with
from routing.common.tables import csv_text
from routing.common.user_files import read_yaml
from routing.training.end_to_end.arguments import EndToEndArguments
from routing.training.language_model.arguments import LanguageModelArguments
from routing.training.language_model.run import RESULT
from routing.training.run_folder import last_whole_checkpoint

ROOT = Path(__file__).resolve().parents[2]
FAILED = "failed.txt"  # in the folder of a run: how it ended
KEYS = {"arguments", "runs", "seeds", "evaluation", "keep_checkpoints"}
OWN = ("run_name", "seed", "resume", "output_dir", "work_dir")  # What a sweep decides itself.
LAUNCHER = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def read_grid(path: Path) -> dict:
    """A grid file.

    Raises:
        UserError: naming what is wrong with it.
    """
    grid = read_yaml(path)
    if not isinstance(grid, dict) or not isinstance(grid.get("runs"), list) or not grid["runs"]:
        raise UserError(f"{path} must hold `runs`, a list such as `- {{objective: gumbel, target_skip: [0.2, 0.4]}}`.")
    found = [f"{path}: {key!r} is unknown; allowed are {', '.join(sorted(KEYS))}" for key in sorted(set(grid) - KEYS)]
    for key, kind in (("seeds", list), ("evaluation", dict), ("keep_checkpoints", bool)):
        if key in grid and not isinstance(grid[key], kind):
            found.append(f"{path}: {key} must be a {kind.__name__}, got {grid[key]!r}")
    for part in (grid.get("arguments") or {}, *grid["runs"]):
        if not isinstance(part, dict):
            found.append(f"{path}: {part!r} is no mapping of arguments")
        else:
            found += [f"{path}: {name} is set by the sweep; leave it out" for name in OWN if name in part]
    raise_all(found)
    return grid


def is_language_model(values: dict) -> bool:
    return values["objective"] == "lm"


def runs_of(grid: dict) -> dict[str, dict]:
    """Arguments of train.py by the name of the run; every combination of listed values, with every seed."""
    combinations, every = [], grid.get("seeds", [0])
    shared = {"objective": "gumbel"} | (grid.get("arguments") or {})
    for run in grid["runs"]:
        seeds = run.get("seeds", every)
        run = {name: value for name, value in run.items() if name != "seeds"}
        lists = {name: value if isinstance(value, list) else [value] for name, value in run.items()}
        for values in product(*lists.values()):
            own = {"objective": shared["objective"]} | dict(zip(lists, values))
            # What varies within this entry names its runs; `name` what does not.
            varied = [f"{name}={own[name]}" for name, value in run.items() if isinstance(value, list)]
            kind, known = ("objective", "router"), own
            if is_language_model(own):
                kind, known = ("config",), {"config": _default(LanguageModelArguments, "config")} | shared | own
            words = [own.pop("name", None) or "-".join(known[n] for n in kind if n in known), *varied]
            combinations.append(("-".join(words), own, seeds))
    found = {}
    for seed in dict.fromkeys([*every, *(seed for *_, seeds in combinations for seed in seeds)]):
        # Seeds are outermost, so that a sweep that is cut short has all kinds.
        for words, own, seeds in combinations:
            if seed not in seeds:
                continue
            name = f"{words}-s{seed}"
            if name in found:
                raise UserError(f"two runs are called {name}; give them different `name`s.")
            found[name] = shared | own | {"seed": seed, "run_name": name}
    if len(set(map(is_language_model, found.values()))) > 1:
        raise UserError("some runs are of objective lm and others are not; give them grids and folders of their own.")
    if grid.get("evaluation") and any(map(is_language_model, found.values())):
        raise UserError("evaluation: runs of objective lm measure themselves on test text; leave it out.")
    return found


def command_line(values: dict) -> list[str]:
    return [f"--{name}={value}" for name, value in values.items() if value is not None]


def check_runs(runs: dict[str, dict], output: Path) -> None:
    """Refuse wrong arguments of any run before the first one starts, and runs that were made with others."""
    found = []
    for name, values in runs.items():
        kind = LanguageModelArguments if is_language_model(values) else EndToEndArguments
        try:
            own = read_arguments(kind, command_line(values))
        except UserError as error:
            found.append(f"run {name}: {error}")
            continue
        except SystemExit as error:  # argparse has said why.
            raise UserError(f"run {name}: see above.") from error
        found += [f"run {name}: {problem}" for problem in own.problems() + own.outside_problems()]
        saved = output / "runs" / name / "arguments.json"
        if saved.exists():
            old = json.loads(saved.read_text())
            wanted = {field.name: getattr(own, field.name) for field in fields(own) if field.name not in OWN}
            # An argument that was added since had its default.
            changed = [key for key, value in wanted.items() if old.get(key, _default(kind, key)) != value]
            if changed:
                found.append(f"run {name} was made with other {', '.join(changed)}; give another --output")
    raise_all(found)


def _default(kind: type, name: str):
    return next(field.default for field in fields(kind) if field.name == name)


def check_evaluation(evaluation: dict, output: Path) -> None:
    """Refuse arguments of routing.commands.text_evaluation that are wrong, or other than those of finished runs."""
    try:
        make_parser().parse_args(["checkpoint", *command_line(evaluation)])
    except SystemExit as error:  # argparse has said why.
        raise UserError("evaluation: see above.") from error
    path = output / "manifest.json"
    if path.exists() and list(output.glob("runs/*/controls.csv")):
        old = json.loads(path.read_text())["grid"].get("evaluation") or {}
        if old != evaluation:
            raise UserError(
                f"runs in {output} were evaluated with {old}, now it is {evaluation}; give another --output."
            )


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


def main() -> None:
    parser = Parser(prog="dlr sweep", description=__doc__)
    parser.add_argument("grid", help="YAML file")
    parser.add_argument("--output", required=True, help="folder of the results; an unfinished one is continued")
    parser.add_argument("--retry_failed", action="store_true", help="try runs again that failed before")
    arguments = parser.parse_args()
    raise_all(unwritable("--output", Path(arguments.output)))
    grid, output = read_grid(Path(arguments.grid)), Path(arguments.output)
    runs = runs_of(grid)
    evaluation = grid.get("evaluation") or {}
    check_runs(runs, output)
    check_evaluation(evaluation, output)
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
            if failure.exists() and not arguments.retry_failed:
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


if __name__ == "__main__":
    run_command(main)
