"""lm-eval's tasks by name, and what counts as a right answer of one."""

from __future__ import annotations

from functools import cache

from lm_eval.tasks import TaskManager

from routing.common.errors import UserError
from routing.evaluation.task_names import CONFIGS, unknown_task

METRICS = ("acc", "exact_match", "exact")  # of a question: right or wrong
OUTPUT_TYPES = ("multiple_choice", "loglikelihood", "generate_until")


@cache
def task_manager(model: str = "", all_of_them: bool = True) -> TaskManager:
    """The tasks of eval_configs/, with lm-eval's beside them or without: it parses 14,000 files for their names.

    Args:
        model: folder or name of the model, by whose tokenizer the limits of new tokens go, as stock lm_eval tells it.
    """
    metadata = {"pretrained": model} if model else None
    return TaskManager(include_path=str(CONFIGS), include_defaults=all_of_them, metadata=metadata)


def check_tasks(names: list[str], model: str = "") -> TaskManager:
    """A manager that knows the tasks of some names: of this project's alone where it has them all.

    Args:
        model: see `task_manager`.

    Raises:
        UserError: naming tasks that do not exist.
    """
    manager = task_manager(model, False)
    if not {*names} <= {*manager.all_tasks}:
        manager = task_manager(model)
    if unknown := [name for name in names if name not in manager.all_tasks]:
        raise UserError(unknown_task(unknown))
    return manager


def members(names: list[str], manager: TaskManager) -> list[str]:
    """Names of single tasks, groups resolved, each once. Loads their questions.

    Raises:
        UserError: if the questions cannot be had, or a task has no questions that are answered right or wrong.
    """
    kinds: dict[str, str] = {}
    metrics: dict[str, list[str]] = {}
    try:
        for given in names:  # One by one: a task may be named beside a group that it is in.
            found = manager.load(given)["tasks"]
            kinds |= {name: task.OUTPUT_TYPE for name, task in found.items()}
            metrics |= {name: list(task.aggregation()) for name, task in found.items()}
    except OSError as error:
        raise UserError(
            f"the questions of {', '.join(names)} cannot be loaded ({error}). Without hub access use the routed_ tasks "
            "of eval_configs/."
        ) from error
    if others := [f"{name} ({kind})" for name, kind in kinds.items() if kind not in OUTPUT_TYPES]:
        raise UserError(f"{', '.join(others)}: no right or wrong answers that can be paired. Use stock lm_eval for it.")
    if unpaired := [f"{name} ({', '.join(own)})" for name, own in metrics.items() if not {*METRICS} & {*own}]:
        raise UserError(
            f"{', '.join(unpaired)}: none of its metrics is a plain right or wrong ({', '.join(METRICS)}), so the "
            "answers of two models cannot be paired. Use stock lm_eval for it."
        )
    return list(kinds)


def accuracy_of(task: str, sample: dict) -> bool:
    """Whether a sample counts as right, by the first accuracy-like metric the task reports."""
    for metric in METRICS:
        if metric in sample and sample[metric] in (0, 1, 100):
            return bool(sample[metric])
    raise UserError(
        f"task {task!r} gives a question no plain right or wrong (acc or exact match), so the answers of two models "
        "cannot be paired. Evaluate it with stock lm_eval."
    )
