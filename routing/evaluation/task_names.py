"""Names of evaluation tasks, looked for in the files of their makers; lm-eval would parse its 14,000 for them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

CONFIGS = Path(__file__).resolve().parents[2] / "eval_configs"


def unknown_task(names: list[str]) -> str:
    """What is wrong with names of which there is no task."""
    return (
        f"unknown task {', '.join(names)}. Tasks of this project: "
        f"{', '.join(sorted(path.stem for path in CONFIGS.glob('[!_]*.yaml')))}; lm_eval ls tasks lists the others."
    )


def task_problems(names: list[str]) -> list[str]:
    """What is wrong with names that no file mentions, neither this project's nor lm-eval's. Of those that a file
    mentions lm-eval says whether they are tasks, see `routing.evaluation.tasks.check_tasks`."""
    unseen = set(names)
    for text in _texts():
        if not unseen:
            return []
        unseen -= {name for name in unseen if name.encode() in text}
    return [unknown_task([name for name in names if name in unseen])]


def _texts() -> Iterator[bytes]:
    for folder in (str(CONFIGS), *(f"{place}/tasks" for place in find_spec("lm_eval").submodule_search_locations)):
        for place, _, files in os.walk(folder):
            for name in files:
                if name.endswith(".yaml"):
                    yield Path(place, name).read_bytes()
