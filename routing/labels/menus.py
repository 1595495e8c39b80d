"""The routes of a menu: what its SPEC (`routing.search.menu`) asks for, from a model, validation questions or labels.

A menu is made once for a label folder, and then read from its header.
"""

from __future__ import annotations

import hashlib
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from random import Random

from tqdm import tqdm

from routing.common.errors import UserError
from routing.common.files import sha256
from routing.common.keyed import judging
from routing.labels.reading import LABELS, read_labels
from routing.scoring.along import verdicts_along
from routing.scoring.divergence import AnswerDivergence, Remembered, answers_of, greedy_order
from routing.scoring.packed import INFLUENCE_BATCH, PathEvaluator
from routing.scoring.requests import Request
from routing.search.baselines import static_path
from routing.search.exploration import score_of
from routing.search.influence import influence_order
from routing.search.menu import FromFile, Given, Nested, Pooled, Source, given_routes, joined, nested_routes, parse_spec
from routing.search.routes import RUN, SKIP, Route, full_route, route_length, to_route

ANSWERS = 64  # questions whose answers tell the divergence, over all data sets

Rewards = Callable[[list[Route]], Sequence[float]]


def make_menu(
    sources: Sequence[Source],
    depth: int,
    kept: int,
    order: Callable[[], Sequence[int]],
    rewards: Rewards,
    diverging: Callable[[Sequence[int], int, bool], Sequence[Sequence[int]]],
) -> tuple[Route, ...]:
    """The routes of a menu, the full one first.

    Args:
        sources: of `parse_spec`.
        depth: L.
        kept: layers at the beginning that no nested and no pooled path changes.
        order: all layers, those of least influence first; called if it is needed.
        rewards: mean reward of the validation questions along each of some routes; called if it is needed.
        diverging: so many of some layers in the order of `greedy_order`, of all questions or of each data set; called
            if it is needed.

    Raises:
        UserError: if labels are damaged or give too few paths.
    """
    found: dict[Source, list[Route]] = {}
    # What needs no model first: it can be refused before one is loaded.
    for source in sorted(sources, key=lambda source: isinstance(source, Nested)):
        if isinstance(source, FromFile | Given):
            found[source] = given_routes(source, depth)
        elif isinstance(source, Pooled):
            found[source] = pooled_paths(source, depth, kept)
        else:
            found[source] = nested_paths(source, depth, kept, order, rewards, diverging)
    return joined(depth, (route for source in sources for route in found[source]))


def nested_paths(source: Nested, depth: int, kept: int, order, rewards: Rewards, diverging) -> list[Route]:
    """Nested paths; between layers without which the reward is the same, the one of least influence goes first."""
    most = max(source.skips)
    if source.order.startswith("divergence"):
        orders = diverging(range(kept, depth), most, source.order == "divergence-each")
        return [route for found in orders for route in nested_routes(found, source.skips, depth)]
    influential = [layer for layer in order() if layer >= kept]
    if source.order == "greedy":
        steps = [full_route(depth), *(step.route for step in static_path(depth, rewards, most, influential))]
        return [steps[count] for count in source.skips]
    return nested_routes(influential, source.skips, depth)


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
        questions: requests of a split: search for influence and divergence, validation for rewards.
        folder: where what greedy steps and divergences were measured to be is kept, so that a rerun goes on.
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

    def diverging(self, layers: Sequence[int], count: int, each: bool) -> list[list[int]]:
        """So many of some layers, the one first without which the model stays nearest to its own answers.

        Args:
            each: one order for each data set, in order of their names, in place of one of all.
        """
        requests = self.questions("search")
        if not each:
            return [self._diverging(layers, count, requests, "")]
        names = sorted({request.example.dataset for request in requests})
        groups = {name: [request for request in requests if request.example.dataset == name] for name in names}
        return [self._diverging(layers, count, group, name) for name, group in groups.items()]

    def _diverging(self, layers: Sequence[int], count: int, requests: list[Request], name: str) -> list[int]:
        requests = [requests[at] for at in sorted(Random(0).sample(range(len(requests)), min(ANSWERS, len(requests))))]

        def make():
            model, depth = self.model(), self.model().config.num_hidden_layers
            answers = answers_of(model, self.tokenizer, requests, self.batch_size)
            if not any(answer.has_tokens for answer in answers):
                raise UserError(
                    f"--menu divergence: the model answers none of {len(requests)} questions with a token, so nothing "
                    "can diverge; give --menu influence, or questions that it answers"
                )
            measured = AnswerDivergence(model, answers)

            def divergence_without(gone: frozenset[int]) -> float:
                found = measured(tuple(SKIP if layer in gone else RUN for layer in range(depth)))
                if not math.isfinite(found):
                    layers = ", ".join(map(str, sorted(gone)))
                    raise UserError(
                        f"--menu divergence: it is {found} without layers {layers}, so {model.dtype} overflows; give "
                        "--dtype bfloat16 or float32"
                    )
                return found

            return divergence_without

        key = [self.key, judging(), [request.key() for request in requests]]
        # A name may be the path of a file.
        kept = f"divergence-{hashlib.sha256(name.encode()).hexdigest()[:12]}.json" if name else "divergence.json"
        # About four measurements for each layer that goes, and one for each at first.
        title = f"menu, divergence on {name}" if name else "menu, divergence"
        with tqdm(total=len(layers) + 4 * count, desc=title, unit="path") as progress:
            return greedy_order(layers, count, Remembered(make, self.folder / kept, key, progress))

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
