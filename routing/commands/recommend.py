"""Which method of a study to take for a wanted loss, and the commands that make it.

    python -m routing recommend studies/first --max_loss 0.01
    python -m routing recommend studies/first --max_loss 0.02 --task choices --by layers

Of all methods whose accuracy is, with 95 % confidence (one-sided, each for itself), at most --max_loss below the full
model's on test questions of all seeds, the one of least measured time is taken; --by layers or flops takes the one of
least of these. The hindsight oracle is no method, and a method that costs no less than the full model is none either.
Many are looked at, so of methods that are equal the luckiest is told: ask new questions before you rely on its bound.
"""

from __future__ import annotations

from pathlib import Path

from routing.common.errors import UserError, raise_all, run_command
from routing.common.parser import Parser
from routing.common.user_files import read_json

BY = ("seconds", "layers", "flops")


def main(argv: list[str] | None = None) -> None:
    parser = Parser(prog="dlr recommend", description=__doc__)
    parser.add_argument("study", help="folder of a study, or its study.json")
    parser.add_argument("--max_loss", type=float, required=True, help="accuracy that may be lost, 0 to below 1")
    parser.add_argument("--task", default="all", help="a task of the study, or all")
    parser.add_argument("--model", default="", help="a model of the study; default its only one")
    parser.add_argument("--by", default="seconds", choices=BY, help="what is to be least")
    arguments = parser.parse_args(argv)
    if not 0 <= arguments.max_loss < 1:
        raise UserError(f"--max_loss {arguments.max_loss} must lie between 0 and 1, such as 0.01 for one point")
    study = read_study(Path(arguments.study))
    model, task = asked(study["rows"], arguments.model, arguments.task)
    from routing.commands.work.recommend import run

    run(study, model, task, arguments)


def read_study(path: Path) -> dict:
    """A study.json.

    Raises:
        UserError: if there is none, or it is none.
    """
    path = path / "study.json" if path.is_dir() else path
    try:
        study = read_json(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}); give the folder that dlr study wrote") from error
    if not isinstance(study, dict) or not isinstance(study.get("rows"), list) or not study["rows"]:
        raise UserError(f"{path} holds no rows of a study; give the folder that dlr study wrote")
    return study


def asked(rows: list[dict], model: str, task: str) -> tuple[str, str]:
    """Model and task that rows are to be of.

    Raises:
        UserError: for some that the study does not have.
    """
    models = list(dict.fromkeys(row["model"] for row in rows))
    tasks = list(dict.fromkeys(row["task"] for row in rows if row["accuracy"] is not None))
    found = []
    if model and model not in models:
        found.append(f"--model {model}: the study has {', '.join(models)}")
    if not model and len(models) > 1:
        found.append(f"--model is missing: the study has {', '.join(models)}")
    if task == "all" and len(tasks) == 1:
        task = tasks[0]
    if task not in tasks:
        found.append(f"--task {task}: the study has {', '.join(tasks)}")
    raise_all(found)
    return model or models[0], task


if __name__ == "__main__":
    run_command(main)
