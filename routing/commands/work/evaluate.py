"""What evaluation.py does: lm-eval of a checkpoint and its controls, with table, page and card."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from accelerate import PartialState

from routing.common.errors import UserError, raise_all
from routing.common.files import write_json
from routing.evaluation.arguments import EvaluationArguments
from routing.evaluation.comparison import Comparison
from routing.evaluation.merging import merged
from routing.evaluation.tasks import check_tasks, members
from routing.models.checkpoint_files import training_record
from routing.report.card import write_model_card
from routing.report.html import write_html
from routing.report.words import print_table


def read_json(path: Path) -> list[dict]:
    """Results of earlier calls; none where the file is no such list."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    return found if isinstance(found, list) else []


def run(arguments: EvaluationArguments) -> None:
    names = arguments.task_names()
    manager = check_tasks(names, arguments.checkpoint)
    tasks = members(names, manager)
    comparison = Comparison(arguments, training_record(Path(arguments.checkpoint)))
    if arguments.check:
        sys.exit(0 if comparison.check(tasks[0], manager) else 1)
    results, problems = read_json(comparison.output), []
    for task in tasks:
        try:
            found = comparison.run(task, manager)
        except UserError as error:  # The tasks behind it are not to suffer.
            if PartialState().num_processes > 1:
                raise  # It may be this process's alone, and the others wait for it within this task.
            problems.append(f"{task}: {error}")
            continue
        results = merged(results, found)
        if PartialState().is_main_process:  # After every task: a later one may fail.
            write_json(comparison.output, results)
    if not PartialState().is_main_process or not results:
        raise_all(problems)
        return
    page = comparison.output.with_suffix(".html")
    write_html(results, page)
    print_table([result for result in results if result["task"] in tasks])
    card = write_model_card(Path(arguments.checkpoint), results)
    print(f"written to {comparison.output}, {page}" + (f" and {card}" if card else ""))
    raise_all(problems)
