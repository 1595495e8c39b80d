"""The routes of a menu: what its SPEC (`routing.search.menu`) asks for, from a model, validation questions or labels.

A menu is made once for a label folder, and then read from its header.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from tqdm import tqdm

from routing.errors import UserError
from routing.files import sha256
from routing.labels.reading import LABELS, read_labels
from routing.path_scoring import INFLUENCE_BATCH, PathEvaluator
from routing.pruning.methods import influence_order
from routing.pruning.verdicts import verdicts_along
from routing.scoring import Request
from routing.search.baselines import static_path
from routing.search.exploration import score_of
from routing.search.menu import FromFile, Nested, Pooled, Source, joined, nested_routes, parse_spec, read_routes
from routing.search.routes import SKIP, Route, full_route, route_length, to_route

Rewards = Callable[[list[Route]], Sequence[float]]


def make_menu(
    sources: Sequence[Source], depth: int, kept: int, order: Callable[[], Sequence[int]], rewards: Rewards
) -> tuple[Route, ...]:
    """The routes of a menu, the full one first.

    Args:
        sources: of `parse_spec`.
        depth: L.
        kept: layers at the beginning that no nested and no pooled path changes.
        order: all layers, those of least influence first; called if it is needed.
        rewards: mean reward of the validation questions along each of some routes; called if it is needed.

    Raises:
        UserError: if labels are damaged or give too few paths.
    """
    found: dict[Source, list[Route]] = {}
    # What needs no model first: it can be refused before one is loaded.
    for source in sorted(sources, key=lambda source: isinstance(source, Nested)):
        if isinstance(source, FromFile):
            found[source] = read_routes(source.path, depth)
        elif isinstance(source, Pooled):
            found[source] = pooled_paths(source, depth, kept)
        else:
            found[source] = nested_paths(source, depth, [layer for layer in order() if layer >= kept], rewards)
    return joined(depth, (route for source in sources for route in found[source]))


def nested_paths(source: Nested, depth: int, order: Sequence[int], rewards: Rewards) -> list[Route]:
    """Nested paths; between layers without which the reward is the same, the one of least influence goes first."""
    if source.order == "greedy":
        steps = [full_route(depth), *(step.route for step in static_path(depth, rewards, max(source.skips), order))]
        return [steps[count] for count in source.skips]
    return nested_routes(order, source.skips, depth)


def pooled_paths(source: Pooled, depth: int, kept: int) -> list[Route]:
    """Paths that searches tried, chosen by how many questions they serve beside the one they were found on.

    A path is found on the first question that it answers rightly, in the order of the folders and their lines. That
    verdict is why it is in the pool, so it says nothing about others, and does not count. The full path is no part of
    the pool, nor are paths that change the first `kept` layers.

    Raises:
        UserError: if the labels are damaged, or fewer paths than wanted serve another question.
    """
    found_on: dict[Route, str] = {}
    served: dict[Route, set[str]] = {}
    for folder in source.folders:
        for record in read_labels(folder):
            for entry in record["tried"]:
                route = to_route(entry["path"], depth)
                if entry["correct"] and found_on.setdefault(route, record["id"]) != record["id"]:
                    served.setdefault(route, set()).add(record["id"])
    full = full_route(depth)
    candidates = {r: ids for r, ids in served.items() if r != full and r[:kept] == full[:kept]}
    chosen = most_serving(candidates, source.count)
    if len(chosen) < source.count:
        raise UserError(
            f"--menu labels: {len(chosen)} paths of {', '.join(map(str, source.folders))} serve a question beside the "
            f"one that they were found on and keep the first {kept} layers, and {source.count} were asked for; ask for "
            "fewer, or give more labels"
        )
    return chosen


def most_serving(served: dict[Route, set[str]], count: int) -> list[Route]:
    """Up to `count` routes, the next one always that which serves most questions that those before it do not.

    Between equals the one that serves more in all goes first, then the shorter, then the first. Once every question is
    served, all of them count again.

    Args:
        served: questions that each route serves, at least one.
    """
    left, chosen = dict(served), []
    open_questions: set[str] = set()
    while left and len(chosen) < count:
        if not any(ids & open_questions for ids in left.values()):
            open_questions = set().union(*left.values())
        best = max(left, key=lambda route: (len(left[route] & open_questions), len(left[route]), -route_length(route)))
        open_questions -= left.pop(best)
        chosen.append(best)
    return chosen


@dataclass
class MenuQuestions:
    """What a model says of questions, for the nested paths of a menu; the model is loaded when it is first asked.

    Args:
        model: loads a Routed...ForCausalLM.
        tokenizer: its tokenizer.
        questions: requests of a split: search for the influence of layers, validation for rewards.
        folder: where the verdicts of greedy steps are kept as they are made, so that a rerun goes on.
        score: of generated answers, the reward; None: 1 or 0 by the checker.
        key: what the verdicts depend on besides model, questions and score.
    """

    model: Callable
    tokenizer: object
    questions: Callable[[str], list[Request]]
    folder: Path
    batch_size: int
    score: str | None
    key: object

    @cached_property
    def _order(self) -> list[int]:
        evaluator = PathEvaluator(self.model(), self.tokenizer, self.batch_size)
        return influence_order(influences(evaluator, self.questions("search")))

    @cached_property
    def _validation(self) -> list[Request]:
        return self.questions("validation")

    def order(self) -> list[int]:
        """All layers, those of least influence first."""
        return self._order

    def rewards(self, routes: list[Route]) -> list[float]:
        """Mean reward of the validation questions along each route; all skip equally many layers."""
        requests, model, skipped = self._validation, self.model(), routes[0].count(SKIP)
        tqdm.write(f"menu, greedy: one of {len(routes)} layers is to be number {skipped} to go", file=sys.stderr)
        verdicts = verdicts_along(
            model, self.tokenizer, requests, [[route] * len(requests) for route in routes], model.config.skip_action,
            self.batch_size, self.score, self.folder / f"greedy-{skipped:03d}", self.key,
        )  # fmt: skip
        return [math.fsum(map(score_of, line)) / len(line) for line in verdicts]


def influences(evaluator: PathEvaluator, requests: Sequence[Request]) -> list[list[float]]:
    """Block influence of each layer on the prompt of each request, [N][L]."""
    found = []
    for start in tqdm(range(0, len(requests), INFLUENCE_BATCH), desc="menu, influence of layers", unit="batch"):
        part = requests[start : start + INFLUENCE_BATCH]
        evaluator.prepare(part)
        found += evaluator.influence(part)
        evaluator.release()
    return found


def menu_hashes(spec: str) -> dict[str, str]:
    """SHA-256 of each file that a SPEC names: those of paths, and of labels."""
    files = []
    for source in parse_spec(spec):
        if isinstance(source, FromFile):
            files.append(source.path)
        elif isinstance(source, Pooled):
            files += [folder / LABELS for folder in source.folders]
    return {str(path): sha256(path) for path in files}
