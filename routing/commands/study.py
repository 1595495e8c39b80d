"""All methods beside one another, on the same questions, model and clock, by a plan that was written before.

    python -m routing study experiments/study.yaml --output studies/first
    python -m routing study experiments/study.yaml --output studies/quick --quick    # few questions

The plan says which models, tasks, seeds, budgets and methods there are, and which tests are made (docs/study.md). Run
the command again to continue; any number of processes may fill one folder, each stage is made once, and what is done is
not done again. With --engine ray the workers of a cluster that see the folder make the stages. All is chosen on
validation questions. With the first test question test_opened.json is written, and a plan that was changed afterwards
is refused. A stage that fails leaves failed.txt, the others go on, and --retry_failed tries it again.

It writes study.json (`rows`), study.csv, study.md, study.html, questions.html and pictures (frontier-MODEL-TASK.png,
routes-MODEL-TASK.png), as far as stages are done: --report alone writes them anew from what is there.
"""

from __future__ import annotations

from pathlib import Path

from routing.common.cli import names_of
from routing.common.errors import UserError, raise_all, run_command
from routing.common.files import unwritable
from routing.common.parser import Parser
from routing.common.ray_workers import ray_problems
from routing.study.checking import check_stages
from routing.study.plan import Plan, read_plan
from routing.study.stages import Place, all_stages


def main(argv: list[str] | None = None) -> None:
    parser = Parser(prog="dlr study", description=__doc__)
    parser.add_argument("plan", help="YAML file, such as experiments/study.yaml")
    parser.add_argument("--output", required=True, help="folder of the study; an unfinished one is continued")
    parser.add_argument("--quick", action="store_true", help="few questions and steps, by the plan's section quick")
    parser.add_argument("--models", default="", help="names of models in the plan, with commas between; default all")
    parser.add_argument("--seeds", default="", help="seeds of the plan, with commas between; default all")
    parser.add_argument("--engine", default="files", choices=("files", "ray"), help="who makes the stages: see above")
    parser.add_argument("--address", help="ray: HOST:PORT of the cluster, or auto; default: start one here")
    parser.add_argument(
        "--workers", type=int, help="ray: stages at a time; default one for each GPU, or CPU without any"
    )
    parser.add_argument("--report", action="store_true", help="make no stage; write tables and pages of what is there")
    parser.add_argument("--retry_failed", action="store_true", help="try stages again that failed before")
    parser.add_argument(
        "--only", default="", help="make this one stage in this process (MODEL/seed-SEED/NAME); for the study itself"
    )
    arguments = parser.parse_args(argv)
    output, file = Path(arguments.output).resolve(), Path(arguments.plan).resolve()
    ray = ray_problems(arguments.engine, arguments.address, arguments.workers)
    raise_all(unwritable("--output", output) + ray)
    plan = read_plan(file, arguments.quick)
    models, seeds = chosen_part(plan, arguments.models, arguments.seeds)
    if arguments.only:
        place, name = place_of(arguments.only, plan, file, arguments.quick, output)
        from routing.commands.work.study import make_stage  # Takes seconds to import.

        make_stage(place, name)
        return
    stages = all_stages(plan, file, arguments.quick, output, models, seeds)
    check_stages(stages)
    from routing.commands.work.study import run  # Takes seconds to import.

    run(plan, stages, arguments)


def chosen_part(plan: Plan, models: str, seeds: str) -> tuple[list[str], list[int]]:
    """The models and seeds that are asked for.

    Raises:
        UserError: for some that the plan does not have.
    """
    found = []
    given = names_of(models) or list(plan.models)
    found += [f"--models {name}: the plan has {', '.join(plan.models)}" for name in given if name not in plan.models]
    known = {str(seed): seed for seed in plan.seeds}
    asked = names_of(seeds) or list(known)
    found += [f"--seeds {seed}: the plan has {', '.join(known)}" for seed in asked if seed not in known]
    raise_all(found)
    return given, [known[seed] for seed in asked]


def place_of(stage: str, plan: Plan, file: Path, quick: bool, output: Path) -> tuple[Place, str]:
    """Model and seed of a stage, and what is behind them in its name.

    Raises:
        UserError: for a name that is none of the plan's.
    """
    model, _, rest = stage.partition("/seed-")
    seed, _, name = rest.partition("/")
    if model not in plan.models or seed not in map(str, plan.seeds) or not name:
        raise UserError(
            f"--only {stage!r} must be MODEL/seed-SEED/NAME, such as {next(iter(plan.models))}/seed-0/paths"
        )
    return Place(plan, file, quick, output, model, int(seed)), name


if __name__ == "__main__":
    run_command(main)
