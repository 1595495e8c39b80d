"""One way to answer a task (base, routed, a control), and what came of it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object
from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager

from routing.common.files import write_json
from routing.common.run_info import git_commit, today, versions
from routing.common.statistics import wilson_interval
from routing.evaluation.flops import Flops
from routing.evaluation.lm import Key, PromptRoutedLM, Row
from routing.evaluation.tasks import accuracy_of
from routing.scoring.controls import drawn_like, like_route
from routing.search.routes import Route


@dataclass
class TaskResult:
    """One method on one task.

    Attributes:
        correct: verdict of each question, by its index in the task.
        rows: what was executed for each request.
        seconds: time inside the model, summed over processes.
        gflops: estimated operations an input, in billions.
        date: when it was measured.
        versions, git_commit: what it was made with.
    """

    correct: dict[int, bool]
    rows: dict[Key, Row]
    seconds: float
    gflops: float
    date: str
    versions: dict[str, str] = field(default_factory=dict)
    git_commit: str | None = None

    @property
    def routes(self) -> list[Route]:
        """Executed routes, one a request."""
        return [row.route for row in self.rows.values() if row.route is not None]


@dataclass(frozen=True)
class Settings:
    """How lm-eval asks."""

    limit: int | None = None
    num_fewshot: int | None = None
    apply_chat_template: bool = False
    system_instruction: str | None = None


def evaluate(
    model: PromptRoutedLM,
    task: str,
    manager: TaskManager,
    settings: Settings,
    forced: Callable[[Key], Route] | None = None,
) -> TaskResult:
    """One method on one single task (see `members`), over all processes; all of them get the result."""
    model.start(forced)
    output = simple_evaluate(
        model=model, tasks=[task], task_manager=manager, bootstrap_iters=0, log_samples=True, **vars(settings)
    )
    correct: dict[int, bool] = {}
    # A task with several filters gives several samples a question; the first filter counts.
    for sample in output["samples"][task] if output else ():
        correct.setdefault(sample["doc_id"], accuracy_of(task, sample))
    parts = gather_object([(model.rows, model.seconds)])
    rows = dict(sorted(pair for part, _ in parts for pair in part.items()))
    generates = manager.load(task)["tasks"][task].OUTPUT_TYPE == "generate_until"
    flops = Flops(model.model, all_logits=not generates)
    decided = model.routed and forced is None and not model.model.config.is_static_routing
    total = sum(flops.of(row, decided) for row in rows.values())
    seconds = sum(seconds for _, seconds in parts)
    made_with = today(), versions(), git_commit()
    return TaskResult(dict(sorted(of_first(correct).items())), rows, seconds, total / len(rows) / 1e9, *made_with)


def of_first(value):
    """The value of the first process, in all of them."""
    return broadcast_object_list([value])[0]


def stored(path: Path, key: dict, make: Callable[[], TaskResult]) -> TaskResult:
    """The result in a file, if it was made with the same key; else made, and written by the first process."""
    found = None
    if PartialState().is_main_process and path.exists():
        saved = json.loads(path.read_text(encoding="utf-8"))
        if saved["key"] == json.loads(json.dumps(key)):
            found = saved["result"]
    if (found := of_first(found)) is not None:
        return TaskResult(
            {int(question): right for question, right in found["correct"].items()},
            {Key(*request): Row(route and tuple(route), *tokens) for request, route, *tokens in found["rows"]},
            found["seconds"],
            found["gflops"],
            found["date"],
            found["versions"],
            found["git_commit"],
        )
    result = make()
    if PartialState().is_main_process:
        rows = [[key, *row] for key, row in result.rows.items()]
        write_json(path, {"key": key, "result": vars(result) | {"rows": rows}})
    return result


def random_of(routed: TaskResult, seed: int, first: int) -> Callable[[Key], Route]:
    """Random routes as long as those of the routed model; the choices of a question share theirs.

    Args:
        first: layers at the start that run in any case.
    """

    def route(key: Key) -> Route:
        own = routed.rows[key].route
        return like_route(own, Random(f"{seed}/{key.question}"), first)

    return route


def drawn_of(routed: TaskResult, seed: int) -> Callable[[Key], Route]:
    """The routes of the routed model, dealt out to the questions at random: as often each, whatever is asked."""
    choices: dict[int, tuple[int, ...]] = {}
    for key in routed.rows:
        choices[key.question] = (*choices.get(key.question, ()), key.choice)
    alike: dict[tuple[int, ...], list[int]] = {}
    for question, requests in sorted(choices.items()):  # Only questions of as many requests change places.
        alike.setdefault(requests, []).append(question)
    source = {}
    for number, questions in enumerate(alike.values()):
        source |= dict(zip(questions, drawn_like(questions, seed + number), strict=True))
    return lambda key: routed.rows[Key(source[key.question], key.choice)].route


def summary(result: TaskResult, depth: int) -> dict:
    """Accuracy, its interval, layers and operations an input, and seconds."""
    right = sum(result.correct.values())
    return {
        "accuracy": right / len(result.correct),
        "ci95": wilson_interval(right, len(result.correct)),
        "layers": sum(map(sum, result.routes)) / len(result.routes) if result.routes else float(depth),
        "gflops": result.gflops,
        "seconds": result.seconds,
        "inputs": len(result.rows),
    }


def route_facts(routes: list[Route]) -> dict:
    """Shares of (input, layer) pairs, of inputs with another route than the identity, and inputs by layers.

    Where each token has a route of its own, an input's route holds the share of its tokens that ran each layer; these
    are averaged, and its layers rounded for the histogram.
    """
    counts = [count for route in routes for count in route]
    skip, repeat = (sum(max(sign * (1 - count), 0) for count in counts) / len(counts) for sign in (1, -1))
    return {
        "route_share": {"skip": skip, "run": 1 - skip - repeat, "repeat": repeat},
        "rerouted": sum(set(route) != {1} for route in routes) / len(routes),
        "layers_histogram": {str(n): count for n, count in sorted(Counter(round(sum(r)) for r in routes).items())},
        "routes": [list(route) for route in routes],
    }
