"""A grid of trainings on text, each evaluated; run it again to continue.

    python -m routing sweep experiments/token_routing.yaml --output sweeps/token-routing
    python -m routing sweep experiments/hybrid.yaml --output sweeps/hybrid
    accelerate launch --multi_gpu --num_processes 4 -m routing sweep GRID.yaml --output FOLDER    # a run a GPU

The YAML file holds `arguments` of train.py that all runs share; `runs`, a list of further arguments each, of which any
may be a list of values (all combinations are run), with a `name` where objective and router do not tell them apart;
`seeds`, which a run may have its own of; `evaluation`, arguments of `dlr text_evaluation`; and `keep_checkpoints`,
true unless given. Any number of processes fill one folder: manifest.json, runs/NAME/ with metrics.csv, controls.csv and
layers.csv, and of all runs together metrics.csv and controls.csv. `python -m routing report FOLDER` draws them. A run
that fails leaves failed.txt, the others go on, and it is tried again with --retry_failed alone. With --engine ray this
command gives the runs to workers of a Ray cluster, whose nodes see the output folder under the same path.

Runs of objective lm, hybrid language models, measure themselves on test text and have result.json in the place of
controls.csv; a grid holds runs of that kind alone, or none.
"""

from __future__ import annotations

import json
from dataclasses import fields
from itertools import product
from pathlib import Path

from routing.commands.text_evaluation import make_parser
from routing.common.cli import read_arguments
from routing.common.errors import UserError, raise_all, run_command
from routing.common.files import unwritable
from routing.common.parser import Parser
from routing.common.ray_workers import ray_problems
from routing.common.user_files import read_yaml
from routing.models.problems import check_base
from routing.models.wheel_models import WHEEL_MODELS
from routing.training.end_to_end.arguments import EndToEndArguments
from routing.training.language_model.arguments import LanguageModelArguments

KEYS = {"arguments", "runs", "seeds", "evaluation", "keep_checkpoints"}
OWN = ("run_name", "seed", "resume", "output_dir", "work_dir")  # What a sweep decides itself.


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
    found, models = [], set()
    for name, values in runs.items():
        kind = LanguageModelArguments if is_language_model(values) else EndToEndArguments
        try:
            own = read_arguments(kind, command_line(values))
        except UserError as error:
            found.append(f"run {name}: {error}")
            continue
        except SystemExit as error:  # argparse has said why.
            raise UserError(f"run {name}: see above.") from error
        models.add(own.model_id)
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
    for model in models - set(WHEEL_MODELS):
        check_base(model)  # By transformers, which takes seconds to import.


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


def main(argv: list[str] | None = None) -> None:
    parser = Parser(prog="dlr sweep", description=__doc__)
    parser.add_argument("grid", help="YAML file")
    parser.add_argument("--output", required=True, help="folder of the results; an unfinished one is continued")
    parser.add_argument("--retry_failed", action="store_true", help="try runs again that failed before")
    parser.add_argument("--engine", default="files", choices=("files", "ray"), help="who makes the runs: see above")
    parser.add_argument("--address", help="ray: HOST:PORT of the cluster, or auto; default: start one here")
    parser.add_argument("--workers", type=int, help="ray: runs at a time; default one for each GPU, or CPU without any")
    arguments = parser.parse_args(argv)
    found = unwritable("--output", Path(arguments.output))
    raise_all(found + ray_problems(arguments.engine, arguments.address, arguments.workers))
    grid, output = read_grid(Path(arguments.grid)), Path(arguments.output)
    runs = runs_of(grid)
    check_runs(runs, output)
    check_evaluation(grid.get("evaluation") or {}, output)
    from routing.commands.work.sweep import run  # Takes seconds to import.

    run(grid, runs, output, arguments)


if __name__ == "__main__":
    run_command(main)
